"""Sockets of jobs from one daemon to the next, where a service manager keeps them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

import grpc
import pytest

from aemd.v1 import job_pb2, session_pb2
from tests.integration.conftest import PATIENCE, DaemonProcess
from tests.integration.manager import REGISTRATIONS, Keeper
from tests.integration.test_handover import LOTS, come_back
from tests.integration.test_policy import A, Other

NAME = f"aemd-test-{os.getpid()}"
NOTHING = job_pb2.Credit()  # so that no handler is waited for when a job ends


DENIED = f"""
[[rule]]
name = "no"
subject = {{ uid = {A} }}
module = "socket"
effect = "deny"
"""


@pytest.fixture
def keeper(folder):
    keeper = Keeper(folder)
    yield keeper
    keeper.close()


@pytest.fixture
def daemon(folder, keeper):
    daemon = DaemonProcess(folder)
    keeper.start(daemon)
    yield daemon
    if daemon.process.poll() is None:
        with daemon.client() as client:
            client.end_sessions()  # nobody answers any more
        daemon.stop()
    daemon.assert_healthy()


class Line:
    """A session on daemons one after the other, and what it was told."""

    def __init__(self, daemon, keeper):
        self.daemon = daemon
        self.keeper = keeper
        self.client = daemon.client()
        self.session = self.client.session()
        self.received = {}
        self.told = []

    def register(self, **params):
        registered = self.session.register("socket", credit=LOTS, **params)
        self.received[registered.binding] = 0
        return registered

    def hear(self, kind):
        """The next event of that type; what came before it is in `told`."""
        while True:
            for place, (binding, seq, event) in enumerate(self.told):
                if event.type == kind:
                    del self.told[place]
                    return binding, seq, event
            for run, seq, event in self.session.events():
                self.received[run.binding] = seq
                self.told.append((run.binding, seq, event))

    def kept(self, *names):
        self.keeper.until(lambda there: set(names) <= there)

    def stop(self, *, kill=False):
        if kill:
            self.daemon.kill()
            for path in (self.daemon.path,):
                if os.path.exists(path):
                    os.unlink(path)
        else:
            self.complete()
            self.daemon.stop()

    def complete(self):
        """All that was told is dealt with."""
        for binding, seq in self.received.items():
            for number in range(1, seq + 1):
                cursor = job_pb2.Cursor(epoch=1, seq=number)
                self.session.send(complete=session_pb2.Complete(binding=binding, cursor=cursor))
        assert self.session.ask(sync=session_pb2.Sync()).HasField("sync_done")

    def start(self, *, running=False):
        if not running:
            self.keeper.start(self.daemon)
        self.client = self.daemon.client()
        received = {f"b{binding}": seq for binding, seq in self.received.items()}
        self.session, welcome = come_back(self.client, self.session, **received)
        assert welcome.resumed
        for binding in welcome.bindings:
            self.session.send(grant=session_pb2.Grant(binding=binding, credit=LOTS))
        return welcome

    def answer(self, binding, seq, name="write", data=b""):
        complete = session_pb2.Complete(
            binding=binding,
            cursor=job_pb2.Cursor(epoch=1, seq=seq),
            reply=session_pb2.Operation(name=name, data=data),
        )
        self.session.send(complete=complete)


def sockets_of(daemon):
    """The sockets that the daemon has open, as /proc names them."""
    found = set()
    for fd in os.listdir(f"/proc/{daemon.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{daemon.pid}/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


@pytest.fixture
def line(daemon, keeper):
    return Line(daemon, keeper)


def create(client, name="kept", **params):
    request = job_pb2.CreateJobRequest(
        name=name,
        module="socket",
        params={key: job_pb2.Value(text=value) for key, value in params.items()},
    )
    return client.call("JobService/CreateJob", request, job_pb2.Job)


def follow(line, epoch=1):
    """Everything since an epoch of the durable job began."""
    bind = session_pb2.Bind(name="kept", role=session_pb2.ROLE_FOLLOW, credit=LOTS)
    setattr(bind, "from", session_pb2.FROM_CURSOR)
    bind.cursor.epoch = epoch
    registered = line.session.ask(bind=bind).registered
    line.received[registered.binding] = 0
    return registered


def connect(address, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    sock = socket.socket(family, kind)
    sock.settimeout(PATIENCE)
    sock.connect(address)
    return sock


def test_a_connection_outlives_the_daemon_and_nothing_of_it_is_lost(line, keeper):
    registered = line.register(listen="tcp:127.0.0.1:0", framing="line")
    port = line.hear("listening")[2].socket.local.port
    line.kept(f"job-{registered.job}")
    with connect(("127.0.0.1", port)) as peer:
        key = line.hear("accepted")[2].key
        peer.sendall(b"one\ntw")
        assert line.hear("data")[2].socket.data == b"one"
        line.stop()
        assert keeper.names() == {
            f"job-{registered.job}",
            f"job-{registered.job}-connection-{int.from_bytes(key, 'big')}",
        }
        peer.sendall(b"o\nthree\n")
        with connect(("127.0.0.1", port)) as late:  # nobody is there, and it is not refused
            late.sendall(b"late\n")
            line.start()
            found = {}
            while len(found) < 3:
                binding, seq, event = line.hear("data")
                found[event.socket.data] = event.key
                if event.socket.data == b"three":
                    line.answer(binding, seq, data=b"heard")
            assert found[b"two"] == found[b"three"] == key != found[b"late"]
            assert peer.recv(5) == b"heard"
            assert "closed" not in [event.type for _, _, event in line.told]
            keeper.until(lambda names: names == {f"job-{registered.job}"})  # those of connections are gone
            peer.shutdown(socket.SHUT_WR)
            assert line.hear("end")[2].key == key


def test_output_that_the_peer_has_not_taken_and_its_half_closed_connection_go_on(line):
    line.register(listen=f"unix:@{NAME}")
    line.hear("listening")
    with connect(f"\0{NAME}", socket.AF_UNIX) as peer:
        key = line.hear("accepted")[2].key
        peer.sendall(b"all of it")
        peer.shutdown(socket.SHUT_WR)
        line.hear("data")
        binding, seq, _ = line.hear("end")
        output = b"0123456789abcdef" * 16_000
        line.answer(binding, seq, data=output)
        line.received[binding] = seq - 1  # it is answered
        line.stop()
        line.received[binding] = seq
        line.start()
        got = bytearray()
        while len(got) < len(output):
            got += peer.recv(65536)
        assert got == output
        op = session_pb2.Op(job=line.client.jobs()[0].id, key=key)
        op.operation.name, op.operation.data = "write-close", b"the end"
        assert line.session.ask(op=op).result.status.code == 0
        assert peer.recv(100) == b"the end"
        assert peer.recv(100) == b""
    closed = line.hear("closed")[2].socket
    assert (closed.reason, closed.bytes_in, closed.bytes_out) == ("closed", 9, len(output) + 7)


def test_a_handler_that_had_an_event_answers_it_to_the_same_connection_after_the_restart(line):
    line.register(listen=f"unix-seqpacket:@{NAME}")
    line.hear("listening")
    with connect(f"\0{NAME}", socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        line.hear("accepted")
        peer.send(b"question")
        binding, seq, _ = line.hear("data")
        line.daemon.stop()
        peer.send(b"another")
        line.start()
        line.answer(binding, seq, data=b"answer")
        assert peer.recv(100) == b"answer"
        assert line.hear("data")[2].socket.data == b"another"


def test_datagrams_that_are_sent_while_no_daemon_is_there_arrive_and_can_be_answered(line):
    registered = line.register(listen="udp:127.0.0.1:0")
    port = line.hear("listening")[2].socket.local.port
    line.kept(f"job-{registered.job}")
    with connect(("127.0.0.1", port), kind=socket.SOCK_DGRAM) as peer:
        peer.send(b"before")
        binding, seq, _ = line.hear("data")
        line.daemon.stop()
        for number in range(5):
            peer.send(b"%d" % number)
        line.start()
        assert [line.hear("data")[2].socket.data for _ in range(5)] == [b"%d" % n for n in range(5)]
        line.answer(binding, seq, data=b"to what was heard before")
        assert peer.recv(100) == b"to what was heard before"


def test_datagrams_that_the_kernel_drops_while_no_daemon_is_there_are_counted(line):
    registered = line.register(listen="udp:127.0.0.1:0")
    port = line.hear("listening")[2].socket.local.port
    line.kept(f"job-{registered.job}")
    line.stop()
    sent = 2_000
    with connect(("127.0.0.1", port), kind=socket.SOCK_DGRAM) as peer:
        for _ in range(sent):
            peer.send(bytes(1_000))
    line.start()
    arrived = lost = 0
    while arrived + lost < sent:
        frame = line.session.next()
        lost += frame.gap.count
        for run in frame.batch.runs:
            arrived += len(run.events)
            grant = session_pb2.Grant(binding=run.binding, credit=LOTS)
            line.session.send(grant=grant)
        if frame.HasField("gap"):
            assert frame.gap.stage == session_pb2.STAGE_KERNEL
            arrived -= 1  # the first event says that it listens again
    assert lost > 0
    assert arrived + lost == sent


@pytest.mark.parametrize("family", ["unix", "unix-dgram", "unix-seqpacket"])
def test_a_path_keeps_its_name_and_who_waits_there(line, folder, keeper, family):
    path = f"{folder}/sock"
    registered = line.register(listen=f"{family}:{path}")
    line.hear("listening")
    keeper.until(lambda names: any(name.startswith(f"job-{registered.job}-path-") for name in names))
    line.stop()
    before = os.stat(path)
    kind = {"unix": socket.SOCK_STREAM, "unix-dgram": socket.SOCK_DGRAM}.get(family, socket.SOCK_SEQPACKET)
    with connect(path, socket.AF_UNIX, kind) as peer:
        peer.send(b"meanwhile")
        line.start()
        assert line.hear("data")[2].socket.data == b"meanwhile"
    assert os.stat(path).st_ino == before.st_ino
    request = job_pb2.ShutdownJobRequest(name=f"jobs/{registered.job}")
    line.client.call("JobService/ShutdownJob", request, job_pb2.Job)
    keeper.until(lambda names: not names)
    assert line.client.jobs() == []
    line.daemon.stop()
    assert not os.path.exists(path)


def test_a_path_that_was_taken_away_meanwhile_is_bound_anew(line, folder, keeper):
    path = f"{folder}/sock"
    registered = line.register(listen=f"unix:{path}")
    line.hear("listening")
    keeper.until(lambda names: any(name.startswith(f"job-{registered.job}-path-") for name in names))
    (before,) = keeper.names()
    line.stop()
    os.rename(path, f"{path}.away")
    line.start()
    line.hear("listening")
    with connect(path, socket.AF_UNIX):
        line.hear("accepted")
    keeper.until(lambda names: len(names) == 1 and before not in names)
    with socket.socket(socket.AF_UNIX) as peer, pytest.raises(ConnectionRefusedError):
        peer.connect(f"{path}.away")


def test_a_durable_job_keeps_address_and_connections(line, keeper):
    made = create(line.client, listen="tcp:127.0.0.1:0", framing="length")
    follow(line)
    port = line.hear("listening")[2].socket.local.port
    number = int(made.id)
    line.kept(f"job-{number}")
    with connect(("127.0.0.1", port)) as peer:
        key = line.hear("accepted")[2].key
        peer.sendall(b"\0\0\0\x05he")
        line.session.ask(sync=session_pb2.Sync())
        line.daemon.stop()
        peer.sendall(b"llo")
        with connect(("127.0.0.1", port)):
            line.start()
            event = line.hear("data")[2]
            assert (event.key, event.socket.data) == (key, b"hello")
            assert line.hear("accepted")[2].key != key
            assert "closed" not in [event.type for _, _, event in line.told]


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_daemon_that_is_killed_leaves_the_address_of_a_durable_job_with_who_waits(
    line, keeper, folder, family
):
    listen = "tcp:127.0.0.1:0" if family == "tcp" else f"unix:{folder}/sock"
    made = create(line.client, listen=listen)
    follow(line)
    local = line.hear("listening")[2].socket.local
    keeper.until(lambda names: any(name.startswith(f"job-{int(made.id)}") for name in names))
    address = ("127.0.0.1", local.port) if family == "tcp" else f"{folder}/sock"
    which = socket.AF_INET if family == "tcp" else socket.AF_UNIX
    with connect(address, which) as peer:
        line.hear("accepted")
        line.stop(kill=True)
        assert peer.recv(1) == b""
    with connect(address, which) as late:
        late.sendall(b"waited")
        keeper.start(line.daemon)
        line.client = line.daemon.client()
        line.session = line.client.session()
        line.told.clear()
        follow(line, epoch=2)
        while line.hear("data")[2].socket.data != b"waited":
            pass
    assert len(keeper.names()) == 1


def test_datagrams_that_wait_survive_a_daemon_that_is_killed(line, keeper):
    made = create(line.client, listen="udp:127.0.0.1:0")
    follow(line)
    port = line.hear("listening")[2].socket.local.port
    line.kept(f"job-{int(made.id)}")
    line.stop(kill=True)
    with connect(("127.0.0.1", port), kind=socket.SOCK_DGRAM) as peer:
        peer.send(b"waits")
        keeper.start(line.daemon)
        line.client = line.daemon.client()
        line.session = line.client.session()
        line.told.clear()
        follow(line, epoch=2)
        assert line.hear("data")[2].socket.data == b"waits"


def test_what_nobody_comes_back_for_after_a_kill_is_closed_and_its_path_removed(line, keeper, folder):
    line.register(listen=f"unix:{folder}/sock")
    line.register(listen="tcp:127.0.0.1:0")
    keeper.until(lambda names: len(names) == 2)
    held = keeper.sockets()
    assert len(held & sockets_of(line.daemon)) == 2
    line.stop(kill=True)
    assert os.path.exists(f"{folder}/sock")
    keeper.lose(REGISTRATIONS)
    keeper.start(line.daemon)
    keeper.until(lambda names: not names)
    assert held & sockets_of(line.daemon) == set()
    line.daemon.stop()
    assert not os.path.exists(f"{folder}/sock")


def test_an_address_can_be_bound_again_at_once_by_whoever_asks_after_it_was_closed(line, keeper):
    keeper.idle_seconds = 0.2
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    for listen in (f"tcp:127.0.0.1:{port}", f"udp:127.0.0.1:{port}", f"unix:@{NAME}"):
        registered = line.session.register("socket", listen=listen, credit=NOTHING)
        keeper.until(lambda names, job=registered.job: f"job-{job}" in names)
        shutdown = session_pb2.Shutdown(job=registered.job)
        assert line.session.ask(shutdown=shutdown).result.status.code == 0
        again = line.session.register("socket", listen=listen, credit=NOTHING)
        assert hasattr(again, "job"), again
        line.session.ask(shutdown=session_pb2.Shutdown(job=again.job))
    keeper.until(lambda names: not names)


# What goes wrong.


def test_connections_that_the_manager_has_no_room_for_are_told_as_closed(line, keeper):
    line.register(listen="tcp:127.0.0.1:0")
    port = line.hear("listening")[2].socket.local.port
    keeper.until(lambda names: len(names) == 1)
    keeper.room = 2
    with connect(("127.0.0.1", port)) as one, connect(("127.0.0.1", port)) as two:
        keys = [line.hear("accepted")[2].key for _ in range(2)]
        line.stop()
        ended = [peer for peer in (one, two) if not _is_alive(peer)]
        assert len(keeper.refused) == len(ended) == 1
        line.start()
        closed = line.hear("closed")[2]
        assert closed.socket.reason == "restart"
        (open_one,) = {one, two} - set(ended)
        open_one.sendall(b"still here")
        event = line.hear("data")[2]
        assert {event.key, closed.key} == set(keys)


def _is_alive(peer):
    peer.settimeout(0.2)
    try:
        return peer.recv(1) != b""
    except TimeoutError:
        return True
    finally:
        peer.settimeout(PATIENCE)


def test_a_manager_that_keeps_nothing_is_as_good_as_none(line, keeper):
    keeper.room = 0
    line.register(listen="udp:127.0.0.1:0")
    port = line.hear("listening")[2].socket.local.port
    line.stop()
    assert keeper.names() == set()
    line.start()
    gap = line.session.skip_to("gap")
    assert (gap.stage, gap.cause, gap.count) == (session_pb2.STAGE_SOURCE, session_pb2.CAUSE_RESTART, 0)
    with connect(("127.0.0.1", port), kind=socket.SOCK_DGRAM) as peer:
        peer.send(b"after")
        assert line.hear("data")[2].socket.data == b"after"


def test_a_peer_that_has_gone_meanwhile_is_told_by_the_next_daemon(line, keeper):
    line.register(listen="tcp:127.0.0.1:0")
    port = line.hear("listening")[2].socket.local.port
    with connect(("127.0.0.1", port)) as peer:
        key = line.hear("accepted")[2].key
        line.stop()
        peer.sendall(b"last words")
    line.start()
    assert line.hear("data")[2].socket.data == b"last words"
    assert line.hear("end")[2].key == key


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a process of another user is started")
def test_a_job_that_is_not_allowed_any_more_leaves_nothing_behind(daemon, keeper, folder):
    os.mkdir(f"{folder}/theirs")
    os.chown(f"{folder}/theirs", A, A)
    path = f"{folder}/theirs/sock"
    other = Other(daemon.path, A)
    other.do("register", module="socket", listen=f"unix:{path}")
    keeper.until(lambda names: len(names) == 1)
    with connect(path, socket.AF_UNIX) as peer:
        while other.do("event")["type"] != "accepted":
            pass
        daemon.stop()
        assert len(keeper.names()) == 2
        os.makedirs(f"{folder}/etc/policy.d")
        with open(f"{folder}/etc/policy.d/10-no.toml", "w") as file:
            file.write(
                f'[[rule]]\nname = "no"\nsubject = {{ uid = {A} }}\nmodule = "socket"\neffect = "deny"\n'
            )
        keeper.start(daemon)
        assert peer.recv(1) == b""
        keeper.until(lambda names: not names)
        assert daemon.client().jobs() == []
        daemon.stop()
    assert not os.path.exists(path)
    other.end()


def test_a_session_whose_process_has_ended_leaves_no_socket(keeper, daemon, folder):
    program = f"""if True:
        import sys
        sys.path.insert(0, {os.getcwd()!r})
        from tests.integration.conftest import Client
        session = Client({daemon.path!r}).session()
        session.register("socket", listen="unix:{folder}/sock")
        print("ready", flush=True)
        sys.stdin.read()
    """
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"ready\n"
    keeper.until(lambda names: len(names) == 1)
    daemon.stop()
    assert os.path.exists(f"{folder}/sock")
    other.communicate()
    keeper.start(daemon)
    keeper.until(lambda names: not names)
    daemon.stop()
    assert not os.path.exists(f"{folder}/sock")


def test_room_that_came_while_the_client_was_away_is_told_when_it_is_back(line, keeper):
    line.register(listen=f"unix:@{NAME}")
    line.hear("listening")
    with connect(f"\0{NAME}", socket.AF_UNIX) as peer:
        binding, seq, event = line.hear("accepted")
        written = event.socket.room_bytes
        sent = bytes(written)
        line.answer(binding, seq, data=sent)
        given = 0
        line.daemon.signal(signal.SIGTERM)
        with contextlib.suppress(grpc.RpcError):
            while (frame := line.session.next()) is not None:
                given += frame.room.bytes
        assert line.daemon.process.wait(PATIENCE) == 0
        assert given < written
        keeper.start(line.daemon)
        got = 0
        while got < written:
            got += len(peer.recv(65536))
        line.received[binding] = seq
        line.start(running=True)
        while given < written:
            given += line.session.skip_to("room").bytes
    assert given == written
