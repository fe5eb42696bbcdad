"""How fast a client may talk, and how much of a turn what it says may take.

`Pace` is a token bucket over the frames of one session. The bucket holds `burst` frames and fills at `rate`
a second. An empty bucket refuses nothing; the stream is simply not read until there is a token, and the
window of the link then stops the client.

`Shares` is the time of a turn that each user has, for the frames of all his sessions and all his calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from aemd.sources.reactor import Reactor

SECOND = 1_000_000_000


class Pace:
    """A token bucket; times are CLOCK_MONOTONIC nanoseconds."""

    __slots__ = ("_burst_ns", "_cost_ns", "_free_ns")

    def __init__(self, *, rate: int, burst: int, now_ns: int) -> None:
        """`rate`: frames a second; `burst`: frames at once."""
        self._cost_ns = max(SECOND // rate, 1)
        self._burst_ns = burst * self._cost_ns
        self._free_ns = now_ns - self._burst_ns  # GCRA: when the bucket would have been empty

    def take(self, now_ns: int) -> bool:
        """Take a token, if there is one."""
        free = max(self._free_ns, now_ns - self._burst_ns)
        if free + self._cost_ns > now_ns:
            return False
        self._free_ns = free + self._cost_ns
        return True

    def ready_at_ns(self, share: int = 1) -> int:
        """When `share` tokens will be there; at most `burst` are."""
        return self._free_ns + min(share * self._cost_ns, self._burst_ns)


class Shares:
    """What each user's frames and calls have taken of this turn, in nanoseconds of work."""

    def __init__(self, reactor: Reactor, turn_ns: int) -> None:
        """`turn_ns`: what a user has of each turn; one frame or call may go over it."""
        self._reactor = reactor
        self._most_ns = turn_ns
        self._turn_ns = 0  # when the turn began that _spent is about
        self._spent: dict[int, int] = {}  # by uid

    def left_ns(self, uid: int) -> int:
        """How long a user's frames and calls may still be dealt with in this turn."""
        turn_ns = self._reactor.mono_ns()
        if turn_ns != self._turn_ns:
            self._turn_ns = turn_ns
            self._spent.clear()
        return self._most_ns - self._spent.get(uid, 0)

    def spend(self, uid: int, work_ns: int) -> None:
        """So long they have taken."""
        self._spent[uid] = self._spent.get(uid, 0) + work_ns

    def run(self, uid: int, work: Callable[[], None]) -> None:
        """Do `work` of a user, in a later turn if he has had his share of this one."""
        if self.left_ns(uid) <= 0:
            timers = self._reactor.clock("monotonic")
            timers.call_at(timers.now_ns(), lambda _now_ns: self.run(uid, work))
            return
        begun_ns = time.monotonic_ns()  # the turn's own time stands still
        try:
            work()
        finally:
            self.spend(uid, time.monotonic_ns() - begun_ns)
