"""What both faces share: registering, dispatching, acknowledging in batches."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar, overload

from aem import _channel, _unary
from aem._binding import EXPLICIT, SUCCESS, Entry, Outcome
from aem._dispatch import Dispatcher
from aem._handling import event_of, failed, gap_unheard, note_room, outcome_of, spend_room
from aem._hold import Hold
from aem._protocol import Session
from aem._registration import Registration, Sink, default_acknowledgement
from aem._workers import TOO_LATE, Workers
from aem.errors import Code, ConnectionLost, Reply
from aem.events import Gap, ProcessEvent, SocketEvent, TimerEvent, UserEvent
from aem.history import Keep, StartFrom
from aem.options import Options, Param, values_of

ANSWER_SECONDS = 30.0  # how long a request may take if the caller says nothing
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 5.0
LOOK_SECONDS = 0.1  # how often run() asks whether it is to end
FLUSH_EVENTS = 256  # acknowledgements go out after so many events,
FLUSH_NS = 20_000_000  # or this long after the last, or when nothing waits

R = TypeVar("R")
Run = Literal["inline", "fork", "capsule"]
Handler = Callable[[Any], Any]


class BaseClient:
    """What both faces share. `_lock` guards session and dispatcher where there are threads."""

    _lock: AbstractContextManager[Any]
    _session: Session | None = None

    def __init__(self, address: str | None = None, *, label: str = "", reconnect: bool = True) -> None:
        self.address = _channel.find_address(address)
        self.label = label
        self.reconnect = reconnect
        self._stopping = False
        self._collected: list[Registration] = []
        self._dispatcher = Dispatcher(self._notify)
        self._workers: Workers | None = None
        self._done: list[Entry] = []  # handled with plain success, and nobody is told yet
        self._unflushed = 0
        self._flushed_ns = 0

    # -- what a face adds

    def _notify(self) -> None:
        """Wake run(). Called with the lock held."""
        raise NotImplementedError

    def _decorated(self, registration: Registration) -> None:
        """A handler was decorated after the client had connected."""
        raise NotImplementedError

    def _make_job(self, registration: Registration) -> None:
        """Set registration.job."""
        raise NotImplementedError

    def _elsewhere(self, entry: Entry, outcome: Outcome) -> None:
        """A handler process is done; called in the workers' thread."""
        raise NotImplementedError

    # -- registering

    @overload
    def on(
        self, module: Literal["timer"], *, label: str | None = ..., **more: Any
    ) -> Callable[[Callable[[TimerEvent], R]], Callable[[TimerEvent], R]]: ...
    @overload
    def on(
        self, module: Literal["socket"], *, label: str | None = ..., **more: Any
    ) -> Callable[[Callable[[SocketEvent], R]], Callable[[SocketEvent], R]]: ...
    @overload
    def on(
        self, module: Literal["process"], *, label: str | None = ..., **more: Any
    ) -> Callable[[Callable[[ProcessEvent], R]], Callable[[ProcessEvent], R]]: ...
    @overload
    def on(
        self, module: Literal["user"], *, label: str | None = ..., **more: Any
    ) -> Callable[[Callable[[UserEvent], R]], Callable[[UserEvent], R]]: ...
    @overload
    def on(
        self, module: str, *, label: str | None = ..., **more: Any
    ) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]: ...

    def on(self, module: str, *, label: str | None = None, **more: Any) -> Callable[[Handler], Handler]:
        """Decorate a function to be the handler of a job; it stays what it was.

        Keywords are the module's parameters (`params` takes a mapping of those whose names are taken), and:

        `run`: "inline", "fork" (a process for each event, at most `pool` at once) or "capsule" (a pool of
        `pool` processes made beforehand). `options`: see Options. `start`: arm it at once, True if not said.
        `label`: its name in lists, by default the function's. `on_gap`: called with a Gap where events were
        lost; otherwise that is logged. `on_room`: called with the key of a connection and the number of bytes
        that may be written to it, when that has become more; it returns what a handler returns.

        What the handler returns goes back: None for nothing, bytes to be written to the connection that the
        event came from, or a Reply. What it raises fails the event, but for Retry and Park.
        """

        def decorate(handler: Handler) -> Handler:
            self._collect(self._registration(module, handler, label=label, **more))
            return handler

        return decorate

    def _collect(self, registration: Registration) -> None:
        """Register what was decorated when the client connects, or now if it has."""
        if self._session is None:
            self._collected.append(registration)
        else:
            self._decorated(registration)

    def _decorator(self, name: str, module: str, **more: Any) -> Callable[[Handler], Handler]:
        """Decorate the handler of a durable job."""

        def decorate(handler: Handler) -> Handler:
            self._collect(self._durable(name, module, handler, **more))
            return handler

        return decorate

    def _durable(
        self,
        name: str,
        module: str,
        handler: Handler | None,
        *,
        follow: bool = False,
        start_from: StartFrom = None,
        keep: Keep | None = None,
        options: Options | None = None,
        start: bool = True,
        label: str = "",
        params: Mapping[str, Param] | None = None,
        run: Run = "inline",
        pool: int = 0,
        on_gap: Callable[[Gap], object] | None = None,
        on_room: Callable[[bytes, int], bytes | Reply | None] | None = None,
        **more: Param,
    ) -> Registration:
        """A registration of a durable job that is made first if it is not there."""
        request = _unary.create_request(
            name,
            module,
            {**(params or {}), **more},
            options=options,
            acknowledgement=default_acknowledgement(module),
            keep=keep,
            label=label,
            start=start,
        )
        return self._registration(
            module,
            handler,
            label=label or name,
            run=run,
            pool=pool,
            options=options,
            start=start,
            on_gap=on_gap,
            on_room=on_room,
            hold=Hold(name, follow=follow, start_from=start_from, request=request),
        )

    def _bound_to(
        self,
        job: int | str,
        handler: Handler | None,
        *,
        follow: bool = False,
        start_from: StartFrom = None,
        options: Options | None = None,
        sink: Sink | None = None,
        **how: Any,
    ) -> Registration:
        """A registration of a durable job that is there."""
        hold = Hold(job, follow=follow, start_from=start_from)
        return self._registration(
            "", handler, label=str(job), options=options, sink=sink, hold=hold, params={}, **how
        )

    def _registration(
        self,
        module: str,
        handler: Handler | None,
        *,
        label: str | None = None,
        run: Run = "inline",
        pool: int = 0,
        options: Options | None = None,
        start: bool = True,
        on_gap: Callable[[Gap], object] | None = None,
        on_room: Callable[[bytes, int], bytes | Reply | None] | None = None,
        params: Mapping[str, Param] | None = None,
        sink: Sink | None = None,
        hold: Hold | None = None,
        **more: Param,
    ) -> Registration:
        registration = Registration(
            module,
            values_of({**(params or {}), **more}),
            options=options or Options(),
            label=getattr(handler, "__name__", "") if label is None else label,
            armed=start,
            sink=sink or self._dispatcher,
            handler=handler,
            on_gap=on_gap,
            on_room=on_room,
            run=run,
            pool=pool,
            hold=hold,
        )
        self._make_job(registration)
        return registration

    def _adopt(self, registration: Registration) -> None:
        """Give a registration whose handlers run elsewhere its processes."""
        if registration.run != "inline":
            if self._workers is None:
                raise RuntimeError(TOO_LATE)
            self._workers.adopt(registration)

    def prepare_fork(self) -> None:
        """Make the process that handler processes are forked from now, before anything connects.

        Needed only if handlers with run="fork" or run="capsule" are registered after the client has
        connected; those must then be importable functions of modules, as for pickle.
        """
        if self._workers is None:
            self._workers = Workers([found for found in self._collected if found.run != "inline"])

    def _before_channel(self, *more: Registration) -> None:
        """What must be done while this process has no channel yet."""
        if any(found.run != "inline" for found in [*self._collected, *more]) and self._workers is None:
            self._workers = Workers([found for found in [*self._collected, *more] if found.run != "inline"])
        _channel.note_channel()

    @property
    def _protocol(self) -> Session:
        if self._session is None:
            raise ConnectionLost(Code.UNAVAILABLE, "NOT_CONNECTED", "the client is not connected")
        return self._session

    # -- running

    def stop(self) -> None:
        """Make run() return, after the handler that runs now. From any thread, handler or signal handler."""
        self._stopping = True
        self._notify()

    def _take(self) -> Entry | None:
        """The next entry to handle."""
        with self._lock:
            while (entry := self._dispatcher.take()) is not None:
                if not entry.binding.registration.given_up:
                    entry.begin()
                    return entry
                self._protocol.discard(entry)
                self._dispatcher.done(entry)
            return None

    def _go_on(self) -> None:
        """Call on_room for the connections that have got room."""
        if not self._dispatcher.has_rooms:
            return
        with self._lock:
            found = self._dispatcher.take_rooms()
        for registration, key in found:
            if key not in registration.rooms or registration.on_room is None:
                continue  # closed meanwhile
            try:
                reply = outcome_of(registration.on_room(key, registration.rooms[key])).reply
                if reply is not None:
                    self._protocol.put_out(registration, key, reply)
            except Exception as error:
                failed(registration, error)

    def _call_handler(self, entry: Entry) -> tuple[Outcome | None, Any]:
        """Run the handler of `entry`, or have it run; returns the outcome, or None and what to await."""
        registration = entry.binding.registration
        try:
            event = event_of(entry)
            note_room(registration, event)
            if isinstance(event, Gap):
                result = (registration.on_gap or gap_unheard)(event)
                return (None, result) if inspect.isawaitable(result) else (SUCCESS, None)
            if registration.run != "inline":
                assert self._workers is not None
                self._workers.submit(entry, self._elsewhere)
                return None, None
            assert registration.handler is not None
            result = registration.handler(event)
            if result is None:
                return SUCCESS, None
            if inspect.isawaitable(result):
                return None, result
            return self._outcome(entry, result), None
        except Exception as error:
            return failed(registration, error), None

    def _outcome(self, entry: Entry, result: Any) -> Outcome:
        """What a handler's result means; raises TypeError if nothing."""
        outcome = outcome_of(result)
        spend_room(entry.binding.registration, entry.parse().key, outcome)
        return outcome

    def _finish(self, entry: Entry, outcome: Outcome) -> None:
        """`entry` is dealt with. Plain success is noted here and told for many at once."""
        if outcome is SUCCESS and entry.lane is None and entry.binding.acknowledgement != EXPLICIT:
            self._done.append(entry)
        else:
            with self._lock:
                self._settle_done()
                if self._session is not None:
                    self._session.finish(entry, outcome)
                self._dispatcher.done(entry)
        self._paced_flush()

    def _paced_flush(self) -> None:
        """Acknowledge if enough has come together, or enough time has passed."""
        self._unflushed += 1
        if self._unflushed >= FLUSH_EVENTS or time.monotonic_ns() - self._flushed_ns >= FLUSH_NS:
            self._flush()

    def _settle_done(self) -> None:
        """Tell session and dispatcher of what was noted. Called with the lock held."""
        if self._done:
            done, self._done = self._done, []
            if self._session is not None:
                self._session.finish_plain(done)
            self._dispatcher.done_inline(done)

    def _flush(self) -> bool:
        """Acknowledge what is dealt with; False if there was nothing."""
        if self._unflushed == 0:
            return False
        with self._lock:
            self._settle_done()
            if self._session is not None:
                self._session.flush()
        self._unflushed = 0
        self._flushed_ns = time.monotonic_ns()
        return True
