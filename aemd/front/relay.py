"""The relay: connections of clients, handed over by the core, piped to gRPC's private socket.

gRPC cannot adopt an accepted descriptor and does not tell who connected. But it tells the name of the
socket that connected to it. So each client's connection gets a socket of ours to gRPC, bound to a name that
is random and used once; `context.peer()` is then that name, and the table `names` makes it the core's
number of the connection. The name is no secret. That nobody else can connect to gRPC's socket is what
counts (sandbox.py).

A connection that has said nothing is not piped: it costs its descriptor and an entry in the epoll set. One
that has costs three descriptors (gRPC's end included) and no buffer while nothing waits. When the
descriptors run out, the connections that have been silent for longest go first.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import socket
from collections.abc import Callable

from aemd.link import DESCRIPTOR, HAND_OVER

READ_BYTES = 64 * 1024
HANDOVERS_PER_TURN = 64
DESCRIPTORS_RESERVE = 64  # for gRPC, asyncio and the link
DESCRIPTORS_PER_PIPE = 3
CONNECT_AGAIN_SECONDS = 0.01  # gRPC's backlog is full


class Relay:
    """All connections of this front. `closed(number)` is called once for each that is over."""

    def __init__(self, descriptors: socket.socket, *, address: bytes, closed: Callable[[int], None]) -> None:
        """`address`: gRPC's private socket, as connect(2) takes it."""
        self.names: dict[str, int] = {}
        self._descriptors = descriptors
        self._address = address
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._silent: dict[int, socket.socket] = {}  # the oldest first
        self._pipes: dict[int, _Pipe] = {}
        self._descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS_RESERVE
        descriptors.setblocking(False)

    def __len__(self) -> int:
        return len(self._silent) + len(self._pipes)

    @property
    def piped(self) -> int:
        """Connections that have said something."""
        return len(self._pipes)

    def start(self) -> None:
        """Take connections from now on."""
        self._loop.add_reader(self._descriptors, self._handed_over)

    def close(self, number: int) -> None:
        """Close a connection, as the core wishes."""
        pipe = self._pipes.get(number)
        if pipe is not None:
            pipe.close()
        else:
            self._drop_silent(number)

    def _handed_over(self) -> None:
        for _ in range(HANDOVERS_PER_TURN):
            try:
                message, fds, _, _ = socket.recv_fds(self._descriptors, DESCRIPTOR.size, 1)
            except BlockingIOError:
                return
            except OSError:
                message, fds = b"", []
            if not message:
                self._loop.remove_reader(self._descriptors)  # the link's end of file says the rest
                return
            kind, number = DESCRIPTOR.unpack(message)
            if kind != HAND_OVER or not fds:
                self._closed(number)  # there was no descriptor free to receive it
                continue
            sock = socket.socket(fileno=fds[0])
            sock.setblocking(False)
            self._silent[number] = sock
            self._loop.add_reader(sock, self._first_byte, number)
            self._make_room()

    def _first_byte(self, number: int) -> None:
        sock = self._silent[number]
        try:
            first = sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            first = b""
        if not first:
            self._drop_silent(number)
            return
        self._loop.remove_reader(sock)
        self._connect(number)

    def _connect(self, number: int) -> None:
        """Join a connection to gRPC."""
        client = self._silent.get(number)
        if client is None:
            return  # it was closed while it waited for gRPC
        name = f"aemd-{secrets.token_hex(16)}"
        try:
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            self._drop_silent(number)
            return
        try:
            server.bind(b"\0" + name.encode())
            server.connect(self._address)
        except BlockingIOError:
            server.close()
            self._loop.call_later(CONNECT_AGAIN_SECONDS, self._connect, number)
            return
        except OSError:
            server.close()
            self._drop_silent(number)
            return
        del self._silent[number]
        peer = f"unix-abstract:{name}"
        self.names[peer] = number
        self._pipes[number] = _Pipe(self._loop, client, server, lambda: self._pipe_over(number, peer))
        self._make_room()

    def _pipe_over(self, number: int, peer: str) -> None:
        del self._pipes[number]
        del self.names[peer]
        self._closed(number)

    def _drop_silent(self, number: int) -> None:
        sock = self._silent.pop(number, None)
        if sock is not None:
            self._loop.remove_reader(sock)
            sock.close()
            self._closed(number)

    def _make_room(self) -> None:
        while self._silent and (
            len(self._silent) + DESCRIPTORS_PER_PIPE * len(self._pipes) > self._descriptors_max
        ):
            self._drop_silent(next(iter(self._silent)))


class _Pipe:
    """Two sockets joined. The end of file on either side is the end: HTTP/2 has no use for half a connection.

    Closing at once, and saying so, also lets the core tell a connection that broke from a stream that its
    client ended in order; gRPC shows both as "no more messages".
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.socket,
        server: socket.socket,
        over: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._client = client
        self._server = server
        self._over: Callable[[], None] | None = over
        for way in (_Way(self, client, server), _Way(self, server, client)):
            way.read_on()

    def close(self) -> None:
        """Close both sides. Closing twice changes nothing."""
        over, self._over = self._over, None
        if over is None:
            return
        for sock in (self._client, self._server):
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            sock.close()
        over()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that both sides are watched by."""
        return self._loop


class _Way:
    """One direction. While something waits for the sink, the source is not read."""

    __slots__ = ("_pending", "_pipe", "_sink", "_source")

    def __init__(self, pipe: _Pipe, source: socket.socket, sink: socket.socket) -> None:
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
            self._pipe.close()
            return
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
