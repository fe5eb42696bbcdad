"""How fast a client may talk: a token bucket over the frames of one session.

The bucket holds `burst` frames and fills at `rate` a second. An empty bucket refuses nothing; the stream
is simply not read until there is a token, and the window of the link then stops the client.
"""

from __future__ import annotations

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
