"""When a timer expires: schedules as values, without clock or kernel.

A schedule is asked two things. `begin(now_ns)`: it is armed now, when is it due first? (And, of one that was
armed before, `following(last_ns)`: it expired then, when is it due next?) `passed(due_ns,
now_ns)`: it was due at `due_ns` and it is `now_ns`; which expiration is the latest, how many were there,
when is the next? However long nobody came to look, the answer costs the same: spans are counted by
arithmetic, and a calendar counts so many at a time; then the next one is past too, and it is asked again.

`reset(due_ns, now_ns, moved_ns)` is for schedules on CLOCK_REALTIME when that was set by `moved_ns`. It gives
what has passed, or, if nothing has, when it is due:

- a span (after=, every=) measures time that passes, as POSIX has it for relative timers: it moves along;
- a point (at=) stays where it is;
- a calendar is computed anew from the new time, as systemd does. What the clock was set across is due
  now, once: jumping over a week of mornings is not seven mornings. What it was set back over comes again.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from aemd.modules.timer.calendar import Calendar

PASSED_MAX = 64  # calendar expirations that are counted at a time; under 1 ms of work


class Passed(NamedTuple):
    """What has expired: the latest time, how many up to it, and the next one or None."""

    latest_ns: int
    expirations: int
    next_ns: int | None


class Schedule(Protocol):
    """When a timer expires; times in nanoseconds of its clock."""

    def begin(self, now_ns: int) -> int | None:
        """The first expiration of a timer that is armed at `now_ns`; None: never."""

    def following(self, last_ns: int) -> int | None:
        """The expiration after the one at `last_ns`; None: that was the last."""

    def passed(self, due_ns: int, now_ns: int) -> Passed:
        """The expirations from `due_ns` to `now_ns`, which is not before it."""

    def reset(self, due_ns: int, now_ns: int, moved_ns: int) -> Passed | int:
        """The clock was set by `moved_ns` to `now_ns`: what has passed, or when it is due."""


class Span:
    """after= and every=: spans of time from the start of the job."""

    __slots__ = ("first_ns", "period_ns")

    def __init__(self, first_ns: int, period_ns: int) -> None:
        self.first_ns = first_ns
        self.period_ns = period_ns  # 0: once

    def begin(self, now_ns: int) -> int | None:
        """`first_ns` from now."""
        return now_ns + self.first_ns

    def following(self, last_ns: int) -> int | None:
        """A period later."""
        return last_ns + self.period_ns if self.period_ns else None

    def passed(self, due_ns: int, now_ns: int) -> Passed:
        """Whole periods: the rhythm is kept, however late one of them was noticed."""
        period_ns = self.period_ns
        if not period_ns:
            return Passed(due_ns, 1, None)
        more = (now_ns - due_ns) // period_ns
        latest_ns = due_ns + more * period_ns
        return Passed(latest_ns, more + 1, latest_ns + period_ns)

    def reset(self, due_ns: int, now_ns: int, moved_ns: int) -> Passed | int:
        """It moves with the clock."""
        due_ns += moved_ns
        return due_ns if due_ns > now_ns else self.passed(due_ns, now_ns)


class Point:
    """at=: one point in time. In the past it is due at once, as for any absolute timer of POSIX."""

    __slots__ = ("at_ns",)

    def __init__(self, at_ns: int) -> None:
        self.at_ns = at_ns

    def begin(self, now_ns: int) -> int | None:  # noqa: ARG002
        """The point."""
        return self.at_ns

    def following(self, last_ns: int) -> int | None:  # noqa: ARG002
        """None: it comes once."""
        return None

    def passed(self, due_ns: int, now_ns: int) -> Passed:  # noqa: ARG002
        """It comes once."""
        return Passed(due_ns, 1, None)

    def reset(self, due_ns: int, now_ns: int, moved_ns: int) -> Passed | int:  # noqa: ARG002
        """It stays."""
        return due_ns if due_ns > now_ns else self.passed(due_ns, now_ns)


class Dates:
    """calendar=: the times of a calendar expression."""

    __slots__ = ("calendar",)

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar

    def begin(self, now_ns: int) -> int | None:
        """The first after now."""
        return self.calendar.next_after(now_ns)

    def following(self, last_ns: int) -> int | None:
        """The first after it."""
        return self.calendar.next_after(last_ns)

    def passed(self, due_ns: int, now_ns: int) -> Passed:
        """One by one, PASSED_MAX at most; where there are more, `next_ns` is not after `now_ns`."""
        latest_ns, count = due_ns, 1
        next_ns = self.calendar.next_after(latest_ns)
        while next_ns is not None and next_ns <= now_ns and count < PASSED_MAX:
            latest_ns, count = next_ns, count + 1
            next_ns = self.calendar.next_after(latest_ns)
        return Passed(latest_ns, count, next_ns)

    def reset(self, due_ns: int, now_ns: int, moved_ns: int) -> Passed | int:  # noqa: ARG002
        """What was passed comes once; the rest is computed anew."""
        next_ns = self.calendar.next_after(now_ns)
        if due_ns <= now_ns:
            return Passed(due_ns, 1, next_ns)
        return due_ns if next_ns is None else next_ns


def aligned(due_ns: int, window_ns: int) -> int:
    """When to wake up for something due at `due_ns` that may come up to `window_ns` later.

    It is the time in that window which is a multiple of the highest power of two. Windows that overlap
    at such a time choose the same one without knowing of each other, and share the wake-up.
    """
    if window_ns <= 0:
        return due_ns
    latest_ns = due_ns + window_ns
    shift = ((due_ns - 1) ^ latest_ns).bit_length() - 1
    return latest_ns >> shift << shift
