"""Durable jobs for which the daemon itself answers: it takes their entries, instead of sending them.

The hold is a `Reader` as any other. Its session, a `StandIn`, has no stream and no client: what it is woken
for it puts on a list that its owner looks through. Whoever takes entries answers with `complete` or `nack`,
as a client would, or gives them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aemd.core.binding import Binding
from aemd.core.entry import Entry, EntryState
from aemd.core.job import Job
from aemd.core.keeping import Keeping
from aemd.core.reader import Reader
from aemd.core.session import Session

if TYPE_CHECKING:
    from aemd.core.outbox import Outbox


class StandIn(Session):
    """The session of whoever in the daemon answers for one durable job."""

    __slots__ = ()

    def wake(self, binding: Binding) -> None:
        """There may be something to take."""
        if binding.next_entry() is not None:
            self.mark_ready()

    def tell_state(self, job: Job) -> None:  # noqa: ARG002
        """The job may be run for now, or no longer."""
        self.mark_ready()


class Serving(Keeping):
    """The commands of who answers for a durable job without a client."""

    def stand_in(self, job: Job, ready: list[Outbox], *, known: bool) -> Reader:
        """Answer for a job that nobody answers for. `ready` is given the session of the reader when there is
        something to take, or when the job is not as it was. It costs what a binding costs, and is not refused
        if it was there before (`known`).
        """
        durable, house = job.durable, job.session
        assert durable is not None
        if known:
            house.account.restore("jobs", 1)
        else:
            house.account.charge("jobs", house.allowance)
        session = StandIn(
            0,
            job.owner,
            house.charge,
            house.sheet,
            allowance=house.allowance,
            token=b"",
            label="",
            sdk="",
            ready_sessions=ready,  # type: ignore[arg-type]
            create_time_ns=self.now.real_ns,
        )
        reader = self._hold(session, job, at=max(durable.acked, durable.oldest), follows=False, credit=(0, 0))
        self.read_on(reader)
        return reader

    def take(self, reader: Reader, events: int, size: int) -> list[Entry]:
        """The next entries, gaps among them: so many, and so many bytes of events (one may go over it). They
        are in flight now.
        """
        entries: list[Entry] = []
        now_ns = reader.session.handed_ns = self.now.mono_ns
        while len(entries) < events and size > 0:
            entry = reader.next_entry()
            if entry is None:
                break
            if entry.loss is not None:
                entries.append(reader.take_gap(now_ns))
                continue
            if entry.state is EntryState.AGAIN:
                taken, spent = reader.take_again(events - len(entries), size, now_ns)
            else:
                taken, spent, _ = reader.take_queued(events - len(entries), size, now_ns)
            entries += taken
            size -= max(spent, 1)
        if entries:
            self._settled(reader)
        return entries

    def give_back(self, reader: Reader, entries: Sequence[Entry]) -> None:
        """They were taken for nothing, and are to be taken again; nobody failed."""
        if reader.id in reader.session.bindings:
            self._rewind(reader, [one for one in entries if one.state is EntryState.INFLIGHT], None)
