"""Datagrams: what comes, what is cut, what the kernel drops, and answers to senders only."""

from __future__ import annotations

import os
import socket
import tempfile

import pytest

from aemd.core.errors import AemError
from aemd.modules.socket import reply
from aemd.v1 import session_pb2
from tests.kernel.conftest import principal

MS = 1_000_000
NOBODY = 65_534


def sender(rig, job, name=None) -> socket.socket:
    bound = job.data.bound.socket
    client = socket.socket(bound.family, socket.SOCK_DGRAM)
    rig.clients.append(client)
    if name is not None:
        client.bind(name)
    client.connect(bound.getsockname())
    client.setblocking(False)
    return client


@pytest.mark.parametrize("listen", ["udp:127.0.0.1:0", "udp:[::1]:0", "unix-dgram:@{}/s"])
def test_datagrams_come_whole_and_are_answered_to_their_sender(rig, tmp_path, listen):
    job = rig.open(listen.format(tmp_path))
    unix = job.data.bound.socket.family == socket.AF_UNIX
    clients = [sender(rig, job, f"\0{tmp_path}/{name}" if unix else None) for name in "ab"]
    for number, client in enumerate(clients):
        client.send(b"from %d" % number)
        client.send(b"")
    rig.until(lambda: len(rig.of("data")) == 4)
    assert [e.socket.data for e in rig.of("data")] == [b"from 0", b"", b"from 1", b""]
    first, _, second, _ = rig.of("data")
    assert first.key != second.key
    assert first.socket.peer.display != second.socket.peer.display
    assert first.socket.connection == 0
    assert first.socket.local == rig.of("listening")[0].socket.local
    rig.op(job, second.key, "write", b"to 1")
    rig.op(job, first.key, "write", b"to 0")
    assert [client.recv(100) for client in clients] == [b"to 0", b"to 1"]


def test_peer_address_is_the_senders(rig):
    job = rig.open("udp:127.0.0.1:0")
    client = sender(rig, job)
    client.send(b"x")
    rig.until(lambda: rig.of("data"))
    peer = rig.of("data")[0].socket.peer
    assert (peer.host, peer.port) == client.getsockname()


def test_unix_datagrams_carry_the_credentials_of_the_sender(rig, tmp_path):
    job = rig.open(f"unix-dgram:{tmp_path}/s")
    client = sender(rig, job)
    client.send(b"x")
    rig.until(lambda: rig.of("data"))
    event = rig.of("data")[0]
    assert (event.socket.credentials.pid, event.socket.credentials.uid) == (os.getpid(), os.geteuid())


def test_sender_without_a_name_cannot_be_answered(rig, tmp_path):
    job = rig.open(f"unix-dgram:{tmp_path}/s")
    sender(rig, job).send(b"x")
    rig.until(lambda: rig.of("data"))
    event = rig.of("data")[0]
    assert event.key == b""
    assert event.socket.peer.display == "unix-dgram:"
    with pytest.raises(AemError) as caught:
        rig.op(job, event.key, "write", b"x")
    assert caught.value.reason == "NO_ADDRESS"


def test_descriptor_passed_with_a_datagram_is_not_kept(rig, tmp_path):
    job = rig.open(f"unix-dgram:{tmp_path}/s")
    client = sender(rig, job)
    descriptors = len(os.listdir("/proc/self/fd"))
    with open("/dev/null", "rb") as passed:
        socket.send_fds(client, [b"x"], [passed.fileno()])
    rig.until(lambda: rig.of("data"))
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_key_that_the_daemon_did_not_make_is_refused(rig, tmp_path):
    """Else a client could have the daemon write to any Unix socket of the machine."""
    job = rig.open(f"unix-dgram:{tmp_path}/s")
    victim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    rig.clients.append(victim)
    victim.bind(f"{tmp_path}/victim")
    victim.setblocking(False)
    client = sender(rig, job, f"{tmp_path}/client")
    client.send(b"x")
    rig.until(lambda: rig.of("data"))
    key = rig.of("data")[0].key
    for forged in (key[:8] + os.fsencode(f"{tmp_path}/victim"), bytes(8) + key[8:], b"x", key + b"x"):
        with pytest.raises(AemError) as caught:
            rig.op(job, forged, "write", b"evil")
        assert caught.value.reason == "INVALID_FIELD"
    with pytest.raises(BlockingIOError):
        victim.recv(10)


