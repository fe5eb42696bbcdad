"""One Session stream: bytes in, frames to the engine, frames out.

A stream begins with Hello, within a time; then it belongs to a session of the engine until it ends. Frames
are dealt with in order, a bundle's as if each had come alone.

Reading is paced, never refused: while too many answers wait for the client, or it, or all sessions of its
user together, have talked faster than they may, or have had their share of this turn, the frames that came
stay where they are, and the window that their bytes took is not given back. So a client that does not read,
or never stops talking, delays itself.

How a stream ends, and what becomes of its session:

    the client half-closes      what is ready is sent, then session and jobs end: it said goodbye
    cancelled, connection lost  the session keeps its jobs for the lease
    a malformed frame           INVALID_ARGUMENT; session and jobs end
    a fault in the daemon       INTERNAL; session and jobs end
    another stream resumes it   ABORTED; the session goes on with the other one
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from aemd.core.errors import AemError, Code
from aemd.peer.stream import Stream
from aemd.service import errors, log
from aemd.service.pace import Pace
from aemd.sources.reactor import Timer
from aemd.v1 import session_pb2

if TYPE_CHECKING:
    from aemd.core.session import Session
    from aemd.service.sessions import Sessions

FRAMES_PER_TURN = 1_024  # 10 to 30 ms of work; then everybody else has a turn
SAID_ALL = session_pb2.ServerFrame(drain=session_pb2.Drain(said_all=True)).SerializeToString()
GOODBYE_NS = 5_000_000_000  # how long a client that half-closed may take to read what is ready


class MalformedError(AemError):
    """What a client sent cannot be understood; the stream cannot go on."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.INVALID_ARGUMENT, "MALFORMED", message)


