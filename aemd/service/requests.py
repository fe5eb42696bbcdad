"""What each frame of a client means: two tables from its name to a function.

A question (Register, Start, Sync) is answered by its own function, now or later. A change is answered by
the stream, with a Result: OK if the function returned, and an error, for both kinds, if it raised AemError.
Nothing here knows of bytes, bundles or pacing: that is `session.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aemd.core.errors import AemError, Code, not_found
from aemd.core.history import Cursor
from aemd.service import errors
from aemd.v1 import session_pb2

if TYPE_CHECKING:
    from aemd.core.job import Job
    from aemd.core.session import Session
    from aemd.service.conductor import Conductor
    from aemd.service.durables import Durables

Change = Callable[["Session", Any], None]
Question = Callable[["Session", int, Any], None]


class Requests:
    """Deals with the frames of every session; all that differs between sessions is in the arguments."""

    def __init__(self, conductor: Conductor, durables: Durables) -> None:
        self._conductor = conductor
        self._durables = durables
        self._engine = conductor.engine
        self._limits = conductor.limits
        self.draining = ""  # why nothing is to be raised any more
        self._questions: dict[str, Question] = {
            "register": self._register,
            "bind": self._bind,
            "start": self._start,
            "sync": self._sync,
        }
        self._changes: dict[str, Change] = {
            "unbind": self._unbind,
            "stop": self._stop,
            "shutdown": self._shutdown,
            "set_priority": self._set_priority,
            "grant": self._grant,
            "ack": self._ack,
            "complete": self._complete,
            "nack": self._nack,
            "op": self._op,
            "raise": self._raise,
        }

    def handle(self, session: Session, name: str, frame: session_pb2.ClientFrame) -> bool:
        """Do what `frame`, which holds a `name`, asks for, or raise AemError; True if it is answered."""
        change = self._changes.get(name)
        if change is not None:
            change(session, getattr(frame, name))
            return False
        self._questions[name](session, frame.request_id, getattr(frame, name))
        return True

    def _register(self, session: Session, request_id: int, body: session_pb2.Register) -> None:
        def opened(job: Job | AemError) -> None:
            if isinstance(job, AemError):
                self._engine.send_control(session, errors.result(request_id, job))
            else:
                self._announce(job, request_id)

        job = self._conductor.register(session, body, opened)
        if job is not None:
            self._announce(job, request_id)

    def _announce(self, job: Job, request_id: int) -> None:
        answer = session_pb2.ServerFrame(request_id=request_id)
        registered = answer.registered
        registered.job = job.id
        registered.binding = job.binding.id
        registered.start.epoch = job.epoch  # and seq 0: its first event has number 1
        registered.state = job.state.wire
        self._engine.announce(job, answer.SerializeToString())

    def _bind(self, session: Session, request_id: int, body: session_pb2.Bind) -> None:
        job = self._to_bind(session, body)
        durable = job.durable
        if durable is None:
            raise AemError(
                Code.FAILED_PRECONDITION,
                "NOT_DURABLE",
                f"job {job.id} is bound to the session that registered it; only durable jobs can be bound"
                " again",
            )
        follows = body.role == session_pb2.ROLE_FOLLOW
        begin = getattr(body, "from")
        at = Cursor(job.epoch, job.binding.head)
        if begin == session_pb2.FROM_UNSPECIFIED and not follows:
            at = durable.acked
        elif begin == session_pb2.FROM_OLDEST:
            at = durable.oldest
        elif begin == session_pb2.FROM_CURSOR:
            at = self._engine.start_of(job, Cursor(body.cursor.epoch, body.cursor.seq))
        elif begin == session_pb2.FROM_TIME:

            def found(cursor: Cursor | AemError) -> None:
                try:
                    if isinstance(cursor, AemError):
                        raise cursor
                    self._bound(session, request_id, body, job, cursor)
                except AemError as error:
                    self._engine.send_control(session, errors.result(request_id, error))

            self._durables.find_start(session, job, body.time_ns, found)
            return
        self._bound(session, request_id, body, job, at)

    def _to_bind(self, session: Session, body: session_pb2.Bind) -> Job:
        if body.name:
            job = self._durables.find(session.principal, body.name)
            self._conductor.authority.audit.looked(session.principal, "Bind", job.owner.owner)
            return job
        return self._job(session, body.job, "Bind")

    def _bound(self, session: Session, request_id: int, body: session_pb2.Bind, job: Job, at: Cursor) -> None:
        reader = self._engine.bind(
            session,
            job,
            at=max(at, job.durable.oldest) if job.durable is not None else at,
            follows=body.role == session_pb2.ROLE_FOLLOW,
            credit=(body.credit.events, body.credit.bytes) if body.HasField("credit") else None,
            now=self._conductor.now(),
        )
        answer = session_pb2.ServerFrame(request_id=request_id)
        registered = answer.registered
        registered.job = job.id
        registered.binding = reader.id
        registered.start.epoch, registered.start.seq = reader.position
        registered.state = job.state.wire
        self._engine.send_control(session, answer.SerializeToString())
        self._engine.read_on(reader)

    def _unbind(self, session: Session, body: session_pb2.Unbind) -> None:
        self._engine.unbind(session, body.binding, self._conductor.now())
        self._conductor.settle()

    def _start(self, session: Session, request_id: int, body: session_pb2.Start) -> None:
        def started(job: Job | AemError) -> None:
            if request_id:
                error = job if isinstance(job, AemError) else None
                self._engine.send_control(session, errors.result(request_id, error))

        job = self._job(session, body.job, "Start")
        if self._conductor.start(job, started):
            started(job)

    def _stop(self, session: Session, body: session_pb2.Stop) -> None:
        self._conductor.stop(self._job(session, body.job, "Stop"))

    def _shutdown(self, session: Session, body: session_pb2.Shutdown) -> None:
        job = self._job(session, body.job, "Shutdown")
        self._conductor.shutdown(job, by=session.principal, deadline_ns=body.deadline_ns)

    def _set_priority(self, session: Session, body: session_pb2.SetPriority) -> None:
        self._conductor.set_priority(self._job(session, body.job, "SetPriority"), body.priority)

    def _grant(self, session: Session, body: session_pb2.Grant) -> None:
        self._engine.grant(session, body.binding, body.credit.events, body.credit.bytes)

    def _ack(self, session: Session, body: session_pb2.Ack) -> None:
        cursor = body.cursor
        self._engine.ack(session, body.binding, cursor.epoch, cursor.seq, self._conductor.now())

    def _complete(self, session: Session, body: session_pb2.Complete) -> None:
        failed = body.HasField("status") and body.status.code != 0
        reply = (body.reply.name, body.reply.data) if body.HasField("reply") else None
        binding = session.bindings.get(body.binding)
        self._engine.complete(
            session,
            body.binding,
            body.cursor.epoch,
            body.cursor.seq,
            error=(body.status.message or f"code {body.status.code}") if failed else None,
            reply=reply,
            now=self._conductor.now(),
        )
        if reply is not None and binding is not None:
            self._conductor.settle_reply(binding.job)

    def _nack(self, session: Session, body: session_pb2.Nack) -> None:
        self._engine.nack(
            session,
            body.binding,
            body.cursor.epoch,
            body.cursor.seq,
            delay_ns=body.delay_ns,
            park=body.park,
            reason=body.reason,
            now=self._conductor.now(),
        )

    def _op(self, session: Session, body: session_pb2.Op) -> None:
        job = self._own_job(session, body.job, "Op")
        self._conductor.operate(job, body.key, body.operation.name, body.operation.data)

    def _raise(self, session: Session, body: session_pb2.Raise) -> None:
        uid = body.uid if body.HasField("uid") else None
        if self.draining:  # its listeners are stopped, and would miss it
            raise AemError(Code.UNAVAILABLE, "DRAINING", self.draining)
        self._conductor.raise_events(session.principal, body.channel, list(body.payloads), uid)

    def _sync(self, session: Session, request_id: int, body: session_pb2.Sync) -> None:
        self._check_syncs(session)
        if body.jobs:
            jobs = [self._own_job(session, job_id, "Sync") for job_id in dict.fromkeys(body.jobs)]
        else:
            jobs = [binding.job for binding in session.bindings.values()]
        if not jobs:
            self._engine.send_control(session, errors.result(request_id))
        for job in jobs:
            self._conductor.sync(session, job, request_id)

    def _check_syncs(self, session: Session) -> None:
        """One Sync may ask for every job of the session, so a few would be millions."""
        waiting, most = session.awaited + self._conductor.syncs_of(session), self._limits.unanswered
        if waiting >= most:
            raise AemError(
                Code.RESOURCE_EXHAUSTED,
                "LIMIT_REACHED",
                f"{waiting} answers to Sync are still to come; ask again when fewer than {most} are",
                used=waiting,
                limit=most,
            )

    def _job(self, session: Session, job_id: int, doing: str) -> Job:
        """A job of the caller's, in whichever of his sessions."""
        return self._conductor.find_job(session.principal, job_id, doing)

    def _own_job(self, session: Session, job_id: int, doing: str) -> Job:
        """A job of this session, or a durable one that it reads; only who answers for that may do an Op."""
        job = self._job(session, job_id, doing)
        for held in job.bindings:
            if held.session is session and not (doing == "Op" and getattr(held, "follows", False)):
                return job
        raise not_found(f"job {job_id} in this session")
