from __future__ import annotations

from aemd.core.limits import BATCH_BYTES_MAX, BATCH_EVENTS_MAX
from aemd.core.outbox import QUANTUM_BYTES, STARVATION_BYTES
from aemd.v1 import session_pb2

DEEP = {"queue_depth": 65_536, "queue_bytes": 64 << 20}


def bindings_of(bench, frames):
    return [(run.binding, sum(map(len, run.events))) for frame in frames for run in frame.batch.runs]


def test_control_goes_before_data_that_waits(bench):
    job = bench.job()
    bench.engine.fire(job, b"event")
    bench.engine.send_control(bench.session, session_pb2.ServerFrame(request_id=5).SerializeToString())
    assert [frame.request_id for frame in bench.frames()] == [5, 0]


def test_batches_are_bounded_in_events_and_bytes(bench):
    job = bench.job(**DEEP)
    bench.engine.fire_many(job, [b""] * 3_000)
    assert [len(frame.batch.runs) > 0 for frame in bench.frames()] == [True] * 3
    assert BATCH_EVENTS_MAX * 3 > 3_000
    bench.engine.fire_many(job, [bytes(50_000)] * 8)
    for frame in bench.frames():
        assert sum(len(e) for run in frame.batch.runs for e in run.events) <= BATCH_BYTES_MAX + 50_000


def test_bindings_of_one_priority_share_by_bytes(bench):
    jobs = [bench.job(**DEEP) for _ in range(2)]
    bench.engine.fire_many(jobs[0], [bytes(1_000)] * 200)
    bench.engine.fire_many(jobs[1], [bytes(100)] * 2_000)
    sent = {1: 0, 2: 0}
    data = bench.engine.collect(bench.session, 1 << 20)
    for binding, size in bindings_of(bench, [session_pb2.ServerFrame.FromString(data)]):
        sent[binding] += size
    assert abs(sent[1] - sent[2]) <= 2 * QUANTUM_BYTES


def test_high_priority_goes_first_and_low_is_not_starved(bench):
    low, high = bench.job(priority=0, **DEEP), bench.job(priority=7, **DEEP)
    bench.engine.fire_many(low, [bytes(1_000)] * 500)
    bench.engine.fire_many(high, [bytes(1_000)] * 500)
    above = 0
    runs = bindings_of(bench, bench.frames())
    assert runs[0][0] == high.binding.id
    for binding, size in runs:
        above = above + size if binding == high.binding.id else 0
        if low.binding.queue and binding == high.binding.id:
            assert above <= STARVATION_BYTES + 2 * QUANTUM_BYTES
    first_low = next(index for index, (binding, _) in enumerate(runs) if binding == low.binding.id)
    assert sum(size for _, size in runs[:first_low]) <= STARVATION_BYTES + 2 * QUANTUM_BYTES


def test_no_credit_nothing_sent_and_overshoot_is_one_event(bench):
    job = bench.job(credit=(10, 150))
    bench.engine.fire_many(job, [bytes(100)] * 5)
    assert len(bench.entries()) == 2
    bench.engine.grant(bench.session, job.binding.id, 0, 50)
    assert bench.entries() == []
    bench.engine.grant(bench.session, job.binding.id, 0, 1)
    assert len(bench.entries()) == 1


def test_session_credit_holds_events_but_not_gaps(bench):
    session = bench.open(bench.principal, credit=(1, 1_000))
    held, gapped = bench.job(session=session), bench.job(session=session)
    bench.engine.fire_many(held, [b"1", b"2"])
    bench.engine.gap(gapped, stage=1, cause=1, count=1)
    assert len(bench.entries(session)) == 2
    bench.engine.gap(gapped, stage=1, cause=1, count=1)
    assert bench.entries(session) == [(2, 2, "gap", 1)]
    bench.engine.grant(session, 0, 1, 1)
    assert session in bench.engine.take_ready()
    assert [entry[2] for entry in bench.entries(session)] == [b"2"]


def test_gaps_that_are_not_acknowledged_are_bounded(bench):
    job = bench.job(credit=(0, 0))
    for number in range(100):
        bench.engine.gap(job, stage=1, cause=1, count=1, scope=str(number))
        bench.entries()
    assert job.binding.gaps_unacked == 16
    assert job.binding.gaps <= 65


def test_session_is_ready_once_until_it_is_taken(bench):
    job = bench.job()
    bench.engine.fire_many(job, [b"1", b"2"])
    assert bench.engine.take_ready() == [bench.session]
    assert bench.engine.take_ready() == []


def test_jobs_that_come_fire_and_go_leave_nothing_listed(bench):
    session = bench.open(bench.principal, credit=(0, 0))
    for _ in range(50):
        job = bench.job(session=session)
        bench.engine.fire(job, b"event")
        bench.engine.end_job(job, "over", bench.now)
    assert session.bands == {}
    assert session.urgent == {}
    assert session.queued_bytes == 0
