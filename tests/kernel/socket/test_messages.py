"""Lines, length-prefixed messages, seqpacket."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from aemd.core.errors import AemError

MS = 1_000_000


def test_lines_split_at_every_byte_arrive_whole(rig):
    job = rig.open("tcp:127.0.0.1:0", framing="line")
    text = b"one\n\r\ntwo\r\n\nlast"
    for cut in range(len(text) + 1):
        client, key = rig.connect(job)
        client.send(text[:cut])
        rig.quiet()
        client.send(text[cut:])
        client.shutdown(socket.SHUT_WR)
        rig.until(lambda key=key: rig.of("end", key))
        lines = [event.socket.data for event in rig.of("data", key)]
        assert lines == [b"one", b"\r", b"two\r", b"", b"last"]
        rig.op(job, key, "close")


def test_length_prefixed_messages_split_at_every_byte_arrive_whole(rig):
    job = rig.open("tcp:127.0.0.1:0", framing="length")
    messages = [b"", b"abc", b"x" * 300]
    text = b"".join(len(message).to_bytes(4, "big") + message for message in messages)
    for cut in range(24):
        client, key = rig.connect(job)
        client.send(text[:cut])
        rig.quiet()
        client.send(text[cut:])
        rig.until(lambda key=key: len(rig.of("data", key)) == 3)
        assert [event.socket.data for event in rig.of("data", key)] == messages
        rig.op(job, key, "close")


def test_frame_too_long_closes_after_the_messages_before_it_and_the_answers(rig):
    job = rig.open("tcp:127.0.0.1:0", framing="line", message_max=10)
    client, key = rig.connect(job)
    client.send(b"short\n" + b"x" * 11)
    closed = rig.closed(key).socket
    assert (closed.reason, closed.bytes_in) == ("frame-too-long", 17)
    assert rig.data(key) == b"short"
    assert rig.receive_end(client) == b""


def test_answers_before_a_frame_that_is_too_long_go_out(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s", framing="length", message_max=10)
    client, key = rig.connect(job)
    count, _ = rig.fill(job, key, lambda _: b"x" * 50_000)
    client.send(b"\0\0\1\0")
    rig.quiet()
    assert not rig.of("closed", key)
    with pytest.raises(AemError, match="ended"):
        rig.op(job, key, "write", b"more")
    assert len(rig.receive_end(client)) == count * 50_000
    assert rig.closed(key).socket.reason == "frame-too-long"


def test_stream_that_ends_inside_a_message_says_so(rig):
    job = rig.open("tcp:127.0.0.1:0", framing="length")
    client, key = rig.connect(job)
    client.send(b"\0\0\0\x05abc")
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.of("end", key))
    rig.op(job, key, "shutdown")
    closed = rig.closed(key).socket
    assert (closed.reason, closed.error_number) == ("error", errno.EBADMSG)


def test_many_small_lines_are_bounded_per_turn_and_none_is_lost(rig):
    job = rig.open("tcp:127.0.0.1:0", framing="line")
    client, key = rig.connect(job)
    lines = [b"%d" % number for number in range(5000)]
    client.send(b"\n".join(lines) + b"\n")
    rig.until(lambda: rig.of("data", key))
    assert len(rig.of("data", key)) < 5000
    rig.module.pause(job)
    rig.quiet()
    rig.loop.turn(0)
    count = len(rig.of("data", key))
    assert count < 5000
    rig.module.resume(job)
    rig.until(lambda: len(rig.of("data", key)) == 5000)
    assert [event.socket.data for event in rig.of("data", key)] == lines


def test_data_max_bounds_one_event(rig):
    job = rig.open("tcp:127.0.0.1:0", data_max=100)
    client, key = rig.connect(job)
    client.send(os.urandom(1000))
    rig.wait_data(1000)
    assert [len(event.socket.data) for event in rig.of("data", key)] == [100] * 10


def test_seqpacket_keeps_borders_both_ways_and_marks_what_is_cut(rig, tmp_path):
    job = rig.open(f"unix-seqpacket:{tmp_path}/s", data_max=10)
    client, key = rig.connect(job)
    for message in (b"one", b"", b"0123456789abc"):
        client.send(message)
    rig.until(lambda: len(rig.of("data", key)) == 3)
    assert [(e.socket.data, e.socket.truncated) for e in rig.of("data", key)] == [
        (b"one", False),
        (b"", False),
        (b"0123456789", True),
    ]
    rig.op(job, key, "write", b"a")
    rig.op(job, key, "write", b"")
    rig.op(job, key, "write", b"bc")
    assert [client.recv(10) for _ in range(3)] == [b"a", b"", b"bc"]


def test_seqpacket_messages_wait_whole_for_a_slow_reader(rig, tmp_path):
    job = rig.open(f"unix-seqpacket:{tmp_path}/s")
    client, key = rig.connect(job)
    sent, _ = rig.fill(job, key, lambda number: number.to_bytes(2, "big") * 500)
    got = 0
    while got < sent:
        try:
            assert client.recv(2000) == got.to_bytes(2, "big") * 500
            got += 1
        except BlockingIOError:
            rig.loop.turn(10 * MS)
    with pytest.raises(AemError, match="too long"):
        rig.op(job, key, "write", b"x" * 250_000)
