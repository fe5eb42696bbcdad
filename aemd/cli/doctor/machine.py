"""Limits, users, clocks and files that the daemon depends on."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import stat
import sys
import tomllib
from collections.abc import Iterator

from aemd import __version__
from aemd.cli.doctor.finding import Check, Finding, fail, ok, warn
from aemd.service.config import SYSTEM_STATE

FOLDER = "/etc/aemd"
LODGER = "aemd"  # the user that fronts run as
DESCRIPTORS_MIN = 4_096  # below it a few hundred clients are all
SOMAXCONN_MIN = 4_096  # as many as the daemon's socket asks for
WATCHES_MIN = 65_536
FREE_SHARE_MIN = 0.05
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
        ("user aemd", lodger),
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
            "user aemd",
            "there is none: fronts of the system's daemon run as nobody, whose other processes can end them",
            "`systemd-sysusers aemd.conf`, or `useradd --system --shell /usr/sbin/nologin aemd`",
        )
    if entry.pw_uid == 0:
        return fail("user aemd", "its uid is 0: fronts would be root", "give it a uid of its own")
    return ok("user aemd", f"uid {entry.pw_uid}")


def configuration(folder: str = FOLDER) -> Iterator[Finding]:
    """Whether the files of the configuration can be read, and changed by root only."""
    found = 0
    for path in _configuration_files(folder):
        found += 1
        yield _configuration_file(path)
    if not found:
        yield ok("configuration", f"there are no files in {folder}: defaults")


def _configuration_files(home: str) -> Iterator[str]:
    main = os.path.join(home, "aemd.toml")
    if os.path.lexists(main):
        yield main
    for name in ("policy.d", "jobs.d", "modules.d"):
        folder = os.path.join(home, name)
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (os.path.join(folder, name) for name in names if name.endswith(".toml"))


def _configuration_file(path: str) -> Finding:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            tomllib.load(file)
    except PermissionError:
        return ok("configuration", f"{path}: not for you to read")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return fail("configuration", f"{path}: {error}", "mend it; until then the daemon keeps what it had")
    if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        return fail(
            "configuration",
            f"{path}: uid {status.st_uid}, mode {mode}: others than root can change who may do what",
            f"chown root {path}; chmod go-w {path}",
        )
    return ok("configuration", path)


def state(folder: str = SYSTEM_STATE) -> Finding:
    """Where the system's daemon keeps what outlives it."""
    try:
        status = os.stat(folder)
        room = os.statvfs(folder)
    except FileNotFoundError:
        return ok("state", f"{folder} is not there yet; the daemon makes it")
    except PermissionError:
        return ok("state", f"{folder}: not for you to see")
    if status.st_uid != 0 or status.st_mode & 0o077:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        return fail(
            "state",
            f"{folder}: uid {status.st_uid}, mode {mode}: others than root can see into it",
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
