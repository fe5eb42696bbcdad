"""The systemd units as they are to be on this machine: which files, where, and with which interpreter.

The units in `systemd/` name /usr/bin/aemd, which a distribution's package puts there. Whoever installed with
pip has an interpreter somewhere else; its path takes that place. Two things would go wrong later, and are
refused here: an interpreter that the service cannot reach, because its own view of the file system has no
homes and no /tmp; and files that somebody else can change, who would then run what he likes as root.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import aemd
from aemd.cli.failure import Failure

PROGRAM = re.compile(r"^(Exec\w+=.*?)/usr/(bin/aemd|bin/aemctl|lib/aemd/aemd-deputy)(?= |$)", re.MULTILINE)
MODULES = {"bin/aemd": "aemd", "bin/aemctl": "aemd.cli.ctl", "lib/aemd/aemd-deputy": "aemd.deputy.office"}
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # ProtectHome=, PrivateTmp=
SYSTEM = (
    ("systemd/aemd.service", "lib/systemd/system/aemd.service"),
    ("systemd/aemd.socket", "lib/systemd/system/aemd.socket"),
    ("systemd/aemd-runner.service", "lib/systemd/system/aemd-runner.service"),
    ("systemd/aemd-runner.socket", "lib/systemd/system/aemd-runner.socket"),
    ("systemd/aemd-deputy.service", "lib/systemd/system/aemd-deputy.service"),
    ("systemd/aemd-deputy.socket", "lib/systemd/system/aemd-deputy.socket"),
    ("systemd/aemd.sysusers", "lib/sysusers.d/aemd.conf"),
    ("systemd/aemd.tmpfiles", "lib/tmpfiles.d/aemd.conf"),
)
USER = (
    ("systemd/user/aemd.service", "systemd/user/aemd.service"),
    ("systemd/user/aemd.socket", "systemd/user/aemd.socket"),
)
MANUAL = (
    ("docs/man/aemctl.1", "share/man/man1/aemctl.1"),
    ("docs/man/aemd.8", "share/man/man8/aemd.8"),
    ("docs/man/aemd.toml.5", "share/man/man5/aemd.toml.5"),
)


@dataclass(frozen=True, slots=True)
class UnitFile:
    """One file: where it goes, what is to be in it, and what is there now (None: nothing)."""

    path: str
    text: str
    present: str | None

    @property
    def state(self) -> str:
        """What installing would do."""
        if self.present is None:
            return "new"
        return "unchanged" if self.present == self.text else "differs"


def plan(*, user: bool, prefix: str, root: str) -> list[UnitFile]:
    """The files of the system's service, or of a user's own, below `root` + `prefix`."""
    files = USER if user else SYSTEM + MANUAL
    return [
        _unit_file(source, f"{root.rstrip('/')}{prefix.rstrip('/')}/{target}") for source, target in files
    ]


def _unit_file(source: str, path: str) -> UnitFile:
    text = read_source(source)
    if source.endswith(".service"):
        text = PROGRAM.sub(lambda found: found[1] + command_line(MODULES[found[2]]), text)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            present = file.read()
    except FileNotFoundError:
        present = None
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error
    return UnitFile(path, text, present)


def read_source(name: str) -> str:
    """A file that comes with aemd: in the package, or beside it in a source tree."""
    package = os.path.dirname(os.path.abspath(aemd.__file__))
    for path in (f"{package}/share/{name}", f"{os.path.dirname(package)}/{name}"):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                return file.read()
    raise Failure(f"{name} did not come with this installation of aemd", hint="install aemd anew")


def command_line(module: str) -> str:
    """What runs a module with this interpreter. -P: the working directory is not searched for modules."""
    return f"{_quoted(sys.executable)} -P -m {module}"


def _quoted(path: str) -> str:
    """One word as systemd.service(5) reads it."""
    path = path.replace("%", "%%").replace("$", "$$")
    if path.isascii() and not set(path) & set(" \t\"'\\;"):
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def check_reach() -> None:
    """Failure if the system's service could not, or should not, run what is installed here."""
    for path in _code():
        hidden = next((place for place in HIDDEN if (path + "/").startswith(place + "/")), None)
        if hidden is not None:
            raise Failure(
                f"{path} is below {hidden}, which the service does not see",
                reason="UNREACHABLE",
                hint="install aemd where everybody may look, for example: python3 -m venv /opt/aemd &&"
                " /opt/aemd/bin/pip install aemd && /opt/aemd/bin/aemctl install-units",
            )
        for step in _steps(path):
            owner = _other_owner(step)
            if owner:
                raise Failure(
                    f"{path} would be run as root, and {step} {owner}",
                    reason="UNSAFE",
                    hint="install aemd where only root can write, for example below /opt/aemd",
                )


def _code() -> Iterator[str]:
    """Every place that code of the daemon is loaded from, links followed."""
    seen = {sys.executable, sys.prefix, sys.base_prefix, os.path.dirname(os.path.abspath(aemd.__file__))}
    return (os.path.realpath(path) for path in sorted(seen))


def _steps(path: str) -> Iterable[str]:
    while True:
        yield path
        if path == "/":
            return
        path = os.path.dirname(path)


def _other_owner(path: str) -> str:
    found = os.stat(path)
    if found.st_uid != 0:
        return f"belongs to uid {found.st_uid}"
    shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return f"can be written to by others (mode {stat.S_IMODE(found.st_mode):04o})" if shared else ""


def write(file: UnitFile) -> None:
    """Put it there, whole or not at all."""
    fresh = f"{file.path}.new-{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(file.path), exist_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as out:
            os.fchmod(fd, 0o644)
            out.write(file.text)
        os.replace(fresh, file.path)
    except OSError as error:
        raise Failure(
            f"{error.filename or file.path}: {error.strerror}",
            hint="run it as root, or choose --prefix or --root",
        ) from error
