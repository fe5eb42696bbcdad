"""Where one daemon lives: its socket and its state, and how both are made safely.

A system daemon serves every user, so the directory of its socket must be one that nobody else can put
things into; a user daemon's is the user's own.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass

SYSTEM_SOCKET = "/run/aemd/aemd.sock"
SYSTEM_STATE = "/var/lib/aemd"
SYSTEM_CONFIG = "/etc/aemd"
SERVICE_USER = "aemd"  # systemd/aemd.service
SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7) is 108 bytes, the last of them NUL


class ConfigError(Exception):
    """The daemon cannot run like this; the message says why and what helps."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the command line decides. `config_dir` is empty where no files are read, `log_level` where it is
    left to them, `deputy` and `runner` (paths of sockets) where the daemon starts these itself.
    """

    socket: str
    state_dir: str
    user: bool = False
    log_level: str = ""
    config_dir: str = ""
    deputy: str = ""
    runner: str = ""

    @property
    def uid(self) -> int:
        """Whose daemon it is: who owns its configuration and is its administrator, as root is of each."""
        return os.geteuid() if self.user else 0


def default_socket(*, user: bool, environment: Mapping[str, str], uid: int) -> str:
    """Where clients look first; ConfigError where a user has no runtime directory."""
    if not user:
        return SYSTEM_SOCKET
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    if not os.path.isdir(runtime):
        raise ConfigError(
            f"there is no runtime directory {runtime} (XDG_RUNTIME_DIR); name a socket with --socket PATH"
        )
    return f"{runtime}/aemd/aemd.sock"


def default_state_dir(*, user: bool, environment: Mapping[str, str]) -> str:
    """Where a daemon keeps what outlives it."""
    if not user:
        return SYSTEM_STATE
    state = environment.get("XDG_STATE_HOME")
    if not state:
        home = environment.get("HOME")
        if not home:
            raise ConfigError("neither XDG_STATE_HOME nor HOME is set; name a directory with --state-dir DIR")
        state = f"{home}/.local/state"
    return f"{state}/aemd"


def default_config_dir(*, user: bool, environment: Mapping[str, str]) -> str:
    """Where a daemon's configuration is; empty where a user has no home."""
    if not user:
        return SYSTEM_CONFIG
    home = environment.get("XDG_CONFIG_HOME") or (
        environment.get("HOME") and f"{environment['HOME']}/.config"
    )
    return f"{home}/aemd" if home else ""


def prepare(config: Config) -> None:
    """Make the directories, and refuse those that somebody else could tamper with."""
    path = os.fsencode(config.socket)
    if len(path) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"{config.socket}: {len(path)} bytes; the path of a Unix socket has at most"
            f" {SOCKET_PATH_BYTES_MAX}"
        )
    _make(os.path.dirname(config.socket) or ".", 0o700 if config.user else 0o755)
    _make(config.state_dir, 0o700)
    if not config.user:
        _refuse_shared(os.path.dirname(config.socket))


def _make(directory: str, mode: int) -> None:
    missing = []
    path = os.path.abspath(directory)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    mask = os.umask(0o777 & ~mode)  # chmod(2) afterwards could meet what somebody put in its place
    try:
        for path in reversed(missing):
            os.mkdir(path, mode)
    except FileExistsError:
        pass  # another daemon was faster, and the socket decides between us
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be made: {error.strerror}") from error
    finally:
        os.umask(mask)
    if not os.path.isdir(directory):
        raise ConfigError(f"{directory}: is not a directory")


def _refuse_shared(directory: str) -> None:
    """Where everybody looks for the daemon nobody may put another one: only the daemon's user and root can
    change what is in the directory, or, where it is sticky as /tmp is, what belongs to them. The user of the
    service is such a one for root, who may start a daemon by hand where there was a service.
    """
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{directory}: is not a directory but a link or a file; remove it")
    shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    trusted = (os.geteuid(), service_uid()) if os.geteuid() == 0 else (os.geteuid(), 0)
    if status.st_uid not in trusted or shared:
        raise ConfigError(
            f"{directory}: must belong to uid {os.geteuid()} and be writable for nobody else (or sticky); "
            f"it belongs to uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        )


def service_uid() -> int:
    """The user of the service; root where there is none."""
    try:
        return pwd.getpwnam(SERVICE_USER).pw_uid
    except KeyError:
        return 0
