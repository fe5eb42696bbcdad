"""The link between the core and a front: frames over a STREAM socketpair, descriptors over a SEQPACKET one.

The only code that both processes share, and all of it is pure: bytes in, frames out. A frame is a header of
24 bytes (`u32 length of the payload, u8 kind, u8 flags, u16 zero, u64 connection, u64 stream`, little-endian)
and its payload. A unary call is OPEN DATA END one way and DATA END the other.

Who says what:

    OPEN     front -> core   a client began an RPC; payload: the method's path
    DATA     both            one gRPC message, as the serializer left it
    END      front -> core   flags: HALF_CLOSE (the client sends no more) or CANCELLED (the RPC is over)
             core -> front   the RPC is over; payload: code, message, google.rpc.Status
    WINDOW   both            so many bytes of DATA were consumed and may be sent again
    CLOSED   core -> front   close this connection
             front -> core   this connection is closed; no OPEN for it comes after; payload: nothing, or one
                             byte, a Cut, where it was the front that would have no more of it
    READY    front -> core   the front serves; payload: how it is sandboxed, in words
    DRAIN    core -> front   say NOT_SERVING from now on
    FULL     front -> core   this front has more memory than it may have, and wants to be replaced
    PING     core -> front   say that you live; the same comes back
    FINISH   core -> front   answer the calls that are there, take no new ones, exit

Each stream has a window of WINDOW_BYTES in each direction. A sender may send while the window is above zero,
so it overshoots by at most one message; the receiver gives back what it consumed in steps of
WINDOW_STEP_BYTES. Stream numbers are the front's, from 1, and only grow; connection numbers are the core's.

Neither end trusts the other more than it must: `parse_frames` refuses what no correct sender produces, and
the core checks every number again.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

HEADER: Final = struct.Struct("<IBBHQQ")
DESCRIPTOR: Final = struct.Struct("<BQ")  # HAND_OVER, connection; beside it SCM_RIGHTS with one descriptor
HAND_OVER: Final = 1
CONTROL: Final = struct.Struct("<BQi")  # core and zygote: Control, the front's number, a pid or status

WINDOW_BYTES: Final = 256 * 1024  # wire.md; the same as core.limits.WINDOW_BYTES, a test compares them
WINDOW_STEP_BYTES: Final = (
    WINDOW_BYTES // 4
)  # a WINDOW frame for every small message would double the traffic
PAYLOAD_BYTES_MAX: Final = 64 * 1024 * 1024  # what a header may claim at all
READ_BYTES: Final = 256 * 1024  # one recv(2) on a link

HALF_CLOSE: Final = 1
CANCELLED: Final = 2

_STATUS: Final = struct.Struct("<II")  # code, bytes of the message
_U32: Final = struct.Struct("<I")
_U32_MAX: Final = (1 << 32) - 1


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    DATA = 2
    END = 3
    WINDOW = 4
    CLOSED = 5
    READY = 6
    DRAIN = 7
    FULL = 8
    FINISH = 9
    PING = 10


class Cut(IntEnum):
    """Why a front closed a connection of its own accord: a time limit, or a budget (front/accountant.py)."""

    SILENT = 1  # it said nothing
    HANDSHAKE = 2  # preface and SETTINGS did not come
    NO_CALL = 3  # it called nothing
    ROOM = 4  # it called nothing, and descriptors are short
    NOT_HTTP2 = 5
    HEADER_BYTES = 6
    CONTINUATION = 7
    EMPTY_DATA = 8
    HEADERS = 9
    PRIORITY = 10
    RST_STREAM = 11
    SETTINGS = 12
    PING = 13
    WINDOW_UPDATE = 14
    OTHER_FRAMES = 15
    UNREAD = 16  # answers that it does not read


OFFENCES: Final = frozenset(Cut) - {Cut.SILENT, Cut.HANDSHAKE, Cut.NO_CALL, Cut.ROOM}


class Control(IntEnum):
    """What core and zygote say to each other, on a SEQPACKET pair of their own."""

    FORK = 1  # with two descriptors: the front's ends of its link and of its descriptor socket
    FORKED = 2  # the value is its pid; with a pidfd
    EXITED = 3  # the value is its wait status; -1: it could not be forked
    KILL = 4  # with the pidfd of a front, which the core has no right to kill


class Frame(NamedTuple):
    """One frame, with its payload copied out of the buffer."""

    kind: Kind
    flags: int
    connection: int
    stream: int
    payload: bytes


class LinkError(Exception):
    """The other end does not speak the protocol: the link is finished."""


def pack(kind: Kind, connection: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """One frame, ready to send."""
    return HEADER.pack(len(payload), kind, flags, 0, connection, stream) + payload


def pack_window(connection: int, stream: int, size_bytes: int) -> bytes:
    """WINDOW frames that together give back `size_bytes`."""
    frames = b""
    while size_bytes > 0:
        step = min(size_bytes, _U32_MAX)
        frames += pack(Kind.WINDOW, connection, stream, _U32.pack(step))
        size_bytes -= step
    return frames


def parse_window(payload: bytes) -> int:
    """The bytes that a WINDOW frame gives back; LinkError if it is not one."""
    if len(payload) != _U32.size:
        raise LinkError(f"a WINDOW of {len(payload)} bytes")
    size: int = _U32.unpack(payload)[0]
    return size


def parse_cut(payload: bytes) -> Cut | None:
    """Why a front closed a connection, if it was the front that did; LinkError if it says nothing known."""
    if not payload:
        return None
    cut = _CUTS.get(payload)
    if cut is None:
        raise LinkError(f"CLOSED with a reason of {len(payload)} bytes that is none")
    return cut


def pack_status(code: int, message: str, status: bytes) -> bytes:
    """The payload of the core's END. `status` is an encoded google.rpc.Status, or nothing."""
    text = message.encode("utf-8", "replace")
    return _STATUS.pack(code, len(text)) + text + status


