"""The SDK's sync face against a real daemon: every module, answers, errors, lists."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

import aem
import pytest
from aem.v1 import job_pb2

PATIENCE = 20


@pytest.fixture
def client(daemon):
    with aem.Client(daemon.address, label="test") as client:
        yield client


def script(text, *args, **options):
    """A program of its own: handlers in processes need one that has no channel yet."""
    return subprocess.Popen([sys.executable, "-c", text, *args], stdout=subprocess.PIPE, text=True, **options)


def test_timer_handler_gets_typed_events(client):
    seen = []

    @client.on("timer", every="5ms", cookie=7)
    def tick(event):
        seen.append(event)
        if len(seen) == 3:
            client.stop()

    client.run(PATIENCE)
    assert all(isinstance(event, aem.TimerEvent) for event in seen)
    assert [event.expirations for event in seen] == [event.seq - event.first + 1 for event in seen]
    assert (seen[0].cookie, seen[0].clock, seen[0].module, seen[0].type) == (
        7,
        "monotonic",
        "timer",
        "expired",
    )
    assert seen[0].lateness_ns >= 0
    assert seen[1].first == seen[0].seq + 1
    assert tick.__name__ == client.jobs[0].label


def test_busy_handler_gets_timer_expirations_coalesced(client):
    seen = []

    def tick(event):
        seen.append(event.expirations)
        threading.Event().wait(0.03)  # busy: that is what is tested

    client.register("timer", tick, every="1ms")
    client.run(lambda: len(seen) >= 3)
    assert max(seen) > 1


def test_process_iterator_ends_with_the_process(client):
    process = subprocess.Popen(["sh", "-c", "read x; exit 3"], stdin=subprocess.PIPE)
    stream = client.events("process", pid=process.pid)
    process.communicate(b"go\n")
    (event,) = list(stream)
    assert (event.pid, event.known, event.exit_status, event.signal) == (process.pid, True, 3, 0)
    assert stream.job.state == "GONE"
    decoded = json.loads(event.to_json())
    assert decoded["payload"]["exit_status"] == 3
    assert decoded["payload"]["knowledge"] == "known"


def test_socket_handler_replies_to_its_connection(client):
    seen = []

    @client.on("socket", listen="tcp:127.0.0.1:0")
    def echo(event):
        seen.append(event.type)
        if event.type == "listening":
            ports.put(int(event.local.rpartition(":")[2]))
        elif event.type == "data":
            return aem.Reply("write-close", b"echo " + event.data) if event.data == b"bye" else event.data
        elif event.type == "closed":
            client.stop()
        return None

    ports = queue.Queue()
    answers = []

    def talk():
        with socket.create_connection(("127.0.0.1", ports.get(timeout=PATIENCE)), PATIENCE) as peer:
            peer.sendall(b"hi")
            answers.append(peer.recv(100))
            peer.sendall(b"bye")
            answers.append(peer.recv(100))
            answers.append(peer.recv(100))

    thread = threading.Thread(target=talk)
    thread.start()
    client.run(PATIENCE)
    thread.join(PATIENCE)
    assert answers == [b"hi", b"echo bye", b""]
    assert seen == ["listening", "accepted", "data", "data", "closed"]


def test_operate_writes_outside_of_an_answer_and_spends_room(client):
    with client.events("socket", listen="tcp:127.0.0.1:0") as stream:
        port = int(stream.next(PATIENCE).local.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as peer:
            accepted = stream.next(PATIENCE)
            room = stream.job.room(accepted.key)
            assert room > 0
            stream.job.operate(accepted.key, "write", b"hello")
            assert peer.recv(100) == b"hello"
            assert stream.job.room(accepted.key) >= room - 5
            stream.reply("close")
            assert peer.recv(100) == b""
        assert stream.next(PATIENCE).type == "closed"
        assert stream.job.room(accepted.key) == 0


def test_two_clients_exchange_user_events(client, daemon):
    with aem.Client(daemon.address) as other:
        seen = []

        @client.on("user", channel="ping")
        def ping(event):
            client.raise_event("pong", json.dumps({"got": event.json()["n"]}))

        @other.on("user", channel="pong")
        def pong(event):
            seen.append(event)
            other.stop()

        client.connect()
        other.connect()
        other.raise_event("ping", '{"n": 4}')
        client.run(lambda: client.jobs[0].stats().fires == 1 and client.jobs[0].stats().acknowledged == 1)
        other.run(PATIENCE)
        assert seen[0].json() == {"got": 4}
        assert seen[0].sender_pid == os.getpid()
        assert seen[0].sender_uid == os.geteuid()
        assert seen[0].channel == "pong"


def test_many_user_events_arrive_once_and_in_order(client):
    seen = []
    options = aem.Options(queue_depth=10_000)
    client.register("user", lambda event: seen.append(event.data), channel="many", options=options)
    sent = [b"%d" % number for number in range(5_000)]
    client.raise_event("many", *sent)
    client.run(lambda: len(seen) >= len(sent))
    assert seen == sent


def test_full_queue_becomes_a_gap_that_counts(client):
    seen, gaps = [], []
    client.register(
        "user",
        lambda event: seen.append(event.data),
        channel="full",
        on_gap=gaps.append,
        options=aem.Options(queue_depth=8, credit_events=4),
    )
    client.raise_event("full", *[b"x"] * 100)
    client.run(lambda: len(seen) + sum(gap.count for gap in gaps) >= 100)
    assert len(seen) + sum(gap.count for gap in gaps) == 100
    assert {(gap.stage, gap.cause) for gap in gaps} == {("job", "overflow")}
    assert all(isinstance(gap, aem.Gap) for gap in gaps)


def test_failing_handler_is_in_the_jobs_statistics_and_the_log(client, caplog):
    def broken(event):
        raise ValueError("no good")

    job = client.register("timer", broken, every="5ms")
    client.run(lambda: job.stats().failed >= 2)
    assert job.stats().last_error == "ValueError: no good"
    assert client.get_job(job.id).stats.failed >= 2
    assert "Traceback" in caplog.text
    assert "broken" in caplog.text


def test_retry_delivers_again_and_park_puts_aside(client):
    seen = []

    def once_more(event):
        seen.append((event.data, event.attempts))
        if event.data == b"poison":
            raise aem.Park("cannot be read")
        if event.attempts == 1:
            raise aem.Retry(0.01)

    job = client.register("user", once_more, channel="retry")
    client.raise_event("retry", b"a", b"poison", b"c")
    client.run(lambda: len(seen) >= 5)
    job.sync(PATIENCE)  # behind the answers
    assert job.stats().in_flight == 0
    assert sorted(seen) == [(b"a", 1), (b"a", 2), (b"c", 1), (b"c", 2), (b"poison", 1)]
    assert job.stats().parked == 1
    assert job.stats().last_error == "cannot be read"


class Awaitable:
    def __await__(self):
        yield


async def coroutine(event):
    pass


@pytest.mark.parametrize("handler", [coroutine, lambda event: Awaitable()], ids=["coroutine", "awaitable"])
def test_handler_that_is_to_be_awaited_fails_its_event(client, handler):
    job = client.register("user", handler, channel="wait")
    client.raise_event("wait", b"x")
    client.run(lambda: job.stats().failed == 1)
    assert "plain function" in job.stats().last_error


def test_job_life_start_stop_priority_shutdown(client):
    job = client.register("timer", lambda event: None, every="1h", start=False, label="mine")
    assert (job.state, job.label, job.module) == ("REGISTERED", "mine", "timer")
    job.start()
    assert client.get_job(job.id).state == job_pb2.STATE_ARMED
    job.set_priority(6)
    assert client.get_job(job.id).options.priority == 6
    job.sync(PATIENCE)
    job.stop()
    assert (job.state, client.get_job(job.id).state) == ("REGISTERED", job_pb2.STATE_REGISTERED)
    job.shutdown()
    assert job.state == "GONE"
    job.shutdown()
    assert client.jobs == []
    with pytest.raises(aem.AemError) as refused:
        job.start()
    assert refused.value.code is aem.Code.NOT_FOUND


def test_handler_may_shut_its_own_job_down(client, eventually):
    seen = []

    def first_only(event):
        seen.append(event.data)
        event.job.shutdown()
        client.stop()

    job = client.register("user", first_only, channel="one")
    client.raise_event("one", b"1", b"2", b"3")
    client.run(PATIENCE)
    client.run(0.0)
    assert seen == [b"1"]
    assert job.state == "GONE"
    eventually(lambda: not list(client.list_jobs()), "that the daemon has read it")


def test_one_shot_job_is_gone_after_its_event(client):
    seen = []
    job = client.register("timer", seen.append, every="1ms", options=aem.Options(one_shot=True))
    client.run(lambda: job.state == "GONE")
    assert len(seen) == 1


def test_refusals_say_why(client):
    with pytest.raises(aem.AemError) as refused:
        client.register("timer", print, every="sometimes")
    assert refused.value.code is aem.Code.INVALID_ARGUMENT
    assert refused.value.metadata["field"] == "params.every"
    with pytest.raises(aem.AemError) as refused:
        client.events("nonsense")
    assert refused.value.code is aem.Code.NOT_FOUND
    with pytest.raises(aem.AemError) as refused:
        client.get_job(10**9)
    assert (refused.value.code, refused.value.reason) == (aem.Code.NOT_FOUND, "NOT_FOUND")
    with pytest.raises(aem.AemError, match="bytes"):
        client.raise_event("big", b"x" * (3 << 20))
    assert client.jobs == []


def test_lists_status_and_modules(client):
    job = client.register("timer", print, every="1h")
    assert [found.id for found in client.list_jobs(module="timer", state="armed")] == [job.id]
    assert list(client.list_jobs(state="REGISTERED")) == []
    assert {module.id for module in client.list_modules()} == {"process", "socket", "timer", "user"}
    assert client.get_module("timer").id == "timer"
    (session,) = client.list_sessions()
    assert (session.label, session.jobs) == ("test", 1)
    assert session.sdk.startswith("aem-python/")
    assert client.status().caller.pid == os.getpid()
    (uses,) = [{use.resource: use for use in user.uses} for user in client.list_quotas()]
    assert (uses["jobs"].used, uses["sessions"].used, uses["jobs"].origin) == (1, 1, "default")
    assert client.stop_job(job.id).state == job_pb2.STATE_REGISTERED
    assert client.start_job(job.id).state == job_pb2.STATE_ARMED
    assert client.set_priority(job.id, 1).options.priority == 1
    client.shutdown_job(job.id, deadline=0.1)
    client.run(lambda: job.state == "GONE")
    assert client.end_session(session.id) == 0


def test_no_daemon_is_a_clear_error(tmp_path):
    client = aem.Client(f"unix:{tmp_path}/none.sock")
    for call in (client.connect, client.status):
        with pytest.raises(aem.ConnectionLost, match="no daemon at unix:"):
            call()


def test_close_ends_the_jobs(daemon):
    with aem.Client(daemon.address) as watcher:
        client = aem.Client(daemon.address)
        client.register("timer", print, every="1h")
        assert len(list(watcher.list_jobs())) == 1
        client.close()
        assert list(watcher.list_jobs()) == []


FOREVER = """
import os, sys, aem
client = aem.Client(sys.argv[1])
@client.on("timer", every="5ms")
def tick(event):
    os.write(1, b"tick\\n")
