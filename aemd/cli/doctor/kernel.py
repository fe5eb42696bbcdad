"""What this kernel can do, by trying it.

Each check makes the very system call that the daemon makes, on objects of its own that it closes again. What
cannot be undone in this process (leaving a network namespace, ending) is tried in a child that ends with it.
No fanotify mark is ever placed: a group without marks concerns nobody.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aemd.cli.doctor.finding import Check, Finding, fail, ok, warn
from aemd.sources.pidfd import PIDFD_GET_INFO, PIDFD_INFO_BYTES, PIDFD_INFO_EXIT, parse_exit_info
from aemd.sources.timerfd import CLOCKS, TimerFd

NEEDED = (6, 1)  # of the README
CHILD_SECONDS = 10.0

SO_PEERPIDFD = 77  # <asm-generic/socket.h>; so is the next one
SO_PEERGROUPS = 59
SO_MEMINFO = 55
_SYS_OPENAT2 = 437  # these numbers are the same on every architecture
_SYS_LANDLOCK_CREATE_RULESET = 444
_RESOLVE_IN_ROOT = 0x10  # <linux/openat2.h>
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_SIGNALS = 6  # the ABI since which a front cannot even send signals
_MFD_ALLOW_SEALING = 2
_FAN_CLOEXEC, _FAN_REPORT_PIDFD = 0x1, 0x80  # <linux/fanotify.h>
_FAN_REPORT_DFID_NAME, _FAN_REPORT_TARGET_FID = 0xC00, 0x1000
_UNSHARE_NET = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os._exit(libc.unshare({flags}) and ctypes.get_errno())
"""
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


def checks() -> list[tuple[str, Check]]:
    """All of them."""
    return [
        ("kernel", release),
        ("SO_PEERPIDFD", peer_pidfd),
        ("SO_PEERGROUPS", peer_groups),
        ("pidfd", exit_status),
        ("timerfd", timers),
        ("openat2", open_in_root),
        ("Landlock", landlock),
        ("unshare", network_namespace),
        ("SO_MEMINFO", socket_drops),
        ("memfd", sealed_memory),
        ("fanotify", file_events),
        ("PSI", pressure),
        ("cgroup", control_groups),
    ]


def release() -> Finding:
    """The kernel's version."""
    text = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        return warn("kernel", f"Linux {text}, whatever that is", "aemd is made for Linux 6.1 or newer")
    if (int(found[1]), int(found[2])) < NEEDED:
        return fail("kernel", f"Linux {text}", "run Linux 6.1 or newer")
    return ok("kernel", f"Linux {text}")


def peer_pidfd() -> Finding:
    """Whether the kernel names the very process that has connected."""
    with _pair() as sock:
        try:
            os.close(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError as error:
            return warn(
                "SO_PEERPIDFD",
                f"{error.strerror}: clients are known by pid and start time only, and nothing is granted for "
                "control group and unit",
                "run Linux 6.5 or newer",
            )
    return ok("SO_PEERPIDFD", "the very process that connects is known")


def peer_groups() -> Finding:
    """Whether the kernel tells the groups of who has connected."""
    with _pair() as sock:
        size = ctypes.c_uint32(0)
        if (
            _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, None, ctypes.byref(size))
            and ctypes.get_errno() != errno.ERANGE
        ):
            return warn("SO_PEERGROUPS", _last(), "run Linux 4.13 or newer")
    return ok("SO_PEERGROUPS", "the groups of who connects are known")


def exit_status() -> Finding:
    """Whether a pidfd tells how somebody's process ended that has been reaped."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", "import os; os._exit(7)"], {})
    pidfd = -1
    try:
        pidfd = os.pidfd_open(pid)
    finally:
        os.waitpid(pid, 0)
    buffer = bytearray(PIDFD_INFO_BYTES)
    struct.pack_into("=Q", buffer, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer)
        status = parse_exit_info(buffer)
    except OSError:
        status = None
    finally:
        os.close(pidfd)
    if status is not None and os.waitstatus_to_exitcode(status) == 7:
        return ok("PIDFD_GET_INFO", "how a process ended is known, also after it was reaped")
    return warn(
        "PIDFD_GET_INFO",
        "how a process ended is known only while it is a zombie, to who may read it",
        "run Linux 6.15 or newer",
    )


def timers() -> Finding:
    """A timerfd of each clock."""
    for name, clock in CLOCKS.items():
        timer = TimerFd(clock)
        try:
            timer.set(time.clock_gettime_ns(clock) + 3_600_000_000_000)
        except OSError as error:
            return fail("timerfd", f"{name}: {error.strerror}", "module timer needs it: run another kernel")
        finally:
            timer.close()
    return ok("timerfd", ", ".join(CLOCKS))


def open_in_root() -> Finding:
    """openat2(2), with which paths are opened below another process's root."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
        opened = _libc.syscall(_SYS_OPENAT2, root, b"../..", how, ctypes.c_size_t(len(how)))
        if opened < 0:
            return warn(
                "openat2",
                f"{_last()}: paths of other namespaces cannot be opened",
                "run Linux 5.6 or newer, and let no seccomp filter forbid it",
            )
        os.close(opened)
    finally:
        os.close(root)
    return ok("openat2", "paths are opened below the root of who asks")


