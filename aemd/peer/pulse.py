"""Notices that a front hangs: now and then it is asked whether it lives, and has to answer.

A front that hangs may look well for long: what the core sends it goes into its socket's buffer, and its
clients wait. The question goes with something that is being sent anyway, so nobody is woken for it, and while
nothing is sent nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable

from aemd.core.limits import SECOND
from aemd.sources.reactor import Reactor, Timer

BEAT_NS = 5 * SECOND  # between an answer and the next question
LATE_NS = 5 * SECOND  # an answer is late, and then as much again: the core itself may have been held up


class Pulse:
    """Of one front. `ask` sends it the question; `silent` is called if no answer comes."""

    def __init__(self, reactor: Reactor, *, ask: Callable[[], None], silent: Callable[[], None]) -> None:
        self._clock = reactor.clock("monotonic")
        self._ask = ask
        self._silent = silent
        self._timer: Timer | None = None
        self._next_ns = 0
        self._late = False
        self.asked = False

    def beat(self) -> None:
        """Something is sent to it, and it is not `asked`: ask, if it is time."""
        now_ns = self._clock.now_ns()
        if now_ns >= self._next_ns:
            self.asked = True
            self._ask()
            self._timer = self._clock.call_at(now_ns + LATE_NS, self._overdue)

    def answered(self) -> None:
        """It lives."""
        self.close()
        self.asked = self._late = False
        self._next_ns = self._clock.now_ns() + BEAT_NS

    def close(self) -> None:
        """Expect no answer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overdue(self, now_ns: int) -> None:
        self._timer = None
        if self._late:
            self._silent()
        else:
            self._late = True
            self._timer = self._clock.call_at(now_ns + LATE_NS, self._overdue)
