"""A job of module socket goes on in the next daemon: what is left, and how it is taken up."""

from __future__ import annotations

import os
import socket

import msgspec
import pytest

from aemd.core.history import Resumed
from aemd.modules.left import Left
from aemd.modules.socket import Socket
from aemd.v1 import session_pb2

NAME = f"aemd-test-next-{os.getpid()}"


class Restart:
    """Ends the module's part of a job, and begins it again in another module object; the manager is us."""

    def __init__(self, rig):
        self.rig = rig

    def __call__(
        self, job, *, keeps=True, drop=(), alter=lambda memento: memento, started=True, between=None
    ):
        """`keeps`: the address is kept; `drop`: numbers of connections that are not."""
        rig, module = self.rig, self.rig.module
        there = module.descriptors(job)
        kept = {number: os.dup(fd) for number, fd in there.items() if number not in drop}
        left = Left(connections=kept)
        bound = job.data.bound
        if keeps:
            left.listener = os.dup(bound.socket.fileno())
            if bound.held is not None:
                left.directory, left.identity = os.dup(bound.held.directory), bound.held.identity
        module.leave(job, bound=keeps, kept=set(kept))
        memento = alter(module.memento(job))
        rig.jobs.remove(job)
        module.close(job)
        rig.host.wait_until(lambda: not rig.host.deputy.busy)
        assert rig.host.charged[job.id] == 0
        if between is not None:
            between()
        rig.host.fired.clear()
        rig.module = Socket(rig.host)
        again = rig.host.job(dict(job.values), owner=job.owner)
        again.resumed = Resumed(memento=memento)
        rig.host.lefts[again.id] = left
        rig.host.satisfy(rig.module, again, opening=True, starting=started)
        rig.module.open(again)
        rig.jobs.append(again)
        if started:
            rig.module.start(again)
        assert (left.listener, left.directory, left.connections) == (-1, -1, {})
        return again


@pytest.fixture
def restart(rig):
    return Restart(rig)


def number_of(key):
    return int.from_bytes(key, "big")


FRAMINGS = [
    ("raw", b"one", b"two", [b"one"], b"two"),
    ("line", b"one\ntw", b"o\n", [b"one"], b"two"),
    ("length", b"\0\0\0\x03one\0\0", b"\0\x03two", [b"one"], b"two"),
]


@pytest.mark.parametrize(("framing", "before", "after", "told", "rest"), FRAMINGS)
def test_a_message_that_was_cut_by_the_restart_is_whole(rig, restart, framing, before, after, told, rest):
    job = rig.open("tcp:127.0.0.1:0", framing=framing)
    client, key = rig.connect(job)
    client.sendall(before)
    rig.until(lambda: job.data.connections[key].bytes_in == len(before))
    assert [event.socket.data for event in rig.of("data")] == told
    restart(job, between=lambda: client.sendall(after))
    assert rig.wait_data(len(rest), key) == rest
    assert rig.types(key) == ["data"]


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("more", [b"", b"5\n"])
def test_messages_that_were_read_and_not_told_come_first(rig, restart, stopped, more):
    job = rig.open(f"unix:@{NAME}", framing="line")
    client, _ = rig.connect(job)
    rig.host.fired_max = len(rig.host.fired) + 2
    client.sendall(b"1\n2\n3\n4\n")
    rig.until(lambda: len(rig.of("data")) == 2)
    rig.module.pause(job)
    if stopped:
        rig.module.stop(job)
    rig.host.fired_max = 1_000_000
    again = restart(job, between=lambda: client.sendall(more), started=not stopped)
    if stopped:
        rig.quiet()
        assert rig.of("data") == []
        rig.module.start(again)
    rig.until(lambda: len(rig.of("data")) == 2 + bool(more))
    assert [event.socket.data for event in rig.of("data")][:3] == [b"3", b"4", b"5"][: 2 + bool(more)]


def test_output_that_waits_is_sent_by_the_next(rig, restart):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    piece = os.urandom(16_384)
    count, _ = rig.fill(job, key, lambda _: piece)
    again = restart(job)
    assert rig.module.busy(again)
    assert rig.receive(client, count * len(piece)) == piece * count
    rig.until(lambda: not rig.module.busy(again))
    given = sum(size for told, told_key, size in rig.host.rooms if told_key == key)
    assert given == count * len(piece)  # room, before and after together


def test_messages_that_wait_keep_their_borders(rig, restart):
    job = rig.open(f"unix-seqpacket:@{NAME}")
    client, key = rig.connect(job)
    count, _ = rig.fill(job, key, lambda number: b"%05d" % number * 1000)
    restart(job)
    got = []
    while len(got) < count:
        try:
            got.append(client.recv(65536))
        except BlockingIOError:
            rig.loop.turn(10_000_000)
    assert got == [b"%05d" % number * 1000 for number in range(count)]


def test_connection_that_its_peer_has_ended_is_answered_by_the_next(rig, restart):
    job = rig.open("tcp:127.0.0.1:0", framing="line")
    client, key = rig.connect(job)
    client.sendall(b"question\n")
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.of("end", key))
    again = restart(job)
    rig.op(again, key, "write-close", b"answer")
    assert rig.receive_end(client) == b"answer"
    closed = rig.closed(key).socket
    assert (closed.reason, closed.bytes_in, closed.bytes_out) == ("closed", 9, 6)


