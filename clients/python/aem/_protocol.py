"""The client's side of a session, without I/O: both faces drive this one object.

ServerFrames go in by receive(), ClientFrames come out by take(); requests are futures of the face's own
kind. The face opens streams, reads and writes them, and says when one is lost.

What survives a lost stream: registrations, entries that wait here, the resume token, how far each binding
got, and every answer that the daemon may not have read. On a new stream either the session is resumed:
answers and credit are said again, then the requests that can be repeated. Or the daemon does not know the
session (it was restarted): every registration is made anew, and each is told of a Gap of unknown size,
because nobody can say what happened in between. Durable jobs are only bound anew, wherever their binding does
not stand any more: what waits here and was not begun is dropped, for it comes again, and what happened in
between is in the history.

All public methods take the lock; the face's callbacks are called with it held and must not block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import groupby
from operator import attrgetter
from typing import Any

from aem._answers import Answers
from aem._binding import EXPLICIT, NONE, SUCCESS, Binding, Entry, Outcome, Window
from aem._commands import Commands, Frame
from aem._registration import Registration
from aem._requests import Request, Waiter, lost
from aem.errors import AemError, Code, OutOfRange, from_status
from aem.history import Cursor
from aem.progress import Progress
from aem.v1 import job_pb2, session_pb2

log = logging.getLogger("aem")

SDK = "aem-python/0.1.0"
VERSION = 1
SESSION_EVENTS = 8_192
SESSION_BYTES = 1024 * 1024
PROGRESS_NS = 1_000_000_000  # how often at most the daemon says how far jobs are; only while that changes
HELLO_BYTES = 1_024  # of a Hello beside its positions: a label has 256 at most
# Errors after which opening another stream makes no sense.
FINAL = (
    Code.INVALID_ARGUMENT,
    Code.PERMISSION_DENIED,
    Code.UNAUTHENTICATED,
    Code.UNIMPLEMENTED,
    Code.FAILED_PRECONDITION,
    Code.ABORTED,
)
DRAINING = "DRAINING"  # refused because the daemon ends
STALE = (Code.NOT_FOUND, Code.FAILED_PRECONDITION)  # an answer that came too late is nothing to worry about


class Session(Commands):
    """The state machine.

    `future` makes the face's futures; `output` is called when take() has something, `changed` when
    something that run() may wait for is not as it was.
    """

    def __init__(
        self,
        *,
        label: str,
        lock: AbstractContextManager[Any],
        future: Callable[[], Waiter],
        output: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        super().__init__(lock=lock, future=future, output=output)
        self.label = label
        self.id = 0
        self.leaving = False  # the program ends the session
        self._away = False  # the connection is lost, and the face tries again
        self.registrations: dict[Registration, None] = {}
        self._changed = changed
        self._token = b""
        self._window = Window(SESSION_EVENTS, SESSION_BYTES)
        self._bindings: dict[int, Binding] = {}
        self._jobs: dict[int, list[Registration]] = {}  # several where one follows what another answers
        self._due: set[Binding] = set()  # bindings that owe an Ack
        self._answers = Answers()

    # -- streams

    def hello(self) -> Frame:
        """The first frame of a new stream."""
        with self._lock:
            hello = session_pb2.Hello(
                version_min=VERSION,
                version_max=VERSION,
                sdk=SDK,
                label=self.label,
                resume_token=self._token,
                received=self._positions() if self._token else [],
                credit=self._window.reopen(),
                progress_ns=PROGRESS_NS,
            )
            return Frame(request_id=0, hello=hello)

    def _positions(self) -> list[session_pb2.Position]:
        """How far each binding got, as many as a message holds.

        What is not said is delivered again, and sifted. But where nothing is acknowledged it would be taken
        for lost, so those are said first.
        """
        room = self.limits.message_bytes - HELLO_BYTES
        positions = []
        for binding in sorted(self._bindings.values(), key=lambda binding: binding.acknowledgement != NONE):
            epoch, seq = binding.received
            if not seq:
                continue
            position = session_pb2.Position(binding=binding.id, cursor=job_pb2.Cursor(epoch=epoch, seq=seq))
            room -= position.ByteSize() + 2  # tag and length
            if room < 0:
                break
            positions.append(position)
        return positions

    def lost(self, error: AemError) -> bool:
        """The stream ended. Returns whether trying again makes sense."""
        with self._lock:
            self._drop_stream()
            if not self.leaving:
                self._tell_unheard()
            return error.code not in FINAL

    def coming_back(self, error: AemError) -> None:
        """The face will open another stream: the log tells it once, and again when it is open."""
        if not self._away and not self.leaving:
            self._away = True
            log.warning("connection lost, coming back: %s", error.message)

    def fail(self, error: AemError) -> None:
        """The session is over: nobody will try again."""
        with self._lock:
            self._fail_all(error)
            for registration in self.registrations:
                registration.end(error.message)
            self._changed()

    def _welcome(self, welcome: session_pb2.Welcome) -> None:
        known = self._token != b"" and welcome.resumed
        self.connected = True
        self.draining = self._said_all = False
        self.id = welcome.session
        self._token = welcome.resume_token
        if welcome.limits.message_bytes:
            self.limits.CopyFrom(welcome.limits)
        if self._away:
            self._away = False
            log.info("connection is back%s", "" if known else "; the daemon knew nothing of us any more")
        if known:
            self._resume(set(welcome.bindings))
        else:
            self._restart()
        self._repeat_requests()
        self._changed()

    def _resume(self, standing: set[int]) -> None:
        for number in standing - self._bindings.keys():  # registered, but the answer was lost: asked again
            self._emit(Frame(unbind=session_pb2.Unbind(binding=number)))
        self._answers.clear()
        for binding in list(self._bindings.values()):
            if binding.id not in standing:
                self._lose(binding, "it ended while the connection was lost")
                continue
            ack = binding.ack()
            if ack is not None:
                self._emit(ack)
            for frame in binding.answers():
                self._emit_answer(binding, frame)
            credit = binding.window.reopen()
            self._emit(Frame(grant=session_pb2.Grant(binding=binding.id, credit=credit)))
        self._due.clear()

    def _restart(self) -> None:
        old = list(self._bindings.values())
        self._bindings.clear()
        self._jobs.clear()
        self._due.clear()
        self._answers.clear()
        error = lost("the daemon was restarted before the answer came")
        for number, request in list(self._requests.items()):
            if request.registration is not None and request.registration.binding is not None:
                self._settle(number, error)
        for binding in old:
            registration = binding.registration
            binding.alive = registration.hold is not None
            if registration.gone:
                self._gone(registration, registration.reason)
                continue
            if registration.hold is not None:
                self._bind_again(binding)
                continue
            registration.rooms.clear()
            registration.sink.put([_restart_gap(binding)])
            self._register_again(registration)

    def _lose(self, binding: Binding, reason: str) -> None:
        """A resumed session does not have it any more."""
        registration = binding.registration
        if registration.hold is None or registration.gone:
            self._gone(registration, reason)
            return
        del self._bindings[binding.id]
        self._forget_job(registration)
        self._bind_again(binding)

    def _bind_again(self, binding: Binding) -> None:
        """A durable job: go on where it was."""
        registration = binding.registration
        hold, sink = registration.hold, registration.sink
        assert hold is not None
        if hold.follow:
            waiting = [(entry.epoch, entry.first - 1) for entry in sink.waiting(binding)]
            hold.at = Cursor(*min([binding.place, *waiting]))
        for entry in sink.drop(binding):
            if entry.gap is None:
                binding.window.forget(1, len(entry.data))
                self._give_back(None, 1, len(entry.data))
        binding.suspend()
        registration.rooms.clear()
        registration.former = binding
        self._register_again(registration)

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
                for registration in self._jobs.get(frame.room.job, ()):
                    rooms, room = registration.rooms, frame.room
                    rooms[room.key] = rooms.get(room.key, 0) + room.bytes
                    registration.sink.room(registration, room.key)
            case "sync_done":
                self._result(frame.request_id, session_pb2.Result())
            case "welcome":
                self._welcome(frame.welcome)
            case "drain":
                if frame.drain.said_all:
                    self._said_all = True
                else:
                    self.draining = True
                    log.info("the daemon is about to end the session: %s", frame.drain.reason)
            case "progress":
                binding = self._bindings.get(frame.progress.binding)
                if binding is not None:
                    binding.registration.progress = Progress.of(frame.progress)
            case _:
                pass  # what later daemons add

    def _run(self, run: session_pb2.Run) -> None:
        binding = self._bindings.get(run.binding)
        events, counts, attempts = list(run.events), run.counts, run.attempts
        size = sum(map(len, events))
        self._window.receive(len(events), size)
        if binding is None:
            self._give_back(None, len(events), size)
            return
        binding.window.receive(len(events), size)
        epoch, first = run.epoch, run.first_seq
        if not counts and not attempts:
            entries = [Entry(binding, epoch, seq, seq, 1, data) for seq, data in enumerate(events, first)]
            self._arrived(binding, entries, repeated=False)
            return
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
        catching_up = binding.reached < binding.before
        binding.reach((entries[-1].epoch, entries[-1].last))
        if repeated or catching_up:
            here = {(entry.epoch, entry.last) for entry in sink.waiting(binding)}
            fresh, again = binding.sift(entries, here)
            for frame in again:
                self._emit(frame)
            kept = set(fresh)
            for entry in entries:
                if entry not in kept and entry.gap is None:
                    self._give_back(binding, 1, len(entry.data))
            entries = fresh
            if catching_up and binding.reached > binding.before:
                binding.forget_answers()
        if entries:
            sink.put(entries)

    def _registered(self, number: int, registered: session_pb2.Registered) -> None:
        request = self._requests.pop(number, None)
        if request is None or request.registration is None:
            return
        registration = request.registration
        binding = _bound(registration, registered)
        registration.id = registered.job
        registration.state = registered.state
        registration.binding = binding
        registration.progress = Progress()  # another job's, if there was one before
        self._bindings[binding.id] = binding
        self._jobs.setdefault(registered.job, []).append(registration)
        self.registrations[registration] = None
        request.settle(None)
        if registration.given_up:
            self._let_go(registration)
        self._changed()

    def _result(self, number: int, result: session_pb2.Result) -> None:
        error = from_status(result.status) if result.status.code else None
        request = self._requests.get(number)
        if request is not None and error is not None and error.reason == DRAINING:
            request.sent = False  # the next daemon is asked
            return
        if not self._settle(number, error) and error is not None:
            _refused(error)

    def _job_state(self, change: session_pb2.JobState) -> None:
        found = list(self._jobs.get(change.job, ()))
        ours = self.leaving or any(registration.given_up for registration in found)
        if found and change.discarded and not ours:  # who ends a job knows that it ends
            log.warning("job %d ended with %d events undelivered", change.job, change.discarded)
        for registration in found:
            if change.state == job_pb2.STATE_GONE:
                self._gone(registration, change.reason)
            else:
                registration.state = change.state
                registration.reason = change.reason
                self._changed()

    def _gone(self, registration: Registration, reason: str) -> None:
        binding = registration.binding
        self._forget_job(registration)
        if binding is not None:
            self._bindings.pop(binding.id, None)
            self._due.discard(binding)
        self.registrations.pop(registration, None)
        registration.end(reason)

    def _forget_job(self, registration: Registration) -> None:
        found = self._jobs.get(registration.id, [])
        if registration in found:
            found.remove(registration)
            if not found:
                del self._jobs[registration.id]

    # -- frames out

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

    def finish(self, entry: Entry, outcome: Outcome) -> None:
        """`entry` is dealt with. Acks are sent by flush()."""
        with self._lock:
            binding = entry.binding
            if binding.alive:
                frames = binding.finish(entry, outcome)
                if frames is None:
                    self._due.add(binding)
                elif binding.acknowledgement == EXPLICIT:
                    told = (entry.epoch, entry.last) <= binding.reached
                    self._emit_answer(binding, frames[0], told=told)
                else:
                    self._due.discard(binding)
                    for frame in frames:
                        self._emit(frame)
            self._drop(entry)

    def finish_plain(self, entries: list[Entry]) -> None:
        """Entries of bindings that are not explicit are dealt with, in this order, and all went well."""
        with self._lock:
            for binding, group in groupby(entries, attrgetter("binding")):
                same = list(group)
                if not binding.alive or not binding.finish_plain(same[-1]):
                    for entry in same:
                        self.finish(entry, SUCCESS)
                    continue
                self._due.add(binding)
                events = [entry for entry in same if entry.gap is None]
                self._give_back(binding, len(events), sum(len(entry.data) for entry in events))
                binding.running -= len(same)
                if binding.registration.given_up:
                    self._let_go(binding.registration)

    def discard(self, entry: Entry) -> None:
        """`entry` takes no room here any more; its handler, if it had begun, is done."""
        with self._lock:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        binding = entry.binding
        if entry.gap is None:
            self._give_back(binding if binding.alive else None, 1, len(entry.data))
        if entry.begun:
            binding.running -= 1
            if binding.registration.given_up:
                self._let_go(binding.registration)

    def _let_go(self, registration: Registration) -> None:
        """End a job that was shut down, or let go of a durable one, unless a handler of it runs.

        The daemon would wait for the events that were sent and that nobody will handle: a job ends with
        its binding at once, and a durable one that is closing with what is in flight.
        """
        binding = registration.binding
        if binding is None or not binding.alive or binding.running:
            return
        self.flush()
        self._emit(Frame(unbind=session_pb2.Unbind(binding=binding.id)))
        ended = registration.state == job_pb2.STATE_CLOSING
        self._gone(registration, "shut down by its owner" if ended else "let go by the program")

    def _emit_answer(self, binding: Binding, frame: Frame, *, told: bool = True) -> None:
        """Send an answer that is kept until the daemon is known to have read it."""
        if not self._fits(frame):
            self._shorten(frame)
        if not self.connected or not told:
            return  # said on the next stream, or when it is delivered again: the binding keeps it
        covers = self._answers.add(binding, frame)
        frame.request_id = 0
        if covers:

            def then(error: AemError | None) -> AemError | None:
                if error is not None:
                    _refused(error)
                self._answers.confirm(covers)
                return None

            frame.request_id = self._number(Request(Frame, None, internal=True, then=then))
        self._emit(frame)

    def _shorten(self, frame: Frame) -> None:
        """A reply that no message can carry fails its event."""
        size = frame.ByteSize()
        frame.complete.ClearField("reply")
        frame.complete.status.code = Code.INVALID_ARGUMENT
        frame.complete.status.message = (
            f"a reply of {size} bytes; a message has at most {self.limits.message_bytes}"
        )
        log.error("%s", frame.complete.status.message)

    def _give_back(self, binding: Binding | None, events: int, size: int) -> None:
        if binding is not None:
            bound = self._bindings.get(binding.id) is binding
            credit = binding.window.consume(events, size, grant=bound)
            if credit is not None:
                self._emit(Frame(grant=session_pb2.Grant(binding=binding.id, credit=credit)))
        credit = self._window.consume(events, size)
        if credit is not None:
            self._emit(Frame(grant=session_pb2.Grant(binding=0, credit=credit)))

    # -- registering

    def register(self, registration: Registration) -> Any:
        """Make it a job; the answer comes once it is really valid."""
        with self._lock:
            waiter = self._future()

            def then(error: AemError | None) -> AemError | None:
                if error is not None:
                    registration.end(error.message)
                return error

            self._ask(Request(registration.frame, waiter, registration=registration, then=then))
            return waiter

    def _register_again(self, registration: Registration) -> int:
        def then(error: AemError | None) -> AemError | None:
            if isinstance(error, OutOfRange) and registration.former is not None:
                self._skip(registration, registration.former, error)
            elif error is not None:
                word = "registered" if registration.hold is None else "bound"
                log.error("a job of %s could not be %s again: %s", registration.module, word, error)
                self._gone(registration, error.message)
            return None

        registration.binding = None
        return self._number(Request(registration.frame, None, registration=registration, then=then))

    def _skip(self, registration: Registration, binding: Binding, error: OutOfRange) -> None:
        """What a follower would read next is not kept any more: say so, and go on with what is."""
        hold = registration.hold
        assert hold is not None
        assert hold.at is not None
        registration.sink.put([_trimmed_gap(binding, hold.at, error.oldest)])
        hold.at = error.oldest
        number = self._register_again(registration)
        self._emit_request(number, self._requests[number])


def _bound(registration: Registration, registered: session_pb2.Registered) -> Binding:
    """The binding that was made; that of a durable job may be one that was there before."""
    start = (registered.start.epoch, registered.start.seq)
    binding, registration.former = registration.former, None
    if binding is not None:
        binding.renew(registered.binding, start)
        return binding
    options = registration.options
    binding = Binding(
        registered.binding,
        registration,
        epoch=registered.start.epoch,
        acknowledgement=registration.acknowledgement,
        window=Window(options.credit_events, options.credit_bytes),
    )
    if registration.hold is not None:
        binding.start = binding.received = binding.reached = start
    return binding


def _refused(error: AemError) -> None:
    level = logging.DEBUG if error.code in STALE else logging.WARNING
    log.log(level, "the daemon refused an answer: %s", error.message)


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


def _trimmed_gap(binding: Binding, at: Cursor, oldest: Cursor) -> Entry:
    """Between `at` and `oldest` nothing is kept; how much that was is known within an epoch."""
    count = max(oldest.seq - at.seq, 0) if oldest.epoch == at.epoch else 0
    last = at.seq + max(count, 1)
    entry = Entry(binding, at.epoch, at.seq + 1, last, 1, b"")
    entry.gap = session_pb2.Gap(
        epoch=at.epoch,
        first=at.seq + 1,
        last=last,
        stage=session_pb2.STAGE_JOB,
        count=count,
        cause=session_pb2.CAUSE_OVERFLOW,
        remedy=session_pb2.REMEDY_RESCAN,
        attempts=1,
    )
    return entry