class SessionStream:
    """A StreamHandler for EventService.Session."""

    def __init__(self, stream: Stream, sessions: Sessions) -> None:
        self.stream = stream
        self.session: Session | None = None
        self._sessions = sessions
        self._messages: deque[bytes] = deque()
        self._frames: Sequence[session_pb2.ClientFrame] = ()
        self._next = 0
        self._size = 0  # bytes of the message that _frames came from
        self._half_closed = False
        self._ended = False
        limits = sessions.limits
        now_ns = sessions.now_ns()
        self._pace = Pace(rate=limits.frames_per_second, burst=limits.frames_burst, now_ns=now_ns)
        self._wake: Timer | None = None
        self._deadline: Timer | None = sessions.call_at(now_ns + limits.hello_ns, self._too_late)

    # What the link says.

    def data(self, message: bytes) -> None:
        """Take a message."""
        if self._ended:
            self.stream.consumed(len(message))
            return
        self._messages.append(message)
        if self._wake is None:  # else it has had its share of this turn
            self.pump()

    def half_closed(self) -> None:
        """The client will say no more."""
        self._half_closed = True
        self.pump()

    def closed(self, reason: str) -> None:
        """The stream is lost; its session waits for the client to come back, unless it said goodbye."""
        if self._ended:
            return
        self._forget()
        if self._half_closed:
            self._sessions.finished(self, "the client ended the stream")
        else:
            self._sessions.lost(self, reason)

    def writable(self) -> None:
        """There is room for output again."""
        self._sessions.touch(self)

    # In.

    def pump(self) -> None:
        """Deal with frames that have come, as far as pace and unread answers allow."""
        uid = self.stream.principal.uid
        begun_ns = time.monotonic_ns()  # the turn's own time stands still
        left_ns = self._sessions.shares.left_ns(uid)
        begun = False
        try:
            for _ in range(FRAMES_PER_TURN):
                if self._waits and time.monotonic_ns() - begun_ns >= left_ns:
                    break
                if self._over() or not self._may_read():
                    return
                frame = self._frame()
                if frame is None:
                    self._maybe_goodbye()
                    return
                begun = True
                self._dispatch(frame)
        except AemError as error:
            self.end(error)
            return
        except Exception:
            self.fail()
            return
        finally:
            self._sessions.shares.spend(uid, time.monotonic_ns() - begun_ns)
        # Who had nothing of this turn comes first in the next one.
        self._wake_at(self._sessions.now_ns() + begun)

    @property
    def _waits(self) -> bool:
        """Whether frames have come that are not dealt with."""
        return bool(self._messages) or self._next < len(self._frames)

    def _over(self) -> bool:
        """Whether nothing more is to be read; the engine may have ended the session a frame ago."""
        return self._ended or (self.session is not None and self.session.ended)

    def _may_read(self) -> bool:
        if not self._waits:
            return True  # nothing to refuse; _frame() settles what is left
        if self.session is not None and self._sessions.unanswered(self) >= self._sessions.limits.unanswered:
            self._sessions.hold(self)  # until the client has read some
            return False
        if self._next >= len(self._frames):
            due_ns = self._sessions.intake.due_ns(self.stream.principal)
            if due_ns:
                self._wake_at(due_ns)
                return False
        if not self._pace.take(self._sessions.now_ns()):
            self._wake_at(self._pace.ready_at_ns(FRAMES_PER_TURN))
            return False
        return True

    def _frame(self) -> session_pb2.ClientFrame | None:
        while self._next >= len(self._frames):
            if self._size:
                self.stream.consumed(self._size)
                self._size = 0
            if not self._messages:
                self._frames, self._next = (), 0
                return None
            message = self._messages.popleft()
            self._size = len(message)
            self._frames, self._next = _decode(message, self._sessions.limits.bundle_frames), 0
            self._sessions.intake.took(
                self.stream.principal, frames=max(len(self._frames), 1), size_bytes=self._size
            )
        frame = self._frames[self._next]
        self._next += 1
        return frame

    def _dispatch(self, frame: session_pb2.ClientFrame) -> None:
        name = frame.WhichOneof("frame")
        if name is None:
            raise MalformedError("a ClientFrame without a frame that this daemon knows")
        if name == "hello":
            if self.session is not None:
                raise MalformedError("Hello is the first frame of a stream, and only the first")
            self._hello(frame)
            return
        if self.session is None:
            raise MalformedError(f"the first frame of a stream is Hello, not {name}")
        self.session.sheet.frames_in += 1
        try:
            answered = self._sessions.requests.handle(self.session, name, frame)
        except MalformedError:
            raise
        except AemError as error:
            self.answer(errors.result(frame.request_id, error))
            return
        if frame.request_id and not answered:
            self.answer(errors.result(frame.request_id))

    def _hello(self, frame: session_pb2.ClientFrame) -> None:
        welcome = self._sessions.open(self, frame.hello)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        reply = session_pb2.ServerFrame(request_id=frame.request_id, welcome=welcome)
        self.stream.send(
            reply.SerializeToString()
        )  # not through the queue: a resumed session's may hold more

    # Out.

    def answer(self, frame: bytes) -> None:
        """Send an encoded ServerFrame, before any event that is not on its way yet."""
        if self.session is not None:
            self._sessions.engine.send_control(self.session, frame)

    def flush(self) -> None:
        """Send what the engine has for this session, as far as there is room."""
        if self._send_ready():
            self._maybe_goodbye(flushed=True)

    def _send_ready(self) -> bool:
        """Whether nothing is left that may be sent."""
        session = self.session
        if session is None or self._ended:
            return False
        stream, collect = self.stream, self._sessions.engine.collect
        while stream.room > 0:
            data = collect(session, stream.room, time.monotonic_ns())
            if data is None:
                return True
            stream.send(data)
        return False

    # The end.

    def end(self, error: AemError) -> None:
        """End stream and session with `error`; answers that are ready still go out."""
        if self._ended:
            return
        self._send_ready()
        self.detach(error)
        self._sessions.finished(self, error.message)

    def leave(self, error: AemError) -> None:
        """End the stream, with what is ready; the session is handed over to another daemon.

        If there was room for every answer the client is told that there are no more.
        """
        if self._ended:
            return
        self._send_ready()
        if self.session is not None and not self.session.control:
            self.stream.send(SAID_ALL)
        self.detach(error)

    def detach(self, error: AemError) -> None:
        """End the stream only; its session has ended already, or goes on elsewhere."""
        if self._ended:
            return
        self._forget()
        status = errors.status_of(error)
        self.stream.end(error.code, status.message, status.SerializeToString())

    def fail(self) -> None:
        """The daemon met a fault while it dealt with this stream: nothing more of its session is trusted."""
        log.get().exception("session failed", **{log.SESSION: self.session.id if self.session else 0})
        self.detach(errors.internal())
        self._sessions.finished(self, "the daemon met a fault")

    def _maybe_goodbye(self, *, flushed: bool = False) -> None:
        """Once the client has said everything and has been told everything, the session is over."""
        if not self._half_closed or self._ended or self._waits:
            return
        if self.session is None:
            self.end(MalformedError("the stream ended before its Hello"))
            return
        if not flushed:
            if self._deadline is None:
                self._deadline = self._sessions.call_at(self._sessions.now_ns() + GOODBYE_NS, self._goodbye)
            self._sessions.touch(self)
            return
        if not self._sessions.awaits_answer(self.session):
            self._goodbye(0)

    def _goodbye(self, _now_ns: int) -> None:
        if self._ended:
            return
        self._forget()
        self.stream.end(Code.OK)
        self._sessions.finished(self, "the client ended the stream")

    def _too_late(self, _now_ns: int) -> None:
        seconds = self._sessions.limits.hello_ns / 1e9
        self.end(
            AemError(
                Code.DEADLINE_EXCEEDED,
                "HELLO_MISSING",
                f"no Hello within {seconds:g} s of opening the stream",
            )
        )

    def _forget(self) -> None:
        self._ended = True
        self._messages.clear()
        self._frames, self._next = (), 0
        for timer in (self._deadline, self._wake):
            if timer is not None:
                timer.cancel()
        self._deadline = self._wake = None

    def _wake_at(self, due_ns: int) -> None:
        if self._wake is None:
            self._wake = self._sessions.call_at(due_ns, self._woken)

    def _woken(self, _now_ns: int) -> None:
        self._wake = None
        self.pump()


def _decode(message: bytes, frames_max: int) -> Sequence[session_pb2.ClientFrame]:
    """The frames of a message, a bundle opened up.

    They are looked at all at once, whatever the client's pace: so they are counted first.
    """
    frame = session_pb2.ClientFrame()
    try:
        frame.ParseFromString(message)
    except DecodeError:
        raise MalformedError(f"a message of {len(message)} bytes is no ClientFrame") from None
    if not frame.HasField("bundle"):
        return (frame,)
    if len(frame.bundle.frames) > frames_max:
        raise MalformedError(f"a bundle of {len(frame.bundle.frames)} frames; at most {frames_max} are taken")
    for inner in frame.bundle.frames:
        if inner.HasField("bundle") or inner.HasField("hello"):
            raise MalformedError("a bundle holds neither another bundle nor a Hello")
    return frame.bundle.frames
