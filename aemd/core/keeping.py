"""Durable jobs in the engine: made, restored, bound, read, and what of them is to be kept.

A durable job belongs to a user, not to a session. It fires into its `Recorder`; sessions bind to it as
readers, one that answers and any number that follow. What changed in a turn is given out once by `take_kept`,
for the store. Entries that are not in memory are asked for by a Fetch effect and come back through `fetched`.
"""

from __future__ import annotations

from collections.abc import Mapping

from aemd.core.accounts import Charge
from aemd.core.course import Course
from aemd.core.durable import Durable
from aemd.core.entry import Loss
from aemd.core.errors import AemError, Code
from aemd.core.history import NEW, Cursor, Keep, Positions, Record
from aemd.core.job import Job, JobState
from aemd.core.now import Now
from aemd.core.options import Options
from aemd.core.principal import Principal
from aemd.core.reader import Reader
from aemd.core.recorder import House, Recorder
from aemd.core.session import Session
from aemd.core.stats import Parked
from aemd.core.traits import Traits
from aemd.v1 import job_pb2, session_pb2

RESTARTED = Loss(
    session_pb2.STAGE_SOURCE,
    session_pb2.CAUSE_RESTART,
    remedy=session_pb2.REMEDY_RESCAN,
    unknown=True,
)


