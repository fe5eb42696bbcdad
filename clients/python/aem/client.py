"""The sync face: handlers run on the thread that calls run() or run_forever().

The client connects when it has to: at the first register(), events(), raise_event() or run(). Handlers that
were decorated before are registered then; later ones at once. If no thread is in run(), events wait, bounded
by their jobs' credit.
"""

from __future__ import annotations

import inspect
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Literal, Self, cast, overload

from aem import _unary
from aem._base import ANSWER_SECONDS, CLOSE_SECONDS, CONNECT_SECONDS, LOOK_SECONDS, BaseClient, Handler
from aem._binding import SUCCESS, Entry, Outcome
from aem._calls import Calls
from aem._commands import payload_chunks
from aem._dispatch import Dispatcher
from aem._handling import event_of, failed, spend_room
from aem._link import Link
from aem._protocol import Session
from aem._registration import Registration
from aem.errors import AemError, Code, ConnectionLost
from aem.events import Event, ProcessEvent, SocketEvent, TimerEvent, UserEvent
from aem.history import StartFrom
from aem.job import Job
from aem.stream import EventStream

__all__ = ["Client"]


PLAIN_EVENTS = 64  # handled before anything else is looked at


class Client(BaseClient, Calls):
    """A connection to the daemon, its jobs and their handlers.

    `address`: unix:PATH; if None, AEMD_ADDRESS, else the user's socket if it exists, else the system's.
    `label`: what the session is called in lists. `reconnect`: come back after a lost connection.

        client = aem.Client()

        @client.on("timer", every="1s")
        def tick(event):
            print(event.expirations, event.lateness_ns)

        client.run_forever()
    """

    def __init__(self, address: str | None = None, *, label: str = "", reconnect: bool = True) -> None:
        self._lock = threading.RLock()
        self._connecting = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._woken = False
        self._link: Link | None = None
        BaseClient.__init__(self, address, label=label, reconnect=reconnect)
        Calls.__init__(self, self.address)

    # -- registering

    @overload
    def register(
        self, module: Literal["timer"], handler: Callable[[TimerEvent], object], **more: Any
    ) -> Job: ...
    @overload
    def register(
        self, module: Literal["socket"], handler: Callable[[SocketEvent], object], **more: Any
    ) -> Job: ...
    @overload
    def register(
        self, module: Literal["process"], handler: Callable[[ProcessEvent], object], **more: Any
    ) -> Job: ...
    @overload
    def register(
        self, module: Literal["user"], handler: Callable[[UserEvent], object], **more: Any
    ) -> Job: ...
    @overload
    def register(self, module: str, handler: Callable[[Any], object], **more: Any) -> Job: ...

    def register(self, module: str, handler: Callable[[Any], object], **more: Any) -> Job:
        """Register a job now and return it. Takes the keywords of on(); raises AemError when refused.

        job = client.register("timer", tick, every="1s", options=aem.Options(priority=6))
        """
        registration = self._registration(module, handler, **more)
        self.connect(registration)
        return self._enlist(registration)

    @overload
    def events(self, module: Literal["timer"], **more: Any) -> EventStream[TimerEvent]: ...
    @overload
    def events(self, module: Literal["socket"], **more: Any) -> EventStream[SocketEvent]: ...
    @overload
    def events(self, module: Literal["process"], **more: Any) -> EventStream[ProcessEvent]: ...
    @overload
    def events(self, module: Literal["user"], **more: Any) -> EventStream[UserEvent]: ...
    @overload
    def events(self, module: str, **more: Any) -> EventStream[Event]: ...

    def events(self, module: str, **more: Any) -> EventStream[Any]:
        """Register a job and iterate over its events; needs no run().

        Takes the keywords of on() but those of handlers. An event is acknowledged when the next one is asked
        for. Yields Gap objects, too. The iteration ends with the job, and the job with the iteration.

            for event in client.events("timer", every="200ms"):
                print(event)
        """
        self.connect()
        stream: EventStream[Any] = EventStream(self)
        stream._inbox.open(self._protocol)
        stream.job = self._enlist(self._registration(module, None, sink=stream._inbox, **more))
        return stream

    @overload
    def durable(self, name: str, module: str, handler: Handler, /, **more: Any) -> Job: ...
    @overload
    def durable(self, name: str, module: str, /, **more: Any) -> Callable[[Handler], Handler]: ...

    def durable(self, name: str, module: str, handler: Handler | None = None, /, **more: Any) -> Any:
        """Hold a durable job: it keeps a history of its events, and outlives this program, the daemon and the
        machine. Decorates its handler, or registers `handler` now and returns the Job.

        The job is made if there is none of that `name` (`keep`: how much of its history is kept; `options`,
        `start`, `label`: see on()); made again with the same definition it is the one that is there. Then
        this program answers for it, from where the last one left off. With `follow` it only reads, beside any
        number of others; a follower keeps its own place, and begins with what happens next.

        `start_from`: "oldest", "now", a Cursor or its text, or a datetime: begin there instead. Raises
        OutOfRange for a position that the history does not have. `params`, `run`, `pool`, `on_gap` and
        `on_room` are as in on(); other keywords are the module's parameters.

            @client.durable("deploys", "user", channel="deploy", keep=aem.Keep(entries=1_000))
            def deploy(event):
                ...

            client.durable("deploys", "user", audit, channel="deploy", follow=True, start_from="oldest")
        """
        if handler is None:
            return self._decorator(name, module, **more)
        registration = self._durable(name, module, handler, **more)
        self.connect(registration)
        return self._enlist(registration)

    def bind(self, job: int | str, handler: Handler, /, **more: Any) -> Job:
        """Hold a durable job that is there, by its name or id. Keywords as in durable(); of `options` only
        the credit counts, and `params` are the job's own.

            job = client.bind("deploys", audit, follow=True, start_from="1:17")
        """
        registration = self._bound_to(job, handler, **more)
        self.connect(registration)
        return self._enlist(registration)

    def follow(self, job: int | str, /, *, start_from: StartFrom = None, **more: Any) -> EventStream[Any]:
        """Iterate over the events of a durable job that is there, beside whoever answers for it; needs no
        run(). Begins with what happens next, or `start_from` as in durable(). Leaving the loop lets go of the
        job.

            for event in client.follow("deploys", start_from="oldest"):
                print(event.cursor, event)
        """
        self.connect()
        stream: EventStream[Any] = EventStream(self)
        stream._inbox.open(self._protocol)
        more |= {"follow": True, "start_from": start_from, "sink": stream._inbox}
        stream.job = self._enlist(self._bound_to(job, None, **more))
        return stream

    def _make_job(self, registration: Registration) -> None:
        registration.job = Job(registration, self)

    def _decorated(self, registration: Registration) -> None:
        self._enlist(registration)

    def _enlist(self, registration: Registration) -> Job:
        self._adopt(registration)
        self._look_up(registration)
        self._ask(self._protocol.register(registration))
        return cast(Job, registration.job)

    def _look_up(self, registration: Registration) -> None:
        """Have the durable job that it holds, made if it asks for that."""
        hold = registration.hold
        if hold is None:
            return
        if hold.request is None:
            registration.learn(self.get_job(hold.name))
        else:
            registration.learn(self._call(_unary.CREATE_JOB, hold.request))

    @property
    def jobs(self) -> list[Job]:
        """The jobs of this client that are not gone."""
        session = self._session
        return [cast(Job, found.job) for found in list(session.registrations)] if session is not None else []

    # -- connecting

    def connect(self, *first: Registration) -> None:
        """Connect and register what was decorated; done by whatever needs it. Raises ConnectionLost."""
        with self._connecting:
            if self._session is not None:
                if self._session.failure is not None:
                    raise self._session.failure
                return
            self._before_channel(*first)
            link = Link(self.address, reconnect=self.reconnect)
            link.session = Session(
                label=self.label, lock=self._lock, future=Future, output=link.output, changed=self._notify
            )
            link.start()
            try:
                link.opened.result(CONNECT_SECONDS)
            except TimeoutError:
                link.end(0.1)
                message = f"{self.address} did not answer in {CONNECT_SECONDS:g} s"
                raise ConnectionLost(Code.UNAVAILABLE, "NO_ANSWER", message) from None
            self._link, self._session = link, link.session
            collected, self._collected = self._collected, []
        for registration in collected:
            self._adopt(registration)
            self._look_up(registration)
        for waiter in [self._protocol.register(registration) for registration in collected]:
            self._ask(waiter)

    def _ask(self, waiter: Future[Any], timeout: float | None = None) -> Any:
        try:
            return waiter.result(ANSWER_SECONDS if timeout is None else timeout)
        except TimeoutError:
            message = "the daemon did not answer in time"
            raise AemError(Code.DEADLINE_EXCEEDED, "NO_ANSWER", message) from None

    # -- running

    def run(self, until: Callable[[], bool] | float | None = None) -> None:
        """Run handlers until stop() is called, `until()` is true, or `until` seconds are over.

        `until()` is asked when something has changed here, and ten times a second. Jobs stay registered.
        Raises ConnectionLost when the connection is lost for good.
        """
        self._stopping = False
        self.connect()
        deadline = time.monotonic() + until if isinstance(until, int | float) else None
        condition = until if callable(until) else None
        while not self._stopping:
            if condition is not None and condition():
                break
            self._go_on()
            if until is None and self._handle_plain():
                continue
            entry = self._take()
            if entry is not None:
                self._handle(entry)
                if deadline is not None and time.monotonic() >= deadline:
                    break
            elif not self._rest(deadline, condition is not None):
                break
        self._flush()

    def _rest(self, deadline: float | None, look: bool) -> bool:
        """Nothing to handle: wait. False if the time is over."""
        if self._flush():
            return True  # what run() waits for may depend on it
        if self._protocol.failure is not None:
            raise self._protocol.failure
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            return False
        try:
            self._wake.get(timeout=LOOK_SECONDS if look else remaining)
        except Empty:
            return look
        self._woken = False
        return True

    def run_forever(self) -> None:
        """Run handlers until SIGINT, SIGTERM or stop(); then shut the jobs down and return.

        The handler that runs when the signal comes is let finish; a second signal interrupts it.
        """
        previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, self._signalled)
        try:
            self.run()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._leave()

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        self._wake.put(None)  # may interrupt anything, so no lock is taken

    def _notify(self) -> None:
        if not self._woken:
            self._woken = True
            self._wake.put(None)

    def stop(self) -> None:
        """Make run() return, after the handler that runs now. From any thread, handler or signal handler."""
        self._stopping = True
        self._wake.put(None)

    def _handle_plain(self) -> bool:
        """Handle the events that wait first, if they are the plain case: one handler, run here, acknowledged
        together. Does what _handle() would do for each, with the lock taken once. False if they are not.
        """
        with self._lock:
            entries = self._dispatcher.take_plain(PLAIN_EVENTS)
        if not entries:
            return False
        registration = entries[0].binding.registration
        handler = registration.handler
        assert handler is not None
        rest = iter(entries)
        try:
            for entry in rest:
                try:
                    result = handler(event_of(entry))
                    outcome = SUCCESS if result is None else self._outcome(entry, _plain(result))
                except Exception as error:
                    outcome = failed(registration, error)
                if outcome is SUCCESS:  # what _finish() would find out
                    self._done.append(entry)
                    self._paced_flush()
                else:
                    self._finish(entry, outcome)
                if self._stopping or registration.given_up:
                    break
        finally:
            left = list(rest)
            if left:
                with self._lock:
                    self._dispatcher.put_back(left)
        return True

    def _handle(self, entry: Entry) -> None:
        outcome, awaitable = self._call_handler(entry)
        if awaitable is not None:
            try:
                _plain(awaitable)
            except TypeError as error:
                outcome = failed(entry.binding.registration, error)
        if outcome is not None:
            self._finish(entry, outcome)

    def _elsewhere(self, entry: Entry, outcome: Outcome) -> None:
        spend_room(entry.binding.registration, entry.parse().key, outcome)
        with self._lock:
            if self._session is not None:
                self._session.finish(entry, outcome)
                self._dispatcher.done(entry)
                self._session.flush()
            self._notify()

    # -- the end

    def close(self) -> None:
        """Shut the jobs down and disconnect. The client can be used again; its jobs are gone."""
        self._leave()
        self._hang_up()

    def _leave(self) -> None:
        """End the session: what runs elsewhere is let finish, then we say goodbye, and the jobs end."""
        link = self._link
        if link is not None:
            if self._workers is not None:
                self._workers.settle(CLOSE_SECONDS)
            self._flush()
            link.end(CLOSE_SECONDS)
            self._link = self._session = None
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        self._dispatcher = Dispatcher(self._notify)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- user events

    def raise_event(
        self, channel: str, *payloads: str | bytes, uid: int | None = None, wait: bool = True
    ) -> None:
        """Raise a user event for each payload on a channel of one's own; `uid` names another owner.

        Returns when the daemon has fired them. With `wait=False` returns at once, for a stream of events:
        then a refusal is logged, and with a lost connection how many may be lost.

        client.raise_event("deploy", '{"version": 7}')
        """
        self.connect()
        ask = self._protocol.raise_events if wait else self._protocol.raise_unwatched
        for waiter in [ask(channel, chunk, uid) for chunk in payload_chunks(payloads or (b"",))]:
            if waiter is not None:
                self._ask(waiter)


def _plain(result: Any) -> Any:
    """What a handler returned, if there is nothing to be awaited."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError("a handler of Client is a plain function; AsyncClient takes coroutines")
    return result
