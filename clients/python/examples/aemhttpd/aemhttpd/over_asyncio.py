"""The file server on asyncio: what a Python server is today, for comparison."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aemhttpd.exchange import Exchange

ROOM_BYTES = 256 * 1024


class _Connection(asyncio.Protocol):
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._transport: asyncio.Transport
        self._writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._exchange.receive(data)
        self._write()

    def eof_received(self) -> bool:
        self._exchange.receive(b"")
        self._write()
        return not self._exchange.finished

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's own signature
        self._exchange.close()

    def _write(self) -> None:
        while self._writable and not self._transport.is_closing():
            data = self._exchange.output(ROOM_BYTES)
            if not data:
                break
            self._transport.write(data)
        if self._exchange.finished:
            self._transport.close()


async def serve(
    listener: socket.socket, new_exchange: Callable[[], Exchange], stopped: asyncio.Event
) -> None:
    """Serve until `stopped` is set."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(new_exchange()), sock=listener, backlog=1024)
    async with server:
        await stopped.wait()
