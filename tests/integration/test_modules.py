"""Each event module through the whole daemon: registered, fired, answered, and gone."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from aemd.v1 import job_pb2, module_pb2, session_pb2

SLEEPER = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]


@pytest.fixture
def client(shared_daemon):
    with shared_daemon.client() as client:
        yield client
        client.end_sessions()
        assert client.status().jobs == 0


class Handling:
    """A session's events, one at a time, completed as they are taken unless a reply is still to come."""

    def __init__(self, session):
        self.session = session
        self._waiting = []

    def next(self, *, reply=None, keep=False):
        if not self._waiting:
            self._waiting = self.session.events()
        run, seq, event = self._waiting.pop(0)
        if not keep:
            self.complete(run, seq, reply)
        return event if not keep else (run, seq, event)

    def complete(self, run, seq, reply=None):
        operation = session_pb2.Operation(name=reply[0], data=reply[1]) if reply else None
        cursor = job_pb2.Cursor(epoch=run.epoch, seq=seq)
        self.session.send(complete=session_pb2.Complete(binding=run.binding, cursor=cursor, reply=operation))

    def until(self, kind):
        """The next event of that type; what comes before it is completed."""
        while True:
            event = self.next()
            if event.type == kind:
                return event


def test_timer_counts_expirations_while_its_handler_is_busy(session, client, eventually):
    session.register("timer", every="5ms", cookie="77")
    (run, seq, event) = session.events()[0]
    assert event.timer.cookie == 77
    eventually(lambda: client.jobs()[0].stats.fires >= 5, "more expirations")
    session.send(ack=session_pb2.Ack(binding=run.binding, cursor=job_pb2.Cursor(epoch=1, seq=seq)))
    (run, later, _) = session.events()[0]
    assert run.counts[0] >= 4
    assert later == seq + run.counts[0]


def test_one_timer_fires_once_and_its_job_ends(session, client):
    job = session.register("timer", after="10ms").job
    (run, seq, _) = session.events()[0]
    session.send(ack=session_pb2.Ack(binding=run.binding, cursor=job_pb2.Cursor(epoch=1, seq=seq)))
    state = session.skip_to("job_state")
    assert (state.job, state.state) == (job, job_pb2.STATE_GONE)


def test_process_exit_tells_signal_and_job_ends(session):
    with subprocess.Popen(SLEEPER, stdout=subprocess.PIPE) as sleeper:
        sleeper.stdout.readline()
        registered = session.register("process", pid=str(sleeper.pid))
        assert registered.job
        sleeper.send_signal(signal.SIGKILL)
        sleeper.wait()
    (_, _, event) = session.events()[0]
    assert event.process.pid == sleeper.pid
    assert event.process.signal == signal.SIGKILL


def test_process_that_is_not_there_is_refused_with_the_pid(session):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    status = session.register("process", pid=str(gone.pid))
    assert status.code != 0
    assert str(gone.pid) in status.message


def test_connection_is_accepted_read_written_by_reply_and_by_op_and_closed(session, client):
    job = session.register("socket", listen="tcp:127.0.0.1:0").job
    handling = Handling(session)
    port = handling.until("listening").socket.local.port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        accepted = handling.until("accepted")
        assert accepted.socket.peer.port == peer.getsockname()[1]
        peer.sendall(b"question")
        run, seq, data = handling.next(keep=True)
        assert data.socket.data == b"question"
        handling.complete(run, seq, ("write", b"answer"))
        assert peer.recv(6, socket.MSG_WAITALL) == b"answer"
        operation = session_pb2.Operation(name="write-close", data=b", more")
        assert (
            session.ask(op=session_pb2.Op(job=job, key=data.key, operation=operation)).result.status.code == 0
        )
        assert peer.recv(100, socket.MSG_WAITALL) == b", more"
    closed = handling.until("closed")
    assert (closed.key, closed.socket.bytes_in, closed.socket.bytes_out) == (data.key, 8, 12)


def test_port_that_is_taken_is_refused_and_the_listener_stays(session, client):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status = session.register("socket", listen=f"tcp:127.0.0.1:{port}")
    assert status.code != 0
    assert str(port) in status.message
    assert client.jobs() == []


def test_large_answer_arrives_whole_though_the_peer_reads_slowly(session):
    session.register("socket", listen="tcp:127.0.0.1:0")
    handling = Handling(session)
    port = handling.until("listening").socket.local.port
    payload = os.urandom(200_000)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.sendall(b"?")
        run, seq, event = handling.next(keep=True)
        while event.type != "data":
            handling.complete(run, seq)
            run, seq, event = handling.next(keep=True)
        handling.complete(run, seq, ("write-close", payload))
        received = b""
        while chunk := peer.recv(1_000):
            received += chunk
    assert received == payload


def test_module_that_is_loaded_anew_ends_its_jobs_and_takes_new_ones(session, client):
    job = session.register("timer", every="1h").job
    request = module_pb2.LoadModuleRequest(name="modules/timer")
    assert client.call("ModuleService/LoadModule", request, module_pb2.Module).id == "timer"
    state = session.skip_to("job_state")
    assert (state.job, state.state) == (job, job_pb2.STATE_GONE)
    assert session.register("timer", every="1h").job > job
