"""From one daemon to the next: what sessions are handed over, in a file, and how they are taken up again.

The file is written at an orderly end, into the state directory, with mode 0600: it holds resume tokens and
the data of events. It is good for one daemon, on the same boot of the machine, and is gone once it was read.
A daemon that was killed leaves none. Then what it has noted of its registrations is taken up instead
(registrations.py): every job begins a new epoch, with a gap of unknown size.

Who takes up a session looks at everything again: its process must still live (it is watched from then on),
its user must still be allowed to have each job, and each job must open. A job whose module cannot prove that
it missed nothing gets a gap of unknown size; one that cannot be opened any more gets the gap, and then it
ends.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

import msgspec

from aemd.core.errors import AemError
from aemd.core.frozen import FrozenJob, FrozenReader, FrozenSession
from aemd.core.history import Resumed
from aemd.core.job import Job, JobState
from aemd.core.keeping import RESTARTED
from aemd.core.session import Session
from aemd.service import log
from aemd.service.conductor import Conductor
from aemd.service.durables import Durables
from aemd.service.lasting import Lasting
from aemd.service.registrations import Registrations
from aemd.v1 import job_pb2

VERSION = 4
FILE = "handover"
FILE_BYTES_MAX = 4 << 30  # what queues may hold, and some
BOOT_ID = "/proc/sys/kernel/random/boot_id"
Hold = Callable[[Session], bool]


@dataclass(frozen=True, slots=True)
class Estate:
    """What one daemon leaves to the next. `mementos`: of durable jobs that were left open, by id."""

    version: int
    boot: str
    next_job: int
    sessions: list[FrozenSession] = field(default_factory=list)
    mementos: dict[int, bytes] = field(default_factory=dict)


class Handover:
    """Writes what there is to be handed over, and takes it up."""

    def __init__(
        self,
        conductor: Conductor,
        durables: Durables,
        lasting: Lasting,
        registrations: Registrations,
        state_dir: str,
    ) -> None:
        self._conductor = conductor
        self._engine = conductor.engine
        self._durables = durables
        self._lasting = lasting
        self._registrations = registrations
        self._opening: set[Job] = set()  # are being taken up, and are to be started then
        self._path = os.path.join(state_dir, FILE)
        self._estate: Estate | None = None

    # -- the end

    def write(self, stopped: Set[Job]) -> bool:
        """Hand over all sessions. `stopped`: jobs that were stopped for the end. False, and a line in the
        log, if that cannot be done: whatever the reason, the daemon must end.
        """
        try:
            self._write(stopped)
        except OSError as error:
            log.get().error("nothing is handed over", **{log.ERROR: f"{self._path}: {error.strerror}"})
            return False
        except Exception:
            log.get().exception("nothing is handed over")
            return False
        return True

    def _write(self, stopped: Set[Job]) -> None:
        engine, conductor = self._engine, self._conductor
        conductor.forget_unopened()

        def started(job: Job) -> bool:
            return job in stopped or self.is_started(job)

        kept = self._lasting.leave({job: conductor.open_of(job) for job in conductor.leaving()})

        def memento(job: Job) -> bytes | None:
            return conductor.leave(job, kept[job]) if job in kept else conductor.memento(job)

        sessions = engine.freeze(started=started, memento=memento, now=conductor.now())
        mementos = {job.id: memento(job) for job in kept if job.durable is not None}
        known = {number: said for number, said in mementos.items() if said is not None}
        estate = Estate(VERSION, _boot(), engine.next_id, sessions, known)
        _write(self._path, msgspec.msgpack.encode(estate))

    def is_started(self, job: Job) -> bool:
        """Whether a job is to fire."""
        return job.state in (JobState.ARMED, JobState.DEGRADED) or job in self._opening

    # -- the beginning

    def read(self) -> Mapping[int, bytes]:
        """Look at what the daemon before handed over; the mementos of durable jobs."""
        self._estate = self._read()
        return self._estate.mementos if self._estate is not None else {}

    def take_up(self, hold: Hold, busy: Callable[[], None]) -> None:
        """Go on with it, or with what a daemon that was killed has left. `hold`: watches the process of a
        session; False if it has ended. `busy`: called now and then; two million jobs take a minute.
        """
        gc.disable()  # nothing of what is made here becomes garbage, and there is much of it
        try:
            self._take_up(hold, busy)
        finally:
            gc.enable()
            self._lasting.clear()

    def _take_up(self, hold: Hold, busy: Callable[[], None]) -> None:
        estate, self._estate = self._estate, None
        if estate is not None:
            self._engine.ids_begin(estate.next_job)
        sessions = self._registrations.sessions() if estate is None else estate.sessions
        taken: list[Session] = []
        for frozen in sessions:
            busy()
            try:
                taken += self._thaw(frozen, hold, proven=estate is not None)
            except AemError as error:
                log.get().warning("session lost", **{log.SESSION: frozen.id, log.REASON: error.message})
            except Exception:  # what another version wrote: one session must not keep the daemon from serving
                log.get().exception("session lost", **{log.SESSION: frozen.id})
        self._engine.sort_jobs()
        for session in taken:
            if estate is None:
                session.lost_ns = self._conductor.reactor.mono_ns()  # its lease begins when it can come back
            self._engine.await_client(session)

    def _read(self) -> Estate | None:
        try:
            content = _take(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.get().error("nothing is taken up", **{log.ERROR: f"{self._path}: {error.strerror}"})
            return None
        try:
            estate = msgspec.msgpack.decode(content, type=Estate)
        except msgspec.MsgspecError as error:
            log.get().error("nothing is taken up", **{log.ERROR: f"{self._path}: {error}"})
            return None
        return estate if estate.version == VERSION and estate.boot == _boot() else None

    def _thaw(self, frozen: FrozenSession, hold: Hold, *, proven: bool) -> list[Session]:
        """The session, or none. `proven`: the daemon before has ended in order."""
        session = self._engine.thaw_session(frozen, self._conductor.now())
        if not hold(session):
            self._engine.end_session(session, "its process ended", self._conductor.now())
            return []
        for job in frozen.jobs:
            try:
                self._thaw_job(session, job, proven=proven)
            except AemError as error:
                log.get().warning(
                    "job lost", **{log.JOB: job.id, log.SESSION: session.id, log.REASON: error.message}
                )
        for reader in frozen.readers:
            try:
                self._thaw_reader(session, reader)
            except AemError as error:
                log.get().warning(
                    "job lost", **{log.JOB: reader.job, log.SESSION: session.id, log.REASON: error.message}
                )
        return [session]

    def _thaw_job(self, session: Session, frozen: FrozenJob, *, proven: bool) -> None:
        conductor = self._conductor
        params = job_pb2.Job.FromString(frozen.params).params
        meant = conductor.meant(session.principal, frozen.module, params)
        options = self._engine.parse_options(job_pb2.Options.FromString(frozen.options), meant.traits)
        job = self._engine.thaw_job(
            session, frozen, module=meant.traits, values=meant.values, options=options
        )
        job.ruling = meant.ruling
        if not proven:
            self._engine.begin_epoch(job)
            session.wake(job.binding)
        if frozen.spent:
            conductor.never_open(job)
            return
        if frozen.memento is not None:
            job.resumed = Resumed(memento=frozen.memento)
        if frozen.started:
            self._opening.add(job)

        def taken(refusal: AemError | None) -> None:
            self._opening.discard(job)
            if job.state is JobState.GONE:
                return
            if proven and (refusal is not None or (frozen.memento is None and frozen.started)):
                job.binding.push_gap(1, RESTARTED)
                session.wake(job.binding)
            if refusal is not None:
                self._engine.exhaust(job, refusal.message)

        conductor.take_up_job(job, start=frozen.started, taken=taken)

    def _thaw_reader(self, session: Session, frozen: FrozenReader) -> None:
        job = self._durables.job(frozen.job)
        if job is not None:
            self._engine.thaw_reader(session, job, frozen)


def _boot() -> str:
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, content: bytes) -> None:
    """Put it there as a whole, or not at all."""
    fresh = path + ".new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, path)
    except OSError:
        os.unlink(fresh)  # it holds tokens
        raise


def _take(path: str) -> bytes:
    """Read it, and remove it: nobody goes on with it twice."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        os.unlink(path)
        return file.read(FILE_BYTES_MAX)