def test_connection_that_was_about_to_close_closes_once_its_output_is_out(rig, restart):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    piece = bytes(16_384)
    count, _ = rig.fill(job, key, lambda _: piece)
    rig.op(job, key, "write-close")
    restart(job)
    assert len(rig.receive_end(client)) == count * len(piece)
    assert rig.closed(key).socket.reason == "closed"


def test_connection_that_was_shut_takes_no_output_and_one_that_was_paused_is_not_read(rig, restart):
    job = rig.open("tcp:127.0.0.1:0")
    (shut, shut_key), (paused, paused_key) = rig.connect(job), rig.connect(job)
    rig.op(job, shut_key, "shutdown")
    rig.op(job, paused_key, "pause")
    again = restart(job)
    with pytest.raises(Exception, match="ended"):
        rig.op(again, shut_key, "write", b"no")
    paused.sendall(b"later")
    shut.sendall(b"now")
    assert rig.wait_data(3, shut_key) == b"now"
    rig.quiet()
    assert rig.data(paused_key) == b""
    rig.op(again, paused_key, "resume")
    assert rig.wait_data(5, paused_key) == b"later"


def test_listener_that_was_told_to_accept_nothing_accepts_nothing(rig, restart):
    job = rig.open("tcp:127.0.0.1:0")
    rig.op(job, b"", "pause")
    again = restart(job)
    rig.client(again)
    rig.quiet()
    assert rig.of("accepted") == []
    rig.op(again, b"", "resume")
    rig.until(lambda: rig.of("accepted"))


def test_peer_that_has_reset_meanwhile_is_told(rig, restart):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    restart(job, between=lambda: rig.hard_close(client))
    assert rig.closed(key).socket.reason == "reset"


def test_connections_that_were_not_kept_are_closed_and_told_with_what_they_had(rig, restart):
    job = rig.open("tcp:127.0.0.1:0")
    (kept, kept_key), (cut, cut_key) = rig.connect(job), rig.connect(job)
    cut.sendall(b"12345")
    rig.wait_data(5, cut_key)
    restart(job, drop={number_of(cut_key)}, between=lambda: rig.receive_end(cut))
    closed = rig.closed(cut_key).socket
    assert (closed.reason, closed.bytes_in) == ("restart", 5)
    kept.sendall(b"here")
    assert rig.wait_data(4, kept_key) == b"here"


def test_descriptors_that_are_too_few_cost_connections_and_not_the_job(rig, restart):
    job = rig.open("tcp:127.0.0.1:0")
    keys = {rig.connect(job)[1] for _ in range(3)}

    def fewer():
        rig.host.descriptors_max = 2

    again = restart(job, between=fewer)
    rig.until(lambda: len(rig.of("closed")) == 2)
    assert {event.socket.reason for event in rig.of("closed")} == {"restart"}
    assert set(again.data.connections) < keys


def another_version(memento):
    facts = msgspec.msgpack.decode(memento)
    facts["version"] = 99
    return msgspec.msgpack.encode(facts)


@pytest.mark.parametrize("alter", [another_version, lambda _: b"\xc1garbage"])
@pytest.mark.parametrize("listen", ["tcp:127.0.0.1:0", "udp:127.0.0.1:0"])
def test_memento_of_another_version_is_a_gap_and_closes_what_it_spoke_of(rig, restart, listen, alter):
    job = rig.open(listen)
    client = rig.client(job)
    if listen.startswith("tcp"):
        rig.until(lambda: rig.of("accepted"))
    again = restart(job, alter=alter)
    (gap,) = rig.host.gaps
    assert (gap["job"], gap["cause"], gap["count"]) == (again, session_pb2.CAUSE_RESTART, 0)
    if listen.startswith("tcp"):
        assert rig.receive_end(client) == b""
    else:
        client.send(b"still heard")
        assert rig.wait_data(11) == b"still heard"


def test_datagrams_go_on_and_are_answerable(rig, restart):
    job = rig.open("udp:127.0.0.1:0")
    client = rig.client(job)
    client.send(b"one")
    rig.until(lambda: rig.of("data"))
    key = rig.of("data")[0].key
    again = restart(job, between=lambda: client.send(b"two"))
    assert rig.wait_data(3) == b"two"
    assert rig.host.gaps == []
    rig.op(again, key, "write", b"to one")
    assert rig.receive(client, 6) == b"to one"
    assert rig.module.details(again)["received"] == "2"


def test_datagrams_that_could_not_be_kept_are_a_gap_and_the_port_stays(rig, restart):
    job = rig.open("udp:127.0.0.1:0")
    port = job.data.bound.port
    again = restart(job, keeps=False)
    (gap,) = rig.host.gaps
    assert (gap["stage"], gap["cause"]) == (session_pb2.STAGE_SOURCE, session_pb2.CAUSE_RESTART)
    assert again.data.bound.port == port


@pytest.mark.parametrize("family", ["unix", "unix-dgram", "unix-seqpacket"])
def test_path_keeps_its_name_and_is_removed_with_the_job(rig, restart, tmp_path_factory, family):
    path = str(tmp_path_factory.mktemp("p") / "s")
    job = rig.open(f"{family}:{path}")
    inode = os.stat(path).st_ino
    again = restart(job, between=lambda: os.stat(path))
    assert os.stat(path).st_ino == inode
    rig.close(again)
    assert not os.path.exists(path)


def test_path_that_leads_elsewhere_by_now_is_bound_anew(rig, restart, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("p") / "s")
    job = rig.open(f"unix:{path}")
    inode = os.stat(path).st_ino
    again = restart(job, between=lambda: os.rename(path, path + ".away"))
    assert os.stat(path).st_ino != inode
    rig.connect(again)
