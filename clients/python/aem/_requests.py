"""Questions to the daemon that have no answer yet, and the frames that wait to be sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from aem._registration import Registration
from aem.errors import AemError, Code, ConnectionLost
from aem.v1 import session_pb2

Build = Callable[[], session_pb2.ClientFrame]
Then = Callable[["AemError | None"], "AemError | None"]

BUNDLE_FRAMES = 512
BUNDLE_BYTES = 256 * 1024  # a quarter of the daemon's limit on a message
MESSAGE_BYTES = 1024 * 1024  # until Welcome says
HEADROOM_BYTES = 64  # of a message, for what is around the frame


class Waiter(Protocol):
    """A future, concurrent.futures' or asyncio's."""

    def done(self) -> bool:
        """It has a result, or nobody waits any more."""

    def set_result(self, result: Any, /) -> None:
        """It is done."""

    def set_exception(self, exception: Any, /) -> None:
        """It failed."""


class Request:
    """A question that has no answer yet.

    `repeatable`: asking twice does no harm, so it is asked again on a new stream. `internal`: it belongs to
    one stream and is forgotten with it. `then` is told the outcome first, and may change it.
    """

    __slots__ = ("build", "internal", "registration", "repeatable", "sent", "then", "waiter")

    def __init__(
        self,
        build: Build,
        waiter: Waiter | None,
        *,
        registration: Registration | None = None,
        repeatable: bool = True,
        internal: bool = False,
        then: Then | None = None,
    ) -> None:
        self.build = build
        self.waiter = waiter
        self.registration = registration
        self.repeatable = repeatable
        self.internal = internal
        self.then = then
        self.sent = False

    def settle(self, error: AemError | None) -> None:
        """The answer is there, or there will be none."""
        if self.then is not None:
            error = self.then(error)
        if self.waiter is not None and not self.waiter.done():
            if error is None:
                self.waiter.set_result(None)
            else:
                self.waiter.set_exception(error)


class Requests:
    """Requests by number, and what is on its way out. `output` is called when take() has something."""

    def __init__(
        self,
        *,
        lock: AbstractContextManager[Any],
        future: Callable[[], Waiter],
        output: Callable[[], None],
    ) -> None:
        self.connected = False
        self.draining = False  # the daemon is about to end this stream
        self._said_all = False  # the daemon has ended this stream in order, and answered what it had done
        self.failure: AemError | None = None  # why the session ended for good
        self.limits = session_pb2.Limits(message_bytes=MESSAGE_BYTES)
        self._lock = lock
        self._future = future
        self._output = output
        self._requests: dict[int, Request] = {}
        self._next_request = 1
        self._out: deque[session_pb2.ClientFrame] = deque()

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
        """Send a frame; without a stream it is lost, and what it said is said anew on the next."""
        if self.connected:
            self._out.append(frame)
            self._output()

    def _fits(self, frame: session_pb2.ClientFrame) -> bool:
        return frame.ByteSize() <= self.limits.message_bytes - HEADROOM_BYTES

    def _number(self, request: Request) -> int:
        number = self._next_request
        self._next_request += 1
        self._requests[number] = request
        return number

    def _ask(self, request: Request) -> None:
        """Ask now, or when there is a stream."""
        if self.failure is not None:
            request.settle(self.failure)
            return
        number = self._number(request)
        if self.connected:
            self._emit_request(number, request)

    def _emit_request(self, number: int, request: Request) -> None:
        frame = request.build()
        frame.request_id = number
        if self._fits(frame):
            self._emit(frame)
            return
        message = f"the request has {frame.ByteSize()} bytes; the daemon takes {self.limits.message_bytes}"
        self._settle(number, AemError(Code.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE", message))

    def _repeat_requests(self) -> None:
        """On a new stream: ask what has no answer yet."""
        for number, request in list(self._requests.items()):
            if not request.internal:
                self._emit_request(number, request)

    def _settle(self, number: int, error: AemError | None) -> bool:
        """The answer to a request; False if it is none that waits."""
        request = self._requests.pop(number, None)
        if request is None:
            return False
        request.settle(error)
        return True

    def _drop_stream(self) -> None:
        """The stream is lost: nothing is on its way, and what cannot be asked twice has failed; unless the
        daemon had said all: what has no answer then was not done, and is asked again like anything else.
        """
        self.connected = False
        self._out.clear()
        for number, request in list(self._requests.items()):
            if request.internal:
                del self._requests[number]
            elif request.sent and not request.repeatable and not self._said_all:
                self._settle(
                    number, lost("the connection broke before the answer came; it may be done or not")
                )

    def _fail_all(self, error: AemError) -> None:
        self.connected = False
        self.failure = error
        for number in list(self._requests):
            self._settle(number, error)


def lost(message: str) -> ConnectionLost:
    """The error of a request that nobody answers."""
    return ConnectionLost(Code.UNAVAILABLE, "CONNECTION_LOST", message)
