"""Session streams over a real engine: pacing, ends, resumption, draining."""

import time

from aemd.core.errors import Code
from aemd.service.session import FRAMES_PER_TURN
from aemd.v1 import job_pb2, session_pb2
from tests.unit.service.conftest import Bench, Prop, principal


def requests(count, first=1):
    """Requests that are refused in a few bytes."""
    start = session_pb2.Start(job=999)
    return [session_pb2.ClientFrame(request_id=n, start=start) for n in range(first, first + count)]


def raise_frame(channel, *payloads):
    return {"raise": session_pb2.Raise(channel=channel, payloads=payloads)}


def answers(wire):
    return [frame.request_id for frame in wire.told() if frame.HasField("result")]


# Pacing.


def test_flood_leaves_others_a_turn(bench):
    loud, quiet = bench.session(), bench.session()
    loud.say_bundle(requests(5 * FRAMES_PER_TURN))
    quiet.say(request_id=1, start=session_pb2.Start(job=1))
    bench.turn()
    assert answers(quiet) == [1]
    assert len(answers(loud)) <= 2 * FRAMES_PER_TURN


def test_flood_that_needs_no_answers_leaves_others_a_turn(bench):
    loud = bench.session()
    session = loud.handler.session
    before = session.credit_events
    grant = session_pb2.Grant(credit=job_pb2.Credit(events=1))
    loud.say_bundle([session_pb2.ClientFrame(grant=grant)] * (10 * FRAMES_PER_TURN))
    while session.credit_events - before < 10 * FRAMES_PER_TURN:
        done = session.credit_events
        bench.turn(10_000_000_000)
        assert session.credit_events - done <= FRAMES_PER_TURN


def test_bundle_of_too_many_frames_is_malformed(make_bench):
    bench = make_bench(bundle_frames=10)
    wire = bench.session()
    wire.say_bundle(requests(10))
    bench.turn()
    assert len(answers(wire)) == 10
    wire.say_bundle(requests(11))
    assert wire.status[0] == Code.INVALID_ARGUMENT
    assert "at most 10" in wire.status[1]


def test_client_that_does_not_read_is_not_read_and_loses_nothing(make_bench):
    bench = make_bench(unanswered=100)
    wire = bench.session()
    wire.room(0)
    for first in range(1, 20_001, 1_000):
        wire.say_bundle(requests(1_000, first))
    for _ in range(50):
        bench.turn()
    session = wire.handler.session
    assert len(session.control) <= 100
    assert wire.given_back == 0
    taken = []
    while len(taken) < 20_000:
        wire.room(4_096)
        bench.turn()
        taken += answers(wire)
    assert taken == list(range(1, 20_001))
    assert wire.given_back > 0


def test_client_that_talks_too_fast_is_read_as_fast_as_it_may(make_bench):
    bench = make_bench(frames_per_second=1_000, frames_burst=20)
    wire = bench.session()
    wire.say_bundle(requests(100))
    bench.turn()
    early = answers(wire)
    assert 0 < len(early) <= 30
    taken = early
    bench.turn_until(lambda: bool(taken.extend(answers(wire))) or len(taken) == 100)
    assert taken == list(range(1, 101))


def test_hello_that_does_not_come_ends_the_stream(make_bench):
    bench = make_bench(hello_ns=1_000_000)
    wire = bench.wire()
    bench.turn_until(lambda: wire.status is not None)
    assert wire.status[0] == Code.DEADLINE_EXCEEDED
    assert "Hello" in wire.status[1]


def test_hello_in_time_stops_that_clock(make_bench):
    bench = make_bench(hello_ns=1_000_000)
    wire = bench.session()
    timer = bench.session().register("timer", after="20ms")
    bench.turn_until(lambda: bench.daemon.engine.jobs_of_module("timer")[0].last_fire_ns)
    assert timer.job
    assert wire.status is None


# Ends.


def test_goodbye_waits_for_answers_that_have_no_room_yet(bench):
    wire = bench.session()
    wire.room(0)
    wire.say_bundle(requests(10))
    wire.handler.half_closed()
    bench.turn()
    assert wire.status is None
    wire.room(100_000)
    bench.turn()
    assert answers(wire) == list(range(1, 11))
    assert wire.status == (Code.OK, "")
    assert len(bench.daemon.sessions) == 0


