"""Holds on durable jobs in the protocol machine by itself: bound, suspended, bound anew."""

import pytest
from aem._binding import SUCCESS, Outcome
from aem._hold import Hold
from aem._registration import Registration
from aem.errors import Code, OutOfRange, Reply
from aem.history import Cursor, Keep, Parked
from aem.job import BaseJob
from aem.options import Acknowledgement, Options
from aem.v1 import event_pb2, job_pb2, session_pb2, status_pb2

from tests.unit.sdk.test_session import LOST, SERVER, Bench

RETRY, PARK = (
    Outcome(nack=session_pb2.Nack(delay_ns=5)),
    Outcome(nack=session_pb2.Nack(park=True, reason="no")),
)
EXPLICIT = Acknowledgement.EXPLICIT


class DurableBench(Bench):
    """A session that holds a durable job, its id 7."""

    def __init__(self, *, follow=False, start_from=None, **options):
        self.follow, self.start_from = follow, start_from
        super().__init__("user", **options)

    def make(self, module, **options):
        registration = Registration(
            module,
            {},
            options=Options(**options),
            label="l",
            armed=True,
            sink=self.dispatcher,
            hold=Hold("backup", follow=self.follow, start_from=self.start_from),
        )
        registration.job = BaseJob(registration)
        found = job_pb2.Job(id=7, module=module, options=registration.options.message())
        registration.learn(found)
        return registration

    def bind(self, epoch=1, seq=0, binding=1):
        self.session.register(self.registration)
        return self.bound(epoch, seq, binding)

    def bound(self, epoch=1, seq=0, binding=1):
        """Answer the Bind that is on its way; returns it."""
        (frame,) = [frame for frame in self.out() if frame.HasField("bind")]
        registered = session_pb2.Registered(
            job=7, binding=binding, start=job_pb2.Cursor(epoch=epoch, seq=seq), state=job_pb2.STATE_ARMED
        )
        self.session.receive(SERVER(request_id=frame.request_id, registered=registered))
        return frame.bind

    def restart(self, *, resumed=False):
        self.session.lost(LOST)
        self.hello = self.session.hello().hello
        self.welcome(resumed=resumed)

    def refuse(self, code, **facts):
        (frame,) = [frame for frame in self.out() if frame.HasField("bind")]
        info = status_pb2.ErrorInfo(reason="WHY", metadata=facts)
        status = status_pb2.Status(code=code, message="refused")
        status.details.add(type_url="x/google.rpc.ErrorInfo", value=info.SerializeToString())
        self.session.receive(SERVER(request_id=frame.request_id, result=session_pb2.Result(status=status)))

    def acked(self):
        """What Acks and answers there are: the last number of each."""
        self.session.flush()
        frames = [frame for frame in self.out() if frame.WhichOneof("frame") in ("ack", "complete", "nack")]
        return [
            (frame.WhichOneof("frame"), getattr(frame, frame.WhichOneof("frame")).cursor.seq)
            for frame in frames
        ]


def begin_of(bind):
    return getattr(bind, "from")


@pytest.mark.parametrize(
    ("start_from", "begin"),
    [
        (None, session_pb2.FROM_UNSPECIFIED),
        ("oldest", session_pb2.FROM_OLDEST),
        ("now", session_pb2.FROM_NOW),
        ("2:17", session_pb2.FROM_CURSOR),
        (Cursor(2, 17), session_pb2.FROM_CURSOR),
    ],
)
def test_a_bind_says_where_to_begin_the_first_time_only(start_from, begin):
    bench = DurableBench(start_from=start_from)
    bind = bench.bind()
    assert (bind.job, begin_of(bind), bind.role) == (7, begin, session_pb2.ROLE_REPLY)
    if begin == session_pb2.FROM_CURSOR:
        assert (bind.cursor.epoch, bind.cursor.seq) == (2, 17)
    bench.restart()
    assert begin_of(bench.bound()) == session_pb2.FROM_UNSPECIFIED


@pytest.mark.parametrize("start_from", ["yesterday", "1:", "1:x", 17, "1:²"])
def test_a_beginning_that_says_nothing_is_refused(start_from):
    with pytest.raises(ValueError, match="start_from"):
        Hold("backup", follow=True, start_from=start_from)


@pytest.mark.parametrize("resumed", [False, True])
def test_what_waits_is_dropped_and_comes_again_and_no_gap_is_invented(resumed):
    bench = DurableBench()
    bench.bind()
    bench.events(1, b"a", b"b", b"c")
    assert bench.handle() == b"a"
    bench.restart(resumed=resumed)
    assert bench.take() is None
    bench.bound(binding=1)
    bench.events(1, b"a", b"b", b"c", attempts=[2, 2, 2])
    assert [bench.handle(), bench.handle()] == [b"b", b"c"]
    assert bench.take() is None
    assert bench.acked() == [("ack", 1), ("ack", 3)]
    assert bench.registration.job.state == "ARMED"


