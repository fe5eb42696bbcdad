"""A connection's life, from accepted to closed, in every family."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from aemd.core.errors import AemError

MS = 1_000_000
ROOM = 256 * 1024


def stream_addresses(tmp_path) -> dict[str, str]:
    return {
        "tcp": "tcp:127.0.0.1:0",
        "tcp6": "tcp:[::1]:0",
        "any": "tcp::0",
        "unix": f"unix:{tmp_path}/s",
        "abstract": f"unix:@{tmp_path}/s",
        "seqpacket": f"unix-seqpacket:{tmp_path}/s",
    }


STREAMS = ("tcp", "tcp6", "any", "unix", "abstract", "seqpacket")


@pytest.mark.parametrize("kind", STREAMS)
def test_life_of_a_connection_in_every_family(rig, tmp_path, kind):
    job = rig.open(stream_addresses(tmp_path)[kind])
    listening = rig.of("listening")[0].socket.local
    assert listening.family == kind.replace("tcp6", "tcp").replace("any", "tcp").replace(
        "abstract", "unix"
    ).replace("seqpacket", "unix-seqpacket")
    assert kind in ("unix", "abstract", "seqpacket") or listening.port
    client, key = rig.connect(job)
    client.send(b"hello")
    assert rig.wait_data(5, key) == b"hello"
    rig.op(job, key, "write", b"world")
    assert rig.receive(client, 5) == b"world"
    client.close()
    rig.until(lambda: rig.of("end", key))
    if not rig.of("closed", key):
        rig.op(job, key, "close")
    closed = rig.closed(key)
    assert (closed.socket.bytes_in, closed.socket.bytes_out) == (5, 5)
    assert rig.types(key)[:2] == ["accepted", "data"]
    assert rig.types(key)[-1] == "closed"
    assert all(int.from_bytes(f.key, "big") == f.event.socket.connection for f in rig.host.fired)
    assert all(f.event.key == f.key for f in rig.host.fired)


def test_accepted_tells_who_connected(rig, tmp_path):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    event = rig.of("accepted", key)[0].socket
    host, port = client.getsockname()
    assert (event.peer.host, event.peer.port) == (host, port)
    assert event.peer.display == f"tcp:{host}:{port}"
    assert event.local.port == rig.of("listening")[0].socket.local.port
    assert event.room_bytes == ROOM
    assert not event.HasField("credentials")


def test_unix_peer_has_the_credentials_of_the_kernel(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    _, key = rig.connect(job)
    found = rig.of("accepted", key)[0].socket
    assert (found.credentials.pid, found.credentials.uid, found.credentials.gid) == (
        os.getpid(),
        os.geteuid(),
        os.getegid(),
    )
    assert found.local.path == os.fsencode(f"{tmp_path}/s")


def test_empty_host_takes_both_families_and_names_ipv4_peers_as_such(rig):
    job = rig.open("tcp::0")
    port = job.data.bound.socket.getsockname()[1]
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as client:
            client.connect((host, port))
            count = len(rig.of("accepted"))
            rig.until(lambda count=count: len(rig.of("accepted")) > count)
            assert rig.of("accepted")[-1].socket.peer.host == host


def test_ipv6_and_ipv4_any_share_a_port(rig):
    job = rig.open("tcp:[::]:0")
    port = job.data.bound.socket.getsockname()[1]
    rig.open(f"tcp:0.0.0.0:{port}")


def test_answer_goes_out_after_the_peer_has_ended_its_direction(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.of("end", key))
    assert rig.data(key) == b"question"
    rig.quiet()
    rig.op(job, key, "write", b"part 1 ")
    rig.op(job, key, "write-close", b"part 2")
    assert rig.receive_end(client) == b"part 1 part 2"
    assert rig.closed(key).socket.reason == "closed"
    assert rig.types(key) == ["accepted", "data", "end", "closed"]


def test_peer_may_go_on_after_our_direction_was_ended(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    rig.op(job, key, "write", b"bye")
    rig.op(job, key, "shutdown")
    assert rig.receive_end(client) == b"bye"
    client.send(b"still here")
    assert rig.wait_data(10, key) == b"still here"
    with pytest.raises(AemError):
        rig.op(job, key, "write", b"x")
    client.close()
    closed = rig.closed(key).socket
    assert (closed.reason, closed.error_number) == ("eof", 0)
    assert rig.types(key) == ["accepted", "data", "end", "closed"]


def test_shutdown_waits_for_output(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    rig.op(job, key, "write", b"x" * ROOM)
    rig.op(job, key, "write", b"y" * 100_000)
    rig.op(job, key, "shutdown")
    assert len(rig.receive_end(client)) == ROOM + 100_000


def test_half_open_connection_ends_when_nothing_is_written(rig):
    job = rig.open("tcp:127.0.0.1:0", end_timeout=20 * MS)
    client, key = rig.connect(job)
    client.shutdown(socket.SHUT_WR)
    assert rig.closed(key).socket.reason == "eof"
    assert rig.types(key) == ["accepted", "end", "closed"]


def test_no_end_timeout_closes_as_soon_as_output_is_out(rig):
    job = rig.open("tcp:127.0.0.1:0", end_timeout=0)
    client, key = rig.connect(job)
    client.shutdown(socket.SHUT_WR)
    assert rig.closed(key).socket.reason == "eof"
    assert client.recv(1) == b""


def test_unix_peer_that_is_gone_is_closed_without_waiting(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    client.send(b"last words")
    client.close()
    assert rig.closed(key).socket.reason == "eof"
    assert rig.types(key) == ["accepted", "data", "end", "closed"]


def test_reset_is_told_with_its_errno(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    rig.hard_close(client)
    closed = rig.closed(key).socket
    assert (closed.reason, closed.error_number) == ("reset", errno.ECONNRESET)
    assert rig.types(key) == ["accepted", "closed"]


def test_reset_after_half_close_is_told(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.of("end", key))
    rig.hard_close(client)
    assert rig.closed(key).socket.reason == "reset"


def test_write_to_a_peer_that_is_gone_is_refused_and_closed_follows(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    client.close()
    with pytest.raises(AemError) as caught:
        rig.op(job, key, "write", b"to nobody")
    assert caught.value.reason == "CONNECTION_CLOSED"
    assert rig.closed(key).socket.reason == "reset"


def test_reset_while_output_waits_ends_the_connection(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    rig.fill(job, key, lambda _: b"x" * ROOM)
    rig.hard_close(client)
    assert rig.closed(key).socket.reason == "reset"
    rig.quiet()


def test_silent_connection_is_closed_in_time(rig):
    job = rig.open("tcp:127.0.0.1:0", idle_timeout=30 * MS)
    client, key = rig.connect(job)
    client.send(b"x")
    rig.wait_data(1)
    assert rig.closed(key).socket.reason == "idle-timeout"
    assert rig.receive_end(client) == b""