def test_goodbye_waits_for_the_answer_of_a_sync(bench, prop):
    wire = bench.session()
    job = wire.register("prop").job
    wire.say(request_id=5, sync=session_pb2.Sync(jobs=[job]))
    wire.handler.half_closed()
    bench.turn()
    assert wire.status is None
    prop.syncs[0]()
    bench.turn()
    assert [frame.sync_done.job for frame in wire.told() if frame.request_id == 5] == [job]
    assert wire.status == (Code.OK, "")


def test_sync_of_a_job_that_ends_meanwhile_is_answered_all_the_same(bench, prop):
    wire = bench.session()
    registered = wire.register("prop")
    wire.say(request_id=5, sync=session_pb2.Sync(jobs=[registered.job]))
    wire.say(unbind=session_pb2.Unbind(binding=registered.binding))
    bench.turn()
    assert [frame.result.status.code for frame in wire.told() if frame.request_id == 5] == [Code.NOT_FOUND]
    prop.syncs[0]()
    assert bench.daemon.conductor.syncs_of(wire.handler.session) == 0


def test_stream_lost_after_the_goodbye_is_not_waited_for(bench):
    wire = bench.session()
    wire.register("user", channel="c")
    wire.room(0)
    wire.say_bundle(requests(10))
    wire.handler.half_closed()
    wire.handler.closed("cancelled")
    bench.turn()
    assert bench.daemon.engine.totals(wire.stream.principal).sessions == 0


def test_many_small_messages_have_no_larger_share_of_a_turn_than_one_large_one(bench):
    wire = bench.session()
    for first in range(1, 5 * FRAMES_PER_TURN):
        wire.say(request_id=first, start=session_pb2.Start(job=1))
    assert len(wire.handler.session.control) <= FRAMES_PER_TURN


def test_frames_that_are_much_work_are_spread_over_turns(bench):
    class Slow(Prop):
        def operate(self, job, key, name, data):
            self.calls.append(data)
            until_ns = time.monotonic_ns() + self.host.limits.turn_ns
            while time.monotonic_ns() <= until_ns:
                pass

    module = Slow(bench.daemon.host)
    bench.install(module)
    wire = bench.session()
    job = wire.register("prop").job
    module.calls.clear()
    ops = [
        session_pb2.Op(job=job, operation=session_pb2.Operation(name="do", data=b"%d" % n)) for n in range(4)
    ]
    wire.say_bundle([session_pb2.ClientFrame(op=op) for op in ops[:3]])
    wire.say(op=ops[3])
    while len(module.calls) < 4:
        done = len(module.calls)
        bench.turn(10_000_000_000)
        assert len(module.calls) <= done + 1
    assert module.calls == [b"0", b"1", b"2", b"3"]


def test_syncs_are_refused_while_too_many_wait_for_their_events(make_bench):
    bench = make_bench(unanswered=4)
    wire = bench.session(credit=job_pb2.Credit(events=0, bytes=0))
    jobs = [wire.register("user", channel="c").job for _ in range(3)]
    wire.say(**raise_frame("c", b"x"))
    for request in (1, 2, 3):
        wire.say(request_id=request, sync=session_pb2.Sync())
    bench.turn()
    (refused,) = wire.told()
    assert (refused.request_id, refused.result.status.code) == (3, Code.RESOURCE_EXHAUSTED)
    wire.say(grant=session_pb2.Grant(credit=job_pb2.Credit(events=3, bytes=1_000)))
    bench.turn()
    done = [(frame.request_id, frame.sync_done.job) for frame in wire.told() if frame.HasField("sync_done")]
    assert sorted(done) == [(request, job) for request in (1, 2) for job in jobs]
    assert wire.handler.session.awaited == 0


