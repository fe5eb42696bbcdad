"""Answers of unary calls that gRPC has and the client has not taken.

gRPC takes an answer at once, whether the client reads or not, and keeps it; the call is over only when the
last byte is on its way. So each connection has room for so much, and further calls of it wait: for its own
client, who need only read.
"""

from __future__ import annotations

import asyncio
from collections import deque

BYTES_MAX = 4 * 1024 * 1024  # of one connection; one answer may go over it
CALL_BYTES = 64 * 1024  # what a call counts for while its answer is not there: 64 calls at once


class Unread:
    """The room of every connection, by number."""

    def __init__(self) -> None:
        self._bytes: dict[int, int] = {}
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._bytes)

    async def enter(self, number: int) -> Room:
        """Wait for room for a call of this connection, and take it."""
        while self._bytes.get(number, 0) >= BYTES_MAX:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(number, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake(number)  # it may have been this call's turn
                raise
        self.add(number, CALL_BYTES)
        return Room(self, number)

    def add(self, number: int, size_bytes: int) -> None:
        """So much more is taken; less, if negative."""
        left = self._bytes.get(number, 0) + size_bytes
        if left:
            self._bytes[number] = left
        else:
            del self._bytes[number]
        if size_bytes < 0:
            self._wake(number)

    def _wake(self, number: int) -> None:
        waiting = self._waiting.get(number)
        free = BYTES_MAX - self._bytes.get(number, 0)
        while waiting and free > 0:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= CALL_BYTES  # which it takes when it runs
        if waiting is not None and not waiting:
            del self._waiting[number]


class Room:
    """What one call has taken."""

    __slots__ = ("_bytes", "_number", "_unread")

    def __init__(self, unread: Unread, number: int) -> None:
        self._unread = unread
        self._number = number
        self._bytes = CALL_BYTES

    def grow(self, size_bytes: int) -> None:
        """Its answer is there, of this size."""
        self._bytes += size_bytes
        self._unread.add(self._number, size_bytes)

    def leave(self) -> None:
        """The call is over."""
        self._unread.add(self._number, -self._bytes)