class Keeping(Course):
    """The commands about durable jobs."""

    # -- jobs

    @property
    def next_id(self) -> int:
        """The id that the next job gets."""
        return self._next_job

    def ids_begin(self, number: int) -> None:
        """Give out no id below `number`: a daemon before this one may have."""
        self._next_job = max(self._next_job, number)

    def parse_options(self, options: job_pb2.Options, module: Traits) -> Options:
        """The options of a job of `module`; AemError if one is wrong."""
        return self._options.parse(options, module)

    def keep_job(
        self,
        principal: Principal,
        *,
        job_id: int,
        name: str,
        module: Traits,
        values: Mapping[str, object],
        params: object,
        options: Options,
        keep: Keep,
        label: str,
        create_time_ns: int,
        positions: Positions = NEW,
    ) -> Job:
        """A durable job, new or as it was, inert. `job_id` 0: it is new, is given one, and may be refused."""
        charge = self.accounts.restore if job_id else self.accounts.charge
        if not job_id:
            self.accounts.take(principal, "registrations_per_second", self.now.mono_ns)
            job_id = self._next_job
        self._next_job = max(self._next_job, job_id + 1)
        history = charge(principal, "history_bytes", keep.bytes)
        try:
            house = self._house(principal, charge(principal, "jobs"))
        except AemError:
            history.refund()
            raise
        job = Job(
            job_id,
            principal,
            traits=module,
            values=values,
            params=params,
            options=options,
            label=label,
            create_time_ns=create_time_ns,
        )
        job.epoch = positions.head.epoch
        job.durable = Durable(name, keep, positions, history)
        job.binding = Recorder(job, house, self, head=positions.head.seq)
        self._registry.add_job(job)
        return job

    def _house(self, principal: Principal, charge: Charge) -> House:
        house = House(
            0,
            principal,
            charge,
            self._tallies.open(principal.owner),
            allowance=self.accounts.allowance(principal),
            token=b"",
            label="",
            sdk="",
            ready_sessions=self._ready,
            create_time_ns=self.now.real_ns,
        )
        house.connected = False
        return house

    def put_aside(self, job: Job, parked: Parked) -> None:
        """It was put aside before the daemon was restarted."""
        job.binding.put_aside(parked, self.limits.parked_max)

    def begin_epoch(self, job: Job) -> None:
        """Nobody can prove that nothing is missing: a new epoch, that opens with a gap of unknown size."""
        assert job.durable is not None
        job.epoch += 1
        job.binding.head = 0
        job.binding.push_gap(1, RESTARTED)

    def record(self, job: Job, records: list[Record]) -> None:
        """Entries more in the history of `job`; those who follow its head get them at once."""
        durable = job.durable
        assert durable is not None
        durable.append(records)
        self._kept[job] = None
        for reader in durable.readers:
            if not reader.paused:
                reader.paused = not reader.take(records, durable, self.now.mono_ns)
                reader.session.wake(reader)

    def keep_later(self, job: Job) -> None:
        """Give it out by take_kept once more."""
        self._kept[job] = None

    def take_kept(self) -> list[Job]:
        """The durable jobs of which something changed that is to be kept; each once."""
        kept, self._kept = list(self._kept), {}
        return kept

    # -- reading

    def start_of(self, job: Job, cursor: Cursor) -> Cursor:
        """`cursor` as a place to begin; AemError OUT_OF_RANGE if it is trimmed, or not of this history."""
        durable = job.durable
        assert durable is not None
        head = Cursor(job.epoch, job.binding.head)
        oldest = durable.oldest
        if oldest <= cursor <= head:
            return cursor
        reason = "CURSOR_EXPIRED" if cursor < oldest else "CURSOR_UNKNOWN"
        raise AemError(
            Code.OUT_OF_RANGE,
            reason,
            f"jobs/{job.id}: there is nothing behind {_text(cursor)}; what is kept begins behind "
            f"{_text(oldest)} and ends with {_text(head)}; bind from OLDEST to read all of it, or from NOW",
            oldest=_text(oldest),
            head=_text(head),
        )

    def bind(
        self,
        session: Session,
        job: Job,
        *,
        at: Cursor,
        follows: bool,
        credit: tuple[int, int] | None,
        now: Now,
    ) -> Reader:
        """A hold on a durable job, from a position on; it costs what a job costs. AemError
        FAILED_PRECONDITION, ALREADY_BOUND, if there is a client that answers for it already.
        """
        self.now = now
        durable = job.durable
        assert durable is not None
        if job.state in (JobState.CLOSING, JobState.GONE):
            raise AemError(Code.FAILED_PRECONDITION, "JOB_ENDING", f"jobs/{job.id} is about to end")
        answering = None if follows else self._answering(job, durable)
        self._charge_binding(session)
        if answering is not None:
            self._let_go(answering)
        if not follows:
            durable.seek(at)
        limits = self.limits
        granted = credit or (limits.binding_events, limits.binding_bytes)
        most = limits.credit_max
        return self._hold(
            session, job, at=at, follows=follows, credit=(min(granted[0], most), min(granted[1], most))
        )

    def _hold(
        self, session: Session, job: Job, *, at: Cursor, follows: bool, credit: tuple[int, int]
    ) -> Reader:
        durable = job.durable
        assert durable is not None
        reader = Reader(session.next_binding, job, session, credit, at=at, follows=follows)
        session.next_binding += 1
        session.bindings[reader.id] = reader
        session.leases[job.options.lease_ns] += 1
        durable.readers[reader] = None
        self._kept[job] = None
        return reader

    def _answering(self, job: Job, durable: Durable) -> Reader | None:
        """Nobody else may answer; a client whose stream is lost makes room for one that is there."""
        for reader in durable.readers:
            if reader.follows:
                continue
            if not reader.session.id:
                raise AemError(
                    Code.FAILED_PRECONDITION,
                    "COMMAND_ANSWERS",
                    f"jobs/{job.id}: a command answers for it (exec), which the daemon runs; bind with role"
                    " FOLLOW",
                )
            if reader.session.connected:
                raise AemError(
                    Code.FAILED_PRECONDITION,
                    "ALREADY_BOUND",
                    f"jobs/{job.id}: sessions/{reader.session.id} answers for it; bind with role FOLLOW, or "
                    "end that session",
                    session=reader.session.id,
                )
            return reader
        return None

    def trimmed(self, job: Job, oldest: Cursor) -> None:
        """The store has given up everything up to `oldest`."""
        assert job.durable is not None
        job.durable.trim(oldest)


def _text(cursor: Cursor) -> str:
    return f"{cursor.epoch}:{cursor.seq}"
