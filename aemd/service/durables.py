"""Durable jobs: made and made again, found by their names, kept in the store, read by those who bind to them.

A durable job is what its definition says: made twice with the same one it is one job. When a daemon begins,
it makes every job in the store again, with its id, its numbers and the rights of its owner. One that cannot
be (its module is not there, its port is taken, policy forbids it) is *closed*: it is listed, says why, keeps
its history, and `start` tries once more.

What changed in a turn goes to the store at its end. A daemon that could not close its store in order (it was
killed, the machine went down) leaves no proof that nothing is missing: each job begins a new epoch then, with
a gap of unknown size, and nothing in its history counts as never delivered.

Without a store (a damaged file, a full disk when it was to be opened) durable jobs are refused with that
reason, and everything else goes on.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from aemd.core import effects
from aemd.core.errors import AemError, Code, invalid, not_found
from aemd.core.history import Cursor, Keep, Positions, Record, Resumed
from aemd.core.job import Job, JobState
from aemd.core.options import Options
from aemd.core.policy import Ruling
from aemd.core.principal import Owner, Principal
from aemd.core.reader import Reader
from aemd.core.session import Session
from aemd.core.traits import Traits
from aemd.modules.need import Access, Given, OpenPath
from aemd.service import log
from aemd.service.commands import Commands
from aemd.service.execution import Execution, check_options, check_owner, parse_exec
from aemd.service.openings import give_back
from aemd.store.batch import Told
from aemd.store.rows import ENDING, SPENT, STOPPED, JobRow, ParkedRow
from aemd.store.schema import StoreError
from aemd.store.store import Store
from aemd.v1 import job_pb2

if TYPE_CHECKING:
    from aemd.service.conductor import Conductor, Meant

NAME_CHARS_MAX = 64
FETCH_BYTES = 1024 * 1024  # of history at once
_LAST = {JobState.DRAINING: SPENT, JobState.CLOSING: ENDING}  # how the store knows those that fire no more
KEEP_ENTRIES_MAX = 1_000_000
KEEP_BYTES_MAX = 1 << 30
KEEP_AGE_MAX_NS = 366 * 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A durable job that may be made."""

    principal: Principal
    definition: job_pb2.JobDefinition
    meant: Meant
    options: Options
    keep: Keep
    execution: Execution | None


