"""The relay over real sockets; the test is the core, the clients, and gRPC's listening socket."""

import asyncio
import contextlib
import os
import socket

import pytest

from aemd.front import relay as module
from aemd.front.accountant import PREFACE
from aemd.front.relay import Relay
from aemd.link import DESCRIPTOR, HAND_OVER, Cut

HELLO = PREFACE + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
HEADERS = bytes((0, 0, 1, 1, 4, 0, 0, 0, 1)) + b"\x82"
LAST_WORDS = bytes((0, 0, 10, 0, 0, 0, 0, 0, 1)) + b"last words"


class Bench:
    def __init__(self):
        self.core, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(b"\0" + os.urandom(16).hex().encode())
        self.listener.listen()
        self.listener.setblocking(False)
        self.closed = asyncio.Queue()
        self.moved = 0
        self.relay = Relay(
            self.theirs,
            address=self.listener.getsockname(),
            closed=lambda number, cut: self.closed.put_nowait((number, cut)),
            moved=self._count,
        )
        self.relay.start()
        self.loop = asyncio.get_running_loop()
        self.socks = [self.core, self.listener]

    def _count(self, size_bytes):
        self.moved += size_bytes

    def client(self, number):
        """A client whose connection is handed over."""
        client, server = socket.socketpair()
        client.setblocking(False)
        socket.send_fds(self.core, [DESCRIPTOR.pack(HAND_OVER, number)], [server.fileno()])
        server.close()
        self.socks.append(client)
        return client

    async def accept(self):
        """gRPC's end of the next connection, and whose it says it is."""
        sock, name = await asyncio.wait_for(self.loop.sock_accept(self.listener), 10)
        self.socks.append(sock)
        return sock, self.relay.names[f"unix-abstract:{name[1:].decode()}"]

    async def recv(self, sock, count):
        got = b""
        while len(got) < count:
            piece = await asyncio.wait_for(self.loop.sock_recv(sock, 1 << 16), 10)
            if not piece:
                break
            got += piece
        return got

    async def next_closed(self):
        return (await self.next_cut())[0]

    async def next_cut(self):
        """The number of the next connection that is over, and why if the relay closed it."""
        return await asyncio.wait_for(self.closed.get(), 10)

    async def close(self):
        while len(self.relay):
            for number in [*self.relay._silent, *self.relay._pipes]:
                self.relay.close(number)
        self.loop.remove_reader(self.theirs)
        self.theirs.close()
        for sock in self.socks:
            sock.close()


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    await bench.close()


async def test_bytes_flow_both_ways_under_the_connections_number(bench):
    client = bench.client(42)
    await bench.loop.sock_sendall(client, HELLO)
    server, number = await bench.accept()
    assert number == 42
    assert await bench.recv(server, len(HELLO)) == HELLO
    assert bench.moved == len(HELLO)
    await bench.loop.sock_sendall(server, b"welcome")
    assert await bench.recv(client, 7) == b"welcome"


async def test_silent_connection_is_not_piped(bench):
    silent, loud = bench.client(1), bench.client(2)
    await bench.loop.sock_sendall(loud, HELLO)
    _, number = await bench.accept()
    assert number == 2
    assert (len(bench.relay), bench.relay.piped) == (2, 1)
    silent.close()
    assert await bench.next_closed() == 1


async def test_large_amounts_wait_for_the_reader(bench):
    client = bench.client(1)
    data = HELLO + (4_000_000).to_bytes(3, "big") + bytes(6) + os.urandom(4_000_000)
    sending = asyncio.create_task(bench.loop.sock_sendall(client, data))
    server, _ = await bench.accept()
    assert await bench.recv(server, len(data)) == data
    await sending
    sending = asyncio.create_task(bench.loop.sock_sendall(server, data))
    assert await bench.recv(client, len(data)) == data
    await sending


@pytest.mark.parametrize("side", ["client", "server"])
async def test_end_of_either_side_is_the_end(bench, side):
    client = bench.client(9)
    await bench.loop.sock_sendall(client, HELLO)
    server, _ = await bench.accept()
    assert await bench.recv(server, len(HELLO)) == HELLO
    ends, stays = (client, server) if side == "client" else (server, client)
    await bench.loop.sock_sendall(ends, LAST_WORDS)
    ends.close()
    assert await bench.recv(stays, 100) == LAST_WORDS
    assert await bench.next_closed() == 9
    assert bench.relay.names == {}
    assert len(bench.relay) == 0