def test_nothing_is_acknowledged_that_the_next_daemon_has_not_delivered():
    bench = DurableBench()
    bench.bind()
    bench.events(1, b"a", b"b", b"c")
    running = bench.take()
    bench.restart()
    bench.bound()
    bench.session.finish(running, SUCCESS)
    bench.dispatcher.done(running)
    assert bench.acked() == []
    bench.events(1, b"a", attempts=[2])
    assert bench.take() is None
    assert bench.acked() == [("ack", 1)]


def test_nothing_is_said_to_a_binding_of_somebody_else_before_it_is_bound_anew():
    bench = DurableBench(credit_events=2)
    bench.bind()
    bench.events(1, b"a", b"b")
    running = bench.take()
    bench.restart()
    (bind,) = bench.out()
    bench.session.finish(running, Outcome(error="bad"))
    bench.session.flush()
    assert bench.out() == []
    assert bind.bind.credit.events == 1  # one is held here


def test_a_handler_that_parks_across_a_restart_is_asked_again():
    bench = DurableBench()
    bench.bind()
    bench.events(1, b"a")
    running = bench.take()
    bench.restart()
    bench.session.finish(running, PARK)
    bench.dispatcher.done(running)
    bench.bound()
    bench.events(1, b"a", attempts=[2])
    assert bench.handle(PARK) == b"a"
    assert bench.acked() == [("nack", 1)]


def test_an_answer_is_said_when_its_event_is_delivered_again():
    bench = DurableBench(acknowledgement=EXPLICIT)
    bench.bind()
    bench.events(1, b"a", b"b")
    bench.handle(Outcome(reply=Reply("write", b"x")))
    bench.out()
    bench.restart()
    bench.bound(binding=4)
    assert bench.out() == []
    bench.session.receive(_run(4, 1, b"a", b"b", attempts=[2, 2]))
    (frame,) = bench.out()
    assert (frame.complete.binding, frame.complete.reply.data) == (4, b"x")
    assert bench.handle() == b"b"


def test_an_answer_found_before_its_event_comes_again_waits_for_that():
    bench = DurableBench(acknowledgement=EXPLICIT)
    bench.bind()
    bench.events(1, b"a")
    running = bench.take()
    bench.restart()
    bench.bound()
    bench.session.finish(running, Outcome(reply=Reply("write", b"x")))
    bench.dispatcher.done(running)
    assert bench.out() == []
    bench.events(1, b"a", attempts=[2])
    assert bench.acked() == [("complete", 1)]


def _run(binding, first, *payloads, **more):
    from tests.unit.sdk.test_session import run_frame, user_event

    return run_frame(binding, first, [user_event(payload) for payload in payloads], **more)


def test_answers_whose_events_do_not_come_again_are_forgotten():
    bench = DurableBench(acknowledgement=EXPLICIT)
    bench.bind()
    bench.events(1, b"a", b"b", b"c")
    bench.handle()
    running = bench.take()
    bench.handle()
    bench.restart()
    bench.bound(seq=1)
    bench.events(2, b"b", attempts=[2])
    bench.events(4, b"d")
    assert bench.handle() == b"d"
    bench.session.finish(running, SUCCESS)
    binding = bench.registration.binding
    assert [frame.complete.cursor.seq for frame in binding.answers()] == [4, 2]


def test_a_follower_that_answers_one_by_one_handles_nothing_twice():
    bench = DurableBench(follow=True, acknowledgement=EXPLICIT)
    bench.bind()
    bench.events(1, b"a", b"b")
    running = bench.take()
    bench.handle()
    bench.restart()
    assert bench.bound().cursor.seq == 0
    bench.events(1, b"a", b"b", b"c")  # for the daemon it is the first time
    assert bench.handle() == b"c"
    bench.session.finish(running, SUCCESS)
    assert bench.acked() == [("complete", 2), ("complete", 3), ("complete", 1)]


def test_a_follower_goes_on_behind_what_it_has_dealt_with():
    bench = DurableBench(follow=True)
    bench.bind(seq=10)
    bench.events(11, b"a", b"b", b"c")
    bench.handle()
    running = bench.take()
    bench.restart()
    bind = bench.bound(seq=11)
    assert (begin_of(bind), bind.role) == (session_pb2.FROM_CURSOR, session_pb2.ROLE_FOLLOW)
    assert (bind.cursor.epoch, bind.cursor.seq) == (1, 11)
    bench.events(12, b"b", b"c")  # for the daemon it is the first time
    bench.session.finish(running, SUCCESS)
    bench.dispatcher.done(running)
    assert bench.handle() == b"c"
    assert bench.take() is None
    assert bench.acked() == [("ack", 13)]


def test_a_follower_that_had_nothing_yet_goes_on_where_it_began():
    bench = DurableBench(follow=True)
    bench.bind(seq=10)
    bench.restart()
    assert bench.bound(seq=10).cursor.seq == 10


