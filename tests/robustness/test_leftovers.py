"""However a client, a front or a zygote ends: nothing of it is left, and nothing of the others is lost."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from aemd.v1 import job_pb2, session_pb2

VICTIM = Path(__file__).parent / "victim.py"
CONNECTIONS = 5
LEASE_NS = 100_000_000
ENDINGS = ["kill", "exit", "half-close", "cancel"]


@contextlib.contextmanager
def victim(daemon, lease_ns=0):
    """A client process with one of everything, and sockets that are connected to its job."""
    process = subprocess.Popen(
        [sys.executable, VICTIM, daemon.path, daemon.folder, str(lease_ns)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(process.stdout.close)
        stack.callback(process.stdin.close)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout.readline() == "ready\n"
        peers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(CONNECTIONS)]
        for number, peer in enumerate(peers):
            peer.settimeout(20)
            peer.connect(f"{daemon.folder}/victim")
            peer.sendall(b"%d" % number * 1000)
        yield process, peers


def end(process, ending):
    if ending == "kill":
        process.kill()
        return
    process.stdin.write(ending + "\n")
    process.stdin.flush()
    if ending != "exit":
        assert process.stdout.readline() == ending + "\n"


def holds(pid, path):
    """Whether a process has `path` itself open; what it closes meanwhile is not held."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == path:
                return True
    return False


@pytest.mark.parametrize("ending", ENDINGS)
def test_client_that_ends_leaves_nothing(daemon, client, footprint, eventually, ending):
    lease_ns = LEASE_NS if ending == "cancel" else 0  # else the default, longer than this test waits
    with victim(daemon, lease_ns) as (process, _):
        end(process, ending)
        eventually(lambda: client.status().sessions == 0, "the end of the first session")
    # What is opened once for all, the timerfd of a clock, is open now.
    eventually(lambda: client.status().connections == 1, "the end of its connection")
    eventually(lambda: not holds(daemon.pid, daemon.folder), "the end of its path")
    before = footprint.descriptors()
    with victim(daemon, lease_ns) as (process, peers):
        status = client.status()
        assert (status.sessions, status.jobs) == (1, 13)
        eventually(
            lambda: footprint.descriptors()[daemon.pid] >= before[daemon.pid] + 2 + CONNECTIONS,
            "that the connections are accepted",
        )
        end(process, ending)
        eventually(lambda: client.status().sessions == 0, "the end of the session")
        assert client.status().jobs == 0
        eventually(lambda: not os.path.exists(f"{daemon.folder}/victim"), "the end of its path")
        for peer in peers:
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(1) == b""
    eventually(lambda: client.status().connections == 1, "the end of the connection")
    eventually(lambda: footprint.descriptors() == before, "that every descriptor is back")
    assert footprint.threads() == 1


def test_lost_stream_keeps_its_jobs_for_the_lease_only(daemon, client, eventually):
    kept, lapsed = client.session(), client.session()
    kept.register("user", channel="kept", options={"lease_ns": 600_000_000_000})
    lapsed.register("user", channel="lapsed", options={"lease_ns": LEASE_NS})
    kept.cancel()
    lapsed.cancel()
    eventually(lambda: client.status().sessions == 1, "the end of the lease")
    (job,) = client.jobs()
    assert job.params["channel"].text == "kept"


def test_front_killed_under_load_loses_no_event_and_counts_the_attempts(launch):
    daemon = launch()
    with daemon.client() as client:
        session = client.session()
        options = {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_EXPLICIT}
        binding = session.register("user", channel="c", options=options).binding
        raised = session_pb2.Raise(channel="c", payloads=[b"%d" % number for number in range(20)])
        session.ask(**{"raise": raised})  # what it brings is dropped, not answered
        for pid in daemon.fronts():
            os.kill(pid, signal.SIGKILL)
        assert session.end()[0] == grpc.StatusCode.UNAVAILABLE
    with daemon.client() as client:
        back = client.raw()
        assert back.hello(resume_token=session.welcome.resume_token).resumed
        raised = session_pb2.Raise(channel="c", payloads=[b"20", b"21"])
        back.ask(**{"raise": raised})
        credit = job_pb2.Credit(events=100, bytes=1 << 20)
        back.send(grant=session_pb2.Grant(binding=binding, credit=credit))
        seen = []
        while len(seen) < 22:
            for run, seq, event in back.events():
                attempts = set(run.attempts) or {1}
                assert attempts <= ({1, 2} if seq <= 20 else {1})
                seen.append((seq, event.user.payload))
        assert seen == [(number + 1, b"%d" % number) for number in range(22)]
        assert len(client.jobs()) == 1


def test_zygote_killed_while_clients_work_disturbs_none_and_comes_back(launch, eventually):
    daemon = launch()
    with daemon.client() as client:
        session = client.session()
        session.register("user", channel="c")
        zygote = daemon.zygote()
        os.kill(zygote, signal.SIGKILL)
        for number in range(20):
            session.send(**{"raise": session_pb2.Raise(channel="c", payloads=[b"%d" % number])})
            assert [event.user.payload for _, _, event in session.events()] == [b"%d" % number]
        eventually(lambda: "died" in daemon.log() and client.status().pid, "that the death is noticed")
        assert client.status().sessions == 1
