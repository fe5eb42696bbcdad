"""A client's connection and gRPC's, joined, and how that ends."""

import asyncio
import socket

import pytest

from aemd.front.pipe import Pipe

TURNS = 20


async def turns():
    for _ in range(TURNS):
        await asyncio.sleep(0)


@pytest.fixture
def ends():
    """(the client's end, gRPC's end, ours of both)."""
    client, ours = socket.socketpair()
    server, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    yield client, server, ours, theirs
    for sock in (client, server):
        sock.close()


async def test_end_of_one_side_is_the_end_of_the_other(ends):
    client, server, *ours = ends
    over = []
    Pipe(*ours, over=over.append, moved=lambda _size: None)
    server.send(b"last words")
    server.close()
    await turns()
    assert over == [None]
    assert client.recv(100) == b"last words"
    with pytest.raises(BrokenPipeError):
        client.send(b"a call")


async def test_at_the_farewell_it_is_the_client_that_closes(ends):
    client, server, *ours = ends
    over = []
    pipe = Pipe(*ours, over=over.append, moved=lambda _size: None)
    pipe.take_no_calls()
    server.send(b"GOAWAY")
    server.close()
    await turns()
    assert over == []
    client.send(b"a call that nobody takes")
    await turns()
    assert client.recv(100) == b"GOAWAY"
    assert client.recv(100) == b""
    client.close()
    await turns()
    assert over == [None]


async def test_client_that_does_not_close_at_the_farewell_is_closed(ends):
    client, server, *ours = ends
    over = []
    pipe = Pipe(*ours, over=over.append, moved=lambda _size: None)
    pipe.take_no_calls()
    server.close()
    await turns()
    pipe.close()
    assert over == [None]
    with pytest.raises(BrokenPipeError):
        client.send(b"x")
