"""What a durable job keeps: its entries, behind one another, whoever reads them and when.

A history is one for each job, whatever follows it; a position in it is a `Cursor`. It is bounded by count,
bytes and age, and what is beyond that is trimmed from its old end. The entries themselves are kept by the
store; here are the words that core and store have in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from aemd.core.entry import Loss
from aemd.core.limits import SECOND

DAY_NS = 86_400 * SECOND
MIB = 1024 * 1024


class Cursor(NamedTuple):
    """A position: everything up to number `seq` of `epoch` lies before it. Cursors compare in that order."""

    epoch: int
    seq: int


START = Cursor(1, 0)  # of a job that never fired
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Positions:
    """How far a durable job is. `head`: its newest number. `oldest`: everything up to there is trimmed.

    `acked`: everything up to there is dealt with by the client that answers for it; so are the numbers in
    `dealt`, ranges of the same epoch. `seen`: it was sent everything up to there. `lost`: numbers that gaps
    have covered.
    """

    head: Cursor = START
    oldest: Cursor = START
    acked: Cursor = START
    dealt: tuple[Range, ...] = ()
    seen: Cursor = START
    lost: int = 0


NEW = Positions()


@dataclass(frozen=True, slots=True)
class Keep:
    """How much of a history is kept."""

    entries: int = 10_000
    bytes: int = 16 * MIB  # of events and keys
    age_ns: int = 7 * DAY_NS


@dataclass(frozen=True, slots=True)
class Record:
    """An entry of a history: an event, or, where `loss` is set, a gap. It covers the numbers first..last.

    `real_ns`: when it was recorded, CLOCK_REALTIME.
    """

    epoch: int
    first: int
    last: int
    real_ns: int
    key: bytes = b""
    event: bytes = b""
    loss: Loss | None = None

    @property
    def size(self) -> int:
        """What it counts for, in bytes."""
        return len(self.key) + len(self.event)

    @property
    def cursor(self) -> Cursor:
        """The position behind it."""
        return Cursor(self.epoch, self.last)


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a job was when the daemon before this one ended.

    Of one that ended in order, `memento` is what its module said then (Module.memento). Of one that was
    killed `memento` is what never changes (Module.anchor). Then of a durable job only this is known: when it
    was started, CLOCK_REALTIME nanoseconds, and the newest event that it recorded, encoded; empty if there is
    none.
    """

    start_ns: int = 0
    newest: bytes = b""
    memento: bytes | None = None
