"""All Session streams together: which one serves which session of the engine, and what each turn sends.

A session has at most one stream. The stream's fate and the session's meet here: a lost stream leaves the
session to its lease, a session that the engine ends takes its stream with it, and a client that comes back
with its token ends the stream that it had before.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from aemd import __version__
from aemd.core.engine import Engine
from aemd.core.errors import AemError, Code, invalid
from aemd.core.job import Job, JobState
from aemd.core.limits import VERSION_MAX, VERSION_MIN, Limits
from aemd.core.session import Session
from aemd.peer.peers import Peers
from aemd.peer.stream import Stream
from aemd.service import log
from aemd.service.conductor import Conductor
from aemd.service.durables import Durables
from aemd.service.intake import Intake
from aemd.service.pace import Shares
from aemd.service.requests import Requests
from aemd.service.session import SessionStream
from aemd.service.views import limits_view, principal_view
from aemd.sources.reactor import Timer
from aemd.v1 import session_pb2


class Sessions:
    """The Session streams that are open."""

    def __init__(
        self, conductor: Conductor, peers: Peers, shares: Shares, intake: Intake, durables: Durables
    ) -> None:
        conductor.session_ended = self.ended
        self._conductor = conductor
        self._hold_process = peers.hold_process
        self._hold_absent = peers.hold_absent
        self._holds: dict[int, Callable[[], None]] = {}  # by session id: lets go of the owner's process
        self._timers = conductor.reactor.clock("monotonic")
        self._streams: dict[int, SessionStream] = {}  # by session id
        self._touched: dict[SessionStream, None] = {}  # have something to send, or room again
        self._held: set[SessionStream] = set()  # are not read until their client has read
        self._draining = ""
        self._stopped: set[Job] = set()
        self.engine: Engine = conductor.engine
        self.limits: Limits = conductor.limits
        self.requests = Requests(conductor, durables)
        self.shares = shares
        self.intake = intake

    def __len__(self) -> int:
        return len(self._streams)

    # What a stream needs.

    def handler(self, stream: Stream) -> SessionStream:
        """A new stream has been opened."""
        return SessionStream(stream, self)

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC of this turn."""
        return self._conductor.reactor.mono_ns()

    def call_at(self, due_ns: int, callback: Callable[[int], None]) -> Timer:
        """Call at a time of CLOCK_MONOTONIC, in this turn never: a callback that asks to be called again at
        once waits behind everybody else.
        """
        return self._timers.call_at(max(due_ns, self._timers.now_ns()), callback)

    def unanswered(self, stream: SessionStream) -> int:
        """How many answers wait for the stream's client."""
        session = stream.session
        return len(session.control) + self._conductor.unanswered(session) if session is not None else 0

    def awaits_answer(self, session: Session) -> bool:
        """Whether an answer to Sync, Register or Start is still owed to the session."""
        return self._conductor.unanswered(session) > 0

    def hold(self, stream: SessionStream) -> None:
        """Read the stream again when its client has taken some of its answers."""
        self._held.add(stream)
        self.touch(stream)

    def touch(self, stream: SessionStream) -> None:
        """Look at the stream's output at the end of this turn."""
        self._touched[stream] = None

    def open(self, stream: SessionStream, hello: session_pb2.Hello) -> session_pb2.Welcome:
        """Give the stream a session: a new one, or the one that its token names."""
        version = _version(hello)
        if self._draining:
            raise AemError(Code.UNAVAILABLE, "DRAINING", self._draining)
        if hello.progress_ns < 0:
            raise invalid("progress_ns", f"is {hello.progress_ns}, must not be negative")
        session, resumed = self._resume(stream, hello), True
        if session is None:
            resumed = False
            session = self.engine.open_session(
                stream.stream.principal,
                label=hello.label,
                sdk=hello.sdk,
                credit=_credit(hello),
                now=self._conductor.now(),
            )
        self.engine.ask_progress(session, hello.progress_ns)
        self._let_go(session)
        self._holds[session.id] = self._hold_process(stream.stream.principal)
        stream.session = session
        self._streams[session.id] = stream
        self.touch(stream)
        return session_pb2.Welcome(
            session=session.id,
            resume_token=session.token,
            version=version,
            principal=principal_view(session.principal, stream.stream.principal),
            limits=limits_view(self.limits),
            resumed=resumed,
            bindings=sorted(session.bindings) if resumed else [],
            daemon_version=__version__,
        )

    def lost(self, stream: SessionStream, reason: str) -> None:
        """A stream is gone without a goodbye; its session is kept for the lease."""
        session = self._forget(stream)
        if session is None:
            return
        log.get().debug("stream lost", **{log.SESSION: session.id, log.REASON: reason})
        self.engine.lose_stream(session, self._conductor.now())

    def finished(self, stream: SessionStream, reason: str) -> None:
        """A stream has ended, and its session with it."""
        session = self._forget(stream)
        if session is None:
            return
        self.engine.end_session(session, reason, self._conductor.now())

    # What the engine and the daemon say.

    def ended(self, session: Session, error: AemError) -> None:
        """The engine ended a session: its stream ends too."""
        self._let_go(session)
        stream = self._streams.get(session.id)
        if stream is not None and stream.session is session:
            self._forget(stream)
            stream.detach(error)

    def flush(self) -> bool:
        """Send what is ready, stream by stream, as far as there is room; False if nothing was."""
        for session in self.engine.take_ready():
            stream = self._streams.get(session.id)
            if stream is not None:
                self._touched[stream] = None
        touched, self._touched = self._touched, {}
        for stream in touched:
            try:
                stream.flush()
            except Exception:
                stream.fail()
                continue
            if stream in self._held and self.unanswered(stream) < self.limits.unanswered:
                self._held.discard(stream)
                self._conductor.reactor.defer(stream.pump)  # and then this turn ends once more
        return bool(touched)

    def drain(self, reason: str, deadline_ns: int) -> None:
        """Tell every client that the daemon ends in `deadline_ns` nanoseconds; accept no new work.

        Jobs are stopped: what they have fired is still delivered and answered. What comes after it is for the
        next daemon, to whom the sessions are handed over.
        """
        self._draining = self.requests.draining = reason
        frame = session_pb2.ServerFrame()
        frame.drain.deadline_ns = deadline_ns
        frame.drain.reason = reason
        encoded = frame.SerializeToString()
        now = self._conductor.now()
        for stream in list(self._streams.values()):
            stream.answer(encoded)
            self.touch(stream)
            bindings = stream.session.bindings if stream.session is not None else {}
            for binding in list(bindings.values()):
                job = binding.job
                if job.durable is not None:
                    continue  # it records on
                if job.state in (JobState.ARMED, JobState.DEGRADED):
                    self._stopped.add(job)
                self.engine.stop(job, now)
        self._conductor.settle()

    @property
    def stopped(self) -> Set[Job]:
        """The jobs that were stopped because the daemon ends."""
        return self._stopped

    def idle(self, *, late: bool) -> bool:
        """While draining: nothing is waited for. `late`: what can be delivered again by the next daemon is no
        longer waited for; replies are, which can only be carried out by this one.
        """
        return all(
            stream.session is None or self._is_idle(stream.session, late=late)
            for stream in self._streams.values()
        )

    def leave(self) -> None:
        """End every stream, and no session: what there still is to be sent is sent."""
        for stream in list(self._streams.values()):
            stream.leave(AemError(Code.UNAVAILABLE, "DRAINING", self._draining or "the daemon ends"))
            self._forget(stream)

    def hold_absent(self, session: Session) -> bool:
        """Watch the process of a session that was handed over, and has no stream; False: it has ended."""
        release = self._hold_absent(session.principal)
        if release is None:
            return False
        self._holds[session.id] = release
        return True

    def _resume(self, stream: SessionStream, hello: session_pb2.Hello) -> Session | None:
        if not hello.resume_token:
            return None
        positions = {
            position.binding: (position.cursor.epoch, position.cursor.seq) for position in hello.received
        }
        try:
            session = self.engine.resume_session(
                hello.resume_token,
                stream.stream.principal,
                positions=positions,
                credit=_credit(hello),
                now=self._conductor.now(),
            )
        except AemError as error:
            if error.reason != "SESSION_UNKNOWN":
                raise
            return None
        older = self._streams.get(session.id)
        if older is not None:
            self._forget(older)
            older.detach(AemError(Code.ABORTED, "RESUMED_ELSEWHERE", "the session was resumed elsewhere"))
        return session

    def _is_idle(self, session: Session, *, late: bool) -> bool:
        """Whether the client has dealt with all that it was sent, and the modules with its answers."""
        return not session.control and not any(
            (binding.unacked and (binding.job.traits.replies or not late))
            or self._conductor.busy(binding.job)
            for binding in session.bindings.values()
        )

    def _let_go(self, session: Session) -> None:
        self._holds.pop(session.id, _nothing)()

    def _forget(self, stream: SessionStream) -> Session | None:
        session = stream.session
        self._touched.pop(stream, None)
        self._held.discard(stream)
        if session is None or self._streams.get(session.id) is not stream:
            return None
        del self._streams[session.id]
        self._conductor.forget_requests(session)
        return session


def _nothing() -> None:
    """No hold."""


def _version(hello: session_pb2.Hello) -> int:
    if hello.version_min > VERSION_MAX or hello.version_max < VERSION_MIN:
        raise AemError(
            Code.FAILED_PRECONDITION,
            "VERSION_UNSUPPORTED",
            f"the client speaks versions {hello.version_min} to {hello.version_max} of the protocol, this"
            f" daemon {VERSION_MIN} to {VERSION_MAX}",
            client_min=hello.version_min,
            client_max=hello.version_max,
            daemon_min=VERSION_MIN,
            daemon_max=VERSION_MAX,
        )
    return min(hello.version_max, VERSION_MAX)


def _credit(hello: session_pb2.Hello) -> tuple[int, int] | None:
    return (hello.credit.events, hello.credit.bytes) if hello.HasField("credit") else None
