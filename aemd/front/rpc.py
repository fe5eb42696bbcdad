"""gRPC's side: every method of `aem.v1` as bytes in, bytes out.

Which methods there are is read from the descriptors, which shapes (streams or not) too. Serializers are the
identity; a message is parsed in the core or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol, cast

import grpc
import grpc.aio

import aemd.v1
from aemd.front.unread import Unread
from aemd.front.uplink import Call, Uplink

STATUS_DETAILS = "grpc-status-details-bin"
HALF_CLOSE_SECONDS = 0.03
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def find_services() -> dict[str, dict[str, bool]]:
    """The services of aem.v1 by full name, each with its methods and whether these stream."""
    services: dict[str, dict[str, bool]] = {}
    for module in pkgutil.iter_modules(aemd.v1.__path__):
        descriptor = importlib.import_module(f"aemd.v1.{module.name}").DESCRIPTOR
        for service in descriptor.services_by_name.values():
            services[service.full_name] = {
                method.name: method.client_streaming or method.server_streaming for method in service.methods
            }
    return services


class Connections(Protocol):
    """What is to be known of connections here; a Relay."""

    names: dict[str, int]  # connection numbers by what context.peer() says

    def call_begun(self, number: int) -> None:
        """A call of this connection has begun."""

    def call_over(self, number: int) -> None:
        """One of its calls is over."""


class Methods(grpc.GenericRpcHandler):
    """All methods, relayed to the core under the number of the caller's connection."""

    def __init__(
        self, uplink: Uplink, connections: Connections, services: Mapping[str, Mapping[str, bool]]
    ) -> None:
        self.running = 0  # RPCs that have not been answered in full
        self._uplink = uplink
        self._connections = connections
        self._unread = Unread()
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            f"/{service}/{name}": self._handler(f"/{service}/{name}", streams=streams)
            for service, methods in services.items()
            for name, streams in methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """The handler of a method; None: UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    def _handler(self, method: str, *, streams: bool) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def unary(request: bytes, context: _Context) -> bytes:
            self.running += 1
            try:
                return await self._unary(method, request, context)
            finally:
                self.running -= 1

        async def stream(_requests: object, context: _Context) -> None:
            self.running += 1
            try:
                await self._stream(method, context)
            finally:
                self.running -= 1

        # The stubs know grpc's synchronous handlers only.
        if streams:
            return cast(Any, grpc.stream_stream_rpc_method_handler)(stream)  # type: ignore[no-any-return]
        return cast(Any, grpc.unary_unary_rpc_method_handler)(unary)  # type: ignore[no-any-return]

    async def _identify(self, context: _Context) -> int:
        connection = self._connections.names.get(context.peer())
        if connection is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this connection is not known to the daemon")
        return connection

    def _open(self, connection: int, method: str) -> Call:
        self._connections.call_begun(connection)
        return self._uplink.open_call(connection, method)

    def _close(self, call: Call) -> None:
        call.cancel()
        self._connections.call_over(call.connection)

    async def _unary(self, method: str, request: bytes, context: _Context) -> bytes:
        connection = await self._identify(context)
        room = await self._unread.enter(connection)
        # Called when the client has the answer, or is gone. The stubs take a class for its instance here.
        cast(Any, context).add_done_callback(lambda _context: room.leave())
        call = self._open(connection, method)
        try:
            await call.up(request)
            call.half_close()
            answer = await call.down()
            if isinstance(answer, bytes):
                status = await call.down()
                if isinstance(status, bytes):
                    await context.abort(grpc.StatusCode.INTERNAL, "the daemon gave two answers")
                elif status[0] == 0:
                    room.grow(len(answer))
                    return answer
                answer = status
            await _abort(context, answer)
        finally:
            self._close(call)
        return b""

    async def _stream(self, method: str, context: _Context) -> None:
        call = self._open(await self._identify(context), method)
        reader = asyncio.create_task(_read(call, context))
        try:
            while True:
                item = await call.down()
                if not isinstance(item, bytes):
                    break
                await context.write(item)
                call.taken(len(item))
            if item[0]:
                await _abort(context, item)
        finally:
            self._close(call)
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader


_Context = grpc.aio.ServicerContext[bytes, bytes]


async def _read(call: Call, context: _Context) -> None:
    """What the client sends, until it sends no more."""
    while True:
        message: object = await context.read()
        if not isinstance(message, bytes):  # grpc.aio.EOF
            # Also when the client cancelled; that this is so is said a moment later, by our own cancellation.
            await asyncio.sleep(HALF_CLOSE_SECONDS)
            call.half_close()
            return
        await call.up(message)


async def _abort(context: _Context, status: tuple[int, str, bytes]) -> None:
    code, message, details = status
    trailers: tuple[tuple[str, bytes], ...] = ((STATUS_DETAILS, details),) if details else ()
    await context.abort(_CODES.get(code, grpc.StatusCode.UNKNOWN), message, trailers)