def landlock() -> Finding:
    """Landlock, which keeps fronts from files."""
    flags = _LANDLOCK_CREATE_RULESET_VERSION
    abi = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), flags)
    if abi < 0:
        return warn(
            "Landlock",
            f"{_last()}: a front that was taken over can open the files that its user may",
            "build the kernel with CONFIG_SECURITY_LANDLOCK, and name landlock in lsm= on its command line",
        )
    if abi < _LANDLOCK_SIGNALS:
        return warn(
            "Landlock",
            f"ABI {abi}: a front that was taken over can send signals to processes of its user",
            "run Linux 6.12 or newer",
        )
    return ok("Landlock", f"ABI {abi}")


def network_namespace() -> Finding:
    """A network namespace of its own, in which fronts listen."""
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    child = [sys.executable, "-I", "-S", "-c", _UNSHARE_NET.format(flags=flags)]
    number = subprocess.run(child, stdin=subprocess.DEVNULL, timeout=CHILD_SECONDS, check=False).returncode
    if number == 0:
        return ok("unshare", "a front has a network namespace of its own")
    if os.geteuid() != 0:
        return ok("unshare", f"not for you ({os.strerror(number)}); the system's deputy is root and may")
    return warn(
        "unshare",
        f"{os.strerror(number)}: fronts listen in a folder with mode 0700 instead of where nobody reaches",
        "give aemd-deputy.service CAP_SYS_ADMIN, and let no seccomp filter forbid unshare(2)",
    )


def socket_drops() -> Finding:
    """SO_MEMINFO, which counts what the kernel has dropped."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
        except OSError as error:
            return warn(
                "SO_MEMINFO", f"{error.strerror}: datagrams are lost without a Gap", "run Linux 4.12 or newer"
            )
    return ok("SO_MEMINFO", "datagrams that the kernel drops are counted")


def sealed_memory() -> Finding:
    """memfd_create(2) with seals."""
    memory = os.memfd_create("aemctl-doctor", os.MFD_CLOEXEC | _MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    finally:
        os.close(memory)
    return ok("memfd", "with seals")


def file_events() -> Finding:
    """Fanotify groups of the kinds that file events need."""
    kinds = {
        "names of files": _FAN_REPORT_DFID_NAME,
        "target": _FAN_REPORT_DFID_NAME | 0x200 | _FAN_REPORT_TARGET_FID,
        "pidfd": _FAN_REPORT_PIDFD,
    }
    able, unable = [], []
    for name, flags in kinds.items():
        group = _libc.fanotify_init(_FAN_CLOEXEC | flags, os.O_RDONLY | os.O_CLOEXEC)
        if group >= 0:
            os.close(group)
            able.append(name)
        else:
            unable.append(f"{name} ({_last()})")
    if not unable:
        return ok("fanotify", f"groups that report {', '.join(able)}")
    if os.geteuid() != 0:
        return ok(
            "fanotify", f"for you: {', '.join(able) or 'nothing'}; the system's deputy is root and may more"
        )
    return warn(
        "fanotify",
        f"no groups that report {', '.join(unable)}",
        "run Linux 5.17 or newer with CONFIG_FANOTIFY",
    )


def pressure() -> Finding:
    """Pressure stall information."""
    try:
        with open("/proc/pressure/cpu", encoding="ascii") as file:
            file.readline()
    except OSError as error:
        return warn(
            "PSI",
            f"{error.strerror}: pressure cannot be watched",
            "boot with psi=1 on the kernel's command line",
        )
    return ok("PSI", "pressure can be read")


def control_groups() -> Finding:
    """Which hierarchy of control groups there is."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        kinds = [line.partition(" - ")[2].split()[:1] for line in file]
    if ["cgroup2"] not in kinds:
        return warn(
            "cgroup",
            "there is no unified hierarchy: what is granted to a control group or unit is granted to nobody",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2",
        )
    if ["cgroup"] in kinds:
        return ok("cgroup", "unified, beside the first version")
    return ok("cgroup", "unified")


@contextmanager
def _pair() -> Iterator[socket.socket]:
    left, right = socket.socketpair()
    with left, right:
        yield left


def _last() -> str:
    return os.strerror(ctypes.get_errno())
