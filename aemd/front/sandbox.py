"""A front locks itself up, before it has started a thread or read a byte from anybody.

In this order, each as far as this kernel and this user allow:

- a session of its own; descriptors up to the hard limit; a limit on memory; no core dumps;
- a network namespace of its own (unshare(2), needs CAP_SYS_ADMIN): abstract Unix names belong to it, so
  gRPC's private listening socket can be reached by nobody else. Without one, gRPC listens in a folder with
  mode 0700;
- no_new_privs, then Landlock (landlock(7), by number: there is no libc function): no file can be opened,
  made or executed, no TCP used, no process outside signalled, no abstract socket outside connected to.
  Everything that this process will ever import must be imported by now. Landlock holds for the calling
  thread and those that it starts, therefore before gRPC has any;
- if root: no capability in any set, no groups, another user (`aemd-front`, or `nobody`);
- calls that no front makes are refused (seccomp.py): it starts no process, so that with it all of it ends;
- not dumpable, so that another process of that user can neither trace it nor read its memory.

Running as one's own user (`aemd --user`) all this is a hurdle and not a boundary.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import secrets
import struct
from dataclasses import dataclass

from aemd.front import seccomp

USERS = ("aemd-front", "nobody")
SOCKET_NAME = "grpc"  # in the folder, where there must be one
RANDOM = b"/dev/urandom"  # gRPC ends the process if it cannot read it

_CLONE_NEWNET = 0x40000000
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91, "riscv64": 91}
_CAPABILITY_VERSION_3 = 0x20080522

_SYS_LANDLOCK_CREATE_RULESET = 444  # the same on every architecture
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_ACCESS_READ_FILE = 1 << 2
_ACCESS_REMOVE_FILE = 1 << 5
_ACCESS_MAKE_SOCK = 1 << 9
_ACCESS_FS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ACCESS_FS_SINCE_5 = (1 << 16) - 1
_ACCESS_NET_SINCE_4 = 3  # bind and connect of TCP
_SCOPED_SINCE_6 = 3  # abstract Unix sockets, signals

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Lodger:
    """The user that fronts of a privileged daemon run as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Cell:
    """Where gRPC is to listen, as grpc names it and as connect(2) does, and how well it is locked up."""

    address: str
    connect: bytes
    words: str


def find_lodger() -> Lodger | None:
    """The user for fronts; None if this process is not root. To be asked before files are out of reach."""
    if os.geteuid() != 0:
        return None
    for name in USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Lodger(entry.pw_uid, entry.pw_gid)
    return Lodger(65_534, 65_534)


def name_process(name: str) -> None:
    """What ps(1) shows; at most 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def enter(folder: bytes, lodger: Lodger | None, *, data_bytes: int) -> Cell:
    """Lock this process up for good. `folder` is made only if it is needed; if it is empty, nothing is.

    `data_bytes`: RLIMIT_DATA of getrlimit(2), unless a lower one is there; who needs more than that ends.

    OSError if it cannot become `lodger`: then it must not serve.
    """
    os.setsid()
    os.umask(0o077)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_data(data_bytes)
    alone = os.geteuid() == 0 and _libc.unshare(_CLONE_NEWNET) == 0
    if alone:
        os.chdir("/")
    elif not folder:
        raise PermissionError("unshare: no network namespace, and no folder instead")
    else:
        os.mkdir(folder, 0o700)
        if lodger is not None:
            os.chown(folder, lodger.uid, lodger.gid)
        os.chdir(folder)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    landlock = _restrict_files(None if alone else folder)
    if lodger is not None:
        become(lodger)
    _drop_capabilities()
    _prctl(_PR_SET_DUMPABLE, 0)
    filtered = "yes" if seccomp.install() else "no"
    words = f"uid={os.geteuid()} netns={'own' if alone else 'shared'} landlock={landlock} seccomp={filtered}"
    if alone:
        name = f"aemd-{secrets.token_hex(16)}"
        return Cell(f"unix-abstract:{name}", b"\0" + name.encode(), words)
    # Relative: the path of the folder may be longer than a socket's may be.
    return Cell(f"unix:{SOCKET_NAME}", SOCKET_NAME.encode(), words)


def _limit_data(size_bytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        size_bytes = min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size_bytes, size_bytes))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl({option})")


def become(lodger: Lodger) -> None:
    """Be that user for good, without any capability."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # EINVAL: the kernel has no more; EPERM: we have no right to, and nothing to drop
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    os.setgroups([])
    os.setresgid(lodger.gid, lodger.gid, lodger.gid)
    os.setresuid(lodger.uid, lodger.uid, lodger.uid)
    if os.getresuid() != (lodger.uid,) * 3 or os.getgroups():
        raise PermissionError("this process is still somebody else")


def _drop_capabilities() -> None:
    """Also of a process that is not root but was given some; capset(2)."""
    number = _SYS_CAPSET.get(os.uname().machine)
    if number is None:
        return
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.syscall(number, header, bytes(24)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "capset")


def _restrict_files(folder: bytes | None) -> int:
    """Landlock: of all files only RANDOM and sockets in `folder`. Returns the ABI in use, 0: none."""
    abi: int = _libc.syscall(
        _SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    if abi < 1:
        return 0
    attributes = struct.pack("=Q", _ACCESS_FS.get(abi, _ACCESS_FS_SINCE_5))
    if abi >= 4:
        attributes += struct.pack("=Q", _ACCESS_NET_SINCE_4)
    if abi >= 6:
        attributes += struct.pack("=Q", _SCOPED_SINCE_6)
    ruleset = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return 0
    try:
        _allow(ruleset, RANDOM, _ACCESS_READ_FILE)
        if folder is not None:
            _allow(ruleset, folder, _ACCESS_MAKE_SOCK | _ACCESS_REMOVE_FILE)
        return 0 if _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0) else abi
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: bytes, access: int) -> None:
    """Allow `access` beneath a path, or to the very file."""
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", access, beneath)
    try:
        if _libc.syscall(_SYS_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "landlock_add_rule")
    finally:
        os.close(beneath)
