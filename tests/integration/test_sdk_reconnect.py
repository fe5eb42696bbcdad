"""What survives: a front that dies, a daemon that is restarted, a handler that runs meanwhile."""

import os
import signal
import socket
import threading
from pathlib import Path

import aem
import pytest

PATIENCE = 20


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_fronts(daemon):
    """kill -9 every front: the children of the daemon's zygote."""
    fronts = [front for zygote in children(daemon.pid) for front in children(zygote)]
    assert fronts
    for front in fronts:
        os.kill(front, signal.SIGKILL)


@pytest.fixture
def client(daemon):
    with aem.Client(daemon.address, label="test") as client:
        yield client


@pytest.fixture
def fragile(launch):
    """A daemon whose fronts are killed, which it logs as errors; and its client."""
    daemon = launch()
    with aem.Client(daemon.address, label="test") as client:
        yield daemon, client


def test_no_event_is_lost_or_handled_twice_when_fronts_die(fragile):
    daemon, client = fragile
    seen = []
    gaps = []

    def note(event):
        seen.append(event.data)
        if len(seen) in (100, 1_000, 2_500):
            kill_fronts(daemon)

    options = aem.Options(queue_depth=10_000, credit_events=64)
    job = client.register("user", note, channel="many", options=options, on_gap=gaps.append)
    sent = [b"%d" % number for number in range(4_000)]
    client.raise_event("many", *sent)
    number = job.id
    client.run(lambda: len(seen) >= len(sent))
    assert seen == sent
    assert gaps == []
    assert job.id == number
    client.run(lambda: job.stats().in_flight == 0)
    assert job.stats().acknowledged == len(sent)


def test_replies_are_given_once_when_fronts_die(fragile):
    daemon, client = fragile
    handled = []

    def echo(event):
        if event.type == "listening":
            ports.append(int(event.local.rpartition(":")[2]))
            talker.start()
        elif event.type == "data":
            handled.append(event.data)
            if len(handled) % 20 == 0:
                kill_fronts(daemon)
            return event.data
        elif event.type == "end":
            return aem.Reply("close")
        elif event.type == "closed":
            client.stop()
        return None

    ports, answers = [], []

    def talk():
        with socket.create_connection(("127.0.0.1", ports[0]), PATIENCE) as peer:
            stream = peer.makefile("rwb")
            for number in range(100):
                stream.write(b"%d\n" % number)
                stream.flush()
                answers.append(stream.readline())

    talker = threading.Thread(target=talk)
    client.register("socket", echo, listen="tcp:127.0.0.1:0")
    client.run(2 * PATIENCE)
    talker.join(PATIENCE)
    assert answers == [b"%d\n" % number for number in range(100)]
    assert handled == answers


def test_requests_go_on_when_fronts_die(fragile):
    daemon, client = fragile
    job = client.register("timer", print, every="1h")
    for _ in range(5):
        kill_fronts(daemon)
        job.stop()
        job.start()
        assert client.register("timer", print, every="1h").state == "ARMED"
    assert len(list(client.list_jobs())) == 6


def test_orderly_restart_goes_on_with_the_same_jobs_and_misses_nothing(client, daemon):
    seen, gaps = [], []
    job = client.register("user", lambda event: seen.append(event.data), channel="c", on_gap=gaps.append)
    stopped = client.register("timer", print, every="1h", start=False)
    client.raise_event("c", b"before")
    client.run(lambda: len(seen) == 1)
    numbers = (job.id, stopped.id)
    daemon.stop()
    daemon.start()
    client.raise_event("c", b"after")
    client.run(lambda: len(seen) == 2)
    assert seen == [b"before", b"after"]
    assert gaps == []
    assert (job.id, stopped.id) == numbers
    assert (job.state, stopped.state) == ("ARMED", "REGISTERED")


def test_killed_daemon_gets_the_jobs_again_and_a_gap_tells(client, daemon):
    seen, gaps = [], []
    job = client.register("user", lambda event: seen.append(event.data), channel="c", on_gap=gaps.append)
    stopped = client.register("timer", print, every="1h", start=False)
    client.raise_event("c", b"before")
    client.run(lambda: len(seen) == 1)
    daemon.kill()
    daemon.start()
    client.run(lambda: gaps and stopped.state == "REGISTERED" and job.state == "ARMED")
    (gap,) = gaps
    assert (gap.cause, gap.stage, gap.count, gap.remedy) == ("restart", "source", 0, "rescan")
    client.raise_event("c", b"after")
    client.run(lambda: len(seen) == 2)
    assert seen == [b"before", b"after"]
    assert sorted(found.id for found in client.list_jobs()) == sorted([job.id, stopped.id])


def test_killed_daemon_gets_the_jobs_of_an_iterator_again(daemon):
    with aem.Client(daemon.address) as client, client.events("user", channel="c") as stream:
        client.raise_event("c", b"before")
        assert stream.next(PATIENCE).data == b"before"
        daemon.kill()
        daemon.start()
        gap = stream.next(PATIENCE)
        assert isinstance(gap, aem.Gap)
        while stream.job.state != "ARMED":
            client.run(0.01)
        client.raise_event("c", b"after")
        assert stream.next(PATIENCE).data == b"after"


def test_job_that_cannot_be_registered_again_is_gone_and_says_why(client, daemon, caplog):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    job = client.register("socket", lambda event: None, listen=f"tcp:127.0.0.1:{port}")
    daemon.kill()
    with socket.create_server(("127.0.0.1", port)):
        daemon.start()
        client.run(lambda: job.state == "GONE")
    assert str(port) in job.reason
    assert "could not be registered again" in caplog.text


def test_without_reconnect_a_lost_daemon_ends_run(daemon):
    client = aem.Client(daemon.address, reconnect=False)
    client.register("timer", lambda event: daemon.kill(), every="5ms")
    with pytest.raises(aem.ConnectionLost):
        client.run(PATIENCE)
    with pytest.raises(aem.ConnectionLost):
        client.raise_event("c", b"x")
    client.close()
    daemon.start()


def test_event_raised_while_there_is_no_daemon_is_raised_once_it_is_back(client, daemon):
    client.connect()
    daemon.stop()
    waiting = threading.Thread(target=client.raise_event, args=("c", b"x"))
    waiting.start()
    daemon.start()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
