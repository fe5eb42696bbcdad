"""What a source needs of an event loop; `loop/` provides it.

Sources and modules are given a Reactor and never see the loop behind it. All callbacks run on the core's
one thread and must not block. Level-triggered epoll(7) throughout: what is not read now is reported again
on the next turn, so a callback may stop after a bounded amount of work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is due at a time."""

    def cancel(self) -> None:
        """Do not call. Cancelling twice, or after the call, changes nothing."""


class TimerQueue(Protocol):
    """Calls on one kernel clock: a heap over a single timerfd."""

    def now_ns(self) -> int:
        """The clock's time, read now, in nanoseconds."""

    def call_at(self, due_ns: int, callback: Callable[[int], None]) -> Timer:
        """Call `callback(now_ns)` at `due_ns` of this clock, or at once if that is past.

        Cost: O(log n) to add; a cancelled timer costs nothing when it would have been due, and the
        memory of cancelled timers is bounded by that of the live ones.
        """

    def on_set(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(now_ns)` when the clock was set (CLOCK_REALTIME only); returns what ends that."""


class Reactor(Protocol):
    """The core's event loop, as sources and modules see it."""

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(epoll_events)` while `fd` is ready for `events` (EPOLLIN, EPOLLOUT, ...)."""

    def modify(self, fd: int, events: int) -> None:
        """Change what is waited for; 0 keeps the descriptor registered for errors and hang-up only."""

    def remove(self, fd: int) -> None:
        """Forget `fd`. Must be called before the descriptor is closed. No callback of it comes after."""

    def defer(self, callback: Callable[[], None]) -> None:
        """Call `callback()` once at the end of this turn, before the loop sleeps again."""

    def clock(self, name: str) -> TimerQueue:
        """The queue of clock "monotonic", "boottime" or "realtime"."""

    def mono_ns(self) -> int:
        """CLOCK_MONOTONIC at the beginning of this turn, in nanoseconds."""

    def real_ns(self) -> int:
        """CLOCK_REALTIME at the beginning of this turn, in nanoseconds."""