client.run_forever()
print("over", len(list(client.list_jobs())))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_forever_ends_on_a_signal_and_leaves_no_jobs(daemon, number):
    with script(FOREVER, daemon.address) as program:
        try:
            assert program.stdout.readline() == "tick\n"
            program.send_signal(number)
            output, _ = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert output.splitlines()[-1] == "over 0"
    assert program.returncode == 0


PROCESSES = """
import os, signal, sys, aem
client = aem.Client(sys.argv[1])

def handle(event):
    if event.data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if event.data == b"fail":
        raise ValueError("not today")
    os.write(1, b"handled %s %d\\n" % (event.data, os.getpid() != main))

main = os.getpid()
client.on("user", channel="work", run=sys.argv[2], pool=2)(handle)
client.connect()
job = client.jobs[0]
client.raise_event("work", b"one", b"crash", b"fail", b"two")
client.run(lambda: job.stats().acknowledged == 4)
stats = job.stats()
print("failed", stats.failed, stats.last_error)
client.close()
with open(f"/proc/{main}/task/{main}/children") as left:
    print("children", left.read().split())
"""


@pytest.mark.parametrize("run", ["fork", "capsule"])
def test_handlers_in_processes_answer_crash_and_leave_nothing(daemon, run):
    with script(PROCESSES, daemon.address, run, stderr=subprocess.PIPE) as program:
        try:
            output, errors = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    lines = output.splitlines()
    assert lines[:2] == ["handled one 1", "handled two 1"], errors
    assert lines[2] == "failed 2 ValueError: not today"
    assert lines[3] == "children []"
    assert "was killed by SIGSEGV" in errors
    assert "ValueError: not today" in errors


def test_handler_process_after_the_first_channel_is_refused_with_the_reason(client):
    client.status()
    with pytest.raises(RuntimeError, match="before the first connection"):
        client.register("timer", print, every="1h", run="fork")
