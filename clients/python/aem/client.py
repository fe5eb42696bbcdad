"""The sync face: handlers run on the thread that calls run() or run_forever().

The client connects when it has to: at the first register(), events(), raise_event() or run(). Handlers that
were decorated before are registered then; later ones at once. If no thread is in run(), events wait, bounded
by their jobs' credit.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, cast, overload

import grpc

from aem import _channel, _unary
from aem._binding import SUCCESS, Binding, Entry, Outcome
from aem._dispatch import Dispatcher
from aem._handling import event_of, failed, gap_unheard, note_room, outcome_of, spend_room
from aem._link import Link
from aem._protocol import Session, payload_chunks
from aem._registration import Registration
from aem._workers import TOO_LATE, Workers
from aem.errors import AemError, Code, ConnectionLost, from_rpc
from aem.events import Event, Gap, ProcessEvent, SocketEvent, TimerEvent, UserEvent
from aem.job import Job
from aem.options import Options, Param, values_of
from aem.v1 import admin_pb2, job_pb2, module_pb2

__all__ = ["Client", "EventStream"]

ANSWER_SECONDS = 30.0  # how long a request may take if the caller says nothing
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 5.0
FLUSH_EVENTS = 256  # acknowledgements go out after so many events,
FLUSH_NS = 20_000_000  # or this long after the last, or when nothing waits

E = TypeVar("E", bound=Event)
R = TypeVar("R")
Run = Literal["inline", "fork", "capsule"]


class Client:
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
        self.address = _channel.find_address(address)
        self.label = label
        self.reconnect = reconnect
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._woken = False
        self._stopping = False
        self._collected: list[Registration] = []
        self._dispatcher = Dispatcher(self._notify)
        self._link: Link | None = None
        self._workers: Workers | None = None
        self._unary: grpc.Channel | None = None
        self._unflushed = 0
        self._flushed_ns = 0

    # -- registering

    @overload
    def on(
        self,
        module: Literal["timer"],
        *,
        run: Run = ...,
        pool: int = ...,
        options: Options | None = ...,
        start: bool = ...,
        label: str | None = ...,
        on_gap: Callable[[Gap], object] | None = ...,
        params: Mapping[str, Param] | None = ...,
        **more: Param,
    ) -> Callable[[Callable[[TimerEvent], R]], Callable[[TimerEvent], R]]: ...
    @overload
    def on(
        self,
        module: Literal["socket"],
        *,
        run: Run = ...,
        pool: int = ...,
        options: Options | None = ...,
        start: bool = ...,
        label: str | None = ...,
        on_gap: Callable[[Gap], object] | None = ...,
        params: Mapping[str, Param] | None = ...,
        **more: Param,
    ) -> Callable[[Callable[[SocketEvent], R]], Callable[[SocketEvent], R]]: ...
    @overload
    def on(
        self,
        module: Literal["process"],
        *,
        run: Run = ...,
        pool: int = ...,
        options: Options | None = ...,
        start: bool = ...,
        label: str | None = ...,
        on_gap: Callable[[Gap], object] | None = ...,
        params: Mapping[str, Param] | None = ...,
        **more: Param,
    ) -> Callable[[Callable[[ProcessEvent], R]], Callable[[ProcessEvent], R]]: ...
    @overload
    def on(
        self,
        module: Literal["user"],
        *,
        run: Run = ...,
        pool: int = ...,
        options: Options | None = ...,
        start: bool = ...,
        label: str | None = ...,
        on_gap: Callable[[Gap], object] | None = ...,
        params: Mapping[str, Param] | None = ...,
        **more: Param,
    ) -> Callable[[Callable[[UserEvent], R]], Callable[[UserEvent], R]]: ...
    @overload
    def on(
        self,
        module: str,
        *,
        run: Run = ...,
        pool: int = ...,
        options: Options | None = ...,
        start: bool = ...,
        label: str | None = ...,
        on_gap: Callable[[Gap], object] | None = ...,
        params: Mapping[str, Param] | None = ...,
        **more: Param,
    ) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]: ...

    def on(self, module: str, *, label: str | None = None, **more: Any) -> Callable[[Any], Any]:
        """Decorate a function to be the handler of a job; it stays what it was.

        Keywords are the module's parameters (`params` takes those whose names are taken), and:
        `run`: "inline", "fork" (a process for each event) or "capsule" (a pool of `pool` processes made
        beforehand). `options`: see Options. `start`: arm it at once. `label`: its name in lists, by default
        the function's. `on_gap`: called with a Gap where events were lost; otherwise that is logged.
        """

        def decorate(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
            name = getattr(handler, "__name__", "") if label is None else label
            registration = self._registration(module, handler, label=name, **more)
            if self._link is None:
                self._collected.append(registration)
            else:
                self._enlist(registration)
            return handler

        return decorate

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

    def register(
        self, module: str, handler: Callable[[Any], object], *, label: str | None = None, **more: Any
    ) -> Job:
        """Register a job now and return it. Takes the keywords of on(); raises AemError when refused."""
        name = getattr(handler, "__name__", "") if label is None else label
        registration = self._registration(module, handler, label=name, **more)
        if self._link is None:
            self._prepare([registration, *self._collected])
        self.connect()
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

    def events(
        self,
        module: str,
        *,
        options: Options | None = None,
        start: bool = True,
        label: str | None = None,
        params: Mapping[str, Param] | None = None,
        **more: Param,
    ) -> EventStream[Any]:
        """Register a job and iterate over its events; needs no run().

        An event is acknowledged when the next one is asked for. Yields Gap objects, too. The iteration ends
        with the job; close() or the end of the with block end the job.

            for event in client.events("timer", every="200ms"):
                print(event)
        """
        self.connect()
        stream: EventStream[Any] = EventStream(self)
        registration = Registration(
            module,
            values_of({**(params or {}), **more}),
            options=options or Options(),
            label=label or "",
            armed=start,
            sink=stream,
        )
        stream.job = self._enlist(registration)
        return stream

    def _registration(
        self,
        module: str,
        handler: Callable[..., Any],
        *,
        label: str,
        run: Run = "inline",
        pool: int = 0,
        options: Options | None = None,
        start: bool = True,
        on_gap: Callable[[Gap], object] | None = None,
        params: Mapping[str, Param] | None = None,
        **more: Param,
    ) -> Registration:
        registration = Registration(
            module,
            values_of({**(params or {}), **more}),
            options=options or Options(),
            label=label,
            armed=start,
            sink=self._dispatcher,
            handler=handler,
            on_gap=on_gap,
            run=run,
            pool=pool,
        )
        registration.job = Job(registration, self)
        return registration

    def _enlist(self, registration: Registration) -> Job:
        job = Job(registration, self)
        registration.job = job
        self._adopt(registration)
        self._ask(self._protocol.register(registration))
        return job

    def _adopt(self, registration: Registration) -> None:
        if registration.run != "inline":
            if self._workers is None:
                raise RuntimeError(TOO_LATE)
            self._workers.adopt(registration)

    @property
    def jobs(self) -> list[Job]:
        """The jobs of this client that are not gone."""
        if self._link is None:
            return []
        return [cast(Job, registration.job) for registration in list(self._protocol.registrations)]

    # -- connecting

    def connect(self) -> None:
        """Connect and register what was decorated; done by whatever needs it. Raises ConnectionLost."""
        if self._link is not None:
            if self._protocol.failure is not None:
                raise self._protocol.failure
            return
        self._prepare(self._collected)
        _channel.note_channel()
        link = Link(self.address, reconnect=self.reconnect)
        link.session = Session(
            label=self.label, lock=self._lock, future=Future, output=link.output, ended=self._notify
        )
        link.start()
        try:
            link.opened.result(CONNECT_SECONDS)
        except TimeoutError:
            link.end(0.1)
            raise ConnectionLost(
                Code.UNAVAILABLE, "NO_ANSWER", f"{self.address} did not answer in {CONNECT_SECONDS:g} s"
            ) from None
        self._link = link
        collected, self._collected = self._collected, []
        for registration in collected:
            self._adopt(registration)
        waiters = [self._protocol.register(registration) for registration in collected]
        for waiter in waiters:
            self._ask(waiter)

    def _prepare(self, registrations: list[Registration]) -> None:
        """Make the process that handler processes come from, while there is no channel yet."""
        parallel = [registration for registration in registrations if registration.run != "inline"]
        if parallel and self._workers is None:
            self._workers = Workers(parallel)

    def prepare_fork(self) -> None:
        """Make the process that handler processes are forked from now, before anything connects.

        Needed only if handlers with run="fork" or run="capsule" are registered after the client has
        connected; those must then be importable functions of modules, as for pickle.
        """
        if self._workers is None:
            self._workers = Workers([found for found in self._collected if found.run != "inline"])

    @property
    def _protocol(self) -> Session:
        if self._link is None:
            raise ConnectionLost(Code.UNAVAILABLE, "NOT_CONNECTED", "the client is not connected")
        return self._link.session

    def _ask(self, waiter: Future[Any], timeout: float | None = None) -> Any:
        try:
            return waiter.result(ANSWER_SECONDS if timeout is None else timeout)
        except TimeoutError:
            raise AemError(Code.DEADLINE_EXCEEDED, "NO_ANSWER", "the daemon did not answer in time") from None

    # -- running

    def run(self, until: Callable[[], bool] | float | None = None) -> None:
        """Run handlers until stop() is called, `until()` is true, or `until` seconds are over.

        Jobs stay registered. Raises ConnectionLost when the connection is lost for good.
        """
        self.connect()
        self._stopping = False
        deadline = time.monotonic() + until if isinstance(until, int | float) else None
        condition = until if callable(until) else None
        while not self._stopping:
            if condition is not None and condition():
                break
            entry = self._take()
            if entry is not None:
                self._handle(entry)
                if deadline is not None and time.monotonic() >= deadline:
                    break
            elif not self._rest(deadline):
                break
        self._flush()

    def _rest(self, deadline: float | None) -> bool:
        """Nothing to handle: wait. False if the time is over."""
        self._flush()
        if self._protocol.failure is not None:
            raise self._protocol.failure
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            return False
        try:
            self._wake.get(timeout=remaining)
        except Empty:
            return False
        self._woken = False
        return True

    def run_forever(self) -> None:
        """Run handlers until SIGINT, SIGTERM or stop(); then shut the jobs down and return.

        The handler that runs when the signal comes is let finish; a second signal interrupts it.
        """
        previous: dict[int, Any] = {}
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
        self.stop()

    def stop(self) -> None:
        """Make run() return, after the handler that runs now. From any thread, handler or signal handler."""
        self._stopping = True
        self._wake.put(None)

    def _notify(self) -> None:
        if not self._woken:
            self._woken = True
            self._wake.put(None)

    def _take(self) -> Entry | None:
        with self._lock:
            while (entry := self._dispatcher.take()) is not None:
                if entry.binding.registration.given_up:
                    self._protocol.discard(entry)
                    self._dispatcher.done(entry)
                    continue
                self._protocol.begin(entry)
                return entry
            return None

    def _handle(self, entry: Entry) -> None:
        registration = entry.binding.registration
        outcome = SUCCESS
        try:
            event = event_of(entry)
            note_room(registration, event)
            if isinstance(event, Gap):
                (registration.on_gap or gap_unheard)(event)
            elif registration.run != "inline":
                assert self._workers is not None
                self._workers.submit(entry, self._handled_elsewhere)
                return
            else:
                assert registration.handler is not None
                outcome = outcome_of(registration.handler(event))
                spend_room(registration, event.key, outcome)
        except Exception as error:
            outcome = failed(registration, error)
        self._finish(entry, outcome)

    def _handled_elsewhere(self, entry: Entry, outcome: Outcome) -> None:
        """A handler process is done; called in the workers' thread."""
        spend_room(entry.binding.registration, entry.parse().key, outcome)
        with self._lock:
            self._protocol.finish(entry, outcome)
            self._dispatcher.done(entry)
            self._protocol.flush()
            self._notify()

    def _finish(self, entry: Entry, outcome: Outcome) -> None:
        with self._lock:
            self._protocol.finish(entry, outcome)
            self._dispatcher.done(entry)
        self._unflushed += 1
        if self._unflushed >= FLUSH_EVENTS or time.monotonic_ns() - self._flushed_ns >= FLUSH_NS:
            self._flush()

    def _flush(self) -> None:
        if self._link is not None:
            self._protocol.flush()
        self._unflushed = 0
        self._flushed_ns = time.monotonic_ns()

    # -- the end

    def close(self) -> None:
        """Shut the jobs down and disconnect. The client can be used again; its jobs are gone."""
        self._leave()
        if self._unary is not None:
            self._unary.close()
            self._unary = None

    def _leave(self) -> None:
        """End the session: what runs elsewhere is let finish, then we say goodbye, and the jobs end."""
        if self._link is not None:
            if self._workers is not None:
                self._workers.settle(CLOSE_SECONDS)
            self._flush()
            link, self._link = self._link, None
            link.end(CLOSE_SECONDS)
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

    def raise_event(self, channel: str, *payloads: str | bytes, uid: int | None = None) -> None:
        """Raise a user event for each payload on a channel of one's own; `uid` names another owner.

        client.raise_event("deploy", '{"version": 7}')
        """
        self.connect()
        waiters = [
            self._protocol.raise_events(channel, chunk, uid) for chunk in payload_chunks(payloads or (b"",))
        ]
        for waiter in waiters:
            self._ask(waiter)

    # -- unary calls

    def _call(self, method: _unary.Method[Any, _unary.Answer], request: Any) -> _unary.Answer:
        if self._unary is None:
            _channel.note_channel()
            self._unary = grpc.insecure_channel(self.address, options=_channel.OPTIONS)
        call = self._unary.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        try:
            return cast("_unary.Answer", call(request, timeout=ANSWER_SECONDS))
        except grpc.RpcError as error:
            raise _channel.explain(from_rpc(error), self.address) from None

    def status(self) -> admin_pb2.DaemonStatus:
        """How the daemon does."""
        return self._call(_unary.GET_STATUS, admin_pb2.GetStatusRequest())

    def list_jobs(self, module: str | None = None, state: str | int | None = None) -> Iterator[job_pb2.Job]:
        """All jobs that the caller may see, by id, of one module or in one state if given."""
        token = ""
        while True:
            page = self._call(_unary.LIST_JOBS, _unary.list_jobs_request(module, state, token))
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def get_job(self, job_id: int) -> job_pb2.Job:
        """One job, also of another session."""
        return self._call(_unary.GET_JOB, job_pb2.GetJobRequest(name=f"jobs/{job_id}"))

    def start_job(self, job_id: int) -> job_pb2.Job:
        """Arm a job."""
        return self._call(_unary.START_JOB, job_pb2.StartJobRequest(name=f"jobs/{job_id}"))

    def stop_job(self, job_id: int) -> job_pb2.Job:
        """Disarm a job."""
        return self._call(_unary.STOP_JOB, job_pb2.StopJobRequest(name=f"jobs/{job_id}"))

    def shutdown_job(self, job_id: int, deadline: float | None = None) -> job_pb2.Job:
        """End a job, after the handler that runs now, or after `deadline` seconds."""
        return self._call(_unary.SHUTDOWN_JOB, _unary.shutdown_request(job_id, deadline))

    def set_priority(self, job_id: int, priority: int) -> job_pb2.Job:
        """Change a job's priority, 0 to 7, 7 first."""
        return self._call(_unary.UPDATE_JOB, _unary.priority_request(job_id, priority))

    def list_modules(self) -> Iterator[module_pb2.Module]:
        """The loaded event modules, by name."""
        token = ""
        while True:
            request = module_pb2.ListModulesRequest(page_size=1_000, page_token=token)
            page = self._call(_unary.LIST_MODULES, request)
            yield from page.modules
            token = page.next_page_token
            if not token:
                return

    def get_module(self, name: str) -> module_pb2.Module:
        """One event module, with its parameters, events and operations."""
        return self._call(_unary.GET_MODULE, module_pb2.GetModuleRequest(name=f"modules/{name}"))

    def load_module(self, name: str) -> module_pb2.Module:
        """Load an event module, or load it anew. Administrator only."""
        return self._call(_unary.LOAD_MODULE, module_pb2.LoadModuleRequest(name=f"modules/{name}"))

    def unload_module(self, name: str) -> int:
        """Remove an event module; returns how many jobs ended with it. Administrator only."""
        return self._call(_unary.UNLOAD_MODULE, module_pb2.UnloadModuleRequest(name=f"modules/{name}")).jobs

    def list_sessions(self) -> Iterator[admin_pb2.SessionInfo]:
        """The caller's sessions; for the administrator everybody's."""
        token = ""
        while True:
            request = admin_pb2.ListSessionsRequest(page_size=1_000, page_token=token)
            page = self._call(_unary.LIST_SESSIONS, request)
            yield from page.sessions
            token = page.next_page_token
            if not token:
                return

    def end_session(self, session_id: int) -> int:
        """End a session; returns how many jobs ended with it."""
        return self._call(_unary.END_SESSION, admin_pb2.EndSessionRequest(name=f"sessions/{session_id}")).jobs