class Durables:
    """The durable jobs of one daemon."""

    def __init__(self, conductor: Conductor, path: str, *, owner: Owner, commands: Commands) -> None:
        """`path`: of the store's file. `owner`: whose jobs have the administrator's rights."""
        conductor.registered = self.registered
        conductor.fetch = self.fetch
        conductor.options_of = self.options_of
        self.commands = commands
        self._conductor = conductor
        self._engine = conductor.engine
        self._path = path
        self._administrator = owner
        self._store: Store | None = None
        self._trouble: StoreError | None = None
        self._names: dict[tuple[Owner, str], Job] = {}
        self._jobs: dict[int, Job] = {}
        self._making: set[tuple[Owner, str]] = set()  # wait for the deputy
        self._definitions: dict[Job, job_pb2.JobDefinition] = {}
        self._started: dict[Job, int] = {}  # as the store knows it
        self._parked: dict[Job, set[Cursor]] = {}  # likewise
        self._refused: set[Job] = set()  # the store takes no more of them just now
        self._waiting: list[Told] = []  # until what was done is on disk
        self._finding: Counter[int] = Counter()  # Binds of a session that wait for the store

    # -- the daemon

    def begin(self, mementos: Mapping[int, bytes] = MappingProxyType({})) -> None:
        """Open the store and make its jobs again; what goes wrong is logged, and the daemon goes on.
        `mementos`: what their modules said when the daemon before ended in order.
        """
        try:
            self._store = store = Store(
                self._conductor.reactor,
                self._path,
                keep_of=lambda row: _keep(_definition(row).request.keep),
                trimmed=self._trimmed,
                written=self._written,
            )
        except StoreError as error:
            self._trouble = error
            log.get().error("no durable jobs", **{log.REASON: error.reason, log.ERROR: str(error)})
            return
        self._engine.ids_begin(store.next_id)
        for row in store.jobs:
            if row.start_ns == ENDING:  # the handlers that ran have gone
                store.forget(row.id)
            else:
                self._restore(store, row, mementos.get(row.id))
        for aside in store.parked:
            job = self._jobs.get(aside.job)
            if job is not None:
                self._parked[job].add(aside.parked.cursor)
                self._engine.put_aside(job, aside.parked)

    @property
    def trouble(self) -> str:
        """Why nothing, or nothing more, can be kept; empty if all is well."""
        if self._trouble is not None:
            return str(self._trouble)
        trouble = self._store.trouble if self._store is not None else None
        return str(trouble or "")

    def registered(self, job: Job) -> None:
        """A job has been given its id: the next daemon must not give it out again."""
        if self._store is not None:
            self._store.reserve(job.id)

    def keep(self) -> None:
        """The turn is over: note what has changed of durable jobs, and have it written."""
        store = self._store
        if store is None:
            return
        store.next_id = self._engine.next_id
        for job in self._engine.take_kept():
            self._note(store, job)
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            store.when_written(told)
        store.flush()

    def when_kept(self, answer: Callable[[AemError | None], None]) -> None:
        """Tell `answer` once what was done up to now is on disk, and a daemon that is killed does not forget
        it; or why it is not.
        """
        self._waiting.append(lambda trouble: answer(None if trouble is None else _not_kept(trouble)))

    def when_made(self, job: Job, answer: Callable[[AemError | None], None]) -> None:
        """The same of a job that was asked for: one that is on disk already waits for nothing."""
        if self._store is not None and self._store.is_new(job.id):
            self.when_kept(answer)
        else:
            answer(None)

    def close(self) -> None:
        """The daemon ends: close the jobs, but keep them."""
        for job in list(self._jobs.values()):
            self._conductor.close_job(job, "the daemon ends")
        self.keep()
        store = self._store
        if store is None:
            return
        whole = not any(job.durable and job.durable.unrecorded for job in self._jobs.values())
        if not store.close(whole=whole):
            log.get().error("not everything was kept", **{log.ERROR: str(store.trouble or "")})
        self._store = None  # while it closes it says what it has written

    def _note(self, store: Store, job: Job) -> None:
        durable = job.durable
        assert durable is not None
        if job.state is JobState.GONE:
            if self._jobs.pop(job.id, None) is not None:
                store.forget(job.id)
                self._forget(job)
            return
        if job.id not in self._jobs:
            return  # it is just being made
        if durable.unrecorded:
            if store.append(job.id, durable.unrecorded):
                durable.unrecorded = []
                self._refused.discard(job)
            else:
                durable.give_up()
                self._refused.add(job)
        if durable.aside_changed:
            self._note_parked(store, job)
        store.set_acked(job.id, durable.acked, durable.seen, durable.dealt)
        start_ns = _LAST.get(job.state, durable.start_ns)
        if self._started[job] != start_ns:
            self._started[job] = start_ns
            store.set_started(job.id, start_ns)

    def _note_parked(self, store: Store, job: Job) -> None:
        assert job.durable is not None
        job.durable.aside_changed = False
        known, there = self._parked[job], {parked.cursor: parked for parked in self._engine.parked_of(job)}
        for cursor in known - there.keys():
            store.unpark(job.id, cursor)
        for cursor in there.keys() - known:
            store.park(ParkedRow(job.id, there[cursor]))
        self._parked[job] = set(there)

    def _forget(self, job: Job) -> None:
        assert job.durable is not None
        del self._names[job.owner.owner, job.durable.name]
        del self._definitions[job]
        del self._started[job]
        del self._parked[job]
        self._refused.discard(job)

    def _written(self, jobs: object) -> None:
        store = self._store
        assert store is not None
        for number in list(jobs):  # type: ignore[call-overload]
            job = self._jobs.get(number)
            if job is not None and job.durable is not None:
                job.durable.wrote(store.written_to(number))
        for job in self._refused:
            self._engine.keep_later(job)
        store.flush()

    def _trimmed(self, number: int, oldest: Cursor) -> None:
        job = self._jobs.get(number)
        if job is not None:
            self._engine.trimmed(job, oldest)

    # -- making

    def create(
        self,
        principal: Principal,
        request: job_pb2.CreateJobRequest,
        answer: Callable[[Job | AemError], None],
        *,
        origin: str = "",
    ) -> Job | None:
        """A durable job for `principal`, or the one that is there if it is the same. AemError leaves nothing
        behind. None: something must be done as the caller first; then `answer` is told what became of it.
        `origin`: the file that says so.
        """
        store = self._need_store()
        check_name(request.name)
        keep = _checked_keep(request.keep)
        owner = principal.owner
        if owner.user_namespace or owner.pid_namespace:
            raise AemError(
                Code.FAILED_PRECONDITION,
                "NAMESPACE",
                "durable jobs belong to users of the daemon's own user and pid namespaces: the caller's"
                " have no name that outlives the machine; run a daemon inside with aemd --user",
            )
        meant = self._conductor.meant(principal, request.module, request.params)
        options = self._engine.parse_options(request.options, meant.traits)
        execution = self._execution(principal, request, options)
        there = self._names.get((owner, request.name))
        if there is not None and there.state is JobState.GONE:  # in this turn, which has not ended
            self._note(store, there)
            there = None
        if there is not None:
            same_exec = self.commands.execution_of(there) == execution
            return _same(there, request, meant.traits, meant.params, options, keep, same_exec=same_exec)
        if (owner, request.name) in self._making:
            raise AemError(Code.ABORTED, "JOB_OPENING", f"job {request.name} is just being made; ask again")
        definition = _define(principal, request)
        definition.origin = origin
        wanted = _Wanted(principal, definition, meant, options, keep, execution)
        if execution is None or not principal.pid:
            return self._make(wanted, answer)
        self._making.add((owner, request.name))

        def looked(given: Given | AemError) -> None:
            self._making.discard((owner, request.name))
            try:
                if isinstance(given, AemError):
                    raise given
                give_back([given])
                made = self._make(wanted, answer)
            except AemError as error:
                answer(error)
            else:
                if made is not None:
                    answer(made)

        self._conductor.openings.look(
            principal, OpenPath(os.fsencode(execution.directory), Access.PATH), looked
        )
        return None

    def _execution(
        self, principal: Principal, request: job_pb2.CreateJobRequest, options: Options
    ) -> Execution | None:
        if not request.HasField("exec"):
            return None
        execution = parse_exec(request.exec)
        check_options(request.options, options)
        quota = self._engine.accounts.allowance(principal).quota
        check_owner(principal, quota, self._administrator.uid)
        return execution

    def _make(self, wanted: _Wanted, answer: Callable[[Job | AemError], None]) -> Job | None:
        store, request, meant = self._need_store(), wanted.definition.request, wanted.meant
        owner = wanted.principal.owner
        job = self._engine.keep_job(
            wanted.principal,
            job_id=0,
            name=request.name,
            module=meant.traits,
            values=meant.values,
            params=meant.params,
            options=wanted.options,
            keep=wanted.keep,
            label=request.label,
            create_time_ns=self._conductor.now().real_ns,
        )
        job.ruling = meant.ruling
        if wanted.execution is not None:
            try:
                self.commands.add(job, wanted.execution, known=False)
            except AemError:
                self._engine.discard(job)
                raise

        def opened(made: Job | AemError) -> None:
            self._making.discard((owner, request.name))
            if not isinstance(made, AemError):
                self._add(store, job, wanted.definition)
            answer(made)

        if self._conductor.open_job(job, opened, start=not request.stopped):
            self._add(store, job, wanted.definition)
            return job
        self._making.add((owner, request.name))
        return None

    def _add(self, store: Store, job: Job, definition: job_pb2.JobDefinition) -> None:
        durable = job.durable
        assert durable is not None
        self._hold(job, definition, durable.start_ns)
        row = JobRow(
            id=job.id,
            name=durable.name,
            owner=job.owner.owner,
            definition=definition.SerializeToString(),
            start_ns=durable.start_ns,
            create_ns=job.create_time_ns,
        )
        store.put(row, durable.keep)
        self._engine.keep_later(job)  # what it has fired while it was started

    def _hold(self, job: Job, definition: job_pb2.JobDefinition, start_ns: int) -> None:
        assert job.durable is not None
        self._jobs[job.id] = job
        self._names[job.owner.owner, job.durable.name] = job
        self._definitions[job] = definition
        self._started[job] = start_ns
        self._parked[job] = set()

    def _need_store(self) -> Store:
        if self._store is None:
            error = self._trouble
            reason, message = (error.reason, str(error)) if error else ("STORE_CLOSED", "the daemon ends")
            raise AemError(Code.FAILED_PRECONDITION, reason, f"there are no durable jobs: {message}")
        return self._store

    # -- making again

    def _restore(self, store: Store, row: JobRow, memento: bytes | None) -> None:
        definition = _definition(row)
        request = definition.request
        execution: Execution | None = None
        principal = _principal(row.owner, definition, administrator=row.owner == self._administrator)
        refusal: AemError | None = None
        ruling: Ruling | None = None
        try:
            if request.HasField("exec"):
                execution = parse_exec(request.exec)
            meant = self._conductor.meant(principal, request.module, request.params)
            traits, params, values = meant.traits, meant.params, meant.values
            ruling = meant.ruling
            options = self._engine.parse_options(request.options, traits)
        except AemError as error:
            refusal = error
            traits, params, values = (
                Traits(request.module),
                job_pb2.Job(params=request.params).SerializeToString(),
                {},
            )
            options = self._engine.parse_options(_always_possible(request.options), traits)
        positions = row.positions if store.clean else _unproven(row.positions)
        job = self._engine.keep_job(
            principal,
            job_id=row.id,
            name=row.name,
            module=traits,
            values=values,
            params=params,
            options=options,
            keep=_keep(request.keep),
            label=request.label,
            create_time_ns=row.create_ns,
            positions=positions,
        )
        assert job.durable is not None
        job.ruling = ruling
        self._hold(job, definition, row.start_ns)
        job.durable.start_ns = row.start_ns
        if not store.clean and (row.start_ns != STOPPED or row.positions.head.seq):
            self._engine.begin_epoch(job)
        if execution is not None:
            self.commands.add(job, execution, known=True)
        if refusal is not None:
            self._conductor.never_open(job)
            self._conductor.close_job(job, refusal.message)
        elif row.start_ns == SPENT:
            self._conductor.never_open(job)
            self._engine.exhaust(job, "it had fired for the last time before the daemon was restarted")
            self._conductor.close_job(job, job.reason)
        else:
            if not store.clean:
                memento = None  # the daemon did not get as far as the end of what it wrote
            if row.start_ns or memento is not None:
                job.resumed = Resumed(row.start_ns, store.newest.get(row.id, b""), memento)
            self._conductor.reopen_job(job, start=bool(row.start_ns))

    def of_files(self) -> list[tuple[Job, job_pb2.JobDefinition]]:
        """Those that a file says, and how they were made."""
        return [(job, made) for job, made in self._definitions.items() if made.origin]

    # -- finding and reading

    def job(self, number: int) -> Job | None:
        """The durable job with that id."""
        return self._jobs.get(number)

    def options_of(self, job: Job) -> job_pb2.Options:
        """The options that it was made with, as its owner gave them."""
        return self._definitions[job].request.options

    def find(self, principal: Principal, name: str) -> Job:
        """The durable job of that name: the caller's, or, for the administrator, the only one there is.

        AemError NOT_FOUND, or INVALID_ARGUMENT for what is no name.
        """
        check_name(name)
        job = self._names.get((principal.owner, name))
        if job is None and principal.administrator:
            named = [job for (_, known), job in self._names.items() if known == name]
            if len(named) > 1:
                ids = ", ".join(f"jobs/{job.id} of uid {job.owner.uid}" for job in named)
                raise invalid("name", f"several users have a job {name}: {ids}; name the id")
            job = named[0] if named else None
        if job is None:
            raise not_found(f"jobs/{name}")
        return job

    def find_start(
        self, session: Session, job: Job, real_ns: int, answer: Callable[[Cursor | AemError], None]
    ) -> None:
        """Where the history of `job` begins at a time. AemError if too many of a session are looked for."""
        store = self._need_store()
        most = self._conductor.limits.unanswered
        if self._finding[session.id] >= most:
            raise AemError(
                Code.RESOURCE_EXHAUSTED, "LIMIT_REACHED", f"{most} Binds wait for the store already"
            )
        self._finding[session.id] += 1
        generation = session.generation

        def found(cursor: Cursor | None) -> None:
            self._finding[session.id] -= 1
            if not self._finding[session.id]:
                del self._finding[session.id]
            if session.ended or not session.connected or session.generation != generation:
                return
            if job.state is JobState.GONE:
                answer(not_found(f"jobs/{job.id}"))
            else:
                answer(cursor or _in_memory(job, real_ns))

        store.find(job.id, real_ns, found)

    def fetch(self, wish: effects.Fetch) -> None:
        """Bring a reader what is no longer in memory."""
        reader = wish.reader
        if self._store is None:
            self._fetched(reader, [])
            return
        self._store.read(
            reader.job.id,
            wish.after,
            entries_max=wish.records_max,
            bytes_max=FETCH_BYTES,
            done=lambda records: self._fetched(reader, records),
        )

    def _fetched(self, reader: Reader, records: list[Record]) -> None:
        if reader.job.state is not JobState.GONE:
            self._engine.fetched(reader, records, self._conductor.now())