def test_key_of_another_kind_of_socket_is_refused(rig):
    four, six = rig.open("udp:127.0.0.1:0"), rig.open("udp:[::1]:0")
    sender(rig, four).send(b"x")
    rig.until(lambda: rig.of("data"))
    with pytest.raises(AemError, match="another kind"):
        rig.op(six, rig.of("data")[0].key, "write", b"x")


@pytest.mark.parametrize("listen", ["udp:127.0.0.1:0", "unix-dgram:@{}/s"])
def test_long_datagram_is_cut_and_says_so(rig, tmp_path, listen):
    job = rig.open(listen.format(tmp_path), data_max=10)
    client = sender(rig, job)
    client.send(b"0123456789")
    client.send(b"0123456789a")
    rig.until(lambda: len(rig.of("data")) == 2)
    assert [(e.socket.data, e.socket.truncated) for e in rig.of("data")] == [
        (b"0123456789", False),
        (b"0123456789", True),
    ]


def test_what_the_kernel_drops_becomes_a_gap_with_the_exact_count(rig):
    job = rig.open("udp:127.0.0.1:0")
    job.data.bound.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client = sender(rig, job)
    for _ in range(500):
        client.send(b"x" * 500)
    rig.until(lambda: rig.host.gaps)
    rig.quiet()
    received = len(rig.of("data"))
    assert 0 < received < 500
    assert sum(gap["count"] for gap in rig.host.gaps) == 500 - received
    assert rig.host.gaps[0]["stage"] == session_pb2.STAGE_KERNEL
    assert rig.module.details(job)["lost"] == str(500 - received)


@pytest.mark.parametrize("how", ["job", "operation", "stop"])
def test_paused_job_leaves_datagrams_in_the_kernel(rig, how):
    job = rig.open("udp:127.0.0.1:0")
    client = sender(rig, job)
    pause = {"job": lambda: rig.module.pause(job), "stop": lambda: rig.module.stop(job)}
    resume = {"job": lambda: rig.module.resume(job), "stop": lambda: rig.module.start(job)}
    pause.get(how, lambda: rig.op(job, b"", "pause"))()
    client.send(b"x")
    rig.quiet()
    assert not rig.of("data")
    resume.get(how, lambda: rig.op(job, b"", "resume"))()
    assert rig.wait_data(1) == b"x"


def test_flood_is_read_in_pieces_and_in_order(rig, tmp_path):
    job = rig.open("udp:127.0.0.1:0")
    client = sender(rig, job)
    for number in range(150):
        client.send(b"%d" % number)
    rig.loop.turn()
    assert 0 < len(rig.of("data")) < 150
    rig.until(lambda: len(rig.of("data")) == 150)
    assert [e.socket.data for e in rig.of("data")] == [b"%d" % number for number in range(150)]


