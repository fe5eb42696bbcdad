"""Limits, users, clocks and files that the daemon depends on."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import resource
import stat
import sys
from collections.abc import Iterator

from aemd import __version__
from aemd.cli.doctor.finding import Check, Finding, fail, ok, warn
from aemd.service.config import SYSTEM_STATE, service_uid

FOLDER = "/etc/aemd"
LODGER = "aemd-front"  # the user that fronts run as
DESCRIPTORS_MIN = 4_096  # below it a few hundred clients are all
SOMAXCONN_MIN = 4_096  # as many as the daemon's socket asks for
WATCHES_MIN = 65_536
FREE_SHARE_MIN = 0.05
PROBLEMS_MAX = 20  # `aemctl policy check` tells them all
UNIT_FOLDERS = (
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_STA_UNSYNC, _TIME_ERROR = 0x40, 5  # <sys/timex.h>


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),  # <sys/timex.h> has more
    )


def checks() -> list[tuple[str, Check]]:
    """All of them."""
    return [
        ("version", versions),
        ("descriptors", descriptors),
        ("somaxconn", backlog),
        ("epoll", watches),
        (f"user {LODGER}", lodger),
        ("configuration", configuration),
        ("state", state),
        ("clock", clock),
        ("units", units),
    ]


def versions() -> Finding:
    """What runs here."""
    python = ".".join(map(str, sys.version_info[:3]))
    return ok("version", f"aemctl {__version__}, Python {python} at {sys.executable}")


def descriptors() -> Finding:
    """How many descriptors a process may have that is started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"a process may have {hard}, without asking {soft}"
    if hard < DESCRIPTORS_MIN:
        return warn("descriptors", found, "LimitNOFILE= of aemd.service, or `ulimit -Hn` for aemd --user")
    return ok("descriptors", found)


def backlog() -> Finding:
    """How many connections may wait to be accepted."""
    most = int(_read("/proc/sys/net/core/somaxconn"))
    if most < SOMAXCONN_MIN:
        return warn(
            "somaxconn",
            f"{most} connections may wait to be accepted",
            f"sysctl net.core.somaxconn={SOMAXCONN_MIN}",
        )
    return ok("somaxconn", f"{most} connections may wait to be accepted")


def watches() -> Finding:
    """How many descriptors one user may have in epoll sets."""
    most = int(_read("/proc/sys/fs/epoll/max_user_watches"))
    if most < WATCHES_MIN:
        return warn(
            "epoll", f"{most} descriptors can be waited for", "sysctl fs.epoll.max_user_watches=1000000"
        )
    return ok("epoll", f"{most} descriptors can be waited for")


def lodger() -> Finding:
    """The user that fronts run as."""
    try:
        entry = pwd.getpwnam(LODGER)
    except KeyError:
        return warn(
            f"user {LODGER}",
            "there is none: fronts of the system's daemon run as nobody, whose other processes can end them",
            "`systemd-sysusers aemd.conf`, or `useradd --system --shell /usr/sbin/nologin aemd-front`",
        )
    if entry.pw_uid == 0:
        return fail(f"user {LODGER}", "its uid is 0: fronts would be root", "give it a uid of its own")
    return ok(f"user {LODGER}", f"uid {entry.pw_uid}")


def configuration(folder: str = FOLDER, uid: int = 0) -> Iterator[Finding]:
    """Whether the daemon of `uid` can use what the files of its configuration say."""
    from aemd.service.configuration import interpret
    from aemd.service.files import ConfigurationError, read
    from aemd.service.registry import installed_descriptions

    try:
        sources = read(folder, uid=uid)
        known = interpret(sources, installed_descriptions())
    except ConfigurationError as error:
        for problem in error.problems[:PROBLEMS_MAX]:
            yield _problem(str(problem))
        return
    for doubt in known.warnings:
        yield warn("configuration", str(doubt), "`aemctl policy explain` shows what follows from it")
    if sources:
        rules = len(known.policy.rules)
        yield ok("configuration", f"{folder}: {len(sources)} files, {rules} rules of policy")
    else:
        yield ok("configuration", f"there are no files in {folder}: defaults")


def _problem(text: str) -> Finding:
    if os.geteuid() != 0 and text.endswith(os.strerror(errno.EACCES)):
        return ok("configuration", f"{text}; root may look")
    return fail("configuration", text, "mend it; until then a daemon that runs keeps what it had")


def state(folder: str = SYSTEM_STATE) -> Finding:
    """Where the system's daemon keeps what outlives it."""
    try:
        status = os.stat(folder)
        room = os.statvfs(folder)
    except FileNotFoundError:
        return ok("state", f"{folder} is not there yet; the daemon makes it")
    except PermissionError:
        return ok("state", f"{folder}: not for you to see")
    if status.st_uid not in (0, service_uid()) or status.st_mode & 0o077:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        return fail(
            "state",
            f"{folder}: uid {status.st_uid}, mode {mode}: others than root and the daemon can see into it",
            f"chown root {folder}; chmod 0700 {folder}",
        )
    if room.f_bavail < room.f_blocks * FREE_SHARE_MIN:
        return warn(
            "state", f"{folder}: the disk is nearly full", "make room: histories of jobs are kept there"
        )
    return ok("state", f"{folder}, {100 * room.f_bavail // max(room.f_blocks, 1)} % of its disk is free")


def clock() -> Finding:
    """Whether the wall clock is kept right by somebody: adjtimex(2), which only reads here."""
    timex = _Timex()  # modes 0: nothing is set
    answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if answer == _TIME_ERROR or timex.status & _STA_UNSYNC:
        return warn(
            "clock",
            "nobody keeps the wall clock right: timers of the calendar are as wrong as it",
            "run systemd-timesyncd, chrony or another NTP client",
        )
    return ok("clock", "the wall clock is synchronised")


def units() -> Finding:
    """Whether the service manager knows aemd."""
    if not os.path.isdir("/run/systemd/system"):
        return ok("units", "systemd does not run here")
    for folder in UNIT_FOLDERS:
        if os.path.exists(f"{folder}/aemd.service"):
            return ok("units", f"{folder}/aemd.service")
    return warn("units", "systemd does not know aemd.service", "`aemctl install-units`")


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()