def _in_memory(job: Job, real_ns: int) -> Cursor:
    """The position before the first entry of that time or later among those that may not be on disk."""
    assert job.durable is not None
    for record in job.durable.tail:
        if record.real_ns >= real_ns:
            return Cursor(record.epoch, record.first - 1)
    return Cursor(job.epoch, job.binding.head)


def _not_kept(trouble: StoreError) -> AemError:
    return AemError(
        Code.FAILED_PRECONDITION,
        trouble.reason,
        f"this is done, but not on disk yet, and would be forgotten if the daemon were killed; {trouble}",
    )


def check_name(name: str) -> None:
    """Raise AemError if no durable job can have this name."""
    if len(name) > NAME_CHARS_MAX or not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", name):
        raise invalid(
            "name",
            f"{name[:NAME_CHARS_MAX]!r} is no name: a letter, and with it 1 to {NAME_CHARS_MAX} letters, "
            "digits, dots, dashes and underscores",
        )


def _checked_keep(given: job_pb2.Keep) -> Keep:
    for field, value, most in (
        ("entries", given.entries, KEEP_ENTRIES_MAX),
        ("bytes", given.bytes, KEEP_BYTES_MAX),
        ("age_ns", given.age_ns, KEEP_AGE_MAX_NS),
    ):
        if not 0 <= value <= most:
            raise invalid(f"keep.{field}", f"is {value}, must be 1 to {most}", value=value, limit=most)
    return _keep(given)


