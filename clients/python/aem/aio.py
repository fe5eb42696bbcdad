"""The asyncio face: the words of the sync face, awaited.

Handlers may be functions or coroutine functions. Those of one job run one after the other (of one key, where
the module has keys); coroutines of different jobs overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Literal, Self, cast, overload

from aem import _unary
from aem._aio_calls import AsyncCalls
from aem._aio_link import AsyncLink
from aem._base import ANSWER_SECONDS, CLOSE_SECONDS, CONNECT_SECONDS, LOOK_SECONDS, BaseClient, Handler
from aem._binding import SUCCESS, Entry, Outcome
from aem._commands import payload_chunks
from aem._dispatch import Dispatcher
from aem._handling import failed, spend_room
from aem._protocol import Session
from aem._registration import Registration
from aem.errors import AemError, Code, ConnectionLost
from aem.events import Event, ProcessEvent, SocketEvent, TimerEvent, UserEvent
from aem.history import StartFrom
from aem.job import AsyncJob
from aem.stream import AsyncEventStream, Inbox

__all__ = ["AsyncClient"]

TURN_EVENTS = 64  # so many handlers run before the event loop has a turn


class AsyncClient(BaseClient, AsyncCalls):
    """A connection to the daemon, its jobs and their handlers, for asyncio.

        async with aem.AsyncClient() as client:

            @client.on("timer", every="1s")
            async def tick(event):
                await save(event.lateness_ns)

            await client.run_forever()

    Belongs to the event loop that first used it. See Client for the arguments.
    """

    def __init__(self, address: str | None = None, *, label: str = "", reconnect: bool = True) -> None:
        self._lock = contextlib.nullcontext()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: AsyncLink | None = None
        self._connecting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        BaseClient.__init__(self, address, label=label, reconnect=reconnect)
        AsyncCalls.__init__(self, self.address)

    # -- registering

    @overload
    async def register(
        self, module: Literal["timer"], handler: Callable[[TimerEvent], object], **more: Any
    ) -> AsyncJob: ...
    @overload
    async def register(
        self, module: Literal["socket"], handler: Callable[[SocketEvent], object], **more: Any
    ) -> AsyncJob: ...
    @overload
    async def register(
        self, module: Literal["process"], handler: Callable[[ProcessEvent], object], **more: Any
    ) -> AsyncJob: ...
    @overload
    async def register(
        self, module: Literal["user"], handler: Callable[[UserEvent], object], **more: Any
    ) -> AsyncJob: ...
    @overload
    async def register(self, module: str, handler: Callable[[Any], object], **more: Any) -> AsyncJob: ...

    async def register(self, module: str, handler: Callable[[Any], object], **more: Any) -> AsyncJob:
        """Register a job now and return it. Takes the keywords of on(); raises AemError when refused."""
        return await self._connect_with(self._registration(module, handler, **more))

    @overload
    def events(self, module: Literal["timer"], **more: Any) -> AsyncEventStream[TimerEvent]: ...
    @overload
    def events(self, module: Literal["socket"], **more: Any) -> AsyncEventStream[SocketEvent]: ...
    @overload
    def events(self, module: Literal["process"], **more: Any) -> AsyncEventStream[ProcessEvent]: ...
    @overload
    def events(self, module: Literal["user"], **more: Any) -> AsyncEventStream[UserEvent]: ...
    @overload
    def events(self, module: str, **more: Any) -> AsyncEventStream[Event]: ...

    def events(self, module: str, **more: Any) -> AsyncEventStream[Any]:
        """A job's events, for `async for`; needs no run(). See Client.events().

        async for event in client.events("timer", every="200ms"):
            print(event)
        """
        return AsyncEventStream(self, lambda inbox: self._registration(module, None, sink=inbox, **more))

    async def _open_stream(self, inbox: Inbox, make: Callable[[Inbox], Registration]) -> AsyncJob:
        await self.connect()
        inbox.open(self._protocol)
        return await self._enlist(make(inbox))

    @overload
    def durable(self, name: str, module: str, handler: Handler, /, **more: Any) -> Awaitable[AsyncJob]: ...
    @overload
    def durable(self, name: str, module: str, /, **more: Any) -> Callable[[Handler], Handler]: ...

    def durable(self, name: str, module: str, handler: Handler | None = None, /, **more: Any) -> Any:
        """Hold a durable job; decorates its handler, or, awaited, registers `handler` now and returns the
        AsyncJob. See Client.durable().

            @client.durable("deploys", "user", channel="deploy")
            async def deploy(event):
                ...

            job = await client.durable("deploys", "user", audit, channel="deploy", follow=True)
        """
        if handler is None:
            return self._decorator(name, module, **more)
        return self._connect_with(self._durable(name, module, handler, **more))

    async def bind(self, job: int | str, handler: Handler, /, **more: Any) -> AsyncJob:
        """Hold a durable job that is there, by its name or id. Keywords as in durable(); of `options` only
        the credit counts, and `params` are the job's own.

            job = await client.bind("deploys", audit, follow=True, start_from="1:17")
        """
        return await self._connect_with(self._bound_to(job, handler, **more))

    def follow(
        self, job: int | str, /, *, start_from: StartFrom = None, **more: Any
    ) -> AsyncEventStream[Any]:
        """The events of a durable job that is there, for `async for`; needs no run(). See Client.follow().

        async for event in client.follow("deploys", start_from="oldest"):
            print(event.cursor, event)
        """
        more |= {"follow": True, "start_from": start_from}
        return AsyncEventStream(self, lambda inbox: self._bound_to(job, None, sink=inbox, **more))

    async def _connect_with(self, registration: Registration) -> AsyncJob:
        await self.connect(registration)
        return await self._enlist(registration)

    def _make_job(self, registration: Registration) -> None:
        registration.job = AsyncJob(registration, self)
        registration.parallel = True  # any handler may turn out to be a coroutine

    def _decorated(self, registration: Registration) -> None:
        async def enlist() -> None:
            try:
                await self._enlist(registration)
            except Exception as error:
                failed(registration, error)

        self._spawn(enlist())

    async def _enlist(self, registration: Registration) -> AsyncJob:
        self._adopt(registration)
        await self._look_up(registration)
        await self._ask(self._protocol.register(registration))
        return cast(AsyncJob, registration.job)

    async def _look_up(self, registration: Registration) -> None:
        """Have the durable job that it holds, made if it asks for that."""
        hold = registration.hold
        if hold is None:
            return
        if hold.request is None:
            registration.learn(await self.get_job(hold.name))
        else:
            registration.learn(await self._call(_unary.CREATE_JOB, hold.request))

    @property
    def jobs(self) -> list[AsyncJob]:
        """The jobs of this client that are not gone."""
        found = self._session.registrations if self._session is not None else []
        return [cast(AsyncJob, registration.job) for registration in found]

    # -- connecting

    async def connect(self, *first: Registration) -> None:
        """Connect and register what was decorated; done by whatever needs it. Raises ConnectionLost."""
        async with self._connecting:
            if self._session is not None:
                if self._session.failure is not None:
                    raise self._session.failure
                return
            self._before_channel(*first)
            self._loop = asyncio.get_running_loop()
            link = AsyncLink(self.address, reconnect=self.reconnect)
            link.session = Session(
                label=self.label,
                lock=self._lock,
                future=self._loop.create_future,
                output=link.output,
                changed=self._notify,
            )
            link.start()
            done, _ = await asyncio.wait([link.opened], timeout=CONNECT_SECONDS)
            if not done:
                link.opened.cancel()
                await link.end(0.1)
                message = f"{self.address} did not answer in {CONNECT_SECONDS:g} s"
                raise ConnectionLost(Code.UNAVAILABLE, "NO_ANSWER", message)
            await link.opened
            self._link, self._session = link, link.session
            collected, self._collected = self._collected, []
        for registration in collected:
            self._adopt(registration)
            await self._look_up(registration)
        await asyncio.gather(
            *(self._ask(self._protocol.register(registration)) for registration in collected)
        )

    async def _ask(self, waiter: Awaitable[Any], timeout: float | None = None) -> Any:
        try:
            return await asyncio.wait_for(waiter, ANSWER_SECONDS if timeout is None else timeout)
        except TimeoutError:
            message = "the daemon did not answer in time"
            raise AemError(Code.DEADLINE_EXCEEDED, "NO_ANSWER", message) from None

    # -- running

    async def run(self, until: Callable[[], bool] | float | None = None) -> None:
        """Run handlers until stop() is called, `until()` is true, or `until` seconds are over.

        `until()` is asked when something has changed here, and ten times a second. Jobs stay registered.
        Raises ConnectionLost when the connection is lost for good.
        """
        self._stopping = False
        await self.connect()
        deadline = time.monotonic() + until if isinstance(until, int | float) else None
        condition = until if callable(until) else None
        handled = 0
        while not self._stopping:
            if condition is not None and condition():
                break
            self._go_on()
            entry = self._take()
            if entry is not None:
                self._handle(entry)
                handled += 1
                if handled % TURN_EVENTS == 0:
                    await asyncio.sleep(0)
                if deadline is not None and time.monotonic() >= deadline:
                    break
            elif not await self._rest(deadline, condition is not None):
                break
        self._flush()

    async def _rest(self, deadline: float | None, look: bool) -> bool:
        """Nothing to handle: wait. False if the time is over."""
        if self._flush():
            return True  # what run() waits for may depend on it
        if self._protocol.failure is not None:
            raise self._protocol.failure
        remaining = None if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(LOOK_SECONDS if look else remaining):
                await self._wake.wait()
        except TimeoutError:
            return look
        self._wake.clear()
        return True

    async def run_forever(self) -> None:
        """Run handlers until SIGINT, SIGTERM or stop(); then shut the jobs down and return.

        Handlers that run when the signal comes are let finish; a second signal cancels the task.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        previous: dict[signal.Signals, Any] = {}

        def signalled() -> None:
            if self._stopping and task is not None:
                task.cancel()
            self.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                handler = signal.getsignal(number)
                loop.add_signal_handler(number, signalled)
                previous[number] = handler
        try:
            await self.run()
        finally:
            await self._leave()
            for number, handler in previous.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _notify(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """Make run() return. From handlers and signal handlers; from another thread by the loop's
        call_soon_threadsafe().
        """
        self._stopping = True
        self._wake.set()

    def _handle(self, entry: Entry) -> None:
        outcome, awaitable = self._call_handler(entry)
        if outcome is not None:
            self._finish(entry, outcome)
        elif awaitable is not None:
            self._spawn(self._await(entry, awaitable))

    async def _await(self, entry: Entry, awaitable: Awaitable[Any]) -> None:
        try:
            result = await awaitable
            outcome = SUCCESS if entry.gap is not None else self._outcome(entry, result)
        except Exception as error:
            outcome = failed(entry.binding.registration, error)
        self._finish(entry, outcome)
        self._notify()  # acknowledges when nothing else waits, and asks until() again

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _elsewhere(self, entry: Entry, outcome: Outcome) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._handled_elsewhere, entry, outcome)

    def _handled_elsewhere(self, entry: Entry, outcome: Outcome) -> None:
        spend_room(entry.binding.registration, entry.parse().key, outcome)
        if self._session is not None:
            self._finish(entry, outcome)
            self._notify()

    # -- the end

    async def close(self) -> None:
        """Shut the jobs down and disconnect. The client can be used again; its jobs are gone."""
        await self._leave()
        await self._hang_up()

    async def _leave(self) -> None:
        """End the session: what runs is let finish, then we say goodbye, and the jobs end."""
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
            for task in pending:
                task.cancel()
        if self._workers is not None:
            workers, self._workers = self._workers, None
            await asyncio.to_thread(workers.settle, CLOSE_SECONDS)
            await asyncio.sleep(0)  # what they answered is on its way through the loop
            await asyncio.to_thread(workers.close)
        if self._link is not None:
            self._flush()
            link, self._link = self._link, None
            await link.end(CLOSE_SECONDS)
            self._session = None
        self._dispatcher = Dispatcher(self._notify)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # -- user events

    async def raise_event(
        self, channel: str, *payloads: str | bytes, uid: int | None = None, wait: bool = True
    ) -> None:
        """Raise a user event for each payload on a channel of one's own; `uid` names another owner.

        Returns when the daemon has fired them. With `wait=False` returns at once, for a stream of events:
        then a refusal is logged, and with a lost connection how many may be lost.
        """
        await self.connect()
        ask = self._protocol.raise_events if wait else self._protocol.raise_unwatched
        for waiter in [ask(channel, chunk, uid) for chunk in payload_chunks(payloads or (b"",))]:
            if waiter is not None:
                await self._ask(waiter)