async def test_core_closes_silent_and_piped_connections(bench):
    silent, loud = bench.client(1), bench.client(2)
    await bench.loop.sock_sendall(loud, HELLO)
    await bench.accept()
    for number, sock in ((1, silent), (2, loud)):
        bench.relay.close(number)
        bench.relay.close(number)
        assert await bench.next_closed() == number
        assert await bench.recv(sock, 1) == b""
    bench.relay.close(77)
    assert bench.closed.empty()


async def test_handover_without_a_descriptor_is_closed(bench):
    bench.core.send(DESCRIPTOR.pack(HAND_OVER, 5))
    assert await bench.next_closed() == 5


async def test_longest_silent_goes_when_descriptors_are_short(bench):
    bench.relay._descriptors_max = 5
    clients = [bench.client(number) for number in range(1, 6)]
    bench.client(6)
    assert await bench.next_closed() == 1
    await bench.loop.sock_sendall(clients[4], HELLO)
    _, number = await bench.accept()
    assert number == 5
    assert [await bench.next_closed(), await bench.next_closed()] == [2, 3]
    assert len(bench.relay) == 3


async def test_full_backlog_is_tried_again(bench, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_AGAIN_SECONDS", 0)
    bench.listener.listen(0)
    clients = [bench.client(number) for number in range(1, 6)]
    for client in clients:
        await bench.loop.sock_sendall(client, HELLO)
    assert sorted([(await bench.accept())[1] for _ in clients]) == [1, 2, 3, 4, 5]


async def test_connection_reset_by_the_client_is_closed(bench):
    client = bench.client(3)
    await bench.loop.sock_sendall(client, HELLO)
    server, _ = await bench.accept()
    await bench.loop.sock_sendall(server, b"never read")
    await bench.recv(server, len(HELLO))
    while not await asyncio.get_running_loop().sock_recv(client, 1):
        pass
    client.close()
    assert await bench.next_closed() == 3


async def test_client_over_its_budget_is_cut_off_and_the_rest_of_it_goes_nowhere(bench):
    client = bench.client(7)
    await bench.loop.sock_sendall(client, HELLO)
    server, _ = await bench.accept()
    assert await bench.recv(server, len(HELLO)) == HELLO
    with contextlib.suppress(OSError):
        while True:
            await bench.loop.sock_sendall(client, (bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8)) * 1_000)
    assert await bench.next_cut() == (7, Cut.PING)
    assert bench.relay.names == {}


@pytest.mark.parametrize(
    ("limit", "said", "cut"),
    [
        ("SILENT_SECONDS", b"", Cut.SILENT),
        ("HANDSHAKE_SECONDS", b"P", Cut.HANDSHAKE),
        ("HANDSHAKE_SECONDS", PREFACE, Cut.HANDSHAKE),
        ("NO_CALL_SECONDS", HELLO, Cut.NO_CALL),
    ],
)
async def test_client_that_takes_too_long_is_closed(monkeypatch, limit, said, cut):
    monkeypatch.setattr(module, limit, 0)
    bench = Bench()
    client = bench.client(3)
    await bench.loop.sock_sendall(client, said)
    assert await bench.next_cut() == (3, cut)
    assert await bench.recv(client, 1) == b""
    await bench.close()


async def test_client_that_has_called_is_not_hurried(monkeypatch):
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.01)
    monkeypatch.setattr(module, "NO_CALL_SECONDS", 0.01)
    bench = Bench()
    client, late = bench.client(1), bench.client(2)
    await bench.loop.sock_sendall(client, HELLO + HEADERS)
    await bench.accept()
    await bench.loop.sock_sendall(late, HELLO)
    assert await bench.next_cut() == (2, Cut.NO_CALL)
    assert bench.relay.piped == 1
    await bench.close()


async def test_idle_one_goes_before_the_one_with_a_call_when_descriptors_are_short(bench):
    async def connect(number):
        await bench.loop.sock_sendall(bench.client(number), HELLO)
        return await bench.accept()

    for number in range(1, 4):
        await connect(number)
    for number in (1, 2, 2):
        bench.relay.call_begun(number)
    bench.relay.call_over(2)
    bench.relay._descriptors_max = 10
    await connect(4)
    assert await bench.next_cut() == (3, Cut.ROOM)
    bench.relay.call_over(2)
    await connect(5)
    assert await bench.next_cut() == (4, Cut.ROOM)
    await connect(6)
    assert await bench.next_cut() == (2, Cut.ROOM)
    assert bench.relay.piped == 3