def _keep(given: job_pb2.Keep) -> Keep:
    default = Keep()
    return Keep(
        given.entries or default.entries, given.bytes or default.bytes, given.age_ns or default.age_ns
    )


def _same(
    there: Job,
    request: job_pb2.CreateJobRequest,
    traits: Traits,
    params: object,
    options: object,
    keep: Keep,
    *,
    same_exec: bool,
) -> Job:
    """`there`, if it is what is asked for; else ALREADY_EXISTS says what differs."""
    assert there.durable is not None
    differs = [
        word
        for word, same in (
            ("module", there.traits.name == traits.name),
            ("params", there.params == params),
            ("options", there.options == options),
            ("keep", there.durable.keep == keep),
            ("label", there.label == request.label),
            ("exec", same_exec),
        )
        if not same
    ]
    if differs:
        raise AemError(
            Code.ALREADY_EXISTS,
            "JOB_DIFFERS",
            f"there is a durable job {request.name}, jobs/{there.id}, with other {', '.join(differs)}; shut"
            " it down first, which gives up its history, or take another name",
            job=there.id,
        )
    return there


def _define(principal: Principal, request: job_pb2.CreateJobRequest) -> job_pb2.JobDefinition:
    return job_pb2.JobDefinition(
        request=request,
        gid=principal.gid,
        groups=principal.groups,
        security_label=principal.security_label,
        executable=principal.executable,
        cgroup=principal.cgroup,
        unit=principal.unit,
        proven=principal.proven,
    )


def _definition(row: JobRow) -> job_pb2.JobDefinition:
    return job_pb2.JobDefinition.FromString(row.definition)


def _principal(owner: Owner, definition: job_pb2.JobDefinition, *, administrator: bool) -> Principal:
    """The owner, as it was when it made the job; no process of it need be left."""
    return Principal(
        owner=owner,
        gid=definition.gid,
        groups=tuple(definition.groups),
        pid=0,
        start_time_ticks=0,
        administrator=administrator,
        security_label=definition.security_label,
        executable=definition.executable,
        cgroup=definition.cgroup,
        unit=definition.unit,
        proven=definition.proven,
    )


def _always_possible(options: job_pb2.Options) -> job_pb2.Options:
    """Of options those that every module and all limits allow: for a job that is closed until it is opened
    with all of them.
    """
    possible = job_pb2.Options(
        one_shot=options.one_shot,
        acknowledgement=options.acknowledgement,
        attempts_max=options.attempts_max,
    )
    if options.HasField("priority"):
        possible.priority = options.priority
    return possible


def _unproven(positions: Positions) -> Positions:
    """Nobody knows what was delivered in the end: all of it may have been."""
    return replace(positions, seen=positions.head)
