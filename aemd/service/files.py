"""The files of the configuration: found, trusted and parsed, with the line of everything in them.

Who can write these files decides what everybody may do, so they must belong to the daemon's user or to root,
and nobody else may write them or the folders that they lie in.

Everything that is wrong is found at once, and each Problem names file, line and key.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from aemd.service.locator import Path, lines_of

MAIN = "aemd.toml"
FOLDER = "policy.d"
JOBS = "jobs.d"
FILE_BYTES_MAX = 1024 * 1024  # some 10,000 rules
FILES_MAX = 1_024
PROBLEMS_MAX = 1_000  # that are told of one configuration
_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=|\s*\[\[?\s*([^\]]+)\]")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where: `line` is 0 if it is the file itself, `key` empty if it is no key."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigurationError(Exception):
    """The configuration cannot be used; `problems` has all that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems[:PROBLEMS_MAX])))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its parsed content, and where each part of it stands. `main`: it is aemd.toml. `jobs`: it is
    one of jobs.d.
    """

    file: str
    content: Mapping[str, object]
    lines: Mapping[Path, int]
    main: bool
    jobs: bool = False

    def line(self, path: Path) -> int:
        """The line of `path`, or of what it is in."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: Path, message: str) -> Problem:
        """Something wrong at `path`."""
        return Problem(self.file, self.line(path), key_text(path), message)

    def origin(self, path: Path) -> str:
        """FILE:LINE of `path`."""
        return f"{self.file}:{self.line(path)}"


def key_text(path: Path) -> str:
    """A path as it is told: rule[2].subject.uid, counted from 1."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(folder: str, *, uid: int | None) -> list[Source]:
    """The files of a folder, in the order in which they count; none of them need exist.

    `uid`: the daemon's user, to whom they must belong, or to root; None: they are only looked at, whoever
    wrote them.
    """
    problems: list[Problem] = []
    sources = []
    for path in _files(folder, uid, problems):
        text = _text(path, uid, problems)
        if text is not None:
            source = _parsed(path, text, path == os.path.join(folder, MAIN), problems, jobs=_is_job(path))
            if source is not None:
                sources.append(source)
    if problems:
        raise ConfigurationError(problems)
    return sources


def read_file(path: str) -> Source:
    """One file, whoever wrote it; what it may hold goes by its name and that of its folder."""
    problems: list[Problem] = []
    text = _text(path, None, problems)
    main = os.path.basename(path) == MAIN
    source = None if text is None else _parsed(path, text, main, problems, jobs=_is_job(path))
    if source is None:
        raise ConfigurationError(problems)
    return source


def _is_job(path: str) -> bool:
    return os.path.basename(os.path.dirname(os.path.abspath(path))) == JOBS


def parse(file: str, text: str, *, main: bool, jobs: bool = False) -> Source:
    """One file of this name and content; ConfigurationError if it is no TOML."""
    problems: list[Problem] = []
    source = _parsed(file, text, main, problems, jobs=jobs)
    if source is None:
        raise ConfigurationError(problems)
    return source


def _files(folder: str, uid: int | None, problems: list[Problem]) -> Iterator[str]:
    """The files that are there."""
    if not _trusted_folder(folder, uid, problems):
        return
    main = os.path.join(folder, MAIN)
    if os.path.lexists(main):
        yield main
    for part in (FOLDER, JOBS):
        yield from _files_of(os.path.join(folder, part), uid, problems)


def _files_of(folder: str, uid: int | None, problems: list[Problem]) -> Iterator[str]:
    """Those of policy.d or jobs.d, in the order of their names."""
    if not _trusted_folder(folder, uid, problems):
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        problems.append(Problem(folder, 0, "", f"cannot be read: {error.strerror}"))
        return
    names = [name for name in names if name.endswith(".toml") and not name.startswith(".")]
    if len(names) > FILES_MAX:
        problems.append(Problem(folder, 0, "", f"{len(names)} files; at most {FILES_MAX} are read"))
        return
    for name in names:
        yield os.path.join(folder, name)


def _trusted_folder(folder: str, uid: int | None, problems: list[Problem]) -> bool:
    """Whether it is there; what is wrong with it is added to `problems`."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return False
    except OSError as error:
        problems.append(Problem(folder, 0, "", f"cannot be read: {error.strerror}"))
        return False
    if not stat.S_ISDIR(status.st_mode):
        problems.append(Problem(folder, 0, "", "is not a directory"))
        return False
    return _trusted(folder, status, uid, problems)


def _trusted(path: str, status: os.stat_result, uid: int | None, problems: list[Problem]) -> bool:
    if uid is None:
        return True
    owners = f"uid {uid}" if uid == 0 else f"uid {uid} or root"
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, uid):
        message = f"belongs to uid {status.st_uid}; it must belong to {owners}, for it says who may do what"
    elif mode & 0o022:
        message = f"has mode {mode:04o}: others may write it; run chmod go-w"
    else:
        return True
    problems.append(Problem(path, 0, "", message))
    return False


def _text(path: str, uid: int | None, problems: list[Problem]) -> str | None:
    try:
        # Without waiting for the writer of a FIFO; it is told apart below.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        problems.append(Problem(path, 0, "", f"cannot be read: {error.strerror}"))
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            problems.append(Problem(path, 0, "", "is not a regular file"))
            return None
        if not _trusted(path, status, uid, problems):
            return None
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        problems.append(Problem(path, 0, "", f"has more than {FILE_BYTES_MAX} bytes; make several of it"))
        return None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.append(Problem(path, line, "", f"byte {content[error.start]:#04x} is no UTF-8"))
        return None


def _parsed(
    file: str, text: str, main: bool, problems: list[Problem], *, jobs: bool = False
) -> Source | None:
    try:
        content = tomllib.loads(text)
    except RecursionError:
        problems.append(Problem(file, 1, "", "is nested too deeply"))
    except ValueError as error:  # TOMLDecodeError is one, and so are numbers with thousands of digits
        problems.append(_syntax(file, text, str(error)))
    else:
        return Source(file, content, lines_of(text), main, jobs)
    return None


def _syntax(file: str, text: str, message: str) -> Problem:
    """What tomllib says, with the place where we have it."""
    rows = text.split("\n")
    place = _AT.search(message)
    if place is None:
        line = 1
    else:
        line = int(place.group(1)) if place.group(1) else len(rows) - (rows[-1] == "" and len(rows) > 1)
        message = message[: place.start()]
    key = _KEY.match(rows[min(line, len(rows)) - 1])
    name = (key.group(1) or key.group(2)).strip() if key else ""
    return Problem(file, line, name, f"this is no TOML: {message}")
