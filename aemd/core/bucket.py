"""A token bucket that counts exactly: integers, and no clock of its own.

It holds what a second and a half brings, so a rate may be exceeded for a moment by that much. What was taken
is kept, not what is left: a bucket that nobody has used is full whatever the rate, and the rate may change
from one call to the next, or differ between two who share the bucket. GCRA (ITU-T I.371) says the same with
times instead of amounts, but rounds the time of a token to whole nanoseconds, which at 500,000,000 a second
is wrong by half.
"""

from __future__ import annotations

from aemd.core.limits import SECOND

NEVER_NS = 3_600 * SECOND  # how long to wait for a token of a bucket that gets none: look again then


class Bucket:
    """What was taken and has not come back, in tokens times nanoseconds."""

    __slots__ = ("_at_ns", "_spent")

    def __init__(self) -> None:
        self._spent = 0
        self._at_ns = 0

    def take(self, count: int, rate: int, now_ns: int) -> bool:
        """Take `count` tokens if they are there; none otherwise. `rate`: tokens a second."""
        self._flow(rate, now_ns)
        spent = self._spent + count * SECOND
        if spent > burst(rate) * SECOND:
            return False
        self._spent = spent
        return True

    def owe(self, count: int, rate: int, now_ns: int) -> None:
        """Take `count` tokens, whether they are there or not: what is missing is waited for later."""
        self._flow(rate, now_ns)
        self._spent += count * SECOND

    def give_back(self, count: int) -> None:
        """`count` tokens that were taken are not needed."""
        self._spent = max(self._spent - count * SECOND, 0)

    def left(self, rate: int, now_ns: int) -> int:
        """How many tokens are there."""
        self._flow(rate, now_ns)
        return max(burst(rate) - self._taken(), 0)

    def taken(self, rate: int, now_ns: int) -> int:
        """How many tokens have not come back."""
        self._flow(rate, now_ns)
        return self._taken()

    def wait_ns(self, count: int, rate: int, now_ns: int) -> int:
        """How long until `count` tokens are there, or as many as it can hold."""
        self._flow(rate, now_ns)
        most = burst(rate)
        missing = self._spent + min(count, most) * SECOND - most * SECOND
        if missing <= 0:
            return 0
        return -(-missing // rate) if rate else NEVER_NS

    def _taken(self) -> int:
        return -(-self._spent // SECOND)

    def _flow(self, rate: int, now_ns: int) -> None:
        """What has come since the last call."""
        if now_ns > self._at_ns:
            self._spent = max(self._spent - (now_ns - self._at_ns) * rate, 0)
            self._at_ns = now_ns


def burst(rate: int) -> int:
    """How many tokens a bucket of this rate holds."""
    return max(3 * rate // 2, 1) if rate else 0