class EventStream(Generic[E]):
    """The events of one job, as an iterator; made by Client.events()."""

    job: Job

    def __init__(self, client: Client) -> None:
        self._client = client
        self._entries: deque[Entry] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._current: Entry | None = None
        self._closed = False
        self._woken = False

    def put(self, entries: list[Entry]) -> None:
        """Take entries, in order. For the session only."""
        self._entries.extend(entries)
        self.ended()

    def waiting(self, binding: Binding) -> list[Entry]:
        """The entries that wait or are being handled. For the session only."""
        current = [self._current] if self._current is not None else []
        return [entry for entry in [*current, *self._entries] if entry.binding is binding]

    def ended(self) -> None:
        """Something has changed. For the session only."""
        if not self._woken:
            self._woken = True
            self._wake.put(None)

    def __iter__(self) -> Iterator[E | Gap]:
        """Iterate; leaving the loop ends the job."""
        try:
            while True:
                try:
                    event = self.next()
                except StopIteration:
                    return
                yield event
        finally:
            self.close()

    def __next__(self) -> E | Gap:
        return self.next()

    def next(self, timeout: float | None = None) -> E | Gap:
        """The next event; raises TimeoutError after `timeout` seconds, StopIteration when the job is gone.

        The event before is acknowledged by asking.
        """
        self._settle()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._entries:
                return self._begin()
            if self._closed:
                raise StopIteration
            failure = self._client._protocol.failure
            if failure is not None:
                raise failure
            if self.job.state == "GONE":
                raise StopIteration
            self._client._flush()
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self._wake.get(timeout=remaining)
            except Empty:
                raise TimeoutError(f"no event of job {self.job.id} in {timeout:g} s") from None
            self._woken = False

    def _begin(self) -> E | Gap:
        with self._client._lock:
            entry = self._current = self._entries.popleft()
            self._client._protocol.begin(entry)
        event = event_of(entry)
        note_room(entry.binding.registration, event)
        return cast("E | Gap", event)

    def _settle(self) -> None:
        entry, self._current = self._current, None
        if entry is None:
            return
        client = self._client
        client._protocol.finish(entry, SUCCESS)
        client._unflushed += 1
        if client._unflushed >= FLUSH_EVENTS or time.monotonic_ns() - client._flushed_ns >= FLUSH_NS:
            client._flush()

    def reply(self, operation: str, data: bytes | str = b"") -> None:
        """Do `operation` with the connection of the event that was given last."""
        if self._current is None or self._current.gap is not None:
            raise ValueError("there is no event to reply to")
        self.job.operate(self._current.parse().key, operation, data)

    def close(self) -> None:
        """End the job. What waits is given up."""
        if self._closed:
            return
        self._closed = True
        if self._client._link is None:
            return
        with self._client._lock:
            left = [*([self._current] if self._current is not None else []), *self._entries]
            self._current = None
            self._entries.clear()
            for entry in left:
                self._client._protocol.discard(entry)
        if self.job.state == "GONE":
            return
        try:
            self.job.shutdown()
        except AemError:
            return  # it is gone, or will be with the session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
