"""Sockets of jobs from one daemon to the next, where a service manager keeps them."""

from __future__ import annotations

import os
import socket

import pytest

from aemd.v1 import job_pb2, session_pb2
from tests.integration.conftest import PATIENCE, DaemonProcess
from tests.integration.manager import Keeper
from tests.integration.test_handover import LOTS, come_back


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
        daemon.stop()
        assert '"level": "error"' not in daemon.log()


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

    def start(self):
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
        answer = self.session.ask(complete=complete)
        assert answer.result.status.code == 0, answer


@pytest.fixture
def line(daemon, keeper):
    return Line(daemon, keeper)


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
