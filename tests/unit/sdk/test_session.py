"""The protocol machine by itself: frames in, frames out, no stream."""

import contextlib
import logging
from concurrent.futures import Future

import pytest
from aem._binding import SUCCESS, Outcome
from aem._dispatch import Dispatcher
from aem._protocol import SESSION_BYTES, SESSION_EVENTS, Session
from aem._registration import Registration
from aem.errors import AemError, Code, ConnectionLost, Reply
from aem.job import BaseJob
from aem.options import Acknowledgement, Options, values_of
from aem.progress import Progress
from aem.v1 import event_pb2, job_pb2, session_pb2, status_pb2, user_pb2

SERVER = session_pb2.ServerFrame
LOST = ConnectionLost(Code.UNAVAILABLE, "CONNECTION_LOST", "gone")


def user_event(payload):
    event = event_pb2.Event(type="raised", user=user_pb2.UserEvent(channel="c", payload=payload))
    return event.SerializeToString()


def run_frame(binding, first, events, **more):
    run = session_pb2.Run(binding=binding, epoch=1, first_seq=first, events=events, **more)
    return SERVER(batch=session_pb2.Batch(runs=[run]))


def raise_blindly(bench, count):
    """Events one by one that nobody waits for; the numbers of the questions among them."""
    for number in range(count):
        bench.session.raise_unwatched("c", [b"%d" % number], None)
    return [frame.request_id for frame in bench.out() if frame.request_id]


class Bench:
    """A session with a dispatcher, and the daemon's part by hand."""

    def __init__(self, module="user", **options):
        self.woken = 0
        self.dispatcher = Dispatcher(lambda: None)
        self.session = Session(
            label="unit",
            lock=contextlib.nullcontext(),
            future=Future,
            output=lambda: None,
            changed=lambda: None,
        )
        self.registration = self.make(module, **options)
        self.hello = self.session.hello().hello
        self.welcome()

    def make(self, module, **options):
        registration = Registration(
            module,
            values_of({"channel": "c"}),
            options=Options(**options),
            label="l",
            armed=True,
            sink=self.dispatcher,
        )
        registration.job = BaseJob(registration)
        return registration

    def welcome(self, *, resumed=False, bindings=(), **limits):
        welcome = session_pb2.Welcome(
            session=5,
            resume_token=b"t",
            resumed=resumed,
            bindings=bindings,
            limits=session_pb2.Limits(**limits),
        )
        self.session.receive(SERVER(welcome=welcome))

    def out(self):
        """What is to be sent, bundles opened."""
        frames = []
        while (frame := self.session.take()) is not None:
            frames += frame.bundle.frames if frame.HasField("bundle") else [frame]
        return frames

    def names(self):
        return [frame.WhichOneof("frame") for frame in self.out()]

    def register(self, binding=1, registration=None):
        registration = registration or self.registration
        waiter = self.session.register(registration)
        (frame,) = self.out()
        self.registered(frame.request_id, binding)
        assert waiter.done()
        return frame

    def registered(self, number, binding=1, job=None):
        registered = session_pb2.Registered(
            job=job or 100 + binding,
            binding=binding,
            start=job_pb2.Cursor(epoch=1),
            state=job_pb2.STATE_ARMED,
        )
        self.session.receive(SERVER(request_id=number, registered=registered))

    def events(self, first, *payloads, **more):
        self.session.receive(run_frame(1, first, [user_event(payload) for payload in payloads], **more))

    def take(self):
        entry = self.dispatcher.take()
        if entry is not None:
            entry.begin()
        return entry

    def handle(self, outcome=SUCCESS):
        """Take the next entry and finish it; returns its payload."""
        entry = self.take()
        self.session.finish(entry, outcome)
        self.dispatcher.done(entry)
        return b"gap" if entry.gap is not None else entry.parse().user.payload


