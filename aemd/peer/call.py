"""One unary gRPC call as bytes: what a client says first, and whether what comes back is an answer.

The daemon calls itself through a front, to know that the way of its clients is open, and the core has no
HTTP/2 in it. It needs none: a call is a fixed text (RFC 9113; the gRPC protocol over HTTP/2), and of the
answer it is enough that a message came on our stream and that the stream was ended in order. Headers are sent
as literals that enter no table (RFC 7541, 6.2.2) and those that come are not looked at.

    call = Call("/aem.v1.ModuleService/ListModules", b"")
    sock.send(call.request); call.feed(sock.recv(n)) -> True once it has been answered

The answer comes from a front, which counts as taken over: it is read to a bound, and can only say "yes".
"""

from __future__ import annotations

import struct
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME: Final = struct.Struct(">HBBBI")  # the length is of 24 bits
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_STREAM: Final = 1
_PREFIX_BYTES: Final = 5  # of a gRPC message: compressed or not, and its length
ANSWER_BYTES_MAX: Final = 256 * 1024  # SETTINGS, headers and one small message
TEXT_BYTES_MAX: Final = 126  # of a header's value: longer ones have a longer form of length


class CallError(Exception):
    """There will be no answer; the message says why."""


class Call:
    """A call and what has come back of it."""

    __slots__ = ("_buffer", "_message_bytes", "_seen_bytes", "answered", "request")

    def __init__(self, method: str, message: bytes) -> None:
        """`method`: its path; `message`: the request, encoded."""
        self.request = _request(method, message)
        self.answered = False
        self._buffer = b""
        self._seen_bytes = 0
        self._message_bytes = 0

    def feed(self, piece: bytes) -> bool:
        """Take what came, in any pieces; whether the call has been answered. CallError if it never will."""
        if not piece:
            raise CallError("the connection was closed")
        self._seen_bytes += len(piece)
        if self._seen_bytes > ANSWER_BYTES_MAX:
            raise CallError(f"more than {ANSWER_BYTES_MAX} bytes came, and no answer")
        buffer = self._buffer + piece
        while len(buffer) >= _FRAME.size and not self.answered:
            high, low, kind, flags, stream = _FRAME.unpack_from(buffer)
            end = _FRAME.size + (high << 8 | low)
            if end > len(buffer):
                break
            self._frame(kind, flags, stream, end - _FRAME.size)
            buffer = buffer[end:]
        self._buffer = buffer
        return self.answered

    def _frame(self, kind: int, flags: int, stream: int, size: int) -> None:
        if kind == _GOAWAY:
            raise CallError("the server goes away")
        if stream != _STREAM:
            return
        if kind == _RST_STREAM:
            raise CallError("the call was reset")
        if kind == _DATA:
            self._message_bytes += size
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            if self._message_bytes < _PREFIX_BYTES:
                raise CallError("the call was refused")
            self.answered = True


def _request(method: str, message: bytes) -> bytes:
    headers = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)
    prefixed = struct.pack(">BI", 0, len(message)) + message
    return b"".join(
        (
            _PREFACE,
            _pack(_SETTINGS, 0, 0, b""),
            _pack(_HEADERS, _END_HEADERS, _STREAM, block),
            _pack(_DATA, _END_STREAM, _STREAM, prefixed),
        )
    )


def _text(text: str) -> bytes:
    raw = text.encode("ascii")
    if len(raw) > TEXT_BYTES_MAX:
        raise ValueError(f"{len(raw)} bytes in a header, at most {TEXT_BYTES_MAX} are possible")
    return bytes((len(raw),)) + raw


def _pack(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload
