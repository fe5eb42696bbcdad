"""What a program can ask of a session: each a frame, and what its answer changes here."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from aem._registration import Registration
from aem._requests import BUNDLE_BYTES, Build, Request, Requests, Then, Waiter, lost
from aem.errors import AemError, Code, ConnectionLost, Reply
from aem.v1 import job_pb2, session_pb2

RAISE_EVENTS = 1_024  # in one frame
RAISES_A_QUESTION = 16  # of those that nobody waits for, one frame in so many asks for an answer,
QUESTIONS_PENDING = 2  # and with more of these on their way the next one waits

log = logging.getLogger("aem")

Frame = session_pb2.ClientFrame


class Commands(Requests):
    """Requests by name. Each returns one of the face's futures."""

    def __init__(
        self,
        *,
        lock: AbstractContextManager[Any],
        future: Callable[[], Waiter],
        output: Callable[[], None],
    ) -> None:
        super().__init__(lock=lock, future=future, output=output)
        self._raised = 0
        self._pending: deque[Any] = deque()
        self._unasked = 0  # events that went out without a question, since the beginning
        self._heard = 0  # of these the first so many have arrived: a question behind them was answered

    def _let_go(self, registration: Registration) -> None:
        """End a job that was shut down, unless a handler of it runs."""
        raise NotImplementedError

    def _of_job(
        self,
        registration: Registration,
        build: Build,
        *,
        repeatable: bool = True,
        then: Then | None = None,
    ) -> Any:
        """Ask something about a job."""
        with self._lock:
            waiter = self._future()
            request = Request(build, waiter, registration=registration, repeatable=repeatable, then=then)
            if registration.binding is None and not registration.gone:
                request.settle(lost("the daemon was restarted, and the job is not registered again yet"))
            else:
                self._ask(request)
            return waiter

    def start(self, registration: Registration) -> Any:
        """Arm a job."""

        def build() -> Frame:
            return Frame(start=session_pb2.Start(job=registration.id))

        def then(error: AemError | None) -> AemError | None:
            if error is None:
                registration.armed = True
                registration.state = job_pb2.STATE_ARMED
            return error

        return self._of_job(registration, build, then=then)

    def stop(self, registration: Registration) -> Any:
        """Disarm a job."""

        def build() -> Frame:
            return Frame(stop=session_pb2.Stop(job=registration.id))

        def then(error: AemError | None) -> AemError | None:
            if error is None:
                registration.armed = False
                registration.state = job_pb2.STATE_REGISTERED
            return error

        return self._of_job(registration, build, then=then)

    def shutdown(self, registration: Registration, deadline: float | None) -> Any:
        """End a job, `deadline` in seconds; entries of it that wait here are not handled any more."""

        def build() -> Frame:
            deadline_ns = 0 if deadline is None else max(1, round(deadline * 1e9))
            return Frame(shutdown=session_pb2.Shutdown(job=registration.id, deadline_ns=deadline_ns))

        def then(error: AemError | None) -> AemError | None:
            if error is not None:
                return None if error.code is Code.NOT_FOUND else error  # it ended meanwhile
            registration.given_up = True
            if registration.state != job_pb2.STATE_GONE:
                registration.state = job_pb2.STATE_CLOSING
                self._let_go(registration)
            return None

        with self._lock:
            if registration.state == job_pb2.STATE_GONE:
                waiter = self._future()
                waiter.set_result(None)
                return waiter
            return self._of_job(registration, build, then=then)

    def unbind(self, registration: Registration) -> None:
        """Let go of a durable job once no handler of it runs; what waits here is not handled any more."""
        with self._lock:
            if not registration.gone:
                registration.given_up = True
                self._let_go(registration)

    def set_priority(self, registration: Registration, priority: int) -> Any:
        """Change a job's priority; raises ValueError for a number that the wire cannot carry."""
        frame = Frame(set_priority=session_pb2.SetPriority(job=registration.id, priority=priority))
        return self._of_job(registration, lambda: frame)

    def operate(self, registration: Registration, key: bytes, operation: str, data: bytes | str) -> Any:
        """Output outside an answer."""
        content = data.encode() if isinstance(data, str) else bytes(data)
        done = session_pb2.Operation(name=operation, data=content)
        with self._lock:
            if key in registration.rooms:
                registration.rooms[key] -= len(content)
            frame = Frame(op=session_pb2.Op(job=registration.id, key=key, operation=done))
            return self._of_job(registration, lambda: frame, repeatable=False)

    def put_out(self, registration: Registration, key: bytes, reply: Reply) -> None:
        """Output outside an answer that nobody waits for; a refusal is logged."""
        done = session_pb2.Operation(name=reply.operation, data=reply.data)
        with self._lock:
            if registration.binding is not None:
                registration.rooms[key] = registration.rooms.get(key, 0) - len(reply.data)
                self._emit(Frame(op=session_pb2.Op(job=registration.id, key=key, operation=done)))

    def sync(self, registration: Registration) -> Any:
        """Ask for everything that the kernel has queued for a job."""
        return self._of_job(registration, lambda: Frame(sync=session_pb2.Sync(jobs=[registration.id])))

    def raise_unwatched(self, channel: str, payloads: list[bytes], uid: int | None) -> Any:
        """Raise user events of which only a refusal is heard, in the log.

        Now and then the daemon is asked to answer, so that not too much is on its way: returns None, or what
        to wait for before the next.
        """
        with self._lock:
            self._raised += 1
            if self.connected and not self.draining and self._raised % RAISES_A_QUESTION:
                self._emit(_raise(channel, payloads, uid))
                self._unasked += len(payloads)
                return None
            self._pending.append(self.raise_events(channel, payloads, uid, then=self._hears()))
            return self._pending.popleft() if len(self._pending) > QUESTIONS_PENDING else None

    def _hears(self) -> Then:
        """What the answer to a question says of the events before it."""
        before = self._unasked

        def then(error: AemError | None) -> AemError | None:
            if error is not None:
                log.warning("events were not raised: %s", error.message)
            if not isinstance(error, ConnectionLost):
                self._heard = max(self._heard, before)
            return None

        return then

    def _tell_unheard(self) -> None:
        """The stream is lost, and with it what was on its way."""
        unheard, self._heard = self._unasked - self._heard, self._unasked
        if unheard:
            log.warning("the connection broke: %d events raised without waiting may be lost", unheard)

    def raise_events(
        self, channel: str, payloads: list[bytes], uid: int | None, *, then: Then | None = None
    ) -> Any:
        """Raise user events."""
        frame = _raise(channel, payloads, uid)
        with self._lock:
            waiter = self._future()
            self._ask(Request(lambda: frame, waiter, repeatable=False, then=then))
            return waiter


def _raise(channel: str, payloads: list[bytes], uid: int | None) -> Frame:
    frame = Frame()
    raised = session_pb2.Raise(channel=channel, payloads=payloads, uid=uid)
    getattr(frame, "raise").CopyFrom(raised)  # a keyword of Python
    return frame


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