def test_lost_stream_keeps_the_jobs_for_the_lease_and_no_longer(bench):
    wire = bench.session()
    wire.register("user", channel="c", options=job_pb2.Options(lease_ns=20_000_000))
    wire.handler.closed("cancelled")
    bench.turn()
    assert bench.daemon.engine.job_count(wire.stream.principal) == 1
    bench.turn_until(lambda: not bench.daemon.engine.job_count(wire.stream.principal))
    assert bench.daemon.engine.totals(wire.stream.principal).sessions == 0


def test_nothing_is_sent_after_the_end(bench):
    wire = bench.session()
    wire.register("user", channel="c")
    wire.say_bytes(b"\xff")
    assert wire.status[0] == Code.INVALID_ARGUMENT
    wire.told()
    wire.handler.data(b"\xff")
    wire.handler.half_closed()
    wire.handler.writable()
    wire.handler.closed("gone")
    bench.turn()
    assert wire.told() == []


def test_answers_before_a_malformed_frame_still_go_out(bench):
    wire = bench.session()
    wire.say_bundle([*requests(3), session_pb2.ClientFrame(request_id=4)])
    assert answers(wire) == [1, 2, 3]
    assert wire.status[0] == Code.INVALID_ARGUMENT


def test_session_that_the_administrator_ends_takes_its_stream_along(bench):
    wire = bench.session()
    wire.register("user", channel="c")
    bench.daemon.conductor.end_session(wire.handler.session, "ended by uid 0")
    assert wire.status == (Code.ABORTED, "ended by uid 0")
    bench.turn()
    assert len(bench.daemon.sessions) == 0


def test_process_that_ends_takes_its_sessions_along(bench):
    wire = bench.session()
    wire.register("user", channel="c")
    bench.daemon.process_gone(wire.stream.principal)
    assert wire.status is not None
    assert bench.daemon.engine.job_count(wire.stream.principal) == 0


# Resumption.


def test_welcome_comes_before_what_waited_and_the_older_stream_ends(bench):
    old = bench.session()
    binding = old.register("user", channel="c").binding
    token = old.handler.session.token
    new = bench.wire()
    new.say(hello=session_pb2.Hello(version_min=1, version_max=1, resume_token=token))
    bench.turn()
    welcome = new.told()[0].welcome
    assert welcome.resumed
    assert list(welcome.bindings) == [binding]
    assert old.status[0] == Code.ABORTED
    assert new.handler.session is old.handler.session
    old.handler.closed("late")
    assert new.ask(**raise_frame("c", b"x")).code == 0


def test_token_of_another_process_opens_a_new_session(bench):
    token = bench.session().handler.session.token
    welcome = bench.wire(caller=principal(pid=1)).hello(resume_token=token)
    assert not welcome.resumed


# Draining.


def test_drain_tells_everybody_and_waits_for_who_has_something_left(bench):
    idle, busy = bench.session(), bench.session()
    binding = busy.register("user", channel="c").binding
    busy.ask(**raise_frame("c", b"x"))
    bench.turn()
    sessions = bench.daemon.sessions
    sessions.drain("for a test", 3)
    bench.turn()
    assert idle.told()[-1].drain.deadline_ns == 3
    assert not sessions.idle(late=False)
    assert sessions.idle(late=True)  # the event can be delivered again
    busy.say(ack=session_pb2.Ack(binding=binding, cursor=job_pb2.Cursor(epoch=1, seq=1)))
    bench.turn()
    assert sessions.idle(late=False)
    assert (idle.status, busy.status) == (None, None)
    sessions.leave()
    bench.turn()
    assert idle.status == busy.status == (Code.UNAVAILABLE, "for a test")


def test_hello_while_draining_is_unavailable(bench):
    bench.daemon.sessions.drain("for a test", 3)
    wire = bench.wire()
    wire.say(hello=session_pb2.Hello(version_min=1, version_max=1))
    assert wire.status == (Code.UNAVAILABLE, "for a test")


def test_end_of_the_daemon_closes_the_jobs_of_clients_that_are_away(tmp_path):
    bench = Bench(tmp_path)
    path = tmp_path / "listens"
    wire = bench.session()
    assert wire.register("socket", listen=f"unix:{path}").job
    wire.handler.closed("cancelled")
    bench.turn()
    assert path.exists()
    bench.daemon.end()
    assert not path.exists()
