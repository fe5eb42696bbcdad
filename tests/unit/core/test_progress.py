from __future__ import annotations

import pytest

from aemd.core.limits import MS
from aemd.core.progress import BINDINGS_PER_TURN
from aemd.v1 import job_pb2

EVERY_MS = 200


@pytest.fixture
def asked(bench):
    """A bench whose client wants to know how far it is."""
    bench.engine.ask_progress(bench.session, EVERY_MS * MS)
    return bench


def told(bench):
    """(binding, head, acked, lag, lost) of the Progress frames that go out now; the rest is dropped."""
    bench.engine.take_ready()
    return [
        (p.binding, p.head.seq, p.acked.seq, p.lag, p.lost)
        for p in (frame.progress for frame in bench.frames() if frame.WhichOneof("frame") == "progress")
    ]


def test_nothing_is_told_before_its_time_and_then_all_of_it(asked):
    job = asked.job()
    asked.engine.fire_many(job, [b"1", b"2", b"3"])
    assert told(asked) == []
    asked.ack(job, 2)
    asked.wait(EVERY_MS - 1)
    assert told(asked) == []
    asked.wait(1)
    assert told(asked) == [(1, 3, 2, 1, 0)]


def test_the_last_word_is_told_when_a_job_comes_to_rest_and_then_nothing_is_due(asked):
    job = asked.job()
    asked.engine.fire(job, b"1")
    told(asked)
    asked.ack(job, 1)
    told(asked)
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 1, 1, 0, 0)]
    assert asked.engine.next_deadline_ns() is None


def test_what_is_dealt_with_long_after_it_was_delivered_is_told_then(asked):
    job = asked.job()
    asked.engine.fire(job, b"1")
    told(asked)
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 1, 0, 1, 0)]
    asked.wait(60_000)
    asked.ack(job, 1)
    told(asked)
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 1, 1, 0, 0)]


def test_a_job_that_never_fires_costs_no_deadline(asked):
    asked.job()
    told(asked)
    assert asked.engine.next_deadline_ns() is None


def test_lag_grows_in_what_a_client_without_credit_is_told(asked):
    job = asked.job(credit=(1, 1 << 30))
    asked.engine.fire_many(job, [b"1", b"2"])
    told(asked)
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 2, 0, 2, 0)]
    asked.engine.fire(job, b"3")
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 3, 0, 3, 0)]


def test_lag_grows_in_what_a_session_without_credit_is_told(bench, make_principal):
    bench.session = bench.open(bench.principal, credit=(0, 0))
    bench.engine.ask_progress(bench.session, EVERY_MS * MS)
    job = bench.job()
    for lag in (1, 2):
        bench.engine.fire(job, b"x")
        told(bench)
        bench.wait(EVERY_MS)
        assert told(bench) == [(1, lag, 0, lag, 0)]


def test_who_did_not_ask_is_told_of_losses_only(bench):
    job = bench.job(queue_depth=1, overflow=job_pb2.OVERFLOW_DROP_NEWEST)
    bench.engine.fire(job, b"1")
    told(bench)
    bench.ack(job, 1)
    bench.wait(60_000)
    assert told(bench) == []
    bench.engine.fire_many(job, [b"2", b"3"])
    told(bench)
    bench.ack(job, 2)
    assert told(bench) == [(1, 3, 2, 1, 1)]


def test_what_was_told_is_not_told_again(asked):
    job = asked.job(credit=(0, 0))
    asked.engine.fire(job, b"1")
    told(asked)
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 1, 0, 1, 0)]
    asked.wait(EVERY_MS)
    assert told(asked) == []


def test_who_does_not_read_is_told_later(asked):
    job = asked.job(credit=(0, 0))
    asked.engine.fire(job, b"1")
    asked.engine.take_ready()
    asked.engine.send_control(asked.session, b"")  # is not read
    asked.wait(EVERY_MS)
    assert len(asked.session.control) == 1
    assert told(asked) == []
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 1, 0, 1, 0)]


def test_nobody_is_asked_for_more_often_than_the_limit(bench):
    bench.engine.ask_progress(bench.session, 1)
    assert bench.session.progress.every_ns == bench.limits.progress_min_ns


def test_many_jobs_are_told_in_several_turns(asked):
    jobs = [asked.job() for _ in range(BINDINGS_PER_TURN + 1)]
    for job in jobs:
        asked.engine.fire(job, b"1")
    told(asked)
    asked.wait(EVERY_MS)
    assert len(told(asked)) == BINDINGS_PER_TURN
    asked.wait(EVERY_MS)
    assert [binding for binding, *_ in told(asked)] == [jobs[-1].binding.id]


def test_a_job_that_ended_is_not_told_of(asked):
    job = asked.job()
    asked.engine.fire(job, b"1")
    asked.engine.take_ready()
    asked.engine.end_job(job, "over", asked.now)
    asked.wait(EVERY_MS)
    assert told(asked) == []
    assert asked.engine.next_deadline_ns() is None


def test_a_lost_stream_is_told_nothing_and_the_next_one_has_to_ask(asked):
    job = asked.job()
    asked.engine.fire(job, b"1")
    asked.engine.take_ready()
    asked.lose()
    assert asked.session.progress is None
    asked.resume()
    asked.wait(EVERY_MS)
    assert told(asked) == []
    asked.engine.ask_progress(asked.session, EVERY_MS * MS)
    told(asked)
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 1, 0, 1, 0)]


def test_what_was_told_on_a_lost_stream_is_told_again_on_the_next(asked):
    job = asked.job()
    asked.engine.fire(job, b"1")
    told(asked)
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 1, 0, 1, 0)]
    asked.lose()
    asked.resume(b1=1)
    asked.engine.ask_progress(asked.session, EVERY_MS * MS)
    told(asked)
    asked.wait(EVERY_MS)
    assert told(asked) == [(1, 1, 0, 1, 0)]
