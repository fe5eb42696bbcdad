"""Where a durable job fires to: a binding that keeps nothing itself and records everything.

Modules and the engine know a job's `binding` and its `session`; a durable job has both, whoever reads it, so
that nothing else must ask which kind it is. Its session is a `House`, which has no client.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aemd.core.binding import Binding
from aemd.core.entry import Loss
from aemd.core.history import Record
from aemd.core.session import Session
from aemd.core.stats import NOTHING_LOST, JobStats, Parked, Stats

if TYPE_CHECKING:
    from aemd.core.job import Job
    from aemd.core.keeping import Keeping

_SUMMED = ("delivered", "redelivered", "acknowledged", "failed", "parked", "discarded")


class House(Session):
    """The session of durable jobs of one principal: nobody is connected to it."""

    __slots__ = ()

    def tell_state(self, job: Job) -> None:
        """Tell those who read the job."""
        assert job.durable is not None
        for reader in job.durable.readers:
            reader.session.tell_state(job)


class Recorder(Binding):
    """The binding that a durable job fires into."""

    __slots__ = ("keeping",)

    def __init__(self, job: Job, house: House, keeping: Keeping, *, head: int) -> None:
        super().__init__(0, job, house, (0, 0))
        self.keeping = keeping
        self.head = self.sent = self.shown = head
        self.listed = 0  # never to be woken

    def push(self, event: bytes, key: bytes, count: int, now_ns: int) -> bool:  # noqa: ARG002
        """Record an event that covers the next `count` numbers."""
        first = self.head + 1
        self.head += count
        self.tally.fires += count
        job = self.job
        self.keeping.record(job, [Record(job.epoch, first, self.head, job.last_fire_ns, key, event)])
        return False

    def push_many(self, events: Sequence[bytes], key: bytes, now_ns: int) -> None:  # noqa: ARG002
        """Record events that cover one number each."""
        job, first = self.job, self.head + 1
        epoch, real_ns = job.epoch, job.last_fire_ns
        self.head += len(events)
        self.tally.fires += len(events)
        records = [Record(epoch, seq, seq, real_ns, key, event) for seq, event in enumerate(events, first)]
        self.keeping.record(job, records)

    def push_gap(self, count: int, loss: Loss) -> None:
        """Record what was lost before it could fire."""
        self.stats = self.stats or Stats()
        self.stats.told += count
        self._record_loss(count, loss)

    def _record_loss(self, count: int, loss: Loss) -> None:
        first = self.head + 1
        self.head += count
        self.tally.lose(loss, count)
        stats = self.stats = self.stats or Stats()
        stats.lose(loss.stage, count)
        job = self.job
        real_ns = self.keeping.now.real_ns
        self.keeping.record(job, [Record(job.epoch, first, self.head, real_ns, loss=loss)])

    def push_lost(self, count: int, loss: Loss) -> None:
        """Record stimuli that came and are lost."""
        self.tally.fires += count
        self._record_loss(count, loss)

    def put_aside(self, parked: Parked, parked_max: int) -> None:
        """As with any other job; the store keeps it, too."""
        super().put_aside(parked, parked_max)
        self._aside_changed()

    def take_back(self, parked: Parked) -> None:
        """As with any other job; the store as well."""
        super().take_back(parked)
        self._aside_changed()

    def _aside_changed(self) -> None:
        assert self.job.durable is not None
        self.job.durable.aside_changed = True
        self.keeping.keep_later(self.job)

    def absorb(self, reader: Binding) -> None:
        """A reader goes; its counts stay."""
        self.stats = _sum(self.stats, reader.stats)

    def job_stats(self) -> JobStats:
        """The counters of the job, of those who read it and of those who did."""
        job, durable = self.job, self.job.durable
        assert durable is not None
        stats = _sum(self.stats, *(reader.stats for reader in durable.readers))
        in_flight = sum(len(reader.in_flight()) for reader in durable.readers)
        acked = durable.acked.seq if durable.acked.epoch == job.epoch else 0
        return JobStats(
            fires=self.head - stats.told,
            delivered=stats.delivered,
            redelivered=stats.redelivered,
            acknowledged=stats.acknowledged,
            failed=stats.failed,
            lost=durable.lost,
            queued=max(self.head - acked - in_flight, 0),
            queued_bytes=durable.tail_bytes,
            in_flight=in_flight,
            parked=stats.parked,
            discarded=stats.discarded,
            last_fire_time_ns=job.last_fire_ns,
            last_error=stats.last_error,
            last_error_time_ns=stats.last_error_time_ns,
            epoch=job.epoch,
            head=self.head,
            acked=acked,
            lost_at=stats.lost_at or NOTHING_LOST,
        )


def _sum(own: Stats | None, *others: Stats | None) -> Stats:
    """What has happened altogether; what was lost is what the recorder says of it."""
    total = Stats()
    if own is not None:
        total = Stats(told=own.told, lost_at=own.lost_at, parked_list=own.parked_list)
    for stats in (own, *others):
        if stats is None:
            continue
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(stats, name))
        if stats.last_error_time_ns > total.last_error_time_ns:
            total.last_error = stats.last_error
            total.last_error_time_ns = stats.last_error_time_ns
    return total