def test_a_follower_that_is_to_try_again_gets_that_event_again():
    bench = DurableBench(follow=True)
    bench.bind()
    bench.events(1, b"a", b"b")
    bench.handle(RETRY)
    bench.handle()
    bench.restart()
    assert bench.bound().cursor.seq == 0
    bench.events(1, b"a")
    assert bench.handle() == b"a"


def test_a_follower_whose_place_is_trimmed_is_told_how_much_and_goes_on():
    bench = DurableBench(follow=True)
    bench.bind()
    bench.events(1, b"a")
    bench.handle()
    bench.restart()
    bench.refuse(Code.OUT_OF_RANGE, oldest="1:90", head="1:100")
    assert bench.bound(seq=90).cursor.seq == 90
    entry = bench.take()
    assert (entry.gap.first, entry.gap.last, entry.gap.count) == (2, 90, 89)
    assert entry.gap.cause == session_pb2.CAUSE_OVERFLOW
    bench.session.finish(entry, SUCCESS)
    bench.events(91, b"z")
    assert bench.handle() == b"z"
    assert bench.acked() == [("ack", 91)]


def test_a_second_restart_before_it_is_bound_asks_again():
    bench = DurableBench()
    bench.bind()
    bench.events(1, b"a", b"b")
    bench.handle()
    bench.restart()
    bench.restart()
    bench.bound()
    bench.events(1, b"a", b"b", attempts=[2, 2])
    assert bench.handle() == b"b"


def test_a_job_that_is_not_there_any_more_is_gone(caplog):
    bench = DurableBench()
    bench.bind()
    bench.restart()
    bench.refuse(Code.NOT_FOUND)
    assert (bench.registration.job.state, bench.registration.job.reason) == ("GONE", "refused")
    assert "could not be bound again" in caplog.text


def test_what_is_retried_after_it_was_put_aside_is_handled():
    bench = DurableBench()
    bench.bind()
    bench.events(1, b"a", b"b")
    bench.handle(PARK)
    bench.handle()
    bench.acked()
    bench.events(1, b"a", attempts=[2])
    assert bench.handle() == b"a"
    assert bench.acked() == [("ack", 2)]


def test_what_was_put_aside_before_this_program_came_is_handled_when_retried():
    bench = DurableBench()
    bench.bind(seq=5)
    bench.events(6, b"f")
    bench.handle()
    bench.events(2, b"b", attempts=[3])
    assert bench.handle() == b"b"


def test_letting_go_waits_for_the_handler_and_drops_the_rest():
    bench = DurableBench()
    bench.bind()
    bench.events(1, b"a", b"b")
    running = bench.take()
    bench.session.unbind(bench.registration)
    assert bench.out() == []
    bench.session.finish(running, SUCCESS)
    assert bench.names() == ["ack", "unbind"]
    assert bench.registration.job.state == "GONE"


def test_letting_go_while_it_is_being_bound_anew_lets_go_of_that():
    bench = DurableBench()
    bench.bind()
    bench.restart()
    bench.session.unbind(bench.registration)
    bench.bound(binding=3)
    (frame,) = bench.out()
    assert frame.unbind.binding == 3
    assert not bench.session.registrations


def test_one_that_answers_and_one_that_follows_hear_of_the_same_job():
    bench = DurableBench()
    bench.bind()
    bench.follow = True
    follower = bench.make("user")
    bench.session.register(follower)
    bench.bound(binding=2)
    state = session_pb2.JobState(job=7, state=job_pb2.STATE_GONE, reason="ended")
    bench.session.receive(SERVER(job_state=state))
    assert [bench.registration.job.reason, follower.job.reason] == ["ended", "ended"]


def test_the_error_for_a_position_that_is_not_there_says_what_is():
    bench = DurableBench(start_from="1:7")
    waiter = bench.session.register(bench.registration)
    bench.refuse(Code.OUT_OF_RANGE, oldest="1:90", head="2:3")
    with pytest.raises(OutOfRange) as raised:
        waiter.result(0)
    assert (raised.value.oldest, raised.value.head) == (Cursor(1, 90), Cursor(2, 3))


def test_keep_and_parked_are_values():
    assert Keep(1, 2, 3).message() == job_pb2.Keep(entries=1, bytes=2, age_ns=3)
    event = event_pb2.Event(type="raised", key=b"\x01")
    event.user.payload = b"p"
    entry = job_pb2.ParkedEntry(
        cursor=job_pb2.Cursor(epoch=1, seq=4), first=3, attempts=2, reason="r", kept=True
    )
    assert Parked.of(entry).to_dict() == {
        "cursor": "1:4",
        "first": 3,
        "attempts": 2,
        "reason": "r",
        "kept": True,
    }
    entry.event = event.SerializeToString()
    found = Parked.of(entry).to_dict()
    assert (found["type"], found["key"], found["payload"]["payload"]) == ("raised", "01", "p")
