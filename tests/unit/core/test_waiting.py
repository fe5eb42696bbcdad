from __future__ import annotations

import pytest

from aemd.core.accounts import ENTRY_BYTES, EVENTS
from aemd.core.quota import Quota
from aemd.core.waiting import COUNT_MAX, GAPS_MAX
from aemd.v1 import job_pb2, session_pb2

OLDEST, NEWEST = job_pb2.OVERFLOW_DROP_OLDEST, job_pb2.OVERFLOW_DROP_NEWEST
LATEST, PAUSE = job_pb2.OVERFLOW_LATEST, job_pb2.OVERFLOW_PAUSE_SOURCE


def fire(bench, job, *events, key=b""):
    for event in events:
        bench.engine.fire(job, event, key=key)


def test_drop_oldest_leaves_one_gap_at_the_front(bench):
    job = bench.job(queue_depth=2)
    fire(bench, job, b"1", b"2", b"3", b"4")
    assert bench.entries() == [(1, 2, "gap", 1), (3, 3, b"3", 1), (4, 4, b"4", 1)]
    assert job.stats.lost == 2


def test_drop_newest_leaves_one_gap_at_the_tail(bench):
    job = bench.job(queue_depth=2, overflow=NEWEST)
    fire(bench, job, b"1", b"2", b"3", b"4")
    assert bench.entries() == [(1, 1, b"1", 1), (2, 2, b"2", 1), (3, 4, "gap", 1)]


@pytest.mark.parametrize("quota_bytes", [3 * ENTRY_BYTES, 1 << 20])
@pytest.mark.parametrize("depth", [3, 7, 64])
@pytest.mark.parametrize("overflow", [OLDEST, NEWEST, LATEST, PAUSE])
@pytest.mark.parametrize("coalesce", [False, True])
def test_many_events_at_once_are_as_those_events_one_by_one(
    make_bench, quota_bytes, depth, overflow, coalesce
):
    facts = []
    for at_once in (True, False):
        bench = make_bench(Quota(queue_bytes=quota_bytes))
        account = bench.session.account
        job = bench.job(
            queue_depth=depth, queue_bytes=64, overflow=overflow, coalesce=coalesce, pausable=True
        )
        found = []
        for events in ([b"1", b"22", b"333"], [], [b"4"], [bytes(50)], [bytes(20)] * 4):
            if at_once:
                bench.engine.fire_many(job, events, key=b"k")
            else:
                fire(bench, job, *events, key=b"k")
            binding = job.binding
            found.append((binding.head, binding.depth, binding.bytes, binding.gaps, binding.paused))
            found.append((account.used_bytes, account.refused["queue_bytes"], account.refused[EVENTS]))
            found.append(account.rate_used(EVENTS, Quota().events_per_second, bench.now.mono_ns))
            found.append((binding.tally.fires, job.stats.lost, bench.session.queued_bytes))
        found.append([(entry.first, entry.last, entry.fired_ns) for entry in binding.queue or ()])
        facts.append((found, bench.entries()))
    assert facts[0] == facts[1]


def test_latest_supersedes_the_oldest_of_the_same_key(bench):
    job = bench.job(queue_depth=3, overflow=LATEST)
    fire(bench, job, b"a1", key=b"a")
    fire(bench, job, b"b1", key=b"b")
    fire(bench, job, b"a2", key=b"a")
    fire(bench, job, b"b2", key=b"b")
    frames = bench.frames()
    gaps = [frame.gap for frame in frames if frame.WhichOneof("frame") == "gap"]
    assert [(gap.first, gap.last, gap.cause) for gap in gaps] == [(2, 2, session_pb2.CAUSE_SUPERSEDED)]


def test_latest_with_ever_new_events_of_few_keys_stays_small(bench):
    job = bench.job(queue_depth=4, overflow=LATEST, credit=(0, 0))
    for number in range(5_000):
        fire(bench, job, b"%d" % number, key=b"%d" % (number % 3))
    assert len(job.binding.queue) <= 3 * 4 + GAPS_MAX + 2


def test_what_is_in_flight_is_never_dropped(bench):
    job = bench.job(queue_depth=2)
    fire(bench, job, b"1", b"2")
    bench.entries()
    fire(bench, job, b"3", b"4")
    assert bench.entries() == [(3, 4, "gap", 1)]


def test_event_larger_than_the_queue_costs_no_other_event(bench):
    job = bench.job(queue_bytes=10)
    fire(bench, job, b"small", bytes(11))
    assert bench.entries() == [(1, 1, b"small", 1), (2, 2, "gap", 1)]


def test_full_queue_pauses_its_source_and_half_empty_resumes_it(bench):
    job = bench.job(queue_depth=4, overflow=PAUSE, pausable=True)
    fire(bench, job, b"1", b"2", b"3")
    assert bench.effects() == ["Arm"]
    fire(bench, job, b"4", b"5")
    assert bench.effects() == ["Pause"]
    assert len(bench.entries()) == 5
    bench.ack(job, 2)
    assert bench.effects() == []
    bench.ack(job, 3)
    assert bench.effects() == ["Resume"]


def test_coalescing_job_runs_once_more_with_the_count_and_the_newest_event(bench):
    job = bench.job(coalesce=True, queue_depth=1)
    fire(bench, job, b"1")
    assert bench.entries() == [(1, 1, b"1", 1)]
    fire(bench, job, b"2", b"3", b"4")
    assert bench.entries() == []
    bench.ack(job, 1)
    assert bench.entries() == [(2, 4, b"4", 1)]


def test_count_beyond_the_wire_takes_two_entries(bench):
    job = bench.job()
    bench.engine.fire(job, b"event", count=COUNT_MAX + 5)
    assert [entry[:2] for entry in bench.entries()] == [(1, COUNT_MAX), (COUNT_MAX + 1, COUNT_MAX + 5)]


def test_gaps_that_differ_are_joined_when_there_are_too_many(bench):
    job = bench.job(credit=(0, 0))
    fire(bench, job, b"first")
    for number in range(1_000):
        bench.engine.gap(job, stage=1, cause=1, count=0, scope=str(number))
    assert len(job.binding.queue) <= GAPS_MAX + 1
    assert job.binding.queue[-1].last == 1_001
