"""The accountant: what a client's HTTP/2 frames may cost, counted as they pass through the relay.

HTTP/2 lets a client make its server work for next to nothing: a PING of 17 bytes wants an answer, HEADERS
and RST_STREAM together start a call and throw it away (CVE-2023-44487), SETTINGS want to be acknowledged
(CVE-2019-9515), CONTINUATION without end wants to be kept (CVE-2024-27316), a frame without payload wants
nothing but time (CVE-2019-9518). Flow control is for DATA only. So the relay looks at each frame's header,
nine bytes (RFC 9113, 4.1), and keeps a budget for each kind of frame; whoever exceeds one is cut off.

Budgets are so large that no ordinary client comes near them. The most in a second that was seen, of clients
in Go, Node and Python that make calls as fast as they can beside a loud Session, some with deadlines that
nearly every call misses: 5,300 HEADERS, 1,100 RST_STREAM, 470 PING, 4,100 WINDOW_UPDATE. They are token
buckets that are filled up only when they are found empty: a frame costs a decrement. Such a bucket gives at
most `burst` more than one that is kept filled.

Payloads are skipped, not read; what is wrong in them gRPC finds. Pure: bytes and times in, a verdict out.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from aemd.front.sieve import STREAM_MASK, Sieve
from aemd.link import Cut

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES_MAX: Final = 64 * 1024  # of one block, encoded; gRPC itself refuses above 16 KiB, and says so
HEADER_BYTES_PER_SECOND: Final = 16 * 1024 * 1024  # of all blocks; 3,000 calls a second have 5 KiB each
HEADER_BYTES_BURST: Final = 32 * 1024 * 1024
CONTINUATIONS_MAX: Final = 16  # of one block; frames of 16 KiB need four
SECOND: Final = 1_000_000_000

DATA: Final = 0
HEADERS: Final = 1
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
CONTINUATION: Final = 9
OTHER: Final = 10  # all types that HTTP/2 does not define
BLOCKS: Final = 11  # no type: the bytes of header blocks
END_HEADERS: Final = 0x4
ACK: Final = 0x1

_HEAD: Final = struct.Struct("!HBBBI")  # length (in two parts), type, flags, stream


class Budget(NamedTuple):
    """How many frames of a kind, or bytes, one connection may send."""

    cut: Cut
    per_second: int
    burst: int


BUDGETS: Final = (  # by type
    Budget(Cut.EMPTY_DATA, 10_000, 20_000),  # a stream may end with one
    Budget(Cut.HEADERS, 15_000, 30_000),  # a front takes some 5,000 calls a second; 4,096 are open at most
    Budget(Cut.PRIORITY, 1_000, 10_000),  # deprecated; gRPC's clients send none
    Budget(Cut.RST_STREAM, 5_000, 10_000),  # a client whose calls all come too late for it has made 1,100
    Budget(Cut.SETTINGS, 100, 500),  # one, and an acknowledgement whenever gRPC changes its window
    Budget(Cut.OTHER_FRAMES, 100, 1_000),  # PUSH_PROMISE: not a client's to send
    Budget(Cut.PING, 5_000, 10_000),  # Go sends one a round trip while it measures: some 500
    Budget(Cut.OTHER_FRAMES, 100, 1_000),  # GOAWAY
    Budget(Cut.WINDOW_UPDATE, 50_000, 100_000),  # two for each message that is read: some 4,000
    Budget(Cut.OTHER_FRAMES, 1, 1),  # CONTINUATION is counted by block
    Budget(Cut.OTHER_FRAMES, 100, 1_000),  # unknown ones are ignored, RFC 9113, 5.5
    Budget(Cut.HEADER_BYTES, HEADER_BYTES_PER_SECOND, HEADER_BYTES_BURST),  # no frames; stands at BLOCKS
)


class Accountant:
    """Looks at all that one client sends."""

    __slots__ = (
        "_block",
        "_continuations",
        "_filled",
        "_left",
        "_preface",
        "_rest",
        "_skip",
        "called",
        "newest",
        "settled",
    )

    def __init__(self, now_ns: int) -> None:
        self.settled = False  # preface and SETTINGS have come
        self.called = False  # HEADERS have
        self.newest = 0  # stream that HEADERS were for
        self._preface = PREFACE  # what of it is still to come
        self._rest = b""  # the beginning of a frame's header
        self._skip = 0  # bytes of payload still to come
        self._block = -1  # bytes of the header block that has not ended; -1: there is none
        self._continuations = 0
        self._left = [budget.burst for budget in BUDGETS]
        self._filled = [now_ns] * len(BUDGETS)

    def feed(self, data: bytes, now_ns: int) -> Cut | None:
        """Count what the client sent, however it is cut into pieces; why to cut it off, if so.

        After a Cut nothing more may be fed.
        """
        if self._preface:
            taken = min(len(self._preface), len(data))
            if data[:taken] != self._preface[:taken]:
                return Cut.NOT_HTTP2
            self._preface = self._preface[taken:]
            data = data[taken:]
        if self._rest:
            data = self._rest + data
        offset, size = self._skip, len(data)
        left = self._left
        while offset + 9 <= size:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, offset)
            length = high << 8 | low
            offset += 9 + length
            if kind == DATA and length:
                continue
            if kind in (HEADERS, CONTINUATION) or not self.settled:
                cut = self._block_cut(kind, length, flags, now_ns)
                if cut is not None:
                    return cut
                if kind == CONTINUATION:
                    continue
                if kind == HEADERS:
                    self.newest = max(self.newest, stream & STREAM_MASK)
            kind = min(kind, OTHER)
            left[kind] -= 1
            if left[kind] < 0 and not self._fill(kind, now_ns):
                return BUDGETS[kind].cut
        self._rest = data[offset:] if offset < size else b""
        self._skip = max(offset - size, 0)
        return None

    def sieve(self) -> Sieve | None:
        """What lets no call pass that begins after what was fed; None before the connection has begun."""
        if self._preface:
            return None
        return Sieve(last=self.newest, skip=self._skip, begun=self._rest)

    def _block_cut(self, kind: int, length: int, flags: int, now_ns: int) -> Cut | None:
        """What is wrong with a frame that begins the connection, or begins or continues a header block."""
        if not self.settled:
            if kind != SETTINGS or flags & ACK:
                return Cut.NOT_HTTP2  # RFC 9113, 3.4: SETTINGS come first
            self.settled = True
            return None
        if kind == HEADERS:
            self.called = True
            self._block = self._continuations = 0
        elif self._block < 0:
            return Cut.NOT_HTTP2
        else:
            self._continuations += 1
        self._block += length
        self._left[BLOCKS] -= length
        if self._block > HEADER_BYTES_MAX or (self._left[BLOCKS] < 0 and not self._fill(BLOCKS, now_ns)):
            return Cut.HEADER_BYTES
        if self._continuations > CONTINUATIONS_MAX:
            return Cut.CONTINUATION
        if flags & END_HEADERS:
            self._block = -1
        return None

    def _fill(self, kind: int, now_ns: int) -> bool:
        """Fill up a budget that is used up; whether it was enough."""
        _, per_second, burst = BUDGETS[kind]
        come = (now_ns - self._filled[kind]) * per_second // SECOND
        self._left[kind] = min(self._left[kind] + come, burst - 1)  # what it was for is counted already
        self._filled[kind] = now_ns
        return self._left[kind] >= 0
