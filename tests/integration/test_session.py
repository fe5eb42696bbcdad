"""The Session stream, over a real daemon and its fronts, with plain grpc."""

import os

import grpc
import pytest
from google.rpc import error_details_pb2

from aemd.v1 import job_pb2, session_pb2


@pytest.fixture
def client(shared_daemon):
    """On the daemon of this file; whatever a test leaves is ended, and then nothing of it may be left."""
    with shared_daemon.client() as client:
        yield client
        client.end_sessions()
        status = client.status()
        assert (status.sessions, status.jobs) == (0, 0)


def reason_of(status):
    """ErrorInfo.reason, the first detail of every refusal."""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def ack(session, run, seq):
    session.send(ack=session_pb2.Ack(binding=run.binding, cursor=job_pb2.Cursor(epoch=run.epoch, seq=seq)))


def raise_frame(channel, *payloads):
    return {"raise": session_pb2.Raise(channel=channel, payloads=payloads)}


def test_welcome_shows_the_principal_and_the_limits(client):
    welcome = client.raw().hello(label="me", sdk="by hand")
    assert welcome.principal.uid == os.geteuid()
    assert welcome.principal.pid == os.getpid()
    assert welcome.version == 1
    assert welcome.limits.message_bytes == 1 << 20
    assert len(welcome.resume_token) >= 16
    assert not welcome.resumed


def test_timer_fires_is_acknowledged_and_shut_down(session, client):
    registered = session.register("timer", every="20ms")
    assert registered.state == job_pb2.STATE_ARMED
    assert (registered.start.epoch, registered.start.seq) == (1, 0)
    seen = 0
    while seen < 3:
        for run, seq, event in session.events():
            assert run.binding == registered.binding
            assert event.timer.lateness_ns >= 0
            ack(session, run, seq)
            seen += 1
    assert session.ask(shutdown=session_pb2.Shutdown(job=registered.job)).result.status.code == 0
    assert client.jobs() == []


def test_user_events_reach_another_session_in_order_with_their_sender(client):
    listener, speaker = client.session(), client.session()
    listener.register("user", channel="c")
    assert speaker.ask(**raise_frame("c", b"1", b"2", b"3")).result.status.code == 0
    got = []
    while len(got) < 3:
        got += [event.user for _, _, event in listener.events()]
    assert [user.payload for user in got] == [b"1", b"2", b"3"]
    assert {(user.channel, user.sender_uid, user.sender_pid) for user in got} == {
        ("c", os.geteuid(), os.getpid())
    }


def test_registered_but_not_started_job_is_inert_until_start_and_after_stop(session):
    job = session.register("user", channel="c", start=False).job
    session.ask(**raise_frame("c", b"before"))
    assert session.ask(start=session_pb2.Start(job=job)).result.status.code == 0
    session.ask(**raise_frame("c", b"between"))
    assert [event.user.payload for _, _, event in session.events()] == [b"between"]
    assert session.ask(stop=session_pb2.Stop(job=job)).result.status.code == 0
    session.ask(**raise_frame("c", b"after"))
    assert session.ask(start=session_pb2.Start(job=job)).result.status.code == 0
    session.ask(**raise_frame("c", b"again"))
    assert [event.user.payload for _, _, event in session.events()] == [b"again"]


