"""What waits until the kernel takes it: bytes of a stream, or whole messages.

send(2) on a non-blocking socket takes what has room, possibly a part (streams), or everything or nothing
(messages). EAGAIN is not an error: it means "nothing now", and EPOLLOUT tells when to try again.
"""

from __future__ import annotations

import socket
from collections import deque

MESSAGES_PENDING_MAX = 1_024  # seqpacket messages that wait for one peer


class StreamOutput:
    """Bytes that the kernel has not taken yet."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def held(self) -> list[bytes]:
        """What waits, in pieces as push() takes them."""
        return [bytes(self._bytes)]

    def push(self, data: bytes | memoryview) -> None:
        """After everything that waits already."""
        self._bytes += data

    def flush(self, sock: socket.socket) -> int:
        """How many bytes the kernel took now. Raises OSError as send(2), but not EAGAIN."""
        try:
            with memoryview(self._bytes) as view:
                taken = sock.send(view, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        del self._bytes[:taken]
        return taken


class MessageOutput:
    """Messages that the kernel has not taken yet: each goes whole or not at all."""

    __slots__ = ("_bytes", "_messages")

    def __init__(self) -> None:
        self._bytes = 0
        self._messages: deque[bytes] = deque()

    def __len__(self) -> int:
        """In bytes; a queue of empty messages only is as long as it has messages."""
        return self._bytes or len(self._messages)

    @property
    def held(self) -> list[bytes]:
        """What waits, in pieces as push() takes them."""
        return list(self._messages)

    def push(self, data: bytes | memoryview) -> None:
        """After everything that waits already. Raises BufferError: there are too many of them."""
        if len(self._messages) >= MESSAGES_PENDING_MAX:
            raise BufferError
        self._messages.append(bytes(data))
        self._bytes += len(data)

    def flush(self, sock: socket.socket) -> int:
        """How many bytes the kernel took now. Raises OSError as send(2), but not EAGAIN."""
        taken = 0
        while self._messages:
            try:
                sock.send(self._messages[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            taken += len(self._messages.popleft())
        self._bytes -= taken
        return taken
