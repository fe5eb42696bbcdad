"""The relay over real sockets; the test is the core, the clients, and gRPC's listening socket."""

import asyncio
import os
import socket

import pytest

from aemd.front import relay as module
from aemd.front.relay import Relay
from aemd.link import DESCRIPTOR, HAND_OVER


class Bench:
    def __init__(self):
        self.core, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(b"\0" + os.urandom(16).hex().encode())
        self.listener.listen()
        self.listener.setblocking(False)
        self.closed = asyncio.Queue()
        self.relay = Relay(self.theirs, address=self.listener.getsockname(), closed=self.closed.put_nowait)
        self.relay.start()
        self.loop = asyncio.get_running_loop()
        self.socks = [self.core, self.listener]

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
    await bench.loop.sock_sendall(client, b"hello")
    server, number = await bench.accept()
    assert number == 42
    assert await bench.recv(server, 5) == b"hello"
    await bench.loop.sock_sendall(server, b"welcome")
    assert await bench.recv(client, 7) == b"welcome"


async def test_silent_connection_is_not_piped(bench):
    silent, loud = bench.client(1), bench.client(2)
    await bench.loop.sock_sendall(loud, b"x")
    _, number = await bench.accept()
    assert number == 2
    assert (len(bench.relay), bench.relay.piped) == (2, 1)
    silent.close()
    assert await bench.next_closed() == 1


async def test_large_amounts_wait_for_the_reader(bench):
    client = bench.client(1)
    data = os.urandom(4_000_000)
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
    await bench.loop.sock_sendall(client, b"x")
    server, _ = await bench.accept()
    assert await bench.recv(server, 1) == b"x"
    ends, stays = (client, server) if side == "client" else (server, client)
    await bench.loop.sock_sendall(ends, b"last words")
    ends.close()
    assert await bench.recv(stays, 100) == b"last words"
    assert await bench.next_closed() == 9
    assert bench.relay.names == {}
    assert len(bench.relay) == 0


async def test_core_closes_silent_and_piped_connections(bench):
    silent, loud = bench.client(1), bench.client(2)
    await bench.loop.sock_sendall(loud, b"x")
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
    await bench.loop.sock_sendall(clients[4], b"x")
    _, number = await bench.accept()
    assert number == 5
    assert [await bench.next_closed(), await bench.next_closed()] == [2, 3]
    assert len(bench.relay) == 3


async def test_full_backlog_is_tried_again(bench, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_AGAIN_SECONDS", 0)
    bench.listener.listen(0)
    clients = [bench.client(number) for number in range(1, 6)]
    for client in clients:
        await bench.loop.sock_sendall(client, b"x")
    assert sorted([(await bench.accept())[1] for _ in clients]) == [1, 2, 3, 4, 5]


async def test_connection_reset_by_the_client_is_closed(bench):
    client = bench.client(3)
    await bench.loop.sock_sendall(client, b"x")
    server, _ = await bench.accept()
    await bench.loop.sock_sendall(server, b"never read")
    await bench.recv(server, 1)
    while not await asyncio.get_running_loop().sock_recv(client, 1):
        pass
    client.close()
    assert await bench.next_closed() == 3
