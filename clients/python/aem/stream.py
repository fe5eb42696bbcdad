"""The events of one job as an iterator, for both faces."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast

from aem._binding import SUCCESS, Binding, Entry
from aem._handling import event_of, note_room
from aem._registration import Registration
from aem.errors import AemError
from aem.events import Event, Gap
from aem.job import AsyncJob, Job

if TYPE_CHECKING:
    from aem._base import BaseClient
    from aem._protocol import Session
    from aem.aio import AsyncClient
    from aem.client import Client

__all__ = ["AsyncEventStream", "EventStream"]

E = TypeVar("E", bound=Event)


class Inbox:
    """Where the entries of one job wait for its iterator; the one given last is acknowledged by asking on."""

    def __init__(self, client: BaseClient, wake: Callable[[], None]) -> None:
        self._client = client
        self._wake = wake
        self._entries: deque[Entry] = deque()
        self._current: Entry | None = None
        self._session: Session | None = None

    def put(self, entries: list[Entry]) -> None:
        """Take entries, in order."""
        self._entries.extend(entries)
        self._wake()

    def waiting(self, binding: Binding) -> list[Entry]:
        """The entries that wait or are being handled."""
        current = [self._current] if self._current is not None else []
        return [entry for entry in [*current, *self._entries] if entry.binding is binding]

    def drop(self, binding: Binding) -> list[Entry]:
        """Give up the entries that were not given out, and return them."""
        dropped = [entry for entry in self._entries if entry.binding is binding]
        self._entries = deque(entry for entry in self._entries if entry.binding is not binding)
        return dropped

    def room(self, registration: Registration, key: bytes) -> None:
        """Job.room() says it; there is no handler to be told."""

    def ended(self) -> None:
        """No more will come."""
        self._wake()

    def open(self, session: Session) -> None:
        """Entries come from `session`."""
        self._session = session

    def settle(self) -> None:
        """The entry given last is dealt with."""
        entry, self._current = self._current, None
        if entry is not None:
            self._client._protocol.finish(entry, SUCCESS)
            self._client._paced_flush()

    def take(self) -> Event | Gap | None:
        """The next entry, if there is one; raises what ended the session, unless the program did."""
        if not self._entries:
            self._client._flush()
            session = self._session
            if session is not None and session.failure is not None and not session.leaving:
                raise session.failure
            return None
        with self._client._lock:
            entry = self._current = self._entries.popleft()
            entry.begin()
        event = event_of(entry)
        note_room(entry.binding.registration, event)
        return event

    def key(self) -> bytes:
        """The key of the event given last."""
        if self._current is None or self._current.gap is not None:
            raise ValueError("there is no event to reply to")
        return self._current.parse().key

    def give_up(self) -> bool:
        """Nothing here will be handled any more. False if there is no session to tell."""
        if self._client._session is None or self._client._session is not self._session:
            return False
        with self._client._lock:
            left = [*([self._current] if self._current is not None else []), *self._entries]
            self._current = None
            self._entries.clear()
            for entry in left:
                self._session.discard(entry)
        return True


class EventStream(Generic[E]):
    """The events of one job, as an iterator; made by Client.events()."""

    job: Job

    def __init__(self, client: Client) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._woken = False
        self._closed = False
        self._inbox = Inbox(client, self._wake)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._tokens.put(None)

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
        self._inbox.settle()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            event = self._inbox.take()
            if event is not None:
                return cast("E | Gap", event)
            if self._closed or self.job.state == "GONE":
                raise StopIteration
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self._tokens.get(timeout=remaining)
            except Empty:
                raise TimeoutError(f"no event of job {self.job.id} in {timeout:g} s") from None
            self._woken = False

    def reply(self, operation: str, data: bytes | str = b"") -> None:
        """Do `operation` with the connection of the event that was given last."""
        self.job.operate(self._inbox.key(), operation, data)

    def close(self) -> None:
        """End the job, or let go of a durable one. What waits here is given up."""
        if self._closed:
            return
        self._closed = True
        if self._inbox.give_up() and self.job.state != "GONE":
            try:
                self.job.unbind() if self.job.durable else self.job.shutdown()
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


class AsyncEventStream(Generic[E]):
    """The events of one job, as an asynchronous iterator; made by AsyncClient.events().

    The job is registered when the iteration, or the `async with`, begins.
    """

    job: AsyncJob

    def __init__(self, client: AsyncClient, make: Callable[[Inbox], Registration]) -> None:
        self._client = client
        self._make = make
        self._changed = asyncio.Event()
        self._opened = False
        self._closed = False
        self._inbox = Inbox(client, self._changed.set)

    async def open(self) -> Self:
        """Register the job, if that is not done; raises AemError when refused."""
        if not self._opened:
            self.job = await self._client._open_stream(self._inbox, self._make)
            self._opened = True
        return self

    async def __aiter__(self) -> AsyncIterator[E | Gap]:
        """Iterate; leaving the loop ends the job."""
        try:
            while True:
                try:
                    event = await self.next()
                except StopAsyncIteration:
                    return
                yield event
        finally:
            await self.close()

    async def __anext__(self) -> E | Gap:
        return await self.next()

    async def next(self, timeout: float | None = None) -> E | Gap:
        """The next event; raises TimeoutError after `timeout` seconds, StopAsyncIteration with the job.

        The event before is acknowledged by asking.
        """
        await self.open()
        self._inbox.settle()
        async with asyncio.timeout(timeout):
            while True:
                self._changed.clear()
                event = self._inbox.take()
                if event is not None:
                    return cast("E | Gap", event)
                if self._closed or self.job.state == "GONE":
                    raise StopAsyncIteration
                await self._changed.wait()

    async def reply(self, operation: str, data: bytes | str = b"") -> None:
        """Do `operation` with the connection of the event that was given last."""
        await self.job.operate(self._inbox.key(), operation, data)

    async def close(self) -> None:
        """End the job, or let go of a durable one. What waits here is given up."""
        if self._closed or not self._opened:
            return
        self._closed = True
        if self._inbox.give_up() and self.job.state != "GONE":
            try:
                await (self.job.unbind() if self.job.durable else self.job.shutdown())
            except AemError:
                return  # it is gone, or will be with the session

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
