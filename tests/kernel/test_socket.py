"""Module socket on real sockets: connections from accepted to closed."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from aemd.core.errors import AemError
from aemd.core.principal import Owner, Principal
from aemd.modules.address import parse_address
from aemd.modules.socket import Socket
from aemd.v1 import event_pb2

USER = Principal(Owner(1000), gid=1000, groups=(), pid=1, start_time_ticks=0, administrator=False)
OTHER = Principal(Owner(1001), gid=1001, groups=(), pid=1, start_time_ticks=0, administrator=False)
MS = 1_000_000
ROOM = 256 * 1024


class Rig:
    """The module, its jobs and their clients; gives everything back and checks that it was all."""

    def __init__(self, host, loop):
        self.host = host
        self.loop = loop
        self.module = Socket(host)
        self.jobs = []
        self.clients = []

    def open(self, listen, *, owner=None, start=True, **values):
        job = self.host.job({"listen": parse_address(listen), **values}, owner=owner)
        self.module.open(job)
        self.jobs.append(job)
        if start:
            self.module.start(job)
        return job

    def close(self, job):
        self.jobs.remove(job)
        self.module.close(job)

    def client(self, job) -> socket.socket:
        bound = job.data.bound.socket
        client = socket.socket(bound.family, bound.type)
        self.clients.append(client)
        client.connect(bound.getsockname())
        client.setblocking(False)
        return client

    def connect(self, job) -> tuple[socket.socket, bytes]:
        """A client, and the key of its connection."""
        count = len(self.of("accepted"))
        client = self.client(job)
        self.until(lambda: len(self.of("accepted")) > count)
        return client, self.of("accepted")[-1].key

    def op(self, job, key, name, data=b""):
        self.module.operate(job, key, name, data)

    def fill(self, job, key, message: Callable[[int], bytes]) -> tuple[int, AemError]:
        """Write until it is refused: how many went, and the refusal."""
        for number in range(10_000):
            try:
                self.op(job, key, "write", message(number))
            except AemError as error:
                return number, error
        raise AssertionError("nothing was refused")

    def until(self, condition: Callable[[], object]):
        self.host.wait_until(condition)

    def of(self, kind, key=None) -> list[event_pb2.Event]:
        return [f.event for f in self.host.fired if f.event.type == kind and key in (None, f.key)]

    def types(self, key=None) -> list[str]:
        return [f.event.type for f in self.host.fired if key in (None, f.key)]

    def data(self, key=None) -> bytes:
        return b"".join(event.socket.data for event in self.of("data", key))

    def wait_data(self, size, key=None) -> bytes:
        self.until(lambda: len(self.data(key)) >= size)
        return self.data(key)

    def closed(self, key) -> event_pb2.Event:
        self.until(lambda: self.of("closed", key))
        (event,) = self.of("closed", key)
        return event

    def receive(self, client, size) -> bytes:
        """So many bytes, while the loop turns."""
        got = bytearray()

        def enough():
            try:
                while len(got) < size and (piece := client.recv(65536)):
                    got.extend(piece)
            except BlockingIOError:
                self.loop.turn(10 * MS)
            return len(got) >= size

        while not enough():
            pass
        return bytes(got)

    def receive_end(self, client) -> bytes:
        """Everything up to the end."""
        got = bytearray()
        while True:
            try:
                piece = client.recv(65536)
            except BlockingIOError:
                self.loop.turn(10 * MS)
                continue
            if not piece:
                return bytes(got)
            got.extend(piece)

    def quiet(self):
        """The loop has nothing to do: no descriptor is ready, and none spins."""
        turns = 0
        while True:
            before = len(self.host.fired)
            ready = self.loop._epoll.poll(0)
            if not ready:
                return
            self.loop.turn(0)
            turns += 1
            assert turns < 1000 or len(self.host.fired) > before, "the loop spins"


@pytest.fixture
def rig(host, loop) -> Iterator[Rig]:
    descriptors = len(os.listdir("/proc/self/fd"))
    rig = Rig(host, loop)
    yield rig
    for client in rig.clients:
        client.close()
    for job in tuple(rig.jobs):
        rig.close(job)
    assert host.charged.total() == 0
    loop.clock("monotonic")
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the clock's timerfd


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


# -- registration


def test_taken_port_is_refused_at_registration(rig):
    job = rig.open("tcp:127.0.0.1:0")
    port = job.data.bound.socket.getsockname()[1]
    with pytest.raises(AemError) as caught:
        rig.open(f"tcp:127.0.0.1:{port}", start=False)
    assert caught.value.reason == "ADDRESS_IN_USE"
    assert f"tcp:127.0.0.1:{port}" in caught.value.message
    assert rig.host.charged.total() == 1


def test_port_of_an_inert_job_is_taken(rig):
    job = rig.open("tcp:127.0.0.1:0", start=False)
    port = job.data.bound.socket.getsockname()[1]
    with pytest.raises(AemError, match="in use"):
        rig.open(f"tcp:127.0.0.1:{port}", start=False)
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_port_with_connections_in_time_wait_can_be_bound_again(rig):
    job = rig.open("tcp:127.0.0.1:0")
    port = job.data.bound.socket.getsockname()[1]
    client, key = rig.connect(job)
    rig.op(job, key, "write-close", b"x")
    assert rig.receive_end(client) == b"x"
    client.close()
    rig.until(lambda: not job.data.discards)
    rig.close(job)
    again = rig.open(f"tcp:127.0.0.1:{port}")
    with pytest.raises(AemError, match="in use"):
        rig.open(f"tcp:127.0.0.1:{port}", start=False)
    rig.connect(again)


def test_shared_port_is_for_one_user_only(rig):
    job = rig.open("tcp:127.0.0.1:0", owner=USER, reuse_port=True)
    port = job.data.bound.socket.getsockname()[1]
    rig.open(f"tcp:127.0.0.1:{port}", owner=USER, reuse_port=True)
    with pytest.raises(AemError) as caught:
        rig.open(f"tcp:127.0.0.1:{port}", owner=OTHER, reuse_port=True)
    assert caught.value.reason == "ADDRESS_IN_USE"
    for job in tuple(rig.jobs):
        rig.close(job)
    rig.open(f"tcp:127.0.0.1:{port}", owner=OTHER, reuse_port=True)


@pytest.mark.parametrize(
    ("listen", "reason"),
    [
        ("tcp:192.0.2.1:8080", "ADDRESS_NOT_AVAILABLE"),
        ("unix:/no/such/directory/s", "INVALID_FIELD"),
        ("unix:/dev/null", "ADDRESS_IN_USE"),
    ],
)
def test_impossible_address_says_why(rig, listen, reason):
    with pytest.raises(AemError) as caught:
        rig.open(listen)
    assert caught.value.reason == reason
    assert listen in caught.value.message
    assert rig.host.charged.total() == 0


@pytest.mark.parametrize("listen", ["tcp:127.0.0.1:80", "udp:127.0.0.1:53", "unix:/tmp/some.socket"])
def test_low_ports_and_paths_are_the_administrators(rig, listen):
    with pytest.raises(AemError) as caught:
        rig.open(listen, owner=USER)
    assert caught.value.reason == "NOT_ALLOWED"
    assert not os.path.exists("/tmp/some.socket")


def test_no_descriptor_left_is_refused_before_the_address_is_touched(rig, tmp_path):
    rig.host.descriptors_max = 0
    with pytest.raises(AemError) as caught:
        rig.open(f"unix:{tmp_path}/s")
    assert caught.value.reason == "LIMIT_REACHED"
    assert not (tmp_path / "s").exists()


# -- Unix paths


@pytest.mark.parametrize("family", ["unix", "unix-dgram", "unix-seqpacket"])
def test_stale_socket_file_is_replaced_and_a_live_one_is_not(rig, tmp_path, family):
    path = str(tmp_path / "s")
    kind = {"unix": socket.SOCK_STREAM, "unix-dgram": socket.SOCK_DGRAM}.get(family, socket.SOCK_SEQPACKET)
    live = socket.socket(socket.AF_UNIX, kind)
    live.bind(path)
    if kind != socket.SOCK_DGRAM:
        live.listen()
    with pytest.raises(AemError, match="in use"):
        rig.open(f"{family}:{path}")
    live.close()
    rig.open(f"{family}:{path}")


def test_path_of_an_inert_job_is_not_stale(rig, tmp_path):
    rig.open(f"unix:{tmp_path}/s", start=False)
    with pytest.raises(AemError, match="in use"):
        rig.open(f"unix:{tmp_path}/s")


def test_regular_file_is_never_removed(rig, tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(AemError, match="in use"):
        rig.open(f"unix:{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "precious"


def test_path_goes_with_the_job_unless_it_is_somebody_elses_by_now(rig, tmp_path):
    path = tmp_path / "s"
    job = rig.open(f"unix:{path}", mode="0600")
    assert path.stat().st_mode & 0o777 == 0o600
    rig.close(job)
    assert not path.exists()
    job = rig.open(f"unix:{path}", mode="666")
    assert path.stat().st_mode & 0o777 == 0o666
    path.unlink()
    path.write_text("another's")
    rig.close(job)
    assert path.read_text() == "another's"


# -- output


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_slow_reader_gets_everything_and_room_comes_back(rig, tmp_path, kind):
    job = rig.open(stream_addresses(tmp_path)[kind])
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
    with pytest.raises(AemError) as caught:
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


# -- ends


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


def hard_close(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_reset_is_told_with_its_errno(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    hard_close(client)
    closed = rig.closed(key).socket
    assert (closed.reason, closed.error_number) == ("reset", errno.ECONNRESET)
    assert rig.types(key) == ["accepted", "closed"]


def test_reset_after_half_close_is_told(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.of("end", key))
    hard_close(client)
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
    hard_close(client)
    assert rig.closed(key).socket.reason == "reset"
    rig.quiet()


def test_silent_connection_is_closed_in_time(rig):
    job = rig.open("tcp:127.0.0.1:0", idle_timeout=30 * MS)
    client, key = rig.connect(job)
    client.send(b"x")
    rig.wait_data(1)
    assert rig.closed(key).socket.reason == "idle-timeout"
    assert rig.receive_end(client) == b""


# -- back-pressure


def test_paused_job_reads_and_accepts_nothing_and_the_loop_rests(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    gone, gone_key = rig.connect(job)
    rig.module.pause(job)
    client.send(b"x" * 1000)
    hard_close(gone)
    late = rig.client(job)
    late.send(b"hello")
    rig.quiet()
    assert rig.types() == ["listening", "accepted", "accepted"]
    rig.module.resume(job)
    assert len(rig.wait_data(1005)) == 1005
    assert rig.closed(gone_key).socket.reason == "reset"
    assert rig.data(key) == b"x" * 1000


def test_paused_job_still_writes(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    rig.module.pause(job)
    rig.op(job, key, "write", b"x" * ROOM)
    rig.op(job, key, "write", b"y" * 10_000)
    assert len(rig.receive(client, ROOM + 10_000)) == ROOM + 10_000


def test_half_closed_connection_of_a_paused_job_does_not_spin(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    rig.op(job, key, "pause")
    client.send(b"x")
    client.close()
    rig.quiet()
    assert rig.types(key) == ["accepted"]
    rig.op(job, key, "resume")
    rig.closed(key)
    assert rig.types(key) == ["accepted", "data", "end", "closed"]


def test_connection_that_begins_paused_waits_for_resume(rig):
    job = rig.open("tcp:127.0.0.1:0", paused=True)
    client, key = rig.connect(job)
    client.send(b"x")
    rig.quiet()
    assert rig.types(key) == ["accepted"]
    rig.op(job, key, "resume")
    assert rig.wait_data(1) == b"x"


def test_listener_paused_by_operation_accepts_later(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.op(job, b"", "pause")
    rig.client(job)
    rig.quiet()
    assert not rig.of("accepted")
    rig.op(job, b"", "resume")
    rig.until(lambda: rig.of("accepted"))


def test_stopped_job_is_quiet_and_goes_on_where_it_was(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    _, other_key = rig.connect(job)
    rig.module.stop(job)
    client.send(b"while stopped")
    rig.client(job)
    rig.op(job, other_key, "close")
    rig.quiet()
    assert rig.types() == ["listening", "accepted", "accepted"]
    rig.module.start(job)
    rig.wait_data(13, key)
    rig.until(lambda: len(rig.of("accepted")) == 3)
    assert len(rig.of("closed", other_key)) == 1
    assert rig.types().count("listening") == 2


# -- many


def test_two_thousand_connections(rig):
    job = rig.open("tcp:127.0.0.1:0", backlog=4096)
    clients = [rig.client(job) for _ in range(2000)]
    rig.until(lambda: len(rig.of("accepted")) == 2000)
    assert rig.host.charged[job.id] == 2001
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    rig.until(lambda: len(rig.of("data")) == 2000)
    by_peer = {e.socket.peer.port: e.key for e in rig.of("accepted")}
    got = {e.key: e.socket.data for e in rig.of("data")}
    for number, client in enumerate(clients):
        assert got[by_peer[client.getsockname()[1]]] == b"%d" % number
        client.close()
    rig.until(lambda: len(rig.of("end")) == 2000)
    for event in rig.of("end"):
        rig.op(job, event.key, "close")
    assert len(rig.of("closed")) == 2000
    assert rig.host.charged[job.id] == 1
    assert rig.module.details(job)["connections"] == "0"


def test_refused_charge_keeps_the_backlog_until_one_is_freed(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.host.descriptors_max = 3
    first, first_key = rig.connect(job)
    _, _ = rig.connect(job)
    rig.client(job).send(b"patience")
    rig.until(lambda: "stalled" in rig.module.details(job))
    rig.quiet()
    assert len(rig.of("accepted")) == 2
    first.close()
    rig.until(lambda: rig.of("end", first_key))
    rig.op(job, first_key, "close")
    assert rig.wait_data(8) == b"patience"


def test_descriptor_that_somebody_else_frees_is_noticed(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.host.descriptors_max = 1
    rig.client(job)
    rig.until(lambda: "stalled" in rig.module.details(job))
    rig.host.descriptors_max = 2
    rig.until(lambda: rig.of("accepted"))


def test_connections_max_keeps_the_rest_in_the_backlog(rig):
    job = rig.open("tcp:127.0.0.1:0", connections_max=1)
    client, key = rig.connect(job)
    rig.client(job)
    rig.until(lambda: "stalled" in rig.module.details(job))
    rig.quiet()
    assert len(rig.of("accepted")) == 1
    client.close()
    rig.until(lambda: rig.of("end", key))
    rig.op(job, key, "close")
    rig.until(lambda: len(rig.of("accepted")) == 2)


def open_all() -> list[int]:
    """Every descriptor that the process may still open."""
    hoard = []
    with contextlib.suppress(OSError):
        while True:
            hoard.append(os.open("/dev/null", os.O_RDONLY))
    return hoard


def test_no_free_descriptor_in_the_process_stalls_without_spinning(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.loop.clock("monotonic").call_at(0, lambda _: None)  # has its descriptor already
    client = rig.client(job)
    hoard = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
        hoard = open_all()
        rig.until(lambda: "stalled" in job.data.details())
        assert not rig.of("accepted")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in hoard:
            os.close(fd)
    rig.until(lambda: rig.of("accepted"))
    client.send(b"x")
    rig.wait_data(1)


# -- framing


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


# -- seqpacket


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


# -- sync, keys


def test_sync_comes_after_everything_that_had_been_sent(rig):
    job = rig.open("tcp:127.0.0.1:0", data_max=1000)
    client, _ = rig.connect(job)
    client.send(os.urandom(20_000))
    late = rig.client(job)
    late.send(b"late")
    late.shutdown(socket.SHUT_WR)
    done = []
    rig.module.sync(job, lambda: done.append(len(rig.data())))
    rig.until(lambda: done)
    assert done[0] >= 20_004
    assert rig.of("end")


def test_sync_of_a_paused_job_waits_for_resume(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, _ = rig.connect(job)
    rig.module.pause(job)
    client.send(b"x" * 10)
    done = []
    rig.module.sync(job, lambda: done.append(len(rig.data())))
    rig.quiet()
    assert not done
    rig.module.resume(job)
    rig.until(lambda: done)
    assert done == [10]


def test_sync_with_nothing_waiting_and_of_a_stopped_job_is_done_at_once(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.connect(job)
    done = []
    rig.module.sync(job, lambda: done.append(1))
    rig.module.stop(job)
    rig.module.sync(job, lambda: done.append(2))
    assert done == [1, 2]


@pytest.mark.parametrize(
    ("key", "name", "reason"),
    [
        (b"short", "write", "INVALID_FIELD"),
        (bytes(7) + b"\xff", "write", "CONNECTION_CLOSED"),
        (b"", "write", "INVALID_FIELD"),
        (bytes(8), "fly", "OPERATION_UNKNOWN"),
        (bytes(8), "shutdown", "INVALID_FIELD"),
    ],
)
def test_wrong_operation_is_refused(rig, key, name, reason):
    job = rig.open("tcp:127.0.0.1:0")
    with pytest.raises(AemError) as caught:
        rig.op(job, key, name, b"data")
    assert caught.value.reason == reason


def test_connections_of_another_job_cannot_be_reached(rig):
    job, other = rig.open("tcp:127.0.0.1:0"), rig.open("tcp:127.0.0.1:0")
    _, key = rig.connect(job)
    with pytest.raises(AemError) as caught:
        rig.op(other, key, "write", b"x")
    assert caught.value.reason == "CONNECTION_CLOSED"