def parse_status(payload: bytes) -> tuple[int, str, bytes]:
    """(code, message, status) of the core's END; LinkError if it is none."""
    if len(payload) < _STATUS.size:
        raise LinkError(f"an END of {len(payload)} bytes")
    code, size = _STATUS.unpack_from(payload)
    end = _STATUS.size + size
    if end > len(payload):
        raise LinkError(f"an END whose message of {size} bytes does not fit")
    return code, payload[_STATUS.size : end].decode("utf-8", "replace"), payload[end:]


def parse_frames(buffer: bytes, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> tuple[list[Frame], bytes, int]:
    """(the whole frames in `buffer`, what is left, how many bytes the next frame needs in all).

    Nothing is lost or invented: the frames, packed again, and the rest are the buffer. LinkError for a
    kind that does not exist, a non-zero reserved field or a payload above `payload_bytes_max`, as soon
    as the header is there.
    """
    frames: list[Frame] = []
    offset, size = 0, len(buffer)
    need = HEADER.size
    while size - offset >= HEADER.size:
        length, kind, flags, zero, connection, stream = HEADER.unpack_from(buffer, offset)
        if zero or not Kind.OPEN <= kind <= Kind.PING:
            raise LinkError(f"a frame of kind {kind} with {zero} in the reserved field")
        if length > payload_bytes_max:
            raise LinkError(f"a payload of {length} bytes where {payload_bytes_max} are allowed")
        end = offset + HEADER.size + length
        if end > size:
            need = end - offset
            break
        payload = buffer[offset + HEADER.size : end]
        frames.append(Frame(_KINDS[kind], flags, connection, stream, payload))
        offset = end
    return frames, buffer[offset:] if offset else buffer, need


_KINDS: Final = {int(kind): kind for kind in Kind}
_CUTS: Final = {bytes((cut,)): cut for cut in Cut}


class Assembler:
    """Frames out of a byte stream that comes in pieces.

    Pieces of a large frame are joined once, when the last has come, so the cost is linear in the bytes.
    """

    __slots__ = ("_have", "_need", "_payload_bytes_max", "_pieces")

    def __init__(self, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._payload_bytes_max = payload_bytes_max
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = HEADER.size

    def feed(self, piece: bytes) -> list[Frame]:
        """The frames that `piece` completes. LinkError as in parse_frames."""
        self._pieces.append(piece)
        self._have += len(piece)
        if self._have < self._need:
            return []
        buffer = piece if len(self._pieces) == 1 else b"".join(self._pieces)
        frames, rest, self._need = parse_frames(buffer, self._payload_bytes_max)
        self._pieces = [rest] if rest else []
        self._have = len(rest)
        return frames