@pytest.mark.parametrize(
    ("module", "params", "code", "reason"),
    [
        ("timer", {"every": "soon"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ("timer", {"evry": "1s"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ("timer", {}, grpc.StatusCode.INVALID_ARGUMENT, None),
        ("user", {}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ("tmier", {"every": "1s"}, grpc.StatusCode.NOT_FOUND, "MODULE_UNKNOWN"),
        ("", {}, grpc.StatusCode.NOT_FOUND, "MODULE_UNKNOWN"),
        ("process", {"pid": 2**22 + 1}, None, None),
        ("socket", {"listen": "tcp:256.1.1.1:1"}, None, None),
    ],
)
def test_wrong_registration_is_refused_and_touches_nothing_else(
    session, client, module, params, code, reason
):
    good = session.register("user", channel="c")
    status = session.register(module, **params)
    assert status.code != 0
    assert status.message
    if code is not None:
        assert status.code == code.value[0]
    if reason is not None:
        assert reason_of(status) == reason
    session.ask(**raise_frame("c", b"still here"))
    assert [event.user.payload for _, _, event in session.events()] == [b"still here"]
    assert [job.id for job in client.jobs()] == [good.job]


def test_start_that_is_refused_leaves_no_job(session, client, folder):
    first = session.register("socket", listen=f"unix:{folder}/s")
    status = session.register("socket", listen=f"unix:{folder}/s")
    assert status.code in (6, 9)
    assert [job.id for job in client.jobs()] == [first.job]


def test_failure_without_request_id_gets_a_result_and_success_does_not(session):
    session.send(start=session_pb2.Start(job=99))
    assert session.expect("result").status.code == grpc.StatusCode.NOT_FOUND.value[0]
    session.send(**raise_frame("nobody", b""))
    assert session.ask(**raise_frame("nobody", b"")).request_id == 1


def test_bind_of_an_ephemeral_job_says_that_it_is_not_durable(session):
    job = session.register("user", channel="c").job
    status = session.ask(bind=session_pb2.Bind(job=job)).result.status
    assert (status.code, reason_of(status)) == (9, "NOT_DURABLE")


def test_unbind_ends_an_ephemeral_job(session, client):
    registered = session.register("user", channel="c")
    assert session.ask(unbind=session_pb2.Unbind(binding=registered.binding)).result.status.code == 0
    assert client.jobs() == []


def test_sync_is_answered_behind_the_events_before_it(session):
    registered = session.register("user", channel="c")
    session.send(**raise_frame("c", b"1", b"2"))
    session.send(request_id=50, sync=session_pb2.Sync())
    assert len(session.events()) == 2
    done = session.expect("sync_done")
    assert (done.job, done.cursor.seq) == (registered.job, 2)


def test_sync_without_jobs_and_of_foreign_jobs_is_answered(client, session):
    assert session.ask(sync=session_pb2.Sync()).result.status.code == 0
    other = client.session().register("user", channel="c").job
    assert session.ask(sync=session_pb2.Sync(jobs=[other])).result.status.code == 5


def test_credit_of_a_binding_is_obeyed(session):
    credit = job_pb2.Credit(events=2, bytes=1 << 20)
    binding = session.register("user", channel="c", credit=credit).binding
    session.ask(**raise_frame("c", *[b"%d" % n for n in range(5)]))
    assert len(session.events()) == 2
    session.send(grant=session_pb2.Grant(binding=binding, credit=job_pb2.Credit(events=3, bytes=1 << 20)))
    assert [event.user.payload for _, _, event in session.events()] == [b"2", b"3", b"4"]


def test_nack_brings_the_entry_again_with_its_attempt(session):
    options = {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_EXPLICIT}
    session.register("user", channel="c", options=options)
    session.ask(**raise_frame("c", b"x"))
    (run, seq, first) = session.events()[0]
    cursor = job_pb2.Cursor(epoch=run.epoch, seq=seq)
    session.send(nack=session_pb2.Nack(binding=run.binding, cursor=cursor))
    (run, _, again) = session.events()[0]
    assert (list(run.attempts), again) == ([2], first)
    done = session_pb2.Complete(binding=run.binding, cursor=cursor)
    assert session.ask(complete=done).result.status.code == 0
    assert session.ask(complete=done).result.status.code == 9


def test_failed_handler_is_visible_in_the_job(session, client):
    options = {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_EXPLICIT}
    session.register("user", channel="c", options=options)
    session.ask(**raise_frame("c", b"x"))
    (run, seq, _) = session.events()[0]
    failed = session_pb2.Complete(binding=run.binding, cursor=job_pb2.Cursor(epoch=run.epoch, seq=seq))
    failed.status.code, failed.status.message = 2, "KeyError: 'x'"
    session.ask(complete=failed)
    (job,) = client.jobs()
    assert (job.stats.failed, job.stats.last_error) == (1, "KeyError: 'x'")


def test_one_shot_job_ends_when_its_event_was_handled(session, client):
    registered = session.register("user", channel="c", options={"one_shot": True})
    session.ask(**raise_frame("c", b"1", b"2"))
    (run, seq, event) = session.events()[0]
    assert event.user.payload == b"1"
    assert [job.state for job in client.jobs()] == [job_pb2.STATE_CLOSING]
    ack(session, run, seq)
    gone = session.skip_to("job_state")
    assert (gone.job, gone.state) == (registered.job, job_pb2.STATE_GONE)
    assert client.jobs() == []


# How a stream begins.


def test_first_frame_other_than_hello_ends_the_stream(client):
    session = client.raw()
    session.send(start=session_pb2.Start(job=1))
    code, text = session.end()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "Hello" in text


def test_second_hello_ends_the_stream(session, client):
    session.register("user", channel="c")
    session.send(hello=session_pb2.Hello(version_min=1, version_max=1))
    assert session.end()[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert client.jobs() == []


def test_version_that_nobody_speaks_names_both_ranges(client):
    session = client.raw()
    session.send(hello=session_pb2.Hello(version_min=7, version_max=9))
    code, text = session.end()
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "7 to 9" in text
    assert "1 to 1" in text


def test_version_is_the_newest_that_both_speak(client):
    session = client.raw()
    session.send(hello=session_pb2.Hello(version_min=1, version_max=9))
    assert session.expect("welcome").version == 1


def test_unknown_token_opens_a_new_session(client):
    welcome = client.raw().hello(resume_token=b"x" * 32)
    assert not welcome.resumed
    assert welcome.session


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xff\xff\xff", id="garbage"),
        pytest.param(session_pb2.ClientFrame(request_id=1).SerializeToString(), id="no-frame"),
        pytest.param(b"\x9a\x01\x00", id="frame-of-the-future"),
        pytest.param(
            session_pb2.ClientFrame(
                bundle=session_pb2.ClientBundle(
                    frames=[session_pb2.ClientFrame(bundle=session_pb2.ClientBundle())]
                )
            ).SerializeToString(),
            id="nested-bundle",
        ),
        pytest.param(
            session_pb2.ClientFrame(
                bundle=session_pb2.ClientBundle(
                    frames=[session_pb2.ClientFrame(hello=session_pb2.Hello(version_max=1))]
                )
            ).SerializeToString(),
            id="hello-in-a-bundle",
        ),
    ],
)
@pytest.mark.parametrize("welcomed", [False, True])
def test_malformed_message_ends_this_session_and_no_other(client, session, message, welcomed):
    session.register("user", channel="c")
    broken = client.session() if welcomed else client.raw()
    broken.send_bytes(message)
    code, text = broken.end()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text
    session.ask(**raise_frame("c", b"on"))
    assert [event.user.payload for _, _, event in session.events()] == [b"on"]


def test_oversized_message_ends_the_stream_and_not_the_daemon(client, session):
    session.register("user", channel="c")
    big = client.session()
    big.send(**raise_frame("c", b"x" * (2 << 20)))
    assert big.end()[0] in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
    assert session.ask(**raise_frame("c", b"on")).result.status.code == 0


def test_frames_of_a_bundle_are_answered_each_and_in_order(session):
    frames = [session_pb2.ClientFrame(request_id=n, start=session_pb2.Start(job=n)) for n in range(1, 101)]
    session.send_bundle(frames)
    assert [session.next().request_id for _ in frames] == list(range(1, 101))


# How a stream ends.


def test_half_close_says_goodbye_and_ends_the_jobs(client):
    session = client.session()
    session.register("user", channel="c")
    session.half_close()
    assert session.end() == (grpc.StatusCode.OK, "")
    assert client.jobs() == []
    assert client.status().sessions == 0


def test_answers_of_what_came_before_the_half_close_still_arrive(client):
    session = client.session()
    frames = [session_pb2.ClientFrame(request_id=n, start=session_pb2.Start(job=n)) for n in range(1, 3001)]
    session.send_bundle(frames)
    session.half_close()
    assert [session.next().request_id for _ in frames] == list(range(1, 3001))
    assert session.end()[0] == grpc.StatusCode.OK


def test_half_close_before_hello_is_malformed(client):
    session = client.raw()
    session.half_close()
    assert session.end()[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_resume_within_the_lease_finds_the_jobs_and_what_was_not_acknowledged(client):
    lost = client.session()
    binding = lost.register("user", channel="c").binding
    lost.ask(**raise_frame("c", b"1", b"2"))
    got = []
    while len(got) < 2:
        got += lost.events()
    ack(lost, got[0][0], 1)
    lost.ask(start=session_pb2.Start(job=99))
    lost.cancel()

    back = client.raw()
    received = session_pb2.Position(binding=binding, cursor=job_pb2.Cursor(epoch=1, seq=1))
    welcome = back.hello(resume_token=lost.welcome.resume_token, received=[received])
    assert welcome.resumed
    assert list(welcome.bindings) == [binding]
    assert welcome.session == lost.welcome.session
    assert welcome.resume_token != lost.welcome.resume_token
    back.ask(**raise_frame("c", b"3"))
    grant = session_pb2.Grant(binding=binding, credit=job_pb2.Credit(events=10, bytes=1 << 20))
    back.send(grant=grant)
    seen = []
    while len(seen) < 2:
        seen += back.events()
    assert [event.user.payload for _, _, event in seen] == [b"2", b"3"]


def test_resume_while_the_old_stream_lives_ends_the_old_one(client):
    old = client.session()
    old.register("user", channel="c")
    new = client.raw()
    assert new.hello(resume_token=old.welcome.resume_token).resumed
    code, text = old.end()
    assert code == grpc.StatusCode.ABORTED
    assert "elsewhere" in text
    assert len(client.jobs()) == 1


def test_client_that_does_not_read_delays_nobody_and_is_not_read(client):
    deaf, session = client.raw(), client.session()
    deaf._call.cancel()  # its reader takes everything at once; this one is a stream of its own
    out = grpc.insecure_channel(client.address, options=[("grpc.use_local_subchannel_pool", 1)])
    frames = [
        session_pb2.ClientFrame(request_id=n + 1, start=session_pb2.Start(job=99)) for n in range(2_000)
    ]
    bundle = session_pb2.ClientFrame(bundle=session_pb2.ClientBundle(frames=frames)).SerializeToString()

    def flood():
        yield session_pb2.ClientFrame(
            hello=session_pb2.Hello(version_min=1, version_max=1)
        ).SerializeToString()
        for _ in range(2_000):
            yield bundle

    call = out.stream_stream("/aem.v1.EventService/Session")(flood())
    assert next(call)
    session.register("user", channel="c")
    for n in range(20):
        session.ask(**raise_frame("c", b"%d" % n))
    assert client.status().sessions == 2
    out.close()
