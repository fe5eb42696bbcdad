"""Carries a session over gRPC streams, for the sync face: one thread that reads, grpc's own that writes.

A stream has a channel of its own, made anew for each attempt, so that no back-off of grpc's stands in the
way. The reader only feeds the session; what waits to be written is taken by the iterator that grpc consumes
in a thread of its own, as bundles of whatever has come together since the last write.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue

import grpc

from aem import _channel
from aem._protocol import Session
from aem.errors import AemError, Code, ConnectionLost, from_rpc
from aem.v1 import session_pb2

WAIT_FIRST = 0.02  # seconds until the second attempt; a front is replaced in about ten milliseconds
WAIT_MAX = 1.0
FIRST_ATTEMPTS = 3  # a client that comes while its front is being replaced finds it at the second


class Link:
    """The streams of one session, one after the other."""

    def __init__(self, target: str, *, reconnect: bool) -> None:
        self.target = target
        self.opened: Future[None] = Future()
        self.session: Session
        self._reconnect = reconnect
        self._ending = threading.Event()
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._signalled = False
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="aem-session", daemon=True)

    def start(self) -> None:
        """Open the first stream; `opened` tells how that went."""
        self._thread.start()

    def output(self) -> None:
        """The session has something to send. Called with its lock held."""
        if not self._signalled:
            self._signalled = True
            self._tokens.put(True)

    def end(self, timeout: float) -> None:
        """Say what is left to say, half-close, and wait for the daemon to end the stream."""
        self.session.leaving = True
        self._ending.set()
        self._tokens.put(False)
        self._thread.join(timeout)
        if self._thread.is_alive() and self._call is not None:
            self._call.cancel()
            self._thread.join(timeout)

    def _run(self) -> None:
        wait = WAIT_FIRST
        attempts = 0
        while True:
            error, welcomed = self._stream()
            again = self.session.lost(error)
            attempts += 1
            if self._ending.is_set() or not again or not self._worth(error, attempts):
                break
            if self.opened.done():
                self.session.coming_back(error)
            if welcomed:
                wait = WAIT_FIRST
            if self._ending.wait(wait):
                break
            wait = min(wait * 2, WAIT_MAX)
        self.session.fail(error)
        if not self.opened.done():
            self.opened.set_exception(error)

    def _worth(self, error: AemError, attempts: int) -> bool:
        """Whether to try again: always once it was open, a little before."""
        if self.opened.done():
            return self._reconnect
        return error.code is Code.UNAVAILABLE and attempts < FIRST_ATTEMPTS

    def _stream(self) -> tuple[AemError, bool]:
        """One stream, from Hello to its end; returns why it ended, and whether it was ever open."""
        tokens: SimpleQueue[bool] = SimpleQueue()
        self._tokens, self._signalled = tokens, False
        if self._ending.is_set():
            tokens.put(False)
        welcomed = False
        with grpc.insecure_channel(self.target, options=_channel.OPTIONS) as channel:
            method = channel.stream_stream(
                _channel.SESSION_METHOD,
                request_serializer=session_pb2.ClientFrame.SerializeToString,
                response_deserializer=session_pb2.ServerFrame.FromString,
            )
            try:
                self._call = call = method(self._requests(tokens))
                for frame in call:
                    self.session.receive(frame)
                    if not welcomed:
                        welcomed = True
                        if not self.opened.done():
                            self.opened.set_result(None)
                error: AemError = ConnectionLost(
                    Code.UNAVAILABLE, "SESSION_ENDED", "the daemon ended the session"
                )
            except grpc.RpcError as failure:
                error = _channel.explain(from_rpc(failure), self.target)
            finally:
                self._tokens = SimpleQueue()
                tokens.put(False)
        return error, welcomed

    def _requests(self, tokens: SimpleQueue[bool]) -> Iterator[session_pb2.ClientFrame]:
        yield self.session.hello()
        more = True
        while more:
            more = tokens.get()
            if tokens is not self._tokens or (not more and not self._ending.is_set()):
                return  # the stream is lost, and grpc was slow to ask: what waits now is for the next one
            self._signalled = False
            while (frame := self.session.take()) is not None:
                yield frame
