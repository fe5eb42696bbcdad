"""A daemon ends in order and another begins: sessions go on where they were."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from aemd.v1 import job_pb2, session_pb2

EXPLICIT = {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_EXPLICIT}
LOTS = job_pb2.Credit(events=1_000, bytes=1 << 20)


def restart(daemon):
    """The next daemon on the same state and socket."""
    daemon.stop()
    daemon.start()
    return daemon.client()


def come_back(client, session, **received):
    """The session on a new stream; `received`: b1=5 for binding 1 up to number 5."""
    positions = [
        session_pb2.Position(binding=int(name[1:]), cursor=job_pb2.Cursor(epoch=1, seq=seq))
        for name, seq in received.items()
    ]
    again = client.raw()
    welcome = again.hello(resume_token=session.welcome.resume_token, received=positions)
    return again, welcome


def raise_on(session, channel, *payloads):
    answer = session.ask(**{"raise": session_pb2.Raise(channel=channel, payloads=payloads)})
    assert answer.result.status.code == 0, answer


def payloads(session, count):
    """(last number, payload, attempts) of `count` events."""
    found = []
    while len(found) < count:
        for run, seq, event in session.events():
            attempts = run.attempts[len(found)] if len(run.attempts) > len(found) else 1
            found.append((seq, event.user.payload, attempts))
    return found


def ack(session, binding, seq):
    session.send(ack=session_pb2.Ack(binding=binding, cursor=job_pb2.Cursor(epoch=1, seq=seq)))


def test_a_session_finds_its_jobs_and_what_it_had_not_dealt_with(daemon, client):
    session = client.session()
    registered = session.register("user", channel="work", credit=LOTS)
    raise_on(session, "work", b"a", b"b", b"c")
    assert len(payloads(session, 3)) == 3
    ack(session, registered.binding, 1)
    assert session.ask(sync=session_pb2.Sync()).HasField("sync_done")
    client = restart(daemon)
    session, welcome = come_back(client, session, b1=2)
    assert welcome.resumed
    assert list(welcome.bindings) == [registered.binding]
    session.send(grant=session_pb2.Grant(binding=registered.binding, credit=LOTS))
    ((run, seq, event),) = session.events()
    assert (seq, event.user.payload, list(run.attempts)) == (3, b"c", [2])
    (job,) = client.jobs()
    assert (job.id, job.state, job.stats.in_flight) == (registered.job, job_pb2.STATE_ARMED, 2)
    raise_on(session, "work", b"d")
    assert payloads(session, 1) == [(4, b"d", 1)]


def test_what_waits_without_credit_is_kept(daemon, client):
    session = client.session()
    registered = session.register("user", channel="work", credit=job_pb2.Credit(events=1, bytes=1 << 20))
    raise_on(session, "work", *(b"%d" % n for n in range(50)))
    payloads(session, 1)
    session, welcome = come_back(restart(daemon), session, b1=1)
    assert welcome.resumed
    session.send(grant=session_pb2.Grant(binding=registered.binding, credit=LOTS))
    assert [seq for seq, _, _ in payloads(session, 49)] == list(range(2, 51))


def test_what_is_retried_and_not_delivered_yet_is_kept_and_no_ack_covers_it(daemon, client):
    session = client.session()
    registered = session.register("user", channel="work", credit=job_pb2.Credit(events=3, bytes=1 << 20))
    raise_on(session, "work", b"a", b"b", b"c")
    payloads(session, 3)
    cursor = job_pb2.Cursor(epoch=1, seq=1)
    nack = session_pb2.Nack(binding=registered.binding, cursor=cursor, park=True, reason="cannot")
    assert session.ask(nack=nack).result.status.code == 0
    request = job_pb2.RetryParkedRequest(name=f"jobs/{registered.job}")
    assert client.call("JobService/RetryParked", request, job_pb2.RetryParkedResponse).retried == 1
    session, welcome = come_back(restart(daemon), session, b1=3)
    assert welcome.resumed
    ack(session, registered.binding, 3)
    session.send(grant=session_pb2.Grant(binding=registered.binding, credit=LOTS))
    assert payloads(session, 1) == [(1, b"a", 2)]


def test_a_timer_keeps_its_rhythm_and_counts_what_it_missed(daemon, client):
    session = client.session()
    options = {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_NONE}
    binding = session.register("timer", every="100ms", options=options, credit=LOTS).binding
    ((_, first, event),) = session.events()
    client = restart(daemon)
    session, _ = come_back(client, session, b1=first)
    session.send(grant=session_pb2.Grant(binding=binding, credit=LOTS))
    run, last, later = session.events()[0]
    assert run.first_seq == first + 1
    periods = (later.timer.scheduled_ns - event.timer.scheduled_ns) // 100_000_000
    assert last - first == periods
    assert (later.timer.scheduled_ns - event.timer.scheduled_ns) % 100_000_000 == 0


def test_the_end_of_a_process_is_told_after_the_restart(daemon, client):
    watched = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    session = client.session()
    binding = session.register("process", pid=watched.pid, credit=LOTS).binding
    client = restart(daemon)
    session, _ = come_back(client, session)
    session.send(grant=session_pb2.Grant(binding=binding, credit=LOTS))
    watched.communicate(b"\n")
    ((_, _, event),) = session.events()
    assert event.process.exit_status == 0


def test_a_process_that_ended_while_no_daemon_was_there_leaves_a_gap(daemon, client):
    watched = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    session = client.session()
    binding = session.register("process", pid=watched.pid, credit=LOTS).binding
    daemon.stop()
    watched.communicate(b"\n")
    daemon.start()
    session, welcome = come_back(daemon.client(), session)
    assert list(welcome.bindings) == [binding]
    gap = session.skip_to("gap")
    assert (gap.count, gap.cause, gap.stage) == (0, session_pb2.CAUSE_RESTART, session_pb2.STAGE_SOURCE)
    ack(session, binding, gap.last)
    assert session.skip_to("job_state").state == job_pb2.STATE_GONE


def test_a_client_that_ended_meanwhile_leaves_nothing(daemon, client):
    program = f"""if True:
        import sys
        sys.path.insert(0, {os.getcwd()!r})
        from tests.integration.conftest import Client
        session = Client({daemon.path!r}).session()
        session.register("user", channel="theirs")
        print("ready", flush=True)
        sys.stdin.read()
    """
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"ready\n"
    assert len(client.jobs()) == 1
    daemon.stop()
    other.communicate()
    daemon.start()
    assert daemon.client().jobs() == []


def test_a_client_that_ends_after_the_restart_ends_its_jobs(daemon, client, eventually):
    program = f"""if True:
        import sys
        sys.path.insert(0, {os.getcwd()!r})
        from tests.integration.conftest import Client
        session = Client({daemon.path!r}).session()
        session.register("user", channel="theirs", options={{"lease_ns": 300_000_000_000}})
        print("ready", flush=True)
        sys.stdin.read()
    """
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"ready\n"
    client = restart(daemon)
    assert len(client.jobs()) == 1
    other.communicate()
    eventually(lambda: client.jobs() == [], "the end of the jobs")


def test_a_lease_that_is_over_is_over(daemon, client):
    session = client.session()
    session.register("user", channel="work", options={"lease_ns": 1_000_000})
    _, welcome = come_back(restart(daemon), session)
    assert not welcome.resumed


def test_what_is_raised_while_the_daemon_ends_is_refused_and_not_lost(daemon, client):
    session = client.session()
    session.register("user", channel="work", options=EXPLICIT, credit=LOTS)
    raise_on(session, "work", b"held")
    payloads(session, 1)
    daemon.process.terminate()
    session.skip_to("drain")
    answer = session.ask(**{"raise": session_pb2.Raise(channel="work", payloads=[b"late"])})
    assert answer.result.status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert session.skip_to("drain").said_all
    assert session.end()[0] is grpc.StatusCode.UNAVAILABLE
    assert daemon.process.wait(20) == 0


def test_what_is_handed_over_is_private_and_used_once(daemon, client):
    session = client.session()
    session.register("user", channel="work")
    daemon.stop()
    path = Path(daemon.folder, "state", "handover")
    assert path.stat().st_mode & 0o777 == 0o600
    daemon.start()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x84" * 1_000])
def test_what_cannot_be_taken_up_costs_the_sessions_and_nothing_else(launch, folder, content):
    state = Path(folder, "state")
    state.mkdir(mode=0o700)
    (state / "handover").write_bytes(content)
    daemon = launch()
    with daemon.client() as client:
        assert client.session().register("user", channel="work").job
    assert "nothing is taken up" in daemon.log()


def test_a_follower_of_a_durable_job_goes_on_where_it_was(daemon, client):
    request = job_pb2.CreateJobRequest(
        name="kept", module="user", params={"channel": job_pb2.Value(text="work")}
    )
    client.call("JobService/CreateJob", request, job_pb2.Job)
    session = client.session()
    bind = session_pb2.Bind(name="kept", role=session_pb2.ROLE_FOLLOW, credit=LOTS)
    binding = session.ask(bind=bind).registered.binding
    raise_on(session, "work", b"a", b"b")
    payloads(session, 2)
    ack(session, binding, 1)
    assert session.ask(sync=session_pb2.Sync()).HasField("sync_done")
    session, welcome = come_back(restart(daemon), session, **{f"b{binding}": 2})
    assert list(welcome.bindings) == [binding]
    session.send(grant=session_pb2.Grant(binding=binding, credit=LOTS))
    raise_on(session, "work", b"c")
    assert payloads(session, 1) == [(3, b"c", 1)]


def test_connections_end_with_the_daemon_and_that_is_told(daemon, client):
    session = client.session()
    registered = session.register("socket", listen="tcp:127.0.0.1:0", credit=LOTS)
    ((_, _, listening),) = session.events()
    port = listening.socket.local.port
    with socket.create_connection(("127.0.0.1", port)) as peer:
        ((_, last, accepted),) = session.events()
        complete = session_pb2.Complete(
            binding=registered.binding, cursor=job_pb2.Cursor(epoch=1, seq=last - 1)
        )
        session.send(complete=complete)
        complete.cursor.seq = last
        session.send(complete=complete)
        client = restart(daemon)
        assert peer.recv(1) == b""
    session, welcome = come_back(client, session, **{f"b{registered.binding}": last})
    assert list(welcome.bindings) == [registered.binding]
    session.send(grant=session_pb2.Grant(binding=registered.binding, credit=LOTS))
    told = []
    while len(told) < 2:
        told += [event for _, _, event in session.events()]
    assert [event.type for event in told] == ["listening", "closed"]
    assert told[0].socket.local.port == port
    assert (told[1].key, told[1].socket.reason) == (accepted.key, "restart")
    with socket.create_connection(("127.0.0.1", port)):
        ((_, _, again),) = session.events()
        assert again.type == "accepted"
        assert again.key != accepted.key


def test_a_connection_that_closes_while_the_daemon_ends_is_told_by_the_next(daemon, client):
    session = client.session()
    binding = session.register("socket", listen="tcp:127.0.0.1:0", credit=LOTS).binding
    ((_, _, listening),) = session.events()
    with socket.create_connection(("127.0.0.1", listening.socket.local.port)) as peer:
        ((_, last, accepted),) = session.events()
        daemon.process.terminate()
        session.skip_to("drain")
        for seq in (last - 1, last):
            cursor = job_pb2.Cursor(epoch=1, seq=seq)
            reply = session_pb2.Operation(name="close") if seq == last else None
            session.send(complete=session_pb2.Complete(binding=binding, cursor=cursor, reply=reply))
        assert peer.recv(1) == b""
    assert daemon.process.wait(20) == 0
    client = restart(daemon)
    session, _ = come_back(client, session, **{f"b{binding}": last})
    session.send(grant=session_pb2.Grant(binding=binding, credit=LOTS))
    told = []
    while len(told) < 2:
        told += [event for _, _, event in session.events()]
    assert [event.type for event in told] == ["listening", "closed"]
    assert told[1].key == accepted.key
    assert told[1].socket.reason not in ("", "restart")


def test_jobs_of_several_sessions_are_listed_in_order_and_completely(daemon, client):
    one, other = client.session(), client.session()
    jobs = [session.register("user", channel="work").job for session in (one, other, one, other)]
    client = restart(daemon)
    listed, token = [], ""
    for _ in jobs:
        request = job_pb2.ListJobsRequest(page_size=1, page_token=token)
        page = client.call("JobService/ListJobs", request, job_pb2.ListJobsResponse)
        listed += [job.id for job in page.jobs]
        token = page.next_page_token
    assert listed == jobs
    assert token == ""
