"""What must be known of sessions and their jobs when the daemon is killed: as records, one for each change.

Whoever has the records since the beginning can go on with the sessions (`replay`): ids, tokens, jobs, and
whether they are to fire. Not with what waited or was in flight: that is lost with the daemon, and each job
gets a gap.

A session or a job is told as a whole once (`Begun`, `Registered`), and then again only to move it on, behind
everything else that is told, so that the records before it can be forgotten. What speaks of one that was not
told yet, or has been moved on, says nothing new. A job may stand before its session.

Records of another form are another version of the tape.

`Changes` is what the engine notes in the meantime. Only the fact is noted; the records are made of how things
are when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from aemd.core.frozen import FrozenJob, FrozenPrincipal, FrozenSession, empty_binding, freeze_principal
from aemd.core.job import JobState
from aemd.v1 import job_pb2

if TYPE_CHECKING:
    from aemd.core.job import Job
    from aemd.core.options import Options
    from aemd.core.session import Session

JOB_BYTES = 80  # of the record of a job, beside its parameters and its label; rather more than less
SESSION_BYTES = 300
STOPPED, STARTED, SPENT = range(3)  # what a job is to do: see `Registered.standing`


class Begun(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A session. `next_binding`: all numbers below are used up."""

    session: int
    principal: FrozenPrincipal
    token: bytes
    token_before: bytes
    label: str
    sdk: str
    create_time_ns: int
    generation: int
    next_binding: int


