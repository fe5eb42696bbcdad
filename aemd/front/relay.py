"""The relay: connections of clients, handed over by the core, piped to gRPC's private socket.

gRPC cannot adopt an accepted descriptor and does not tell who connected. But it tells the name of the
socket that connected to it. So each client's connection gets a socket of ours to gRPC, bound to a name that
is random and used once; `context.peer()` is then that name, and the table `names` makes it the core's
number of the connection. The name is no secret. That nobody else can connect to gRPC's socket is what
counts (sandbox.py).

A connection that has said nothing is not piped: it costs its descriptor and an entry in the epoll set. One
that has costs three descriptors (gRPC's end included) and no buffer while nothing waits. When the
descriptors run out, the connections that have been silent for longest go first, then those that have been
without a call for longest; never one with a call.

A client has a time for its first byte, for the beginning of HTTP/2, and for its first call; and what it sends
is counted (accountant.py). Whoever takes too long or sends too much is closed, and `closed` is told why.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import socket
from collections.abc import Callable

from aemd.front.patience import Patience
from aemd.front.pipe import Pipe
from aemd.link import DESCRIPTOR, HAND_OVER, Cut

HANDOVERS_PER_TURN = 64
DESCRIPTORS_RESERVE = 64  # for gRPC, asyncio and the link
DESCRIPTORS_PER_PIPE = 3
CONNECT_AGAIN_SECONDS = 0.01  # gRPC's backlog is full
SILENT_SECONDS = 30.0  # to the first byte; clients of gRPC speak at once
HANDSHAKE_SECONDS = 10.0  # from there to the end of preface and SETTINGS
NO_CALL_SECONDS = 120.0  # from there to the first call; a channel that is closed opens again when it calls


class Relay:
    """All connections of this front.

    `closed(number, cut)` is called once for each that is over; `cut` says why, if it was closed here.
    """

    def __init__(
        self,
        descriptors: socket.socket,
        *,
        address: bytes,
        closed: Callable[[int, Cut | None], None],
        moved: Callable[[int], None],
    ) -> None:
        """`address`: gRPC's private socket, as connect(2) takes it. `moved(size_bytes)` is called for what
        clients send.
        """
        self.names: dict[str, int] = {}
        self._descriptors = descriptors
        self._address = address
        self._closed = closed
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._silent: dict[int, socket.socket] = {}  # the oldest first
        self._pipes: dict[int, Pipe] = {}
        self._idle: dict[int, None] = {}  # pipes without a call, those that have been so for longest first
        self._calls: dict[int, int] = {}  # by connection: calls that are not over
        self._speak = Patience(SILENT_SECONDS, lambda number: self.close(number, Cut.SILENT))
        self._shake = Patience(HANDSHAKE_SECONDS, lambda number: self._look(number, Cut.HANDSHAKE))
        self._call = Patience(NO_CALL_SECONDS, lambda number: self._look(number, Cut.NO_CALL))
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

    def take_no_calls(self) -> None:
        """From now on gRPC sees no new call on the connections that there are."""
        for pipe in self._pipes.values():
            pipe.take_no_calls()

    def close(self, number: int, cut: Cut | None = None) -> None:
        """Close a connection, because of `cut` or because the core wishes it."""
        pipe = self._pipes.get(number)
        if pipe is not None:
            pipe.close(cut)
        else:
            self._drop_silent(number, cut)

    def call_begun(self, number: int) -> None:
        """A call of this connection has begun."""
        self._calls[number] = self._calls.get(number, 0) + 1
        self._idle.pop(number, None)

    def call_over(self, number: int) -> None:
        """One of its calls is over."""
        left = self._calls[number] - 1
        if left:
            self._calls[number] = left
            return
        del self._calls[number]
        if number in self._pipes:
            self._idle[number] = None

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
                self._closed(number, None)  # there was no descriptor free to receive it
                continue
            sock = socket.socket(fileno=fds[0])
            sock.setblocking(False)
            self._silent[number] = sock
            self._speak.add(number)
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
        self._speak.forget(number)
        peer = f"unix-abstract:{name}"
        self.names[peer] = number
        self._pipes[number] = Pipe(
            client, server, over=lambda cut: self._pipe_over(number, peer, cut), moved=self._moved
        )
        self._idle[number] = None
        self._shake.add(number)
        self._call.add(number)
        self._make_room()

    def _look(self, number: int, cut: Cut) -> None:
        """The time for the handshake, or for the first call, is over."""
        accountant = self._pipes[number].accountant
        if not (accountant.settled if cut == Cut.HANDSHAKE else accountant.called):
            self.close(number, cut)

    def _pipe_over(self, number: int, peer: str, cut: Cut | None) -> None:
        del self._pipes[number]
        del self.names[peer]
        self._idle.pop(number, None)
        self._shake.forget(number)
        self._call.forget(number)
        self._closed(number, cut)

    def _drop_silent(self, number: int, cut: Cut | None = None) -> None:
        sock = self._silent.pop(number, None)
        if sock is not None:
            self._speak.forget(number)
            self._loop.remove_reader(sock)
            sock.close()
            self._closed(number, cut)

    def _make_room(self) -> None:
        while len(self._silent) + DESCRIPTORS_PER_PIPE * len(self._pipes) > self._descriptors_max:
            quiet = self._silent or self._idle
            if not quiet:
                return
            self.close(next(iter(quiet)), Cut.ROOM)
