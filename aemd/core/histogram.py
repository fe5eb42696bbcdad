"""How long things took, in buckets: adding one costs a shift and two additions, whatever it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aemd.core.entry import Entry

# Buckets are powers of two of microseconds: 8 us (what one hop on one machine costs at best) to 67 s (twice
# the default lease), and one for the rest. A bucket more costs nothing: the place is bit_length().
SHIFT = 3
BUCKETS = 24
BOUNDS_NS = tuple(1_000 << (SHIFT + place) for place in range(BUCKETS))


class Histogram:
    """How long something took: `counts` by bucket (the last one is beyond all bounds), and their sum."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (BUCKETS + 1)
        self.sum_ns = 0

    def add(self, took_ns: int, times: int = 1) -> None:
        """It took so long, `times` times."""
        place = ((took_ns - 1) // 1_000).bit_length() - SHIFT if took_ns > 0 else 0
        self.counts[0 if place < 0 else BUCKETS if place > BUCKETS else place] += times
        self.sum_ns += took_ns * times

    def add_since(self, entries: Sequence[Entry], now_ns: int) -> None:
        """The events of `entries`, in order, took from when they fired until `now_ns`."""
        first_ns = entries[0].fired_ns
        if len(entries) == 1 or first_ns == entries[-1].fired_ns:  # of one turn, as most are
            self.add(now_ns - first_ns, len(entries))
            return
        times = 0
        for entry in entries:
            if entry.fired_ns != first_ns:
                self.add(now_ns - first_ns, times)
                first_ns, times = entry.fired_ns, 0
            times += 1
        self.add(now_ns - first_ns, times)

    def merge(self, other: Histogram) -> None:
        """Add what another has counted."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum_ns += other.sum_ns