def test_register_carries_what_was_asked_and_the_default_acknowledgement():
    bench = Bench()
    frame = bench.register().register
    assert (frame.module, frame.label, frame.start) == ("user", "l", True)
    assert frame.params["channel"].text == "c"
    assert frame.options.acknowledgement == job_pb2.ACKNOWLEDGEMENT_CUMULATIVE
    assert frame.credit.events == Options().credit_events
    other = bench.make("counter")
    assert bench.register(2, other).register.options.acknowledgement == job_pb2.ACKNOWLEDGEMENT_EXPLICIT
    assert bench.registration.job.id == 101
    assert bench.registration.job.state == "ARMED"


def test_refused_registration_fails_its_waiter_and_leaves_nothing():
    bench = Bench()
    waiter = bench.session.register(bench.registration)
    (frame,) = bench.out()
    status = status_pb2.Status(code=5, message="no such module")
    result = session_pb2.Result(status=status)
    bench.session.receive(SERVER(request_id=frame.request_id, result=result))
    with pytest.raises(AemError, match="no such module"):
        waiter.result(0)
    assert bench.registration.job.state == "GONE"
    assert not bench.session.registrations


def test_cumulative_acknowledgement_covers_all_that_was_handled():
    bench = Bench()
    bench.register()
    bench.events(1, b"a", b"b", b"c")
    assert [bench.handle() for _ in range(3)] == [b"a", b"b", b"c"]
    assert bench.out() == []
    bench.session.flush()
    (frame,) = bench.out()
    assert (frame.ack.binding, frame.ack.cursor.epoch, frame.ack.cursor.seq) == (1, 1, 3)
    bench.session.flush()
    assert bench.out() == []


def test_counts_and_attempts_of_a_run_number_its_entries():
    bench = Bench()
    bench.register()
    bench.events(4, b"a", b"b", counts=[3, 2], attempts=[1, 2])
    entries = [bench.take(), bench.take()]
    assert [(entry.first, entry.last, entry.attempts) for entry in entries] == [(4, 6, 1), (7, 8, 2)]


def test_failure_in_a_cumulative_binding_is_told_behind_an_ack():
    bench = Bench()
    bench.register()
    bench.events(1, b"a", b"b", b"c")
    bench.handle()
    bench.handle(Outcome(error="bad"))
    bench.handle()
    bench.session.flush()
    ack, complete, rest = bench.out()
    assert ack.ack.cursor.seq == 1
    assert (complete.complete.cursor.seq, complete.complete.status.message) == (2, "bad")
    assert rest.ack.cursor.seq == 3


def test_after_a_retry_no_ack_covers_it_until_it_is_handled():
    bench = Bench()
    bench.register()
    bench.events(1, b"a", b"b", b"c")
    bench.handle()
    bench.handle(Outcome(nack=session_pb2.Nack(delay_ns=5)))
    bench.handle()
    bench.session.flush()
    ack, nack, complete = bench.out()
    assert ack.ack.cursor.seq == 1
    assert (nack.nack.cursor.seq, nack.nack.delay_ns, nack.nack.binding) == (2, 5, 1)
    assert complete.complete.cursor.seq == 3
    bench.events(2, b"b", attempts=[2])
    bench.events(4, b"d")
    assert [bench.handle(), bench.handle()] == [b"b", b"d"]
    bench.session.flush()
    complete, ack = bench.out()
    assert (complete.complete.cursor.seq, ack.ack.cursor.seq) == (2, 4)


def test_explicit_binding_answers_each_entry_with_its_reply():
    bench = Bench("socket")
    bench.register()
    bench.events(1, b"a", b"b")
    bench.handle(Outcome(reply=Reply("write", b"x")))
    bench.handle(Outcome(nack=session_pb2.Nack(park=True, reason="poison")))
    write, park = bench.out()
    assert (write.complete.reply.name, write.complete.reply.data) == ("write", b"x")
    assert (park.nack.park, park.nack.reason, park.nack.cursor.seq) == (True, "poison", 2)


def test_acknowledgement_none_says_nothing():
    bench = Bench(acknowledgement=Acknowledgement.NONE)
    bench.register()
    bench.events(1, b"a")
    bench.handle()
    bench.session.flush()
    assert bench.out() == []


