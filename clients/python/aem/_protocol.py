"""The client's side of a session, without I/O: both faces drive this one object.

ServerFrames go in by receive(), ClientFrames come out by take(); requests are futures of the face's own
kind. The face opens streams, reads and writes them, and says when one is lost.

What survives a lost stream: registrations, entries that wait here, the resume token, how far each binding
got, and every answer that the daemon may not have read. On a new stream either the session is resumed:
answers and credit are said again, then the requests that can be repeated. Or the daemon does not know the
session (it was restarted): every registration is made anew, and each is told of a Gap of unknown size,
because nobody can say what happened in between.

All public methods take the lock; the face's callbacks are called with it held and must not block.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from aem._binding import EXPLICIT, Binding, Entry, Outcome, Window
from aem._registration import Registration
from aem.errors import AemError, Code, ConnectionLost, from_status
from aem.v1 import job_pb2, session_pb2

Build = Callable[[], session_pb2.ClientFrame]

log = logging.getLogger("aem")

SDK = "aem-python/0.1.0"
VERSION = 1
SESSION_EVENTS = 8_192
SESSION_BYTES = 1024 * 1024
BUNDLE_FRAMES = 512
BUNDLE_BYTES = 256 * 1024  # a quarter of the daemon's limit on a message
MESSAGE_BYTES = 1024 * 1024  # until Welcome says
RAISE_EVENTS = 1_024  # in one frame
CONFIRM_ANSWERS = 64  # so many answers are kept until the daemon is asked whether it has read them
CONFIRM_BYTES = 256 * 1024


class Waiter(Protocol):
    """A future, concurrent.futures' or asyncio's."""

    def done(self) -> bool:
        """It has a result, or nobody waits any more."""

    def set_result(self, result: Any, /) -> None:
        """It is done."""

    def set_exception(self, exception: Any, /) -> None:
        """It failed."""


class Request:
    """A question to the daemon that has no answer yet."""

    __slots__ = ("build", "registration", "repeatable", "sent", "then", "waiter")

    def __init__(
        self,
        build: Build,
        waiter: Waiter | None,
        *,
        registration: Registration | None,
        repeatable: bool,
        then: Callable[[AemError | None], None] | None,
    ) -> None:
        self.build = build
        self.waiter = waiter
        self.registration = registration
        self.repeatable = repeatable
        self.then = then
        self.sent = False


class Session:
    """The state machine.

    `future` makes the face's futures; `output` is called when take() has something, `ended` when the session
    is over for good.
    """

    def __init__(
        self,
        *,
        label: str,
        lock: AbstractContextManager[Any],
        future: Callable[[], Waiter],
        output: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.label = label
        self.id = 0
        self.connected = False
        self.draining = False
        self.leaving = False  # the program ends the session
        self.failure: AemError | None = None  # why it ended for good
        self.limits = session_pb2.Limits(message_bytes=MESSAGE_BYTES)
        self.registrations: list[Registration] = []
        self._lock = lock
        self._future = future
        self._output = output
        self._ended = ended
        self._token = b""
        self._window = Window(SESSION_EVENTS, SESSION_BYTES)
        self._bindings: dict[int, Binding] = {}
        self._jobs: dict[int, Registration] = {}
        self._requests: dict[int, Request] = {}
        self._next_request = 1
        self._out: deque[session_pb2.ClientFrame] = deque()
        self._due: set[Binding] = set()  # bindings that owe an Ack
        self._unconfirmed: deque[tuple[Binding, tuple[int, int]]] = deque()
        self._asked = 0  # how many of them the newest question covers
        self._unasked_bytes = 0

    # -- streams

    def hello(self) -> session_pb2.ClientFrame:
        """The first frame of a new stream."""
        with self._lock:
            received = [
                session_pb2.Position(
                    binding=binding.id,
                    cursor=job_pb2.Cursor(epoch=binding.received[0], seq=binding.received[1]),
                )
                for binding in self._bindings.values()
                if binding.received[1]
            ]
            hello = session_pb2.Hello(
                version_min=VERSION,
                version_max=VERSION,
                sdk=SDK,
                label=self.label,
                resume_token=self._token,
                received=received if self._token else [],
                credit=self._window.reopen(),
            )
            return session_pb2.ClientFrame(request_id=0, hello=hello)

    def lost(self, error: AemError) -> bool:
        """The stream ended. Returns whether trying again makes sense."""
        with self._lock:
            self.connected = False
            self._out.clear()
            if self._token and error.code is Code.NOT_FOUND:
                self._token = b""
                return True
            for number, request in list(self._requests.items()):
                if request.sent and not request.repeatable:
                    self._fail(
                        number,
                        _lost("the connection broke before the answer came; it may or may not be done"),
                    )
            return error.code not in _FINAL

    def fail(self, error: AemError) -> None:
        """The session is over: nobody will try again."""
        with self._lock:
            self.connected = False
            self.failure = error
            for number in list(self._requests):
                self._fail(number, error)
            for registration in self.registrations:
                registration.end(error.message)
            self._ended()

    def _fail(self, number: int, error: AemError) -> None:
        self._settle(self._requests.pop(number), error)

    def _settle(self, request: Request, error: AemError | None) -> None:
        if request.then is not None:
            request.then(error)
        if request.waiter is not None and not request.waiter.done():
            if error is None:
                request.waiter.set_result(None)
            else:
                request.waiter.set_exception(error)

    def _welcome(self, welcome: session_pb2.Welcome) -> None:
        known = self._token != b"" and welcome.resumed
        self.connected = True
        self.draining = False
        self.id = welcome.session
        self._token = welcome.resume_token
        if welcome.limits.message_bytes:
            self.limits.CopyFrom(welcome.limits)
        if known:
            self._resume(set(welcome.bindings))
        else:
            self._restart()
        for number, request in list(self._requests.items()):
            self._emit_request(number, request)

    def _resume(self, standing: set[int]) -> None:
        for number in standing - self._bindings.keys():  # registered, but the answer was lost: asked again
            self._emit(session_pb2.ClientFrame(unbind=session_pb2.Unbind(binding=number)))
        self._unconfirmed.clear()
        self._asked = self._unasked_bytes = 0
        for binding in list(self._bindings.values()):
            if binding.id not in standing:
                self._gone(binding.registration, "it ended while the connection was lost")
                continue
            ack = binding.ack()
            if ack is not None:
                self._emit(ack)
            for frame in binding.answers():
                self._emit_answer(binding, frame)
            self._emit(
                session_pb2.ClientFrame(
                    grant=session_pb2.Grant(binding=binding.id, credit=binding.window.reopen())
                )
            )
        self._due.clear()

    def _restart(self) -> None:
        old = list(self._bindings.values())
        self._bindings.clear()
        self._jobs.clear()
        self._due.clear()
        self._unconfirmed.clear()
        self._asked = self._unasked_bytes = 0
        error = _lost("the daemon was restarted before the answer came")
        for number, request in list(self._requests.items()):
            if request.registration is not None and request.registration.binding is not None:
                self._fail(number, error)
        for binding in old:
            registration = binding.registration
            binding.alive = False
            if registration.gone:
                self._gone(registration, registration.reason)
                continue
            registration.rooms.clear()
            registration.sink.put([_restart_gap(binding)])
            registration.binding = None
            self._register(registration, None)

    # -- frames in

    def receive(self, frame: session_pb2.ServerFrame) -> None:
        """Deal with a frame of the daemon."""
        with self._lock:
            self._receive(frame)

    def _receive(self, frame: session_pb2.ServerFrame) -> None:
        match frame.WhichOneof("frame"):
            case "batch":
                for run in frame.batch.runs:
                    self._run(run)
            case "bundle":
                for inner in frame.bundle.frames:
                    self._receive(inner)
            case "result":
                self._result(frame.request_id, frame.result)
            case "registered":
                self._registered(frame.request_id, frame.registered)
            case "gap":
                self._gap(frame.gap)
            case "job_state":
                self._job_state(frame.job_state)
            case "room":
                registration = self._jobs.get(frame.room.job)
                if registration is not None:
                    rooms, room = registration.rooms, frame.room
                    rooms[room.key] = rooms.get(room.key, 0) + room.bytes
            case "sync_done":
                self._result(frame.request_id, session_pb2.Result())
            case "welcome":
                self._welcome(frame.welcome)
            case "drain":
                self.draining = True
                log.info("the daemon is about to end the session: %s", frame.drain.reason)
            case _:
                pass  # progress, and what later daemons add

    def _run(self, run: session_pb2.Run) -> None:
        binding = self._bindings.get(run.binding)
        events, counts, attempts = run.events, run.counts, run.attempts
        size = sum(map(len, events))
        self._window.receive(len(events), size)
        if binding is None:
            self._give_back(None, len(events), size)
            return
        binding.window.receive(len(events), size)
        epoch, first = run.epoch, run.first_seq
        entries = []
        for index, data in enumerate(events):
            last = first + counts[index] - 1 if counts else first
            entries.append(Entry(binding, epoch, first, last, attempts[index] if attempts else 1, data))
            first = last + 1
        self._arrived(binding, entries, repeated=bool(attempts))

    def _gap(self, gap: session_pb2.Gap) -> None:
        binding = self._bindings.get(gap.binding)
        if binding is None:
            return
        entry = Entry(binding, gap.epoch, gap.first, gap.last, max(1, gap.attempts), b"")
        entry.gap = gap
        self._arrived(binding, [entry], repeated=gap.attempts > 1)

    def _arrived(self, binding: Binding, entries: list[Entry], *, repeated: bool) -> None:
        if not entries:
            return
        sink = binding.registration.sink
        newest = entries[-1]
        if repeated:
            here = {(entry.epoch, entry.last) for entry in sink.waiting(binding)}
            fresh, again = binding.sift(entries, here)
            for frame in again:
                self._emit(frame)
            kept = set(fresh)
            for entry in entries:
                if entry not in kept and entry.gap is None:
                    self._give_back(binding, 1, len(entry.data))
            entries = fresh
        binding.received = max(binding.received, (newest.epoch, newest.last))
        if entries:
            sink.put(entries)

    def _registered(self, number: int, registered: session_pb2.Registered) -> None:
        request = self._requests.pop(number, None)
        if request is None or request.registration is None:
            return
        registration = request.registration
        options = registration.options
        binding = Binding(
            registered.binding,
            registration,
            epoch=registered.start.epoch,
            acknowledgement=registration.acknowledgement,
            window=Window(options.credit_events, options.credit_bytes),
        )
        binding.received = binding.handled = (0, 0)
        registration.id = registered.job
        registration.state = registered.state
        registration.binding = binding
        self._bindings[binding.id] = binding
        self._jobs[registered.job] = registration
        if registration not in self.registrations:
            self.registrations.append(registration)
        self._settle(request, None)

    def _result(self, number: int, result: session_pb2.Result) -> None:
        error = from_status(result.status) if result.status.code else None
        request = self._requests.pop(number, None)
        if request is not None:
            self._settle(request, error)
        elif error is not None:
            level = logging.INFO if error.code in _STALE else logging.WARNING
            log.log(level, "the daemon refused an answer: %s", error.message)

    def _job_state(self, change: session_pb2.JobState) -> None:
        registration = self._jobs.get(change.job)
        if registration is None:
            return
        if change.discarded:
            log.warning("job %d ended with %d events undelivered", change.job, change.discarded)
        if change.state == job_pb2.STATE_GONE:
            self._gone(registration, change.reason)
        else:
            registration.state = change.state
            registration.reason = change.reason

    def _gone(self, registration: Registration, reason: str) -> None:
        binding = registration.binding
        self._jobs.pop(registration.id, None)
        if binding is not None:
            self._bindings.pop(binding.id, None)
            self._due.discard(binding)
        if registration in self.registrations:
            self.registrations.remove(registration)
        registration.end(reason)

    # -- frames out

    def take(self) -> session_pb2.ClientFrame | None:
        """What waits to be sent, as one frame of bounded size; None if nothing."""
        with self._lock:
            frames: list[session_pb2.ClientFrame] = []
            size = 0
            while self._out and len(frames) < BUNDLE_FRAMES:
                size += self._out[0].ByteSize()
                if frames and size > BUNDLE_BYTES:
                    break
                frame = self._out.popleft()
                request = self._requests.get(frame.request_id)
                if request is not None:
                    request.sent = True
                frames.append(frame)
            if len(frames) < 2:
                return frames[0] if frames else None
            return session_pb2.ClientFrame(bundle=session_pb2.ClientBundle(frames=frames))

    def _emit(self, frame: session_pb2.ClientFrame) -> None:
        if self.connected:
            self._out.append(frame)
            self._output()

    def _emit_request(self, number: int, request: Request) -> None:
        frame = request.build()
        frame.request_id = number
        if frame.ByteSize() > self.limits.message_bytes - 64:
            message = (
                f"the request has {frame.ByteSize()} bytes; the daemon takes {self.limits.message_bytes}"
            )
            self._fail(number, AemError(Code.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE", message))
            return
        self._emit(frame)

    def flush(self) -> None:
        """Say what is dealt with: an Ack for each binding that owes one."""
        if not self._due:
            return
        with self._lock:
            for binding in self._due:
                ack = binding.ack()
                if ack is not None:
                    self._emit(ack)
            self._due.clear()

    def begin(self, entry: Entry) -> None:
        """The handler of `entry` is about to run; finish() or discard() follows."""
        entry.begun = True
        entry.binding.running += 1

    def finish(self, entry: Entry, outcome: Outcome) -> None:
        """`entry` is dealt with. Acks are sent by flush()."""
        with self._lock:
            binding = entry.binding
            if binding.alive:
                frames, due = binding.finish(entry, outcome)
                if due:
                    self._due.add(binding)
                elif binding.acknowledgement == EXPLICIT:
                    self._emit_answer(binding, frames[0])
                else:
                    self._due.discard(binding)
                    for frame in frames:
                        self._emit(frame)
            self.discard(entry)

    def discard(self, entry: Entry) -> None:
        """`entry` takes no room here any more; its handler, if it had begun, is done."""
        with self._lock:
            binding = entry.binding
            if entry.gap is None:
                self._give_back(binding if binding.alive else None, 1, len(entry.data))
            if entry.begun:
                binding.running -= 1
                if binding.registration.given_up:
                    self._let_go(binding.registration)

    def _let_go(self, registration: Registration) -> None:
        """End a job that was shut down, unless a handler of it runs.

        The daemon would wait for the events that were sent and that nobody will handle: a job ends with
        its binding at once.
        """
        binding = registration.binding
        if binding is None or not binding.alive or binding.running:
            return
        self.flush()
        self._emit(session_pb2.ClientFrame(unbind=session_pb2.Unbind(binding=binding.id)))
        self._gone(registration, "shut down by its owner")

    def _emit_answer(self, binding: Binding, frame: session_pb2.ClientFrame) -> None:
        """Send an answer that is kept until the daemon is known to have read it."""
        which = frame.nack if frame.HasField("nack") else frame.complete
        cursor = (which.cursor.epoch, which.cursor.seq)
        self._unconfirmed.append((binding, cursor))
        self._unasked_bytes += len(frame.complete.reply.data) if frame.HasField("complete") else 0
        if not self.connected:
            return
        frame.request_id = 0
        if len(self._unconfirmed) - self._asked >= CONFIRM_ANSWERS or self._unasked_bytes >= CONFIRM_BYTES:
            covers = len(self._unconfirmed) - self._asked
            self._asked += covers
            self._unasked_bytes = 0
            request = Request(
                session_pb2.ClientFrame,
                None,
                registration=None,
                repeatable=False,
                then=lambda error: self._confirmed(covers, error),
            )
            frame.request_id = self._number(request)
        if frame.ByteSize() > self.limits.message_bytes - 64:
            self._refuse_answer(frame)
        self._emit(frame)

    def _refuse_answer(self, frame: session_pb2.ClientFrame) -> None:
        size = frame.ByteSize()
        frame.complete.ClearField("reply")
        frame.complete.status.code = Code.INVALID_ARGUMENT
        frame.complete.status.message = (
            f"a reply of {size} bytes; the daemon takes {self.limits.message_bytes}"
        )
        log.error("%s", frame.complete.status.message)

    def _confirmed(self, covers: int, error: AemError | None) -> None:
        if isinstance(error, ConnectionLost):
            return  # said again on the next stream
        if error is not None:
            log.info("the daemon refused an answer: %s", error.message)
        self._asked -= covers
        for _ in range(covers):
            binding, cursor = self._unconfirmed.popleft()
            binding.confirm(cursor)

    def _give_back(self, binding: Binding | None, events: int, size: int) -> None:
        if binding is not None:
            credit = binding.window.consume(events, size)
            if credit is not None:
                self._emit(
                    session_pb2.ClientFrame(grant=session_pb2.Grant(binding=binding.id, credit=credit))
                )
        credit = self._window.consume(events, size)
        if credit is not None:
            self._emit(session_pb2.ClientFrame(grant=session_pb2.Grant(binding=0, credit=credit)))

    # -- requests

    def _number(self, request: Request) -> int:
        number = self._next_request
        self._next_request += 1
        self._requests[number] = request
        return number

    def _request(
        self,
        build: Build,
        *,
        registration: Registration | None = None,
        repeatable: bool = True,
        then: Callable[[AemError | None], None] | None = None,
    ) -> Any:
        with self._lock:
            waiter = self._future()
            request = Request(build, waiter, registration=registration, repeatable=repeatable, then=then)
            if self.failure is not None:
                self._settle(request, self.failure)
                return waiter
            number = self._number(request)
            if self.connected:
                self._emit_request(number, request)
            return waiter

    def register(self, registration: Registration) -> Any:
        """Make it a job; the answer comes once it is really valid."""
        with self._lock:
            waiter = self._future()
            if self.failure is not None:
                waiter.set_exception(self.failure)
            else:
                self._register(registration, waiter)
            return waiter

    def _register(self, registration: Registration, waiter: Waiter | None) -> None:
        def settled(error: AemError | None) -> None:
            if error is not None:
                if waiter is None:
                    log.error("a job of %s could not be registered again: %s", registration.module, error)
                    self._gone(registration, error.message)
                else:
                    registration.end(error.message)

        request = Request(
            registration.frame, waiter, registration=registration, repeatable=True, then=settled
        )
        number = self._number(request)
        if self.connected and waiter is not None:
            self._emit_request(number, request)

    def start(self, registration: Registration) -> Any:
        """Arm a job."""

        def build() -> session_pb2.ClientFrame:
            return session_pb2.ClientFrame(start=session_pb2.Start(job=registration.id))

        def done(error: AemError | None) -> None:
            if error is None:
                registration.armed = True
                registration.state = job_pb2.STATE_ARMED

        return self._request(build, registration=registration, then=done)

    def stop(self, registration: Registration) -> Any:
        """Disarm a job."""

        def build() -> session_pb2.ClientFrame:
            return session_pb2.ClientFrame(stop=session_pb2.Stop(job=registration.id))

        def done(error: AemError | None) -> None:
            if error is None:
                registration.armed = False
                registration.state = job_pb2.STATE_REGISTERED

        return self._request(build, registration=registration, then=done)

    def shutdown(self, registration: Registration, deadline: float | None) -> Any:
        """End a job; entries of it that wait here are not handled any more."""

        def build() -> session_pb2.ClientFrame:
            deadline_ns = 0 if deadline is None else max(1, round(deadline * 1e9))
            shutdown = session_pb2.Shutdown(job=registration.id, deadline_ns=deadline_ns)
            return session_pb2.ClientFrame(shutdown=shutdown)

        def done(error: AemError | None) -> None:
            if error is None and registration.state != job_pb2.STATE_GONE:
                registration.state = job_pb2.STATE_CLOSING
                registration.given_up = True
                self._let_go(registration)

        with self._lock:
            if registration.state == job_pb2.STATE_GONE:
                waiter = self._future()
                waiter.set_result(None)
                return waiter
            return self._request(build, registration=registration, then=done)

    def set_priority(self, registration: Registration, priority: int) -> Any:
        """Change a job's priority."""

        def build() -> session_pb2.ClientFrame:
            return session_pb2.ClientFrame(
                set_priority=session_pb2.SetPriority(job=registration.id, priority=priority)
            )

        return self._request(build, registration=registration)

    def operate(self, registration: Registration, key: bytes, operation: str, data: bytes | str) -> Any:
        """Output outside an answer."""
        content = data.encode() if isinstance(data, str) else data

        def build() -> session_pb2.ClientFrame:
            return session_pb2.ClientFrame(
                op=session_pb2.Op(
                    job=registration.id,
                    key=key,
                    operation=session_pb2.Operation(name=operation, data=content),
                )
            )

        with self._lock:
            if key in registration.rooms:
                registration.rooms[key] -= len(content)
            return self._request(build, registration=registration, repeatable=False)

    def sync(self, registration: Registration) -> Any:
        """Ask for everything that the kernel has queued for a job."""

        def build() -> session_pb2.ClientFrame:
            return session_pb2.ClientFrame(sync=session_pb2.Sync(jobs=[registration.id]))

        return self._request(build, registration=registration)

    def raise_events(self, channel: str, payloads: list[bytes], uid: int | None) -> Any:
        """Raise user events."""
        raised = session_pb2.Raise(channel=channel, payloads=payloads, uid=uid)

        def build() -> session_pb2.ClientFrame:
            frame = session_pb2.ClientFrame()
            getattr(frame, "raise").CopyFrom(raised)  # a keyword of Python
            return frame

        return self._request(build, repeatable=False)


