"""Everything that becomes due, in one heap.

One deadline per key. A deadline that was moved or cancelled leaves its item in the heap until it comes to the
top or until such items are the majority; so memory is bounded by twice the live deadlines, and every
operation is O(log n).
"""

from __future__ import annotations

import heapq
from enum import IntEnum
from typing import Any, TypeAlias

SLACK = 64  # stale items that are not worth rebuilding the heap for


class Due(IntEnum):
    """What is due."""

    LEASE = 1  # of a session without a stream
    SHUTDOWN = 2  # of a job whose handler still runs
    ACK = 3  # of what a binding has in flight
    DELAY = 4  # of what was given back with a delay
    REST = 5  # the jobs of sessions that have ended
    PROGRESS = 6  # how far the bindings of a session are
    QUOTA = 7  # events that a user whose sources rest may have again
    READ = 8  # of a history, once more after the disk has failed


Key: TypeAlias = tuple[Due, Any]


class Deadlines:
    """The next deadline of each key, CLOCK_MONOTONIC nanoseconds."""

    __slots__ = ("_due", "_heap", "_serial")

    def __init__(self) -> None:
        self._due: dict[Key, int] = {}
        self._heap: list[tuple[int, int, Key]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._due)

    def get(self, key: Key) -> int | None:
        """When `key` is due, or None."""
        return self._due.get(key)

    def set(self, key: Key, due_ns: int) -> None:
        """Let `key` be due at `due_ns`, instead of when it was."""
        if self._due.get(key) == due_ns:
            return
        self._due[key] = due_ns
        self._serial += 1
        heapq.heappush(self._heap, (due_ns, self._serial, key))
        self._trim()

    def cancel(self, key: Key) -> None:
        """Forget `key`; unknown keys are no fault."""
        if self._due.pop(key, None) is not None:
            self._trim()

    def next_ns(self) -> int | None:
        """The earliest deadline, or None."""
        heap, due = self._heap, self._due
        while heap:
            if due.get(heap[0][2]) == heap[0][0]:
                return heap[0][0]
            heapq.heappop(heap)
        return None

    def pop_due(self, now_ns: int) -> Key | None:
        """Take the earliest key that is due at `now_ns`, or None."""
        due_ns = self.next_ns()
        if due_ns is None or due_ns > now_ns:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._due[key]
        return key

    def _trim(self) -> None:
        if len(self._heap) <= 2 * len(self._due) + SLACK:
            return
        due = self._due
        self._heap = [item for item in self._heap if due.get(item[2]) == item[0]]
        heapq.heapify(self._heap)
