"""At the end of a front: what a client still sends, without the calls that it begins now.

gRPC says GOAWAY when its server is stopped, in two steps (RFC 9113, 6.8): first "begin nothing more here",
and when the client has answered the PING behind it, the number of the last call that was taken. What the
client began between the two is its own to repeat elsewhere, and clients do, unseen by their programs. But
gRPC's server ends such calls itself, with CANCELLED, which nobody repeats. So it must not see them: from
the moment at which the front is told to finish, frames of streams that are newer than the last one are
dropped here, and all others (the answer to the PING, acknowledgements, the rest of what has begun) pass.

Dropping header blocks puts the compression of headers out of step, which matters to nobody: no further call
of this connection will be looked at.
"""

from __future__ import annotations

import struct
from typing import Final

_HEAD: Final = struct.Struct(">HBBBI")
STREAM_MASK: Final = (1 << 31) - 1


class Sieve:
    """Takes over in the middle of what a client sends."""

    __slots__ = ("_forwarded", "_head", "_last", "_passes", "_skip")

    def __init__(self, *, last: int, skip: int, begun: bytes) -> None:
        """`last`: the newest stream that is to pass. `skip`: bytes of the current frame's payload that are
        still to come, `begun`: the beginning of a frame's header; both have passed so far.
        """
        self._last = last
        self._skip = skip
        self._passes = True
        self._head = begun
        self._forwarded = len(begun)

    def feed(self, data: bytes) -> bytes:
        """What of it passes."""
        buffer = self._head + data
        offset = min(self._skip, len(buffer))
        self._skip -= offset
        passed = [buffer[:offset]] if self._passes else []
        while not self._skip and len(buffer) - offset >= _HEAD.size:
            high, low, _, _, stream = _HEAD.unpack_from(buffer, offset)
            end = offset + _HEAD.size + (high << 8 | low)
            stop = min(end, len(buffer))
            stream &= STREAM_MASK
            if self._forwarded:
                self._last = max(self._last, stream)  # it cannot be taken back
            self._passes = stream <= self._last
            if self._passes:
                passed.append(buffer[offset + self._forwarded : stop])
            self._forwarded = 0
            self._skip = end - stop
            offset = stop
        self._head = buffer[offset:]
        return b"".join(passed)
