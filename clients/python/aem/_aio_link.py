"""Carries a session over gRPC streams, for the asyncio face: one task that reads, one that writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

import grpc
import grpc.aio

from aem import _channel
from aem._link import FIRST_ATTEMPTS, WAIT_FIRST, WAIT_MAX
from aem._protocol import Session
from aem.errors import AemError, Code, ConnectionLost, from_rpc
from aem.v1 import session_pb2

Call = grpc.aio.StreamStreamCall[session_pb2.ClientFrame, session_pb2.ServerFrame]


class AsyncLink:
    """The streams of one session, one after the other."""

    def __init__(self, target: str, *, reconnect: bool) -> None:
        self.target = target
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.session: Session
        self._reconnect = reconnect
        self._ending = asyncio.Event()
        self._output = asyncio.Event()
        self._call: Call | None = None
        self._task: asyncio.Task[None] | None = None
        self.output: Callable[[], None] = self._output.set

    def start(self) -> None:
        """Open the first stream; `opened` tells how that went."""
        self._task = asyncio.create_task(self._run(), name="aem-session")

    async def end(self, seconds: float) -> None:
        """Say what is left to say, half-close, and wait for the daemon to end the stream."""
        self.session.leaving = True
        self._ending.set()
        self._output.set()
        if self._task is None:
            return
        done, _ = await asyncio.wait([self._task], timeout=seconds)
        if not done:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=seconds)

    async def _run(self) -> None:
        wait = WAIT_FIRST
        attempts = 0
        error: AemError = ConnectionLost(Code.CANCELLED, "CANCELLED", "the event loop ended the session")
        try:
            while True:
                error, welcomed = await self._stream()
                again = self.session.lost(error)
                attempts += 1
                if self._ending.is_set() or not again or not self._worth(error, attempts):
                    break
                if self.opened.done():
                    self.session.coming_back(error)
                if welcomed:
                    wait = WAIT_FIRST
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), wait)
                if self._ending.is_set():
                    break
                wait = min(wait * 2, WAIT_MAX)
        finally:
            self.session.fail(error)
            if not self.opened.done():
                self.opened.set_exception(error)

    def _worth(self, error: AemError, attempts: int) -> bool:
        """Whether to try again: always once it was open, a little before."""
        if self.opened.done():
            return self._reconnect
        return error.code is Code.UNAVAILABLE and attempts < FIRST_ATTEMPTS

    async def _stream(self) -> tuple[AemError, bool]:
        """One stream, from Hello to its end; returns why it ended, and whether it was ever open."""
        welcomed = False
        async with grpc.aio.insecure_channel(self.target, options=_channel.OPTIONS) as channel:
            method = channel.stream_stream(
                _channel.SESSION_METHOD,
                request_serializer=session_pb2.ClientFrame.SerializeToString,
                response_deserializer=session_pb2.ServerFrame.FromString,
            )
            call = cast(Call, method())
            writer = asyncio.create_task(self._write(call), name="aem-session-writer")
            try:
                async for frame in call:  # unlike read() to the last one, also when a write has failed
                    self.session.receive(frame)
                    if not welcomed:
                        welcomed = True
                        if not self.opened.done():
                            self.opened.set_result(None)
                code = await call.code()
                error: AemError = ConnectionLost(
                    Code.UNAVAILABLE, "SESSION_ENDED", f"the daemon ended the session ({code.name})"
                )
            except grpc.RpcError as failure:
                error = _channel.explain(from_rpc(failure), self.target)
            finally:
                writer.cancel()
                await asyncio.wait([writer])
        return error, welcomed

    async def _write(self, call: Call) -> None:
        try:
            await call.write(self.session.hello())
            while True:
                self._output.clear()
                while (frame := self.session.take()) is not None:
                    await call.write(frame)
                if self._ending.is_set():
                    await call.done_writing()
                    return
                await self._output.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the reader is told why
