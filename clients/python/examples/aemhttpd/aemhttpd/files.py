"""Which file answers a request: paths, conditions and ranges, and no HTTP connection.

The root is a boundary: a path is resolved, symbolic links included, and what lies outside is not found.
"""

from __future__ import annotations

import mimetypes
import os
import stat
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import quote_from_bytes, unquote_to_bytes

Headers = list[tuple[str, str]]


@dataclass(slots=True)
class Answer:
    """A response: its head, and a body that is either bytes or `length` bytes of `fd` from `offset`."""

    status: HTTPStatus
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    fd: int = -1
    offset: int = 0
    length: int = 0

    def close(self) -> None:
        """Give the file back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def failure(status: HTTPStatus, detail: str, *headers: tuple[str, str]) -> Answer:
    """A response that says in plain text what was wrong."""
    body = f"{status.value} {status.phrase}: {detail}\n".encode()
    plain = ("Content-Type", "text/plain; charset=utf-8")
    return Answer(status, [plain, *headers, ("Content-Length", str(len(body)))], body, length=len(body))


class Files:
    """The files below `root`."""

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(os.fsencode(root))
        self._types = mimetypes.MimeTypes()

    def answer(self, target: bytes, headers: dict[str, str]) -> Answer:
        """Answer a GET of `target`; header names in lower case. The caller closes the answer."""
        raw = target.split(b"?", 1)[0].split(b"#", 1)[0]
        path = unquote_to_bytes(raw)
        if not path.startswith(b"/") or b"\0" in path:
            return failure(HTTPStatus.BAD_REQUEST, "the target must be an absolute path")
        place = os.path.realpath(self._root + path)
        if place != self._root and not place.startswith(self._root.rstrip(b"/") + b"/"):
            return failure(HTTPStatus.NOT_FOUND, "no such file")
        if os.path.isdir(place):
            if not path.endswith(b"/"):
                there = quote_from_bytes(b"/" + path.lstrip(b"/") + b"/")
                return failure(HTTPStatus.MOVED_PERMANENTLY, "this is a folder", ("Location", there))
            place = os.path.join(place, b"index.html")
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError:
            return failure(HTTPStatus.FORBIDDEN, "this file may not be read")
        except OSError:
            return failure(HTTPStatus.NOT_FOUND, "no such file")
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return failure(HTTPStatus.FORBIDDEN, "not a regular file")
        return self._found(fd, status, os.fsdecode(place), headers)

    def _found(self, fd: int, status: os.stat_result, name: str, headers: dict[str, str]) -> Answer:
        size = status.st_size
        tag = f'"{status.st_mtime_ns:x}-{size:x}"'
        kind, coding = self._types.guess_type(name)
        answer = Answer(HTTPStatus.OK, fd=fd, length=size)
        answer.headers = [
            ("ETag", tag),
            ("Last-Modified", formatdate(status.st_mtime, usegmt=True)),
            ("Accept-Ranges", "bytes"),
        ]
        if _unchanged(headers, tag, int(status.st_mtime)):
            answer.status, answer.length = HTTPStatus.NOT_MODIFIED, 0
            return answer
        if "range" in headers and headers.get("if-range", tag) == tag:
            span = parse_range(headers["range"], size)
            if span == "unsatisfiable":
                answer.close()
                detail = f"the file has {size} bytes"
                return failure(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, detail, ("Content-Range", f"bytes */{size}")
                )
            if isinstance(span, tuple):
                first, last = span
                answer.status, answer.offset, answer.length = (
                    HTTPStatus.PARTIAL_CONTENT,
                    first,
                    last - first + 1,
                )
                answer.headers.append(("Content-Range", f"bytes {first}-{last}/{size}"))
        text = kind is not None and kind.startswith("text/")
        answer.headers.append(
            ("Content-Type", (kind or "application/octet-stream") + ("; charset=utf-8" if text else ""))
        )
        if coding:
            answer.headers.append(("Content-Encoding", coding))
        answer.headers.append(("Content-Length", str(answer.length)))
        return answer


def _unchanged(headers: dict[str, str], tag: str, modified_s: int) -> bool:
    if "if-none-match" in headers:
        given = [part.strip().removeprefix("W/") for part in headers["if-none-match"].split(",")]
        return "*" in given or tag in given
    if "if-modified-since" in headers:
        try:
            return modified_s <= parsedate_to_datetime(headers["if-modified-since"]).timestamp()
        except (ValueError, TypeError):
            return False
    return False


def parse_range(text: str, size: int) -> tuple[int, int] | str | None:
    """The first and last byte that a Range header asks for, of a file of `size` bytes; RFC 9110, 14.1.2.

    None: not a single byte range, so the whole file is the answer. "unsatisfiable": beyond the file.
    """
    unit, _, spec = text.partition("=")
    first, dash, last = (part.strip() for part in spec.partition("-"))
    digits = all(
        part == "" or (part.isascii() and part.isdigit() and len(part) < 20) for part in (first, last)
    )
    if unit.strip().lower() != "bytes" or not dash or not digits or first == last == "":
        return None
    if first == "":
        length = min(int(last), size)
        return (size - length, size - 1) if length else "unsatisfiable"
    if last != "" and int(last) < int(first):
        return None
    if int(first) >= size:
        return "unsatisfiable"
    return int(first), min(int(last), size - 1) if last else size - 1
