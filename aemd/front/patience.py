"""Patience: one time limit for many, by number.

All wait for the same time, so they are overdue in the order in which they came; one timer of the loop serves
them all, and there is none while nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Patience:
    """Calls `over(number)` for each number that was added so many seconds ago and not forgotten since."""

    def __init__(self, seconds: float, over: Callable[[int], None]) -> None:
        self._seconds = seconds
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._due: dict[int, float] = {}  # the first due first
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def add(self, number: int) -> None:
        """Its time begins."""
        self._due[number] = self._loop.time() + self._seconds
        if self._timer is None:
            self._wait()

    def forget(self, number: int) -> None:
        """It need not hurry any more."""
        self._due.pop(number, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = self._loop.call_at(next(iter(self._due.values())), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        overdue = []
        for number, due in self._due.items():
            if due > now:
                break
            overdue.append(number)
        for number in overdue:
            del self._due[number]
        for number in overdue:
            self._over(number)
        if self._due and self._timer is None:
            self._wait()