def test_credit_goes_back_in_halves_for_binding_and_session():
    bench = Bench(credit_events=10)
    bench.register()
    for turn in range(SESSION_EVENTS // 10):
        bench.events(1 + turn * 10, *[b"x"] * 10)
        for _ in range(10):
            bench.handle()
    grants = [frame.grant for frame in bench.out()]
    assert {grant.credit.events for grant in grants if grant.binding == 1} == {5}
    assert sum(grant.credit.events for grant in grants if grant.binding == 1) == SESSION_EVENTS // 10 * 10
    assert [grant.credit.events for grant in grants if grant.binding == 0] == [SESSION_EVENTS // 2]


def test_events_of_an_unknown_binding_give_the_sessions_credit_back():
    bench = Bench()
    bench.session.receive(run_frame(9, 1, [b"x" * (SESSION_BYTES // 2)]))
    (frame,) = bench.out()
    assert (frame.grant.binding, frame.grant.credit.bytes) == (0, SESSION_BYTES // 2)
    assert bench.take() is None


def test_resumed_session_says_positions_acks_and_credit_again():
    bench = Bench(credit_events=10)
    bench.register()
    bench.events(1, b"a", b"b", b"c")
    bench.handle()
    assert bench.session.lost(LOST)
    bench.handle()
    bench.session.flush()
    assert bench.out() == []
    hello = bench.session.hello().hello
    assert hello.resume_token == b"t"
    assert [(position.binding, position.cursor.seq) for position in hello.received] == [(1, 3)]
    assert hello.credit.events == SESSION_EVENTS - 1
    bench.welcome(resumed=True, bindings=[1])
    ack, grant = bench.out()
    assert ack.ack.cursor.seq == 2
    assert (grant.grant.binding, grant.grant.credit.events) == (1, 9)
    assert bench.handle() == b"c"


def test_hello_of_very_many_jobs_is_no_larger_than_a_message():
    bench = Bench()
    bench.welcome(message_bytes=10_000)
    for binding in range(1, 1_001):
        acknowledgement = Acknowledgement.NONE if binding > 900 else Acknowledgement.CUMULATIVE
        bench.register(binding, bench.make("user", acknowledgement=acknowledgement))
        bench.session.receive(run_frame(binding, 1, [user_event(b"x")]))
    bench.session.lost(LOST)
    hello = bench.session.hello()
    assert 8_000 < hello.ByteSize() < 10_000
    said = {position.binding for position in hello.hello.received}
    assert said >= set(range(901, 1_001))  # elsewhere they would be taken for lost


def test_redelivered_entries_that_wait_or_are_dealt_with_do_not_run_again():
    bench = Bench()
    bench.register()
    bench.events(1, b"a", b"b", b"c")
    bench.handle()
    bench.events(1, b"a", b"b", b"c", b"d", attempts=[2, 2, 2, 1])
    assert [bench.handle() for _ in range(3)] == [b"b", b"c", b"d"]
    assert bench.take() is None


def test_explicit_answers_are_said_again_on_a_new_stream_until_confirmed():
    bench = Bench("socket", credit_events=1_000)
    bench.register()
    bench.events(1, *[b"x"] * 70)
    for _ in range(70):
        bench.handle()
    frames = [frame for frame in bench.out() if frame.HasField("complete")]
    (question,) = [frame for frame in frames if frame.request_id]
    assert question.complete.cursor.seq == 64
    bench.session.receive(SERVER(request_id=question.request_id, result=session_pb2.Result()))
    bench.session.lost(LOST)
    bench.welcome(resumed=True, bindings=[1])
    again = [frame.complete.cursor.seq for frame in bench.out() if frame.HasField("complete")]
    assert again == [65, 66, 67, 68, 69, 70]


def test_unanswered_question_is_forgotten_with_its_stream():
    bench = Bench("socket", credit_events=1_000)
    bench.register()
    bench.events(1, *[b"x"] * 64)
    for _ in range(64):
        bench.handle()
    bench.session.lost(LOST)  # nothing was taken: the question was never sent
    bench.welcome(resumed=True, bindings=[1])
    frames = bench.out()
    assert [frame.WhichOneof("frame") for frame in frames] == ["complete"] * 64 + ["grant"]
    assert [frame.request_id != 0 for frame in frames].count(True) == 1


def test_redelivered_entry_whose_answer_was_lost_gets_the_same_answer():
    bench = Bench("socket")
    bench.register()
    bench.events(1, b"a")
    bench.handle(Outcome(reply=Reply("write", b"x")))
    bench.out()
    bench.events(1, b"a", attempts=[2])
    assert bench.take() is None
    assert bench.out()[0].complete.reply.data == b"x"


def test_job_that_does_not_stand_after_resume_is_gone():
    bench = Bench()
    bench.register()
    bench.session.lost(LOST)
    bench.welcome(resumed=True, bindings=[])
    assert bench.registration.job.state == "GONE"
    assert "connection was lost" in bench.registration.job.reason


def test_registration_whose_answer_was_lost_is_made_anew_and_its_orphan_let_go():
    bench = Bench()
    bench.session.register(bench.registration)
    bench.out()
    bench.session.lost(LOST)
    bench.welcome(resumed=True, bindings=[1])
    assert bench.names() == ["unbind", "register"]


def test_unknown_session_registers_anew_behind_a_gap_of_unknown_size():
    bench = Bench()
    bench.register()
    bench.events(1, b"a", b"b")
    bench.handle()
    bench.session.lost(LOST)
    bench.welcome(resumed=False)
    (frame,) = bench.out()
    assert frame.HasField("register")
    bench.registered(frame.request_id, binding=1, job=900)
    assert bench.registration.job.id == 900
    assert bench.handle() == b"b"
    entry = bench.take()
    assert (entry.gap.cause, entry.gap.count) == (session_pb2.CAUSE_RESTART, 0)
    bench.session.finish(entry, SUCCESS)
    bench.session.flush()
    assert bench.out() == []  # nothing of the old job is told to the new daemon
    bench.events(1, b"c")
    bench.handle()
    bench.session.flush()
    assert bench.out()[0].ack.cursor.seq == 1


def test_requests_in_flight_are_repeated_or_failed_clearly():
    bench = Bench()
    bench.register()
    stop = bench.session.stop(bench.registration)
    raised = bench.session.raise_events("c", [b"x"], None)
    bench.out()
    later = bench.session.raise_events("c", [b"y"], None)
    bench.session.lost(LOST)
    with pytest.raises(ConnectionLost, match="may be done or not"):
        raised.result(0)
    bench.welcome(resumed=True, bindings=[1])
    frames = bench.out()
    assert [frame.WhichOneof("frame") for frame in frames] == ["grant", "stop", "raise"]
    for frame in frames[1:]:
        bench.session.receive(SERVER(request_id=frame.request_id, result=session_pb2.Result()))
    stop.result(0)
    later.result(0)
    assert bench.registration.job.state == "REGISTERED"


def test_lost_connection_is_logged_once_and_when_it_is_back(caplog):
    caplog.set_level(logging.INFO, "aem")
    bench = Bench()
    for _ in range(3):
        bench.session.lost(LOST)
        bench.session.coming_back(LOST)
    bench.welcome(resumed=True, bindings=[])
    bench.session.lost(LOST)
    bench.session.coming_back(LOST)
    bench.welcome()
    assert [record.getMessage() for record in caplog.records] == [
        "connection lost, coming back: gone",
        "connection is back",
        "connection lost, coming back: gone",
        "connection is back; the daemon knew nothing of us any more",
    ]


def test_program_that_leaves_does_not_come_back(caplog):
    bench = Bench()
    bench.session.leaving = True
    bench.session.coming_back(LOST)
    assert not caplog.records


def test_requests_about_a_job_fail_when_the_daemon_was_restarted():
    bench = Bench()
    bench.register()
    stop = bench.session.stop(bench.registration)
    bench.session.lost(LOST)
    bench.welcome(resumed=False)
    with pytest.raises(ConnectionLost, match="restarted"):
        stop.result(0)
    with pytest.raises(ConnectionLost, match="not registered again yet"):
        bench.session.start(bench.registration).result(0)


def test_shutdown_lets_the_running_handler_finish_and_drops_what_waits():
    bench = Bench()
    bench.register()
    bench.events(1, b"a", b"b")
    entry = bench.take()
    waiter = bench.session.shutdown(bench.registration, 1.5)
    (frame,) = bench.out()
    assert (frame.shutdown.job, frame.shutdown.deadline_ns) == (101, 1_500_000_000)
    bench.session.receive(SERVER(request_id=frame.request_id, result=session_pb2.Result()))
    waiter.result(0)
    assert bench.registration.job.state == "CLOSING"
    assert bench.out() == []
    bench.session.finish(entry, SUCCESS)
    assert bench.names() == ["ack", "unbind"]
    assert bench.registration.job.state == "GONE"
    bench.session.shutdown(bench.registration, None).result(0)


def test_daemon_ends_a_job_and_says_why(caplog):
    bench = Bench()
    bench.register()
    state = session_pb2.JobState(job=101, state=job_pb2.STATE_GONE, reason="module unloaded", discarded=3)
    with caplog.at_level(logging.WARNING, "aem"):
        bench.session.receive(SERVER(job_state=state))
    assert (bench.registration.job.state, bench.registration.job.reason) == ("GONE", "module unloaded")
    assert "3 events undelivered" in caplog.text


def test_rooms_are_counted_by_connection():
    bench = Bench("socket")
    bench.register()
    bench.registration.rooms[b"k"] = 100
    bench.session.operate(bench.registration, b"k", "write", b"1234567890")
    assert bench.registration.job.room(b"k") == 90
    bench.session.receive(SERVER(room=session_pb2.Room(job=101, key=b"k", bytes=10)))
    assert bench.registration.job.room(b"k") == 100
    assert bench.registration.job.room(b"other") == 0


def test_frames_that_wait_travel_in_bundles_of_bounded_size():
    bench = Bench()
    for _ in range(5):
        bench.session.raise_events("c", [b"x" * 100_000], None)
    sizes = []
    while (frame := bench.session.take()) is not None:
        sizes.append(len(frame.bundle.frames) or 1)
        assert frame.ByteSize() < 300_000
    assert sizes == [2, 2, 1]


def test_request_larger_than_a_message_is_refused_here():
    bench = Bench()
    bench.welcome(message_bytes=1_000)
    with pytest.raises(AemError, match="daemon takes 1000"):
        bench.session.raise_events("c", [b"x" * 2_000], None).result(0)


def test_reply_larger_than_a_message_fails_its_event():
    bench = Bench("socket")
    bench.register()
    bench.session.limits.message_bytes = 1_000
    bench.events(1, b"a")
    bench.handle(Outcome(reply=Reply("write", b"x" * 2_000)))
    (frame,) = bench.out()
    assert frame.complete.status.code == Code.INVALID_ARGUMENT
    assert not frame.complete.HasField("reply")


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.ABORTED, Code.PERMISSION_DENIED])
def test_some_ends_are_final(code):
    bench = Bench()
    bench.register()
    error = AemError(code, "MALFORMED", "no")
    assert not bench.session.lost(error)
    bench.session.fail(error)
    assert bench.registration.job.state == "GONE"
    with pytest.raises(AemError, match="no"):
        bench.session.register(bench.make("user")).result(0)


def progress_frame(binding=1, **more):
    progress = session_pb2.Progress(
        binding=binding, head=job_pb2.Cursor(epoch=1, seq=9), acked=job_pb2.Cursor(epoch=1, seq=4), **more
    )
    return SERVER(progress=progress)


def test_a_job_knows_how_far_it_is_as_the_daemon_told_it():
    bench = Bench()
    bench.register()
    job = bench.registration.job
    assert bench.hello.progress_ns > 0
    assert job.progress == Progress()
    bench.session.receive(progress_frame(lag=5, lost=2))
    assert (job.progress.epoch, job.progress.head, job.progress.acked) == (1, 9, 4)
    assert (job.lag, job.lost) == (5, 2)
    bench.session.receive(progress_frame(binding=77, lag=1))  # of a job that is gone


def test_progress_begins_anew_with_a_job_that_is_registered_again():
    bench = Bench()
    bench.register()
    bench.session.receive(progress_frame(lag=5))
    bench.session.lost(LOST)
    bench.session.hello()
    bench.welcome()
    (frame,) = (frame for frame in bench.out() if frame.HasField("register"))
    bench.registered(frame.request_id)
    assert bench.registration.job.progress == Progress()


def test_what_a_daemon_did_not_answer_before_it_ended_in_order_is_asked_again():
    bench = Bench()
    bench.register()
    raised = bench.session.raise_events("c", [b"x"], None)
    bench.out()
    bench.session.receive(SERVER(drain=session_pb2.Drain(said_all=True)))
    bench.session.lost(LOST)
    assert not raised.done()
    bench.welcome(resumed=True, bindings=[1])
    (again,) = [frame for frame in bench.out() if frame.WhichOneof("frame") == "raise"]
    bench.session.lost(LOST)  # this one had not said all
    with pytest.raises(ConnectionLost, match="may be done or not"):
        raised.result(0)
    assert getattr(again, "raise").payloads == [b"x"]


def test_what_a_daemon_that_ends_has_refused_is_asked_of_the_next():
    bench = Bench()
    bench.register()
    raised = bench.session.raise_events("c", [b"x"], None)
    (frame,) = bench.out()
    info = status_pb2.ErrorInfo(reason="DRAINING")
    status = status_pb2.Status(code=14, message="the daemon ends")
    detail = status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo")
    detail.value = info.SerializeToString()
    bench.session.receive(SERVER(request_id=frame.request_id, result=session_pb2.Result(status=status)))
    bench.session.lost(LOST)
    bench.welcome(resumed=True, bindings=[1])
    again = bench.out()[-1]
    assert again.WhichOneof("frame") == "raise"
    bench.session.receive(SERVER(request_id=again.request_id, result=session_pb2.Result()))
    raised.result(0)


def test_events_that_nobody_waited_for_are_counted_when_the_connection_breaks(caplog):
    bench = Bench()
    (question,) = raise_blindly(bench, 20)
    bench.session.receive(SERVER(request_id=question, result=session_pb2.Result()))
    bench.session.lost(LOST)
    assert "4 events raised without waiting may be lost" in caplog.text
    caplog.clear()
    bench.welcome(resumed=True)
    bench.session.lost(LOST)
    assert "may be lost" not in caplog.text, "they are told once"


def test_refused_question_says_that_the_events_before_it_have_arrived(caplog):
    bench = Bench()
    (question,) = raise_blindly(bench, 16)
    refused = status_pb2.Status(code=int(Code.RESOURCE_EXHAUSTED), message="too many")
    bench.session.receive(SERVER(request_id=question, result=session_pb2.Result(status=refused)))
    assert "events were not raised: too many" in caplog.text
    bench.session.lost(LOST)
    assert "may be lost" not in caplog.text


def test_while_the_daemon_ends_every_event_is_asked_for_and_raised_with_the_next(caplog):
    bench = Bench()
    bench.session.receive(SERVER(drain=session_pb2.Drain(reason="restart")))
    assert len(raise_blindly(bench, 2)) == 2
    bench.session.receive(SERVER(drain=session_pb2.Drain(said_all=True)))
    bench.session.lost(LOST)
    bench.session.hello()
    bench.welcome(resumed=True)
    assert [frame.WhichOneof("frame") for frame in bench.out()].count("raise") == 2
    assert "may be lost" not in caplog.text


def test_who_closes_the_session_is_not_told_of_losses(caplog):
    bench = Bench()
    raise_blindly(bench, 5)
    bench.session.leaving = True
    bench.session.lost(LOST)
    assert "may be lost" not in caplog.text
