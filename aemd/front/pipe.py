"""A pipe: a client's connection and ours to gRPC, joined, with what the client sends counted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

from aemd.front.accountant import Accountant
from aemd.front.sieve import Sieve
from aemd.link import Cut

READ_BYTES = 64 * 1024


class Pipe:
    """Two sockets joined. The end of file on either side is the end: HTTP/2 has no use for half a connection.

    Closing at once, and saying so, also lets the core tell a connection that broke from a stream that its
    client ended in order; gRPC shows both as "no more messages".

    At the farewell it is the client that closes. gRPC has said GOAWAY then, and a client that meets a closed
    socket with what it is just sending does not read that any more.
    """

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        *,
        over: Callable[[Cut | None], None],
        moved: Callable[[int], None],
    ) -> None:
        """`over(cut)` is called once, at the end; `moved(size_bytes)` for what the client sends."""
        self.accountant = Accountant(time.monotonic_ns())
        self._loop = asyncio.get_running_loop()
        self._moved = moved
        self._client = client
        self._server = server
        self._over: Callable[[Cut | None], None] | None = over
        self.sieve: Sieve | None = None
        self._leaving = False
        for way in (_Way(self, client, server, self._count), _Way(self, server, client, None)):
            way.read_on()

    def take_no_calls(self) -> None:
        """What begins from now on does not reach gRPC."""
        self._leaving = True
        self.sieve = self.accountant.sieve()

    def close(self, cut: Cut | None = None) -> None:
        """Close both sides. Closing twice changes nothing."""
        over, self._over = self._over, None
        if over is None:
            return
        for sock in (self._client, self._server):
            self._leave(sock)
        over(cut)

    def ended(self, side: socket.socket) -> None:
        """There is no more to come from that side."""
        if side is self._client or not self._leaving:
            self.close()
            return
        self._leave(self._server)
        self._loop.remove_writer(self._client)
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
        self._loop.add_reader(self._client, self._drop)

    def _drop(self) -> None:
        try:
            data = self._client.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()

    def _leave(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            sock.close()

    def _count(self, data: bytes) -> Cut | None:
        self._moved(len(data))
        return self.accountant.feed(data, time.monotonic_ns())

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that both sides are watched by."""
        return self._loop


class _Way:
    """One direction. While something waits for the sink, the source is not read."""

    __slots__ = ("_count", "_pending", "_pipe", "_sink", "_source")

    def __init__(
        self,
        pipe: Pipe,
        source: socket.socket,
        sink: socket.socket,
        count: Callable[[bytes], Cut | None] | None,
    ) -> None:
        self._count = count  # of what the client sends; what gRPC sends is its own affair
        self._pipe = pipe
        self._source = source
        self._sink = sink
        self._pending = b""

    def read_on(self) -> None:
        self._pipe.loop.add_reader(self._source, self._readable)

    def _readable(self) -> None:
        try:
            data = self._source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._pipe.close()
            return
        if not data:
            self._pipe.ended(self._source)
            return
        if self._count is not None:
            cut = self._count(data)
            if cut is not None:
                self._pipe.close(cut)
                return
            if self._pipe.sieve is not None:
                data = self._pipe.sieve.feed(data)
        try:
            sent = self._sink.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._pipe.close()
            return
        if sent < len(data):
            self._pending = data[sent:]
            self._pipe.loop.remove_reader(self._source)
            self._pipe.loop.add_writer(self._sink, self._writable)

    def _writable(self) -> None:
        try:
            sent = self._sink.send(self._pending)
        except BlockingIOError:
            return
        except OSError:
            self._pipe.close()
            return
        self._pending = self._pending[sent:]
        if not self._pending:
            self._pipe.loop.remove_writer(self._sink)
            self.read_on()
