"""Freezing and thawing in the engine: see `frozen.py` for what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aemd.core.binding import Binding
from aemd.core.course import Course
from aemd.core.deadlines import Due
from aemd.core.frozen import (
    FrozenJob,
    FrozenReader,
    FrozenSession,
    freeze_binding,
    freeze_principal,
    thaw_binding,
    thaw_principal,
)
from aemd.core.history import Cursor
from aemd.core.job import Job, JobEvent, JobState
from aemd.core.now import Now
from aemd.core.options import Options
from aemd.core.reader import Reader
from aemd.core.session import Session
from aemd.core.traits import Traits


class Freezing(Course):
    """The commands with which a daemon ends, and the next one begins."""

    def freeze(
        self, *, started: Callable[[Job], bool], memento: Callable[[Job], bytes | None], now: Now
    ) -> list[FrozenSession]:
        """All sessions, as they are. `started`: whether a job is to fire, which may have been stopped for the
        end; `memento`: what its module says of it.
        """
        self.now = now
        return [self._freeze_session(session, started, memento) for session in self._registry.sessions()]

    def _freeze_session(
        self, session: Session, started: Callable[[Job], bool], memento: Callable[[Job], bytes | None]
    ) -> FrozenSession:
        jobs, readers = [], []
        for binding in session.bindings.values():
            job = binding.job
            if isinstance(binding, Reader):
                frozen = freeze_binding(binding)
                readers.append(
                    FrozenReader(job.id, binding.epoch, binding.start, binding.follows, binding.cut, frozen)
                )
            elif job.state is not JobState.CLOSING:  # what was shut down has ended
                jobs.append(_freeze_job(job, started=started(job), memento=memento(job)))
        return FrozenSession(
            id=session.id,
            principal=freeze_principal(session.principal),
            token=session.token,
            token_before=session.token_before,
            label=session.label,
            sdk=session.sdk,
            create_time_ns=session.create_time_ns,
            generation=session.generation,
            next_binding=session.next_binding,
            lost_ns=self.now.mono_ns if session.connected else session.lost_ns,
            jobs=jobs,
            readers=readers,
        )

    def thaw_session(self, frozen: FrozenSession, now: Now) -> Session:
        """The session, without its bindings, and without a stream since it was lost; AemError if its user may
        not have so many.
        """
        self.now = now
        principal = thaw_principal(frozen.principal)
        session = Session(
            frozen.id,
            principal,
            self.accounts.charge(principal, "sessions"),
            self._tallies.open(principal.owner),
            allowance=self.accounts.allowance(principal),
            token=frozen.token,
            label=frozen.label,
            sdk=frozen.sdk,
            ready_sessions=self._ready,
            create_time_ns=frozen.create_time_ns,
        )
        session.generation = frozen.generation
        session.next_binding = frozen.next_binding
        session.connected = False
        session.lost_ns = frozen.lost_ns
        self._next_session = max(self._next_session, frozen.id + 1)
        self._registry.add_session(session)
        if frozen.token_before:
            self._registry.add_token(frozen.token_before, session)
        self.changes.begun(session)
        return session

    def thaw_job(
        self,
        session: Session,
        frozen: FrozenJob,
        *,
        module: Traits,
        values: Mapping[str, object],
        options: Options,
    ) -> Job:
        """A job of a thawed session, inert; AemError if its user may not have so many."""
        session.account.charge("jobs", session.allowance)
        job = Job(
            frozen.id,
            session.principal,
            traits=module,
            values=values,
            params=frozen.params,
            options=options,
            label=frozen.label,
            create_time_ns=frozen.create_time_ns,
        )
        job.epoch = frozen.epoch
        job.last_fire_ns = frozen.last_fire_ns
        self._next_job = max(self._next_job, frozen.id + 1)
        binding = job.binding = Binding(frozen.binding.id, job, session, (0, 0))
        session.bindings[binding.id] = binding
        session.leases[options.lease_ns] += 1
        self._registry.add_job(job)
        thaw_binding(binding, frozen.binding)
        self._schedule_delay(binding)
        self.changes.announced(job)
        if frozen.spent:
            job.turn(JobEvent.SPENT)
            job.reason = frozen.reason
        return job

    def thaw_reader(self, session: Session, job: Job, frozen: FrozenReader) -> None:
        """A thawed session's hold on a durable job; AemError if its user may not have it. Nothing
        if the job had nothing more to wait for, and has ended.
        """
        durable = job.durable
        assert durable is not None
        if job.state is JobState.GONE:
            return
        session.account.charge("jobs", session.allowance)
        reader = Reader(
            frozen.binding.id,
            job,
            session,
            (0, 0),
            at=Cursor(frozen.epoch, frozen.start),
            follows=frozen.follows,
        )
        reader.cut = frozen.cut
        session.bindings[reader.id] = reader
        session.leases[job.options.lease_ns] += 1
        durable.readers[reader] = None
        thaw_binding(reader, frozen.binding)
        self._schedule_delay(reader)
        self.read_on(reader)

    def await_client(self, session: Session) -> None:
        """A thawed session is complete: its lease runs since its stream was lost."""
        lease_ns = min(session.leases, default=self.limits.lease_ns)
        self._deadlines.set((Due.LEASE, session), session.lost_ns + lease_ns)


def _freeze_job(job: Job, *, started: bool, memento: bytes | None) -> FrozenJob:
    assert isinstance(job.params, bytes)
    return FrozenJob(
        id=job.id,
        module=job.traits.name,
        params=job.params,
        options=job.options.to_pb().SerializeToString(),
        label=job.label,
        started=started,
        spent=job.state is JobState.DRAINING,
        reason=job.reason,
        create_time_ns=job.create_time_ns,
        epoch=job.epoch,
        last_fire_ns=job.last_fire_ns,
        memento=memento,
        binding=freeze_binding(job.binding),
    )
