"""Counters of a job, kept once it has fired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from aemd.core.entry import Entry, EntryState, Loss
from aemd.core.history import Cursor

STAGES = 5  # of session_pb2.Stage, the one that is not said among them
NOTHING_LOST = (0,) * STAGES

PARKED_BYTES = 128  # what one that is kept costs beside its reason


class Parked(NamedTuple):
    """An entry that was put aside. `event` is None where there was no room to keep it: then it is only
    listed.
    """

    epoch: int
    first: int
    last: int
    reason: str
    attempts: int = 0
    key: bytes = b""
    event: bytes | None = None
    loss: Loss | None = None

    @property
    def cursor(self) -> Cursor:
        """What it is named by."""
        return Cursor(self.epoch, self.last)

    @property
    def cost(self) -> int:
        """What it is charged as, bytes."""
        return PARKED_BYTES + len(self.reason) + len(self.key) + len(self.event or b"")

    def without_event(self) -> Parked:
        """The same, to be listed and no more."""
        return self._replace(key=b"", event=None)


@dataclass(slots=True)
class Stats:
    """What has happened to a binding that has fired. Of entries, but `lost` and `told` are of numbers."""

    delivered: int = 0
    redelivered: int = 0
    acknowledged: int = 0
    failed: int = 0
    lost: int = 0  # covered by gaps
    shown: tuple[int, int, int] = (0, 0, 0)  # head, acknowledged and lost as the client was last told
    told: int = 0  # of `lost`, those that never fired: the module reported them
    parked: int = 0
    discarded: int = 0
    last_error: str = ""
    last_error_time_ns: int = 0
    parked_list: list[Parked] = field(default_factory=list)
    lost_at: Sequence[int] = ()  # by session_pb2.Stage; empty until something is lost
    retried: set[Entry] | None = None  # put aside before; some may have been delivered since

    def undelivered(self) -> set[Entry]:
        """Those of `retried` that have not been delivered since."""
        coming = {entry for entry in self.retried or () if entry.state is EntryState.AGAIN}
        self.retried = coming or None
        return coming

    def lose(self, stage: int, numbers: int) -> None:
        """So many are in a gap of that stage."""
        self.lost += numbers
        lost_at = list(self.lost_at or NOTHING_LOST)
        lost_at[stage] += numbers
        self.lost_at = lost_at


@dataclass(frozen=True, slots=True)
class JobStats:
    """What has happened to a job so far; the fields of JobStats in job.proto."""

    fires: int
    delivered: int
    redelivered: int
    acknowledged: int
    failed: int
    lost: int
    queued: int
    queued_bytes: int
    in_flight: int
    parked: int
    discarded: int
    last_fire_time_ns: int
    last_error: str
    last_error_time_ns: int
    epoch: int
    head: int
    acked: int
    lost_at: Sequence[int]  # by session_pb2.Stage

    @property
    def lag(self) -> int:
        """Numbers that are not dealt with."""
        return self.head - self.acked
