"""Where a message ends in a stream of bytes.

A byte stream has no messages: what one peer wrote at once may arrive in ten reads, and ten writes in one
read. Two conventions put the borders back, and both have the same two traps. A border may fall anywhere,
also inside the border itself, so nothing may depend on how the bytes were cut. And a peer decides how long
its message is, so the receiver must say how long it may become *before* it keeps the bytes.

- A line ends with LF (RFC 20). Everything before it is the message; a CR before it stays, because only the
  protocol above knows whether it belongs to the border (HTTP) or to the data (anything else).
- A length prefix is an unsigned big-endian number of 1, 2, 4 or 8 bytes, followed by so many bytes.

The parsers are pure. The two classes keep what has no border yet: at most one message of the allowed length
and the bytes of the last read; an idle one holds an empty buffer.
"""

from __future__ import annotations

from typing import Protocol

PREFIX_BYTES = (1, 2, 4, 8)


class FrameTooLongError(Exception):
    """The message is longer than allowed, or says that it will be. The stream cannot be read any further."""


class FrameIncompleteError(Exception):
    """The stream ended inside a message."""


def parse_line(
    buffer: bytearray, offset: int, *, limit_bytes: int, searched: int = 0
) -> tuple[bytes | None, int]:
    """The line that begins at `offset`, without its LF, and where the next begins; None: not all here yet.

    `searched`: there is no LF before this offset. Raises FrameTooLongError if the line is longer than
    `limit_bytes`, as soon as that is certain.
    """
    end = buffer.find(b"\n", max(offset, searched), offset + limit_bytes + 1)
    if end >= 0:
        return bytes(memoryview(buffer)[offset:end]), end + 1
    if len(buffer) - offset > limit_bytes:
        raise FrameTooLongError
    return None, offset


def parse_length(
    buffer: bytearray, offset: int, *, limit_bytes: int, prefix_bytes: int
) -> tuple[bytes | None, int]:
    """The message whose prefix begins at `offset`, and where the next begins; None: not all here yet.

    Raises FrameTooLongError as soon as the prefix announces more than `limit_bytes`.
    """
    start = offset + prefix_bytes
    if len(buffer) < start:
        return None, offset
    size = int.from_bytes(buffer[offset:start], "big")
    if size > limit_bytes:
        raise FrameTooLongError
    end = start + size
    if len(buffer) < end:
        return None, offset
    return bytes(memoryview(buffer)[start:end]), end


class Framing(Protocol):
    """Cuts one stream into messages. `too_long`: the message after those taken is longer than allowed;
    nothing more comes.
    """

    too_long: bool

    @property
    def held(self) -> bytes:
        """What has been fed and not been taken."""

    def feed(self, data: bytes | memoryview) -> None:
        """More of the stream."""

    def take(self, count: int) -> list[bytes]:
        """The next messages, at most `count`; fewer: there are no more for now, or ever if `too_long`."""

    def finish(self) -> bytes | None:
        """The stream has ended and everything was taken: a last message that the end completes.

        Raises FrameIncompleteError if the end falls into a message.
        """


class LineFraming:
    """Messages that end with LF. The last one needs none: the end of the stream ends it too."""

    __slots__ = ("_buffer", "_limit_bytes", "_searched", "too_long")

    def __init__(self, limit_bytes: int) -> None:
        self.too_long = False
        self._buffer = bytearray()
        self._limit_bytes = limit_bytes
        self._searched = 0

    @property
    def held(self) -> bytes:
        """See Framing."""
        return bytes(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """See Framing."""
        self._buffer += data

    def take(self, count: int) -> list[bytes]:
        """See Framing."""
        buffer, frames, offset = self._buffer, list[bytes](), 0
        limit, searched = self._limit_bytes, self._searched
        while len(frames) < count:
            try:
                frame, offset = parse_line(buffer, offset, limit_bytes=limit, searched=searched)
            except FrameTooLongError:
                self.too_long = True
                break
            if frame is None:
                searched = len(buffer)
                break
            frames.append(frame)
        self._searched = max(searched - offset, 0)
        del buffer[:offset]
        return frames

    def finish(self) -> bytes | None:
        """See Framing."""
        if not self._buffer:
            return None
        frame = bytes(self._buffer)
        self._buffer.clear()
        return frame


class LengthFraming:
    """Messages that begin with their length."""

    __slots__ = ("_buffer", "_limit_bytes", "_prefix_bytes", "too_long")

    def __init__(self, limit_bytes: int, prefix_bytes: int) -> None:
        self.too_long = False
        self._buffer = bytearray()
        self._limit_bytes = limit_bytes
        self._prefix_bytes = prefix_bytes

    @property
    def held(self) -> bytes:
        """See Framing."""
        return bytes(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """See Framing."""
        self._buffer += data

    def take(self, count: int) -> list[bytes]:
        """See Framing."""
        buffer, frames, offset = self._buffer, list[bytes](), 0
        limit, prefix = self._limit_bytes, self._prefix_bytes
        while len(frames) < count:
            try:
                frame, offset = parse_length(buffer, offset, limit_bytes=limit, prefix_bytes=prefix)
            except FrameTooLongError:
                self.too_long = True
                break
            if frame is None:
                break
            frames.append(frame)
        del buffer[:offset]
        return frames

    def finish(self) -> bytes | None:
        """See Framing."""
        if self._buffer:
            raise FrameIncompleteError
        return None
