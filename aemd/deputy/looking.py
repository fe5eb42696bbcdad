"""What the kernel tells of a process only to who might trace it: where to find it, and how it is asked for.

proc(5) guards these with PTRACE_MODE_READ_FSCREDS, which another user's process passes with CAP_SYS_PTRACE
alone, and who has that may do anything with any process. So a core without it asks the looker
(`looker.py`), in messages of a SEQPACKET pair: a question, and an answer with what could be read. A
descriptor of a pid namespace comes beside the answer; it is good for translating pids, and for entering the
namespace only with rights that the core has not.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from enum import IntFlag
from typing import Final

_QUESTION: Final = struct.Struct("<Ii")
_PID: Final = struct.Struct("<i")
_PIECE: Final = struct.Struct("<II")
QUESTION_BYTES: Final = _QUESTION.size
PIECE_BYTES_MAX: Final = 8_192  # a path has 4,096, stat some 350
ANSWER_BYTES_MAX: Final = _PID.size + 8 * (_PIECE.size + PIECE_BYTES_MAX)


class What(IntFlag):
    """What is asked for. Of a namespace the inode number, in digits."""

    USER = 1
    PID = 2
    MOUNT = 4
    NETWORK = 8
    PROGRAM = 16  # the path of what it executes
    STAT = 32  # proc_pid_stat(5), with the fields that are 0 for others
    PID_NAMESPACE = 64  # a descriptor


_NAMESPACES: Final = {What.USER: "user", What.PID: "pid", What.MOUNT: "mnt", What.NETWORK: "net"}


class LookingError(Exception):
    """The other end does not speak the protocol."""


def look(pid: int, what: int) -> Mapping[What, bytes]:
    """What this process may read of that one; the rest is not there."""
    found: dict[What, bytes] = {}
    for each in What(what):
        try:
            content = _read(pid, each)
        except OSError:
            continue
        if content is not None:
            found[each] = content
    return found


def open_pid_namespace(pid: int) -> int:
    """A descriptor of the pid namespace that a process is in. OSError."""
    return os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def _read(pid: int, what: What) -> bytes | None:
    if what in _NAMESPACES:
        return b"%d" % os.stat(f"/proc/{pid}/ns/{_NAMESPACES[what]}").st_ino
    if what is What.PROGRAM:
        return os.readlink(b"/proc/%d/exe" % pid)
    if what is What.STAT:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, PIECE_BYTES_MAX)
        finally:
            os.close(fd)
    return None


def pack_question(pid: int, what: int) -> bytes:
    """A question as one message."""
    return _QUESTION.pack(what, pid)


def parse_question(data: bytes) -> tuple[int, What]:
    """The pid and what is asked about it; LookingError if that is no question."""
    if len(data) != QUESTION_BYTES:
        raise LookingError(f"a question of {len(data)} bytes")
    what, pid = _QUESTION.unpack(data)
    if what >= 2 * What.PID_NAMESPACE:
        raise LookingError(f"a question about {what}")
    return pid, What(what)


def pack_answer(pid: int, found: Mapping[What, bytes]) -> bytes:
    """An answer as one message."""
    pieces = (_PIECE.pack(what, len(content)) + content for what, content in found.items())
    return b"".join((_PID.pack(pid), *pieces))


def parse_answer(data: bytes) -> tuple[int, Mapping[What, bytes]]:
    """About whom an answer is, and what it says; LookingError if it is none."""
    if len(data) < _PID.size:
        raise LookingError(f"an answer of {len(data)} bytes")
    found: dict[What, bytes] = {}
    offset = _PID.size
    while offset < len(data):
        if len(data) - offset < _PIECE.size:
            raise LookingError("an answer that ends too soon")
        what, size = _PIECE.unpack_from(data, offset)
        offset += _PIECE.size + size
        if what not in iter(What) or what in found or offset > len(data):
            raise LookingError(f"{size} bytes about {what}")
        found[What(what)] = data[offset - size : offset]
    return int(_PID.unpack_from(data)[0]), found
