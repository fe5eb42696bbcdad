"""Writing: partial writes, room, and how connections are closed."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from aemd.core.errors import AemError
from aemd.modules.socket import connection, discard

MS = 1_000_000
ROOM = 256 * 1024


@pytest.mark.parametrize("listen", ["tcp:127.0.0.1:0", "unix:@{}/s"])
def test_slow_reader_gets_everything_and_room_comes_back(rig, tmp_path, listen):
    job = rig.open(listen.format(tmp_path))
    client, key = rig.connect(job)
    sent, room = bytearray(), ROOM
    got = bytearray()
    while len(sent) < 8 * ROOM:
        piece = os.urandom(min(room, 40_000))
        if piece:
            rig.op(job, key, "write", piece)
            sent += piece
            room -= len(piece)
        else:
            try:
                got += client.recv(30_000)
            except BlockingIOError:
                pass
        rig.loop.turn(0)
        room += sum(size for _, of, size in rig.host.rooms if of == key)
        rig.host.rooms.clear()
        assert room <= ROOM
    got += rig.receive(client, len(sent) - len(got))
    assert bytes(got) == bytes(sent)
    rig.op(job, key, "close")
    assert rig.closed(key).socket.bytes_out == len(sent)


def test_room_is_given_back_by_the_quarter_when_nothing_waits(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    for number in range(1, 65):
        rig.op(job, key, "write", b"x" * 1024)
        assert bool(rig.host.rooms) == (number == 64)
    assert rig.host.rooms == [(job, key, ROOM // 4)]
    assert len(rig.receive(client, 65536)) == 65536


def test_write_beyond_the_room_is_refused_and_nothing_of_it_is_sent(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    count, refused = rig.fill(job, key, lambda _: b"a" * 10_000)
    written = count * 10_000
    assert refused.reason == "LIMIT_REACHED"
    assert "Room" in refused.message
    with pytest.raises(AemError):
        rig.op(job, key, "write", b"b" * (ROOM + 1))
    assert rig.receive(client, written) == b"a" * written
    rig.quiet()
    with pytest.raises(BlockingIOError):
        client.recv(1)


def test_write_close_delivers_all_although_the_peer_has_sent_more(rig):
    """Without the discarding the RST for the unread bytes would destroy the answer on its way."""
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    client.send(b"request")
    rig.wait_data(7)
    client.send(b"more that nobody reads" * 100)
    answer = os.urandom(200_000)
    rig.op(job, key, "write-close", answer)
    client.send(b"and more" * 100)
    assert rig.receive_end(client) == answer
    closed = rig.closed(key).socket
    assert (closed.reason, closed.bytes_in, closed.bytes_out) == ("closed", 7, len(answer))
    client.close()
    rig.until(lambda: not job.data.discards)
    assert rig.host.charged[job.id] == 1


def test_after_write_close_nothing_more_is_taken_and_the_key_is_soon_unknown(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    rig.op(job, key, "write", b"x" * ROOM)
    rig.op(job, key, "write-close", b"y")
    with pytest.raises(AemError) as caught:
        rig.op(job, key, "write", b"z")
    assert caught.value.reason == "CONNECTION_CLOSED"
    assert rig.receive_end(client) == b"x" * ROOM + b"y"
    rig.closed(key)
    with pytest.raises(AemError) as caught:
        rig.op(job, key, "write", b"z")
    assert caught.value.reason == "CONNECTION_CLOSED"


def test_close_drops_what_waits(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    for _ in range(4):
        rig.op(job, key, "write", b"x" * 100_000)
    rig.op(job, key, "close")
    closed = rig.closed(key).socket
    assert closed.reason == "closed"
    assert closed.bytes_out < 400_000
    assert len(rig.receive_end(client)) == closed.bytes_out


def test_abort_resets_the_peer(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    rig.op(job, key, "abort")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert rig.closed(key).socket.reason == "closed"


def test_job_that_ends_still_lets_its_last_answer_arrive(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    client.send(b"unread")
    rig.op(job, key, "write", b"answer")
    fired = len(rig.host.fired)
    rig.close(job)
    assert rig.receive_end(client) == b"answer"
    assert len(rig.host.fired) == fired


def test_closing_the_job_while_output_waits_gives_everything_back(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    _, key = rig.connect(job)
    for _ in range(4):
        rig.op(job, key, "write", b"x" * 100_000)
    rig.close(job)
    assert rig.host.charged[job.id] == 0
    rig.quiet()


def test_peer_that_takes_nothing_holds_an_ending_connection_only_so_long(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "STALL_NS", 20 * MS)
    job = rig.open(f"unix:{tmp_path}/s")
    _, key = rig.connect(job)
    rig.fill(job, key, lambda _: b"x" * 50_000)
    rig.op(job, key, "write-close")
    closed = rig.closed(key).socket
    assert (closed.reason, closed.error_number) == ("closed", errno.ETIMEDOUT)
    assert rig.host.charged[job.id] == 2  # the socket, and the directory that its name is in


def test_peer_that_never_closes_holds_the_descriptor_only_so_long(rig, monkeypatch):
    monkeypatch.setattr(discard, "DISCARD_NS", 20 * MS)
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    rig.op(job, key, "write-close", b"bye")
    assert rig.closed(key).socket.bytes_out == 3
    client.send(b"never mind")
    rig.until(lambda: rig.host.charged[job.id] == 1)


def test_endless_stream_of_answers_keeps_a_half_open_connection(rig):
    job = rig.open("tcp:127.0.0.1:0", end_timeout=500 * MS)
    client, key = rig.connect(job)
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.of("end", key))
    ended_ns = rig.of("end", key)[0].mono_time_ns
    while rig.loop.mono_ns() < ended_ns + 800 * MS:
        rig.op(job, key, "write", b"x")
        rig.loop.turn(MS)
    assert not rig.of("closed", key)
    assert rig.closed(key).socket.reason == "eof"
