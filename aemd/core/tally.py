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
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aemd.core.histogram import Histogram

if TYPE_CHECKING:
    from aemd.core.entry import Loss
    from aemd.core.principal import Owner

IDLE_MAX = 256  # owners without sessions whose tallies are remembered: a sum over them takes 15 ms

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
    "source_failures",
    "bytes",
)


class Tally:
    """What has happened to the jobs of one owner with one module. `fires` and `lost` are of stimuli, `bytes`
    of events handed over, the rest of entries.
    """

    __slots__ = (*COUNTS, "acknowledgement", "delivery", "lost", "runs")

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
        self.source_failures = 0
        self.bytes = 0
        self.lost: Counter[tuple[int, int]] = Counter()  # by (stage, cause)
        self.runs: Counter[str] = Counter()  # of commands, by how they ended
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
        self.runs.update(other.runs)
        self.delivery.merge(other.delivery)
        self.acknowledgement.merge(other.acknowledgement)


SHEET_COUNTS = ("opened", "resumed", "cut", "frames_in", "frames_out", "bytes_out")


class Sheet(dict[str, Tally]):
    """The tallies of one owner, by module, and what is counted of its sessions."""

    __slots__ = (*SHEET_COUNTS, "sessions")

    def __init__(self) -> None:
        super().__init__()
        self.sessions = 0  # that use it now
        self.opened = 0
        self.resumed = 0
        self.cut = 0  # streams that were lost
        self.frames_in = 0  # of clients, those of a bundle one by one
        self.frames_out = 0  # messages for clients
        self.bytes_out = 0  # in them

    def __missing__(self, module: str) -> Tally:
        tally = self[module] = Tally()
        return tally

    def merge(self, other: Sheet) -> None:
        """Add what another has counted."""
        for name in SHEET_COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for module, tally in other.items():
            self[module].merge(tally)


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
        sheet.opened += 1
        return sheet

    def close(self, owner: Owner) -> None:
        """A session of `owner` has ended, with all its jobs."""
        sheet = self._sheets[owner]
        sheet.sessions -= 1
        if sheet.sessions:
            return
        self._idle[owner] = None
        if len(self._idle) > IDLE_MAX:
            self._forgotten.merge(self._sheets.pop(self._idle.popitem(last=False)[0]))

    def of(self, owner: Owner | None) -> Iterator[Sheet]:
        """The sheet of an owner, with None those of everybody."""
        if owner is None:
            yield from (*self._sheets.values(), self._forgotten)
        elif owner in self._sheets:
            yield self._sheets[owner]

    def sum(self, owner: Owner | None) -> Sheet:
        """One sheet: of an owner, with None of everybody. A copy."""
        total = Sheet()
        for sheet in self.of(owner):
            total.merge(sheet)
        return total
