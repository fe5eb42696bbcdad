"""How a process of root becomes the caller: for good, and without a moment in which it is both.

What is needed is a process that the kernel cannot tell from one of the caller's own when it looks at a
path, and that gives the caller nothing which it has not got. setfsuid(2) is not enough: it keeps
capabilities (all but those of the file system), the real uid stays 0, and FUSE and NFS look at more than
the fsuid. So all three uids and gids change, in a process that does one thing and exits.

What a path means depends on the caller's root directory and mount namespace too. `/proc/PID/root` opened with
O_PATH is both: a lookup that begins there sees the mounts of the namespace that the caller lives in, and
chroot(2) into it makes absolute symbolic links and `..` mean what they mean to the caller. /proc/PID counts
only if the pidfd says afterwards that the caller still lives: then the pid was nobody else's meanwhile. No
namespace is joined: setns(2) would need rights there, and would put a process of ours into a container.

The caller's other processes are of the same uid, and must gain nothing from this one:

- ptrace(2), /proc/PID/mem, process_vm_readv(2), pidfd_getfd(2): a process that is not dumpable is out of
  reach. A change of uid resets "dumpable" to fs.suid_dumpable, which may be 1. So permitted capabilities are
  kept over the change (PR_SET_KEEPCAPS): nobody may trace who has more of them than himself, and they go only
  when "not dumpable" holds.
- kill(2): the caller may stop or kill it. Then this request fails, or runs out of its time, and that is all.
- RLIMIT_NPROC: it counts as a process of the caller's while it lives. setresuid(2) does not fail over that
  (Linux 3.1), and there are never more than the `children` of the user's quota. Its own limit is 0: it cannot
  fork.
- Descriptors: it has none but what the request needs. RLIMIT_NOFILE stays as it is: sendmsg(2) compares it
  with all that the user has in flight anywhere (ETOOMANYREFS), not with what this process has open.

What stays: the security label (SELinux, AppArmor) is the daemon's, and a Landlock or seccomp sandbox that the
caller is in does not hold here; there is no system call to enter another's.

The administrator's rights to override permissions (CAP_DAC_OVERRIDE and its like) are left to it, as far as
the caller has them now, /proc/PID/status, CapEff. Root of a container acts without them.

A daemon that is not root (`aemd --user`) has one uid, which is its callers'. It cannot chroot(2), so a caller
that lives under another root is refused.

man: capabilities(7), credentials(7), prctl(2), ptrace(2) "Ptrace access mode checking", path_resolution(7),
proc(5), chroot(2).
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from aemd.deputy.protocol import Fault

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91, "riscv64": 91}
_SYS_CAPGET = {machine: number - 1 for machine, number in _SYS_CAPSET.items()}
_CAPABILITY_VERSION_3 = 0x20080522

_CAP_SETPCAP = 1 << 8
_CAP_SYS_CHROOT = 1 << 18
CAPABLE = 1 << 1 | 1 << 2 | 1 << 3  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER

CPU_SECONDS = 10
UMASK_DEFAULT = 0o022  # where the caller's cannot be read
LOOKING = (  # resource, what there is of it, and what it can be raised to
    (resource.RLIMIT_CORE, 0, 0),
    (resource.RLIMIT_NPROC, 0, 0),
    (resource.RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS),
)

_libc = ctypes.CDLL(None, use_errno=True)


class FaultError(Exception):
    """It cannot be done, for a reason that has no errno."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.name)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a process lives: its root directory (O_PATH), umask and effective capabilities."""

    root: int
    umask: int = UMASK_DEFAULT
    capabilities: int = 0


