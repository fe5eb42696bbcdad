"""What is counted of events, for metrics: plain numbers, added to where the thing happens.

One tally for each owner and module. Whoever asks for metrics gets sums of these, so that the cost of asking
is that of the owners and modules, never of the jobs; and a count never goes back, whatever has ended since.
The owners that have no session any more are remembered up to IDLE_MAX; the tallies of those beyond it go into
one that only the sums over everybody have.

A latency is measured from the turn in which an event fired (that is its mono_time_ns: the core's clock stands
still during a turn) to the moment at which it was handed to the front, and to the turn in which its
acknowledgement came. What was merged is as old as the first stimulus in it. Only first deliveries count.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aemd.core.entry import Entry, Loss
    from aemd.core.principal import Owner

IDLE_MAX = 1_024  # owners without sessions whose tallies are remembered

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


COUNTS = (
    "fires",
    "merged",
    "delivered",
    "redelivered",
    "acknowledged",
    "failed",
    "parked",
    "discarded",
    "paused",
    "bytes",
)


class Tally:
    """What has happened to the jobs of one owner with one module. `fires` and `lost` are of stimuli, `bytes`
    of events handed over, the rest of entries.
    """

    __slots__ = (*COUNTS, "acknowledgement", "delivery", "lost")

    def __init__(self) -> None:
        self.fires = 0
        self.merged = 0  # stimuli that went into an entry that waited
        self.delivered = 0
        self.redelivered = 0
        self.acknowledged = 0
        self.failed = 0
        self.parked = 0
        self.discarded = 0
        self.paused = 0  # how often a source was not to be read
        self.bytes = 0
        self.lost: Counter[tuple[int, int]] = Counter()  # by (stage, cause)
        self.delivery = Histogram()
        self.acknowledgement = Histogram()

    def lose(self, loss: Loss, numbers: int) -> None:
        """So many stimuli are in a gap."""
        self.lost[loss.stage, loss.cause] += numbers

    def merge(self, other: Tally) -> None:
        """Add what another has counted."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lost.update(other.lost)
        self.delivery.merge(other.delivery)
        self.acknowledgement.merge(other.acknowledgement)


class Sheet(dict[str, Tally]):
    """The tallies of one owner, by module. `sessions`: how many of its sessions use it."""

    __slots__ = ("sessions",)

    def __init__(self) -> None:
        super().__init__()
        self.sessions = 0

    def __missing__(self, module: str) -> Tally:
        tally = self[module] = Tally()
        return tally


class Tallies:
    """The tallies of everybody."""

    __slots__ = ("_forgotten", "_idle", "_sheets")

    def __init__(self) -> None:
        self._sheets: dict[Owner, Sheet] = {}
        self._idle: OrderedDict[Owner, None] = OrderedDict()
        self._forgotten = Sheet()

    def open(self, owner: Owner) -> Sheet:
        """The sheet for one session more of `owner`."""
        sheet = self._sheets.get(owner)
        if sheet is None:
            sheet = self._sheets[owner] = Sheet()
        self._idle.pop(owner, None)
        sheet.sessions += 1
        return sheet

    def close(self, owner: Owner) -> None:
        """A session of `owner` has ended, with all its jobs."""
        sheet = self._sheets[owner]
        sheet.sessions -= 1
        if sheet.sessions:
            return
        self._idle[owner] = None
        if len(self._idle) > IDLE_MAX:
            for module, tally in self._sheets.pop(self._idle.popitem(last=False)[0]).items():
                self._forgotten[module].merge(tally)

    def of(self, owner: Owner | None) -> Iterator[tuple[str, Tally]]:
        """(module, tally) pairs of an owner, with None of everybody; a module may come several times."""
        if owner is not None:
            yield from self._sheets.get(owner, {}).items()
            return
        for sheet in (*self._sheets.values(), self._forgotten):
            yield from sheet.items()

    def sums(self, owner: Owner | None) -> dict[str, Tally]:
        """One tally for each module: of an owner, with None of everybody."""
        sums = Sheet()
        for module, tally in self.of(owner):
            sums[module].merge(tally)
        return sums
