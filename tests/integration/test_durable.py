"""Durable jobs against a real daemon that is restarted and killed."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import grpc
import pytest

from aemd.v1 import job_pb2, session_pb2

OLDEST, CURSOR, TIME, NOW = (
    session_pb2.FROM_OLDEST,
    session_pb2.FROM_CURSOR,
    session_pb2.FROM_TIME,
    session_pb2.FROM_NOW,
)
FOLLOW = session_pb2.ROLE_FOLLOW


def create(client, name="backup", module="user", *, stopped=False, options=None, keep=None, **params):
    request = job_pb2.CreateJobRequest(
        name=name,
        module=module,
        params={key: job_pb2.Value(text=str(value)) for key, value in params.items()},
        options=job_pb2.Options(**(options or {})),
        keep=keep,
        stopped=stopped,
    )
    return client.call("JobService/CreateJob", request, job_pb2.Job)


def get(client, name="backup"):
    return client.call("JobService/GetJob", job_pb2.GetJobRequest(name=f"jobs/{name}"), job_pb2.Job)


def shut_down(client, name="backup"):
    request = job_pb2.ShutdownJobRequest(name=f"jobs/{name}")
    return client.call("JobService/ShutdownJob", request, job_pb2.Job)


def refused(call, *arguments, **named):
    """(code, message) of a call that is refused."""
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments, **named)
    return raised.value.code(), raised.value.details()


def bind(session, name="backup", **how):
    return session.ask(bind=session_pb2.Bind(name=name, **how))


def raise_on(session, channel, *payloads):
    answer = session.ask(**{"raise": session_pb2.Raise(channel=channel, payloads=payloads)})
    assert answer.result.status.code == 0, answer


def read(session, count):
    """`count` entries: (epoch, first, last, payload or Gap, attempts)."""
    found = []
    while len(found) < count:
        frame = session.next()
        assert frame is not None
        if frame.HasField("gap"):
            gap = frame.gap
            found.append((gap.epoch, gap.first, gap.last, gap, gap.attempts))
        for run in frame.batch.runs:
            seq = run.first_seq
            for index, event in enumerate(run.events):
                count_of = run.counts[index] if run.counts else 1
                attempts = run.attempts[index] if run.attempts else 1
                parsed = session_pb2_event(event)
                found.append((run.epoch, seq, seq + count_of - 1, parsed, attempts))
                seq += count_of
    assert len(found) == count, found
    return found


def session_pb2_event(event):
    from aemd.v1 import event_pb2

    parsed = event_pb2.Event.FromString(event)
    return parsed.user.payload if parsed.HasField("user") else parsed


def ack(session, binding, seq, epoch=1):
    answer = session.ask(ack=session_pb2.Ack(binding=binding, cursor=job_pb2.Cursor(epoch=epoch, seq=seq)))
    assert answer.result.status.code == 0, answer


def again(daemon, *, kill=False):
    """The next daemon on the same state."""
    if kill:
        daemon.kill()
        Path(daemon.path).unlink()
    else:
        daemon.stop()
    daemon.start()
    return daemon.client()


def test_what_happens_while_nobody_is_there_is_read_later(client):
    job = create(client, channel="deploy")
    assert (job.durable_name, job.state) == ("backup", job_pb2.STATE_ARMED)
    other = client.session()
    raise_on(other, "deploy", b"a", b"b")
    session = client.session()
    registered = bind(session).registered
    assert registered.job == job.id
    assert (registered.start.epoch, registered.start.seq) == (1, 0)
    assert read(session, 2) == [(1, 1, 1, b"a", 1), (1, 2, 2, b"b", 1)]
    raise_on(other, "deploy", b"c")
    assert read(session, 1) == [(1, 3, 3, b"c", 1)]


def test_an_orderly_restart_loses_nothing_and_delivers_nothing_twice_as_new(daemon, client):
    number = create(client, channel="deploy").id
    session = client.session()
    raise_on(session, "deploy", b"a", b"b", b"c")
    binding = bind(session).registered.binding
    assert len(read(session, 3)) == 3
    ack(session, binding, 1)
    client = again(daemon)
    job = get(client)
    assert (job.id, job.state) == (number, job_pb2.STATE_ARMED)
    session = client.session()
    raise_on(session, "deploy", b"d")
    registered = bind(session).registered
    assert registered.start.seq == 1
    assert read(session, 3) == [(1, 2, 2, b"b", 2), (1, 3, 3, b"c", 2), (1, 4, 4, b"d", 1)]


@pytest.mark.parametrize("done", ["CreateJob", "StopJob", "StartJob", "ShutdownJob"])
def test_what_was_answered_is_known_to_the_daemon_after_a_kill(daemon, client, done):
    for name in ("one", "two", "three"):
        if done != "CreateJob":
            create(client, name, channel="deploy", stopped=done == "StartJob")
        if done == "CreateJob":
            create(client, name, channel="deploy")
        elif done == "ShutdownJob":
            shut_down(client, name)
        else:
            request = getattr(job_pb2, f"{done}Request")(name=f"jobs/{name}")
            client.call(f"JobService/{done}", request, job_pb2.Job)
        client = again(daemon, kill=True)
        if done == "ShutdownJob":
            assert client.jobs() == []
        else:
            stopped = job_pb2.STATE_REGISTERED
            assert get(client, name).state == (stopped if done == "StopJob" else job_pb2.STATE_ARMED)


def test_a_killed_daemon_leaves_a_gap_and_keeps_what_was_written(daemon, client, eventually):
    create(client, channel="deploy")
    session = client.session()
    raise_on(session, "deploy", b"a", b"b")
    eventually(lambda: _written(daemon, 2), "the write")
    client = again(daemon, kill=True)
    session = client.session()
    raise_on(session, "deploy", b"c")
    binding = bind(session).registered.binding
    assert read(session, 2) == [(1, 1, 1, b"a", 2), (1, 2, 2, b"b", 2)]
    ack(session, binding, 2)
    (epoch, first, last, gap, _), event = read(session, 2)
    assert (epoch, first, last, gap.count, gap.cause) == (2, 1, 1, 0, session_pb2.CAUSE_RESTART)
    assert event == (2, 2, 2, b"c", 1)


def _written(daemon, entries):
    """Whether so many entries are on disk; the daemon holds the file, so a copy is looked at."""
    import shutil
    import sqlite3
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for path in Path(daemon.folder, "state").glob("aemd.db*"):
            shutil.copy(path, folder)
        try:
            database = sqlite3.connect(f"{folder}/aemd.db")
            (count,) = database.execute("SELECT count(*) FROM entries").fetchone()
        except sqlite3.Error:
            return False
        database.close()
    return count == entries


def test_any_number_follow_each_from_a_position_of_its_own(client):
    create(client, channel="deploy")
    session = client.session()
    raise_on(session, "deploy", b"a")
    between_ns = time.time_ns()
    raise_on(session, "deploy", b"b", b"c")
    cases = [
        ({"from": OLDEST}, 3),
        ({"from": CURSOR, "cursor": job_pb2.Cursor(epoch=1, seq=2)}, 1),
        ({"from": TIME, "time_ns": between_ns}, 2),
        ({"from": TIME, "time_ns": 0}, 3),
        ({"from": NOW}, 0),
        ({}, 0),
    ]
    for how, behind in cases:
        follower = client.session()
        registered = bind(follower, role=FOLLOW, **how).registered
        assert registered.start.seq == 3 - behind, how
        assert [entry[3] for entry in read(follower, behind)] == [b"a", b"b", b"c"][3 - behind :]
    assert get(client).readers == len(cases)


def test_a_position_that_is_not_there_is_refused_with_what_there_is(client):
    create(client, channel="deploy", keep=job_pb2.Keep(entries=2))
    session = client.session()
    raise_on(session, "deploy", *(b"%d" % n for n in range(10)))
    status = bind(session, **{"from": CURSOR, "cursor": job_pb2.Cursor(epoch=1, seq=99)}).result.status
    assert status.code == grpc.StatusCode.OUT_OF_RANGE.value[0]
    assert "1:10" in status.message


def test_one_client_answers_and_a_second_is_told_who_does(client):
    create(client, channel="deploy")
    first, second = client.session(), client.session()
    assert bind(first).HasField("registered")
    status = bind(second).result.status
    assert status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert f"sessions/{first.welcome.session}" in status.message
    first.half_close()
    first.end()
    assert bind(second).HasField("registered")


def test_made_again_it_is_the_one_that_is_there(client):
    job = create(client, channel="deploy")
    assert create(client, channel="deploy").id == job.id
    code, message = refused(create, client, channel="other")
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert f"jobs/{job.id}, with other params" in message
    assert len(client.jobs()) == 1


@pytest.mark.parametrize("name", ["", "17", "a/b", "a b", "x" * 65, "ä"])
def test_a_name_that_is_none_is_refused(client, name):
    code, message = refused(create, client, name, channel="deploy")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "letters, digits" in message


def test_a_registration_that_is_refused_leaves_nothing(client):
    assert refused(create, client, module="timer", every="never")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert refused(create, client, module="process", pid=2**22 - 1)[0] is grpc.StatusCode.NOT_FOUND
    assert client.jobs() == []
    create(client, channel="deploy")


def test_shutdown_gives_up_the_history(daemon, client):
    create(client, channel="deploy")
    raise_on(client.session(), "deploy", b"a")
    assert shut_down(client).state == job_pb2.STATE_GONE
    assert refused(get, client)[0] is grpc.StatusCode.NOT_FOUND
    fresh = create(client, channel="deploy")
    assert fresh.stats.head.seq == 0
    shut_down(client, fresh.id)
    client = again(daemon)
    assert client.jobs() == []
    assert create(client, channel="deploy").id > fresh.id


def test_what_is_stopped_stays_stopped(daemon, client):
    create(client, channel="deploy", stopped=True)
    raise_on(client.session(), "deploy", b"unheard")
    client = again(daemon)
    assert get(client).state == job_pb2.STATE_REGISTERED
    client.call("JobService/StartJob", job_pb2.StartJobRequest(name="jobs/backup"), job_pb2.Job)
    session = client.session()
    raise_on(session, "deploy", b"heard")
    bind(session)
    assert read(session, 1)[0][3] == b"heard"
    client.call("JobService/StopJob", job_pb2.StopJobRequest(name="jobs/backup"), job_pb2.Job)
    client = again(daemon)
    assert get(client).state == job_pb2.STATE_REGISTERED


def test_a_timer_fires_once_for_what_came_due_meanwhile(daemon, client):
    create(client, module="timer", every="300ms")
    daemon.stop()
    begin = time.monotonic()
    while time.monotonic() - begin < 1.0:  # what is tested is that time passes
        time.sleep(0.1)
    daemon.start()
    session = daemon.client().session()
    bind(session)
    first = read(session, 1)[0]
    assert first[0] == 1
    assert first[2] - first[1] >= 2  # three periods and more have passed


def test_a_port_that_is_taken_is_told_and_tried_again(daemon, client):
    create(client, module="socket", listen="tcp:127.0.0.1:0", options={})
    port = int(get(client).details["address"].rpartition(":")[2])
    shut_down(client)
    create(client, module="socket", listen=f"tcp:127.0.0.1:{port}")
    daemon.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        daemon.start()
        client = daemon.client()
        job = get(client)
        assert job.state == job_pb2.STATE_REGISTERED
        assert str(port) in job.reason
        request = job_pb2.StartJobRequest(name="jobs/backup")
        assert refused(client.call, "JobService/StartJob", request, job_pb2.Job)[0] is not None
    assert client.call("JobService/StartJob", request, job_pb2.Job).state == job_pb2.STATE_ARMED
    with socket.create_connection(("127.0.0.1", port)):
        session = client.session()
        bind(session)
        assert [entry[3].type for entry in read(session, 3)] == ["listening", "listening", "accepted"]


def test_what_was_put_aside_outlives_the_daemon_and_is_delivered_once_more(daemon, client):
    create(client, channel="deploy")
    session = client.session()
    raise_on(session, "deploy", b"a", b"b")
    binding = bind(session).registered.binding
    read(session, 2)
    nack = session_pb2.Nack(
        binding=binding, cursor=job_pb2.Cursor(epoch=1, seq=1), park=True, reason="cannot"
    )
    assert session.ask(nack=nack).result.status.code == 0
    ack(session, binding, 2)
    session.half_close()
    session.end()
    client = again(daemon)
    request = job_pb2.ListParkedRequest(name="jobs/backup")
    parked = client.call("JobService/ListParked", request, job_pb2.ListParkedResponse).entries
    assert [(one.cursor.seq, one.reason, one.attempts, one.kept) for one in parked] == [
        (1, "cannot", 1, True)
    ]
    retry = job_pb2.RetryParkedRequest(name="jobs/backup")
    code, message = refused(client.call, "JobService/RetryParked", retry, job_pb2.RetryParkedResponse)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no client that answers" in message
    session = client.session()
    bind(session)
    assert client.call("JobService/RetryParked", retry, job_pb2.RetryParkedResponse).retried == 1
    assert read(session, 1) == [(1, 1, 1, b"a", 2)]


def test_a_damaged_store_costs_durable_jobs_and_nothing_else(launch, folder):
    state = Path(folder, "state")
    state.mkdir(mode=0o700)
    damaged = b"this is no database, whatever its name says" * 99
    (state / "aemd.db").write_bytes(damaged)
    daemon = launch()
    with daemon.client() as client:
        code, message = refused(create, client, channel="deploy")
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "aemd.db" in message
        assert "damaged" in message
        session = client.session()
        assert session.register("user", channel="deploy").job
        raise_on(session, "deploy", b"a")
    daemon.stop()
    assert (state / "aemd.db").read_bytes() == damaged


def test_ids_are_not_given_out_again_by_the_next_daemon(daemon, client):
    numbers = [client.session().register("user", channel="deploy").job for _ in range(3)]
    create(client, channel="deploy")
    client = again(daemon)
    assert client.session().register("user", channel="deploy").job > max(numbers) + 1
    client = again(daemon, kill=True)
    assert client.session().register("user", channel="deploy").job > max(numbers) + 2