def name_process(name: str) -> None:
    """What ps(1) shows; at most 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def look_at(pid: int, pidfd: int) -> Caller:
    """The caller of that pid and pidfd. FaultError GONE if it has exited, OSError if it is out of reach."""
    folder = f"/proc/{pid}"
    try:
        root = os.open(f"{folder}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with open(f"{folder}/status", "rb") as file:
            status = file.read()
        elsewhere = os.geteuid() != 0 and _place(folder, root) != _place("/proc/self", None)
    except (FileNotFoundError, ProcessLookupError):
        raise FaultError(Fault.GONE) from None
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(0):
        raise FaultError(Fault.GONE)
    if elsewhere:
        raise FaultError(Fault.ELSEWHERE)
    return parse_status(root, status)


def machine_root() -> int | None:
    """The root directory (O_PATH) where the users of this machine live: that of PID 1. A service may have
    been given another one. None: it is this process's own, or that is all that there is.
    """
    try:
        if os.geteuid() != 0 or os.stat("/proc/1/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            return None
        return os.open("/proc/1/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def is_at_home(pid: int, root: int) -> bool:
    """Whether a process has the root directory and the mount namespace of the machine's users."""
    own = machine_root()
    if own is None:
        return _place(f"/proc/{pid}", root) == _place("/proc/self", None)
    try:
        return _place(f"/proc/{pid}", root) == _place("/proc/1", own)
    finally:
        os.close(own)


def _place(folder: str, root: int | None) -> tuple[int, int, int]:
    """Root directory and mount namespace of a process, to be compared."""
    found = os.stat("/") if root is None else os.stat(root)
    return found.st_dev, found.st_ino, os.stat(f"{folder}/ns/mnt").st_ino


def parse_status(root: int, status: bytes) -> Caller:
    """What of a /proc/PID/status matters here. The name of the program cannot hold a newline there."""
    fields = dict(line.partition(b":")[::2] for line in status.splitlines())
    try:
        umask = int(fields[b"Umask"], 8)
    except (KeyError, ValueError):
        umask = UMASK_DEFAULT
    try:
        capabilities = int(fields[b"CapEff"], 16)
    except (KeyError, ValueError):
        capabilities = 0
    return Caller(root, umask, capabilities)


def become(
    uid: int,
    gid: int,
    groups: tuple[int, ...],
    *,
    root: int | None,
    capabilities: int = 0,
    limits: Sequence[tuple[int, int, int]] = LOOKING,
    handed_on: bool = False,
) -> None:
    """Be that user below that root, now and for ever. `capabilities`: which of CAPABLE are kept, and with
    `handed_on` also by a program that is executed.

    OSError or FaultError if it does not work: then this process must do nothing more.
    """
    for limit, soft, hard in limits:
        most = resource.getrlimit(limit)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(limit, (soft, hard))
    if os.geteuid() != 0:
        _stay(uid)
        return
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change, which clears it
    capabilities &= CAPABLE & _permitted()
    inherited = capabilities if handed_on else 0
    needed = _CAP_SYS_CHROOT | _CAP_SETPCAP
    _capset(effective=needed, permitted=needed | capabilities, inheritable=inherited)
    if root is not None:
        os.fchdir(root)
        os.chroot(".")
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # EINVAL: the kernel has no more
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _capset(effective=capabilities, permitted=capabilities, inheritable=inherited)
    for capability in range(64):
        if inherited >> capability & 1:
            _ambient(capability)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or set(os.getgroups()) != set(groups):
        raise PermissionError("this process is still somebody else")


def _stay(uid: int) -> None:
    """Not root: only the daemon's own user, and what of the above still means something.

    Root that calls a user's daemon gets what that user may have, which is less.
    """
    if uid not in (0, os.geteuid()):
        raise FaultError(Fault.ANOTHER)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _capset(effective=0, permitted=0)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl({option})")


def _ambient(capability: int) -> None:
    """A program that is executed has it too, capabilities(7)."""
    if _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_CAP_AMBIENT)")


def _permitted() -> int:
    """The capabilities of this process; those of a service may be few. 0 where that is not known."""
    number = _SYS_CAPGET.get(os.uname().machine)
    data = ctypes.create_string_buffer(24)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if number is None or _libc.syscall(number, header, data):
        return 0
    _, low, _, _, high, _ = struct.unpack("=6I", data.raw)
    return int(low | high << 32)


def _capset(*, effective: int, permitted: int, inheritable: int = 0) -> None:
    """The capabilities of this process."""
    number = _SYS_CAPSET.get(os.uname().machine)
    if number is None:
        raise OSError(38, "capset(2) is not known for this machine")  # ENOSYS
    low, high = 0xFFFFFFFF, 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    data = struct.pack("=6I", *(one & low for one in sets), *(one >> high for one in sets))
    if _libc.syscall(number, header, data):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "capset")
