"""Answers to events that the daemon may not have read yet.

They are kept, so that a lost stream loses none: once in a while one of them asks for a Result, and as the
daemon deals with frames in order, that Result confirms all before it.
"""

from __future__ import annotations

from collections import deque

from aem._binding import Binding, Cursor
from aem.v1 import session_pb2

CONFIRM_ANSWERS = 64  # so many are kept without asking,
CONFIRM_BYTES = 256 * 1024  # or so many bytes of replies


class Answers:
    """The answers of all explicit bindings, in the order in which they were given."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Binding, Cursor, session_pb2.ClientFrame]] = deque()
        self._asked = 0  # so many, from the oldest, are covered by a question
        self._unasked_bytes = 0

    def add(self, binding: Binding, frame: session_pb2.ClientFrame) -> int:
        """Keep an answer; returns how many a question put now would cover, 0 if it is not time for one."""
        answer = frame.nack if frame.HasField("nack") else frame.complete
        self._kept.append((binding, (answer.cursor.epoch, answer.cursor.seq), frame))
        self._unasked_bytes += frame.ByteSize()
        unasked = len(self._kept) - self._asked
        if unasked < CONFIRM_ANSWERS and self._unasked_bytes < CONFIRM_BYTES:
            return 0
        self._asked += unasked
        self._unasked_bytes = 0
        return unasked

    def confirm(self, count: int) -> None:
        """The daemon has read the oldest `count`."""
        self._asked -= count
        for _ in range(count):
            binding, cursor, frame = self._kept.popleft()
            binding.confirm(cursor, frame)

    def clear(self) -> None:
        """There is a new stream; what bindings still keep is said again."""
        self._kept.clear()
        self._asked = self._unasked_bytes = 0