class Moved(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A session has another token, or has used up the number of a binding that is on no record."""

    session: int
    token: bytes
    token_before: bytes
    generation: int
    next_binding: int


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A session is gone, and all its jobs."""

    session: int


class Registered(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A job whose client was told of it. `standing`: STARTED, it is to fire; SPENT, it has fired for the last
    time, for `reason`. `anchor`: its module's, for open() after a daemon that was killed.
    """

    job: int
    session: int
    binding: int
    module: str
    params: bytes
    options: bytes
    label: str
    create_time_ns: int
    epoch: int
    anchor: bytes | None
    standing: int
    reason: str = ""


class Turned(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A job was started, stopped or spent, or has another priority."""

    job: int
    priority: int
    standing: int
    reason: str = ""


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A job has ended, or waits for nothing but its running handlers."""

    job: int


Record = Begun | Moved | Ended | Registered | Turned | Gone

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def encode(record: Record) -> bytes:
    """The bytes of a record."""
    return _encode(record)


def parse_record(data: bytes) -> Record:
    """A record from its bytes; ValueError if they are none."""
    return _decode(data)  # type: ignore[no-any-return]


class Taken(NamedTuple):
    """What has changed: what is told as a whole; what is moved on or ended; and about how many bytes of
    records before say nothing any more for that.
    """

    whole: list[Record]
    moves: list[Record]
    left_bytes: int


class Changes:
    """Sessions and jobs that are not as they were. `wanted`: somebody asks; nothing is noted else."""

    __slots__ = ("_announced", "_sessions", "_turned", "wanted")

    def __init__(self) -> None:
        self.wanted = False
        self._sessions: dict[Session, bool] = {}  # whether it is new
        self._announced: dict[Job, None] = {}
        self._turned: dict[Job, None] = {}

    def __bool__(self) -> bool:
        return bool(self._sessions or self._announced or self._turned)

    def begun(self, session: Session) -> None:
        """There is a session more."""
        if self.wanted:
            self._sessions[session] = True

    def moved(self, session: Session) -> None:
        """It has another token, or a hold on a durable job more, or has ended."""
        if self.wanted:
            self._sessions.setdefault(session, False)

    def announced(self, job: Job) -> None:
        """Its client has been told of a job, or was by the daemon before."""
        if self.wanted:
            self._announced[job] = None

    def turned(self, job: Job) -> None:
        """It has another state or other options."""
        if self.wanted:
            self._turned[job] = None

    def take(self, teller: Teller) -> Taken:
        """The records of all that was noted, each once."""
        whole: list[Record] = []
        moves: list[Record] = []
        left_bytes = 0
        used_up: dict[Session, None] = {}
        for session, new in self._sessions.items():
            if session.ended:
                if not new:
                    moves.append(Ended(session.id))
                    left_bytes += SESSION_BYTES
            elif new:
                whole.append(begun(session))
            else:
                moves.append(_moved(session))
        for job in self._announced:
            if stands(job):
                whole.append(teller.registered(job))
            elif not job.session.ended:
                used_up[job.session] = None
        moves += [_moved(session) for session in used_up]
        for job in self._turned:
            if job in self._announced:
                continue
            if job.state is JobState.GONE:
                left_bytes += _size(job)
            if not job.session.ended:
                moves.append(teller.turned(job) if stands(job) else Gone(job.id))
        self.forget()
        return Taken(whole, moves, left_bytes)

    def forget(self) -> None:
        """Nothing was noted."""
        self._sessions, self._announced, self._turned = {}, {}, {}


class Teller:
    """Makes the records of jobs. `is_started`: whether a job is to fire; `anchor`: what its module says."""

    __slots__ = ("_anchor", "_is_started", "_options", "_options_encoded")

    def __init__(self, is_started: Callable[[Job], bool], anchor: Callable[[Job], bytes | None]) -> None:
        self._is_started = is_started
        self._anchor = anchor
        self._options: Options | None = None  # those of the last job, and how they are written
        self._options_encoded = b""

    def registered(self, job: Job) -> Registered:
        """The whole job."""
        assert isinstance(job.params, bytes)
        if job.options is not self._options:  # equal ones are one object
            self._options = job.options
            self._options_encoded = job.options.to_pb().SerializeToString()
        binding = job.binding
        return Registered(
            job.id,
            binding.session.id,
            binding.id,
            job.traits.name,
            job.params,
            self._options_encoded,
            job.label,
            job.create_time_ns,
            job.epoch,
            self._anchor(job),
            self._standing(job),
            job.reason,
        )

    def turned(self, job: Job) -> Turned:
        """What may have changed of it."""
        return Turned(job.id, job.options.priority, self._standing(job), job.reason)

    def _standing(self, job: Job) -> int:
        if job.state is JobState.DRAINING:
            return SPENT
        return STARTED if self._is_started(job) else STOPPED


def begun(session: Session) -> Begun:
    """The whole session."""
    return Begun(
        session.id,
        freeze_principal(session.principal),
        session.token,
        session.token_before,
        session.label,
        session.sdk,
        session.create_time_ns,
        session.generation,
        session.next_binding,
    )


def _moved(session: Session) -> Moved:
    return Moved(session.id, session.token, session.token_before, session.generation, session.next_binding)


def _size(job: Job) -> int:
    assert isinstance(job.params, bytes)
    return JOB_BYTES + len(job.params) + len(job.label)


def stands(job: Job) -> bool:
    """Whether it would be gone on with."""
    return job.state not in (JobState.CLOSING, JobState.GONE) and not job.session.ended


def replay(records: Iterable[Record]) -> list[FrozenSession]:
    """The sessions that stand at the end of the records."""
    sessions: dict[int, Begun] = {}
    jobs: dict[int, Registered] = {}
    bindings: dict[int, int] = {}  # the last number of each session
    for record in records:
        match record:
            case Begun():
                sessions[record.session] = record
            case Moved():
                _move(sessions, record)
            case Ended():
                sessions.pop(record.session, None)
            case Registered():
                jobs[record.job] = record
                bindings[record.session] = max(bindings.get(record.session, 0), record.binding)
            case Turned():
                _turn(jobs, record)
            case Gone():
                jobs.pop(record.job, None)
    standing: dict[int, list[Registered]] = {}
    for _, job in sorted(jobs.items()):
        standing.setdefault(job.session, []).append(job)
    return [
        _freeze_session(session, standing.get(number, ()), bindings.get(number, 0))
        for number, session in sorted(sessions.items())
    ]


def _move(sessions: dict[int, Begun], record: Moved) -> None:
    known = sessions.get(record.session)
    if known is not None:
        sessions[record.session] = msgspec.structs.replace(
            known,
            token=record.token,
            token_before=record.token_before,
            generation=record.generation,
            next_binding=record.next_binding,
        )


def _turn(jobs: dict[int, Registered], record: Turned) -> None:
    known = jobs.get(record.job)
    if known is None:
        return
    options = known.options
    if (said := job_pb2.Options.FromString(options)).priority != record.priority:
        said.priority = record.priority
        options = said.SerializeToString()
    jobs[record.job] = msgspec.structs.replace(
        known, options=options, standing=record.standing, reason=record.reason
    )


def _freeze_session(session: Begun, jobs: Iterable[Registered], last_binding: int) -> FrozenSession:
    return FrozenSession(
        id=session.session,
        principal=session.principal,
        token=session.token,
        token_before=session.token_before,
        label=session.label,
        sdk=session.sdk,
        create_time_ns=session.create_time_ns,
        generation=session.generation,
        next_binding=max(session.next_binding, last_binding + 1),
        lost_ns=0,  # nobody knows
        jobs=list(_freeze_jobs(jobs)),
        readers=[],
    )


def _freeze_jobs(jobs: Iterable[Registered]) -> Iterator[FrozenJob]:
    for job in jobs:
        yield FrozenJob(
            id=job.job,
            module=job.module,
            params=job.params,
            options=job.options,
            label=job.label,
            started=job.standing == STARTED,
            spent=job.standing == SPENT,
            reason=job.reason,
            create_time_ns=job.create_time_ns,
            epoch=job.epoch,
            last_fire_ns=0,
            memento=job.anchor,
            binding=empty_binding(job.binding),
        )
