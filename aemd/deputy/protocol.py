"""What core and deputy say to each other: messages of a SEQPACKET pair, descriptors beside them.

Pure: bytes in, values out. A request is a header, the groups (u32 each), the path and the data. An answer is
a header and the name of the system call that said no. Descriptors travel in this order:

    request   the caller's pidfd, if `pid` is not 0; then the socket (LISTEN, SEND) or the directory (REMOVE)
    answer    the socket (BIND); then the directory (BIND), or what was opened (OPEN)

An answer with DONE says that the child is gone too. Without it the child outlived its time and does not die
yet; REAPED follows when it does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

GROUPS_MAX: Final = 65_536  # NGROUPS_MAX of limits.h
PATH_BYTES_MAX: Final = 4_095  # PATH_MAX of limits.h without its NUL
DATA_BYTES_MAX: Final = 256 * 1024  # one datagram; Limits.payload_bytes is not more
CALL_BYTES_MAX: Final = 32
BECOMING: Final = "become"  # the call of an answer that says: this daemon cannot be the caller
NOBODY_SAYS: Final = 0xFFFFFFFF  # as the gid of a DATABASE request: the user's own
_REQUEST: Final = struct.Struct("<BBHQIIiiiiIQQIII")
_ANSWER: Final = struct.Struct("<BBHiQQQ")
REQUEST_BYTES_MAX: Final = _REQUEST.size + 4 * GROUPS_MAX + PATH_BYTES_MAX + DATA_BYTES_MAX
ANSWER_BYTES_MAX: Final = _ANSWER.size + CALL_BYTES_MAX
DESCRIPTORS_MAX: Final = 3


class Kind(IntEnum):
    """What is to be done."""

    BIND = 1  # a socket of `type` to `path`; with `backlog` >= 0 it listens
    LISTEN = 2  # `path` still leads to this socket: let it listen, if `backlog` >= 0
    REMOVE = 3  # the last part of `path` from the directory, if it is (device, inode) still
    OPEN = 4  # `path`, for `access`
    SEND = 5  # `data` from the socket to the one at `path`


class Access(IntEnum):
    """What a path is opened for."""

    PATH = 0  # the descriptor alone (O_PATH): it may be searched for
    WATCH = 1  # the same, and it may be read; what inotify_add_watch(2) asks for
    READ = 2  # read it: a regular file or a directory


class Flag(IntFlag):
    """How a request is to be taken."""

    CAPABLE = 1  # the caller's own rights to override permissions, if it has them, count
    DATABASE = 2  # nobody calls: groups are those of passwd(5) and group(5), the root is the machine's own
    HOME = (
        8  # the caller must live below the machine's own root, for what is done will be done again without it
    )
    REPLACE = 4  # BIND: (device, inode) is a socket that nobody holds; take its place


class State(IntFlag):
    """What an answer says beside its result."""

    DONE = 1  # the child is gone
    STALE = 2  # BIND, EADDRINUSE: (device, inode) is a socket of the caller's own that refuses connections
    CAPABLE = 4  # done with a right to override permissions; what is undone later needs it too


class Fault(IntEnum):
    """Why a request failed, where no errno says it."""

    TIMEOUT = 10_001  # the child did not end in time
    KILLED = 10_002  # the child ended without an answer
    GONE = 10_003  # the caller has exited
    PROCFS = 10_004  # the path leads into a proc file system
    ELSEWHERE = 10_005  # the caller has another root, and this daemon is not root
    ANOTHER = 10_006  # the caller is another user, and this daemon is not root
    KIND = 10_007  # READ of what is neither a regular file nor a directory
    MOVED = 10_008  # the path leads somewhere else by now
    UNKNOWN = 10_009  # DATABASE: there is no such user
    AWAY = 10_010  # HOME: the caller lives below another root than the machine's


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `pid` 0: the root directory is the machine's own, or does not matter."""

    kind: Kind
    number: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    pid: int = 0
    flags: int = 0
    type: int = 0
    mode: int = -1
    backlog: int = -1
    access: int = 0
    device: int = 0
    inode: int = 0
    path: bytes = b""
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `error`: 0, an errno, or a Fault; `call`: what said so."""

    number: int
    error: int = 0
    call: str = ""
    state: int = State.DONE
    device: int = 0
    inode: int = 0
    reaped: bool = False  # no answer: only the child of one is gone


class ProtocolError(Exception):
    """The other end does not speak the protocol."""


def pack_request(request: Request) -> bytes:
    """A request as one message."""
    header = _REQUEST.pack(
        request.kind,
        request.flags,
        0,
        request.number,
        request.uid,
        request.gid,
        request.pid,
        request.type,
        request.mode,
        request.backlog,
        request.access,
        request.device,
        request.inode,
        len(request.groups),
        len(request.path),
        len(request.data),
    )
    groups = struct.pack(f"<{len(request.groups)}I", *request.groups)
    return b"".join((header, groups, request.path, request.data))


def parse_request(message: bytes) -> Request:
    """The request of a message; ProtocolError if it is none."""
    if len(message) < _REQUEST.size:
        raise ProtocolError(f"a request of {len(message)} bytes")
    found = _REQUEST.unpack_from(message)
    kind, flags, zero, number, uid, gid, pid, kind_of_socket, mode, backlog, access = found[:11]
    device, inode, groups, path, data = found[11:]
    start = _REQUEST.size + 4 * groups
    if zero or len(message) != start + path + data or kind not in iter(Kind):
        raise ProtocolError(f"a request of {len(message)} bytes, kind {kind}")
    return Request(
        Kind(kind),
        number,
        uid,
        gid,
        struct.unpack_from(f"<{groups}I", message, _REQUEST.size),
        pid=pid,
        flags=flags,
        type=kind_of_socket,
        mode=mode,
        backlog=backlog,
        access=access,
        device=device,
        inode=inode,
        path=message[start : start + path],
        data=message[start + path :],
    )


def pack_answer(answer: Answer) -> bytes:
    """An answer as one message."""
    header = _ANSWER.pack(
        answer.reaped, answer.state, 0, answer.error, answer.number, answer.device, answer.inode
    )
    return header + answer.call.encode()[:CALL_BYTES_MAX]


def parse_answer(message: bytes) -> Answer:
    """The answer of a message; ProtocolError if it is none."""
    if not _ANSWER.size <= len(message) <= ANSWER_BYTES_MAX:
        raise ProtocolError(f"an answer of {len(message)} bytes")
    reaped, state, zero, error, number, device, inode = _ANSWER.unpack_from(message)
    if zero or reaped > 1:
        raise ProtocolError(f"an answer that begins with {reaped}")
    call = message[_ANSWER.size :].decode("ascii", "replace")
    return Answer(number, error, call, state=state, device=device, inode=inode, reaped=bool(reaped))