def payload_chunks(payloads: Iterable[str | bytes]) -> Iterator[list[bytes]]:
    """Payloads as bytes, in pieces that fit into a message each.

    >>> [len(chunk) for chunk in payload_chunks(["a", b"b"])]
    [2]
    """
    chunk: list[bytes] = []
    size = 0
    for payload in payloads:
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        if chunk and (size + len(data) > BUNDLE_BYTES or len(chunk) >= RAISE_EVENTS):
            yield chunk
            chunk, size = [], 0
        chunk.append(data)
        size += len(data)
    if chunk:
        yield chunk


_STALE = (Code.NOT_FOUND, Code.FAILED_PRECONDITION)
_FINAL = (
    Code.INVALID_ARGUMENT,
    Code.PERMISSION_DENIED,
    Code.UNAUTHENTICATED,
    Code.UNIMPLEMENTED,
    Code.FAILED_PRECONDITION,
    Code.ABORTED,
)


def _lost(message: str) -> ConnectionLost:
    return ConnectionLost(Code.UNAVAILABLE, "CONNECTION_LOST", message)


def _restart_gap(binding: Binding) -> Entry:
    epoch, seq = binding.received
    entry = Entry(binding, epoch, seq + 1, seq + 1, 1, b"")
    entry.gap = session_pb2.Gap(
        epoch=epoch,
        first=seq + 1,
        last=seq + 1,
        stage=session_pb2.STAGE_SOURCE,
        cause=session_pb2.CAUSE_RESTART,
        remedy=session_pb2.REMEDY_RESCAN,
        attempts=1,
    )
    return entry