def test_many_senders_are_told_apart(rig):
    job = rig.open("udp:127.0.0.1:0")
    for _ in range(1100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", job.data.bound.socket.getsockname())
        rig.loop.turn()
    rig.until(lambda: len(rig.of("data")) == 1100)
    for event in rig.of("data"):
        assert int.from_bytes(event.key[12:], "big") == event.socket.peer.port


def test_busy_peer_and_too_long_answers_are_refused(rig, tmp_path):
    job = rig.open(f"unix-dgram:{tmp_path}/s")
    client = sender(rig, job, f"\0{tmp_path}/client")
    client.send(b"x")
    rig.until(lambda: rig.of("data"))
    key = rig.of("data")[0].key
    _, refused = rig.fill(job, key, lambda _: b"x")
    assert refused.reason == "PEER_BUSY"
    rig.quiet()
    client.close()
    with pytest.raises(AemError) as caught:
        rig.op(job, key, "write", b"x")
    assert caught.value.reason == "PEER_UNREACHABLE"
    with pytest.raises(AemError) as caught:
        rig.op(job, key, "write-close", b"x")
    assert caught.value.reason == "NO_CONNECTION"


def test_sender_with_a_path_is_answered_in_order_and_told_of_refusals_with_the_next(rig, tmp_path):
    job = rig.open(f"unix-dgram:{tmp_path}/s")
    client = sender(rig, job, f"{tmp_path}/client")
    client.send(b"x")
    rig.until(lambda: rig.of("data"))
    key = rig.of("data")[0].key
    written, refused = rig.fill(job, key, lambda number: b"%d" % number)
    assert (written, refused.reason) == (reply.WAITING_MAX + 1, "PEER_BUSY")
    assert rig.module.busy(job)
    told = []
    client.settimeout(0)
    while len(told) < 10:  # as many as its queue holds, net.unix.max_dgram_qlen
        try:
            told.append(client.recv(100))
        except BlockingIOError:
            rig.loop.turn(10 * MS)
    assert told == [b"%d" % number for number in range(10)]
    client.close()
    rig.until(lambda: not rig.module.busy(job))
    with pytest.raises(AemError) as caught:
        rig.op(job, key, "write", b"x")
    assert caught.value.reason == "PEER_UNREACHABLE"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the daemon acts for another user")
def test_answer_is_sent_with_the_rights_of_the_owner_and_not_of_the_daemon(rig):
    """A sender whose path leads to another socket by the time that it is answered."""
    with tempfile.TemporaryDirectory(prefix="aemd-") as place:
        os.chmod(place, 0o755)
        for name in ("own", "own/a", "root"):
            os.mkdir(f"{place}/{name}")
            os.chmod(f"{place}/{name}", 0o777 if name.startswith("own") else 0o755)
        victim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        rig.clients.append(victim)
        victim.bind(f"{place}/root/notify")
        os.chmod(f"{place}/root/notify", 0o600)
        job = rig.open(f"unix-dgram:{place}/own/s", owner=principal(NOBODY))
        client = sender(rig, job, f"{place}/own/a/notify")
        client.send(b"x")
        rig.until(lambda: rig.of("data"))
        key = rig.of("data")[0].key
        os.rename(f"{place}/own/a", f"{place}/own/b")
        os.symlink(f"{place}/root", f"{place}/own/a")
        rig.op(job, key, "write", b"STOPPING=1")
        rig.until(lambda: not rig.module.busy(job))
        with pytest.raises(BlockingIOError):
            victim.recv(100)
        with pytest.raises(AemError) as caught:
            rig.op(job, key, "write", b"STOPPING=1")
        assert caught.value.details["errno"] == "EACCES"
        rig.close(job)


def test_answer_that_no_datagram_can_hold_is_refused(rig):
    job = rig.open("udp:127.0.0.1:0")
    sender(rig, job).send(b"x")
    rig.until(lambda: rig.of("data"))
    with pytest.raises(AemError) as caught:
        rig.op(job, rig.of("data")[0].key, "write", bytes(70_000))
    assert caught.value.reason == "INVALID_FIELD"


def test_sync_comes_after_every_datagram_that_waited(rig):
    job = rig.open("udp:127.0.0.1:0")
    client = sender(rig, job)
    for _ in range(150):
        client.send(b"x")
    done = []
    rig.module.sync(job, lambda: done.append(len(rig.of("data"))))
    rig.until(lambda: done)
    assert done == [150]
    rig.module.sync(job, lambda: done.append(0))
    rig.module.stop(job)
    rig.module.sync(job, lambda: done.append(1))
    assert done[1:] == [0, 1]


def test_full_queue_stops_receiving_at_that_very_datagram(rig):
    job = rig.open("udp:127.0.0.1:0")
    client = sender(rig, job)
    for _ in range(10):
        client.send(b"x")
    rig.host.fired_max = len(rig.host.fired) + 4
    rig.until(lambda: len(rig.of("data")) == 4)
    rig.quiet()
    assert len(rig.of("data")) == 4
    rig.host.fired_max += 100
    rig.module.resume(job)
    rig.until(lambda: len(rig.of("data")) == 10)
