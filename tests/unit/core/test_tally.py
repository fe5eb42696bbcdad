from __future__ import annotations

import pytest

from aemd.core.histogram import BOUNDS_NS, BUCKETS, Histogram
from aemd.core.limits import MS, SECOND
from aemd.core.now import Now
from aemd.core.principal import Owner
from aemd.core.tally import IDLE_MAX, Tallies
from aemd.v1 import job_pb2, session_pb2


def tally_of(bench, module="queues"):
    return bench.engine.sheet(bench.principal.owner)[module]


def later(bench, ns):
    bench.now = bench.engine.now = Now(bench.now.mono_ns + ns, bench.now.real_ns + ns)


@pytest.mark.parametrize("place", range(BUCKETS))
def test_histogram_puts_a_bound_below_itself_and_what_is_over_it_above(place):
    histogram = Histogram()
    histogram.add(BOUNDS_NS[place])
    histogram.add(BOUNDS_NS[place] + 1, 2)
    assert histogram.counts[place] == 1
    assert histogram.counts[place + 1] == 2
    assert histogram.sum_ns == 3 * BOUNDS_NS[place] + 2


def test_histogram_takes_what_is_too_long_and_what_is_no_time_at_all():
    histogram = Histogram()
    for took_ns in (-5, 0, 1, 10**20):
        histogram.add(took_ns)
    assert histogram.counts[0] == 3
    assert histogram.counts[-1] == 1


def test_every_hop_of_an_event_is_counted(bench):
    job = bench.job()
    bench.engine.fire_many(job, [b"123", b"45"])
    bench.entries()
    bench.ack(job, 2)
    tally = tally_of(bench)
    assert (tally.fires, tally.delivered, tally.acknowledged, tally.bytes) == (2, 2, 2, 5)
    assert (tally.redelivered, tally.merged, tally.failed, tally.parked, tally.discarded) == (0, 0, 0, 0, 0)


def test_rarer_fates_are_counted(bench):
    explicit = job_pb2.ACKNOWLEDGEMENT_EXPLICIT
    job = bench.job(acknowledgement=explicit)
    bench.engine.fire_many(job, [b"1", b"2", b"3"])
    bench.entries()
    bench.complete(job, 1, error="it failed")
    bench.nack(job, 2)
    bench.entries()
    bench.nack(job, 3, park=True, reason="poison")
    bench.engine.fire(job, b"4")
    bench.engine.end_job(job, "over", bench.now)
    tally = tally_of(bench)
    assert (tally.failed, tally.redelivered, tally.parked, tally.discarded) == (2, 1, 1, 2)


def test_merged_stimuli_and_paused_sources_are_counted(bench):
    level = bench.job(module="levels", coalesce=True)
    for _ in range(3):
        bench.engine.fire(level, b"x", count=2)
    assert (tally_of(bench, "levels").fires, tally_of(bench, "levels").merged) == (6, 4)
    pausing = bench.job(module="pauses", pausable=True, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE, queue_depth=1)
    bench.engine.fire(pausing, b"x")
    assert tally_of(bench, "pauses").paused == 1


def test_losses_are_counted_by_stage_and_cause_with_the_job_and_with_the_module(bench):
    job = bench.job(queue_depth=1, acknowledgement=job_pb2.ACKNOWLEDGEMENT_NONE)
    bench.engine.gap(job, stage=session_pb2.STAGE_KERNEL, cause=session_pb2.CAUSE_OVERFLOW, count=7)
    bench.engine.gap(job, stage=session_pb2.STAGE_SOURCE, cause=session_pb2.CAUSE_SOURCE_FAILED, count=0)
    bench.engine.fire_many(job, [b"1", b"2", b"3"])  # of which one stays
    bench.entries()
    bench.lose()
    bench.resume()
    bench.entries()
    assert tally_of(bench).lost == {
        (session_pb2.STAGE_KERNEL, session_pb2.CAUSE_OVERFLOW): 7,
        (session_pb2.STAGE_SOURCE, session_pb2.CAUSE_SOURCE_FAILED): 1,
        (session_pb2.STAGE_JOB, session_pb2.CAUSE_OVERFLOW): 2,
        (session_pb2.STAGE_SESSION, session_pb2.CAUSE_STREAM_LOST): 11,  # the gaps before were lost, too
    }
    assert list(job.stats.lost_at) == [0, 7, 1, 2, 11]
    assert job.stats.lost == 21


def test_superseded_events_are_counted_as_such(bench):
    job = bench.job(queue_depth=1, overflow=job_pb2.OVERFLOW_LATEST)
    for _ in range(3):
        bench.engine.fire(job, b"x", key=b"k")
    assert tally_of(bench).lost == {(session_pb2.STAGE_JOB, session_pb2.CAUSE_SUPERSEDED): 2}


def test_lag_is_what_is_not_dealt_with(bench):
    job = bench.job(credit=(2, 1 << 30))
    bench.engine.fire_many(job, [b"1", b"2", b"3"])
    assert job.stats.lag == 3
    bench.entries()
    assert job.stats.lag == 3
    bench.ack(job, 2)
    assert job.stats.lag == 1


def place_of(took_ns):
    return next(place for place, bound_ns in enumerate(BOUNDS_NS) if took_ns <= bound_ns)


def test_latency_is_from_the_fire_to_the_moment_of_handing_over_and_to_the_acknowledgement(bench):
    job = bench.job()
    bench.engine.fire(job, b"1")
    later(bench, 3 * MS)
    bench.engine.fire(job, b"2")
    handed_ns = bench.now.mono_ns + MS
    assert bench.engine.collect(bench.session, 1 << 20, handed_ns)
    tally = tally_of(bench)
    assert tally.delivery.sum_ns == 5 * MS
    assert tally.delivery.counts[place_of(4 * MS)] == 1
    assert tally.delivery.counts[place_of(1 * MS)] == 1
    later(bench, SECOND)
    bench.ack(job, 2)
    tally = tally_of(bench)
    assert tally.acknowledgement.sum_ns == 2 * SECOND + 3 * MS
    assert sum(tally.acknowledgement.counts) == 2


def test_latency_of_an_entry_is_that_of_its_first_stimulus_and_not_told_again(bench):
    job = bench.job(module="levels", coalesce=True, acknowledgement=job_pb2.ACKNOWLEDGEMENT_EXPLICIT)
    bench.engine.fire(job, b"1")
    later(bench, 2 * MS)
    bench.engine.fire(job, b"2")
    bench.entries()
    bench.nack(job, 2)
    later(bench, 2 * MS)
    bench.entries()
    bench.complete(job, 2)
    tally = tally_of(bench, "levels")
    assert (tally.delivery.sum_ns, sum(tally.delivery.counts)) == (2 * MS, 1)
    assert (tally.acknowledgement.sum_ns, sum(tally.acknowledgement.counts)) == (4 * MS, 1)


def test_gaps_have_no_latency(bench):
    job = bench.job()
    bench.engine.fire(job, b"1")
    bench.engine.gap(job, stage=1, cause=1, count=1)
    bench.engine.fire(job, b"2")
    bench.entries()
    bench.ack(job, 3)
    tally = tally_of(bench)
    assert sum(tally.delivery.counts) == sum(tally.acknowledgement.counts) == 2
    assert tally.acknowledgement.sum_ns == 0


def test_counts_stay_when_their_session_has_ended(bench):
    bench.engine.fire(bench.job(), b"1")
    bench.engine.end_session(bench.session, "over", bench.now)
    assert tally_of(bench).fires == 1


def test_owners_are_told_apart_and_the_sum_over_everybody_never_goes_back():
    tallies = Tallies()
    for uid in range(IDLE_MAX + 5):
        tallies.open(Owner(uid))["timer"].fires += 1
        tallies.close(Owner(uid))
    assert tallies.sum(Owner(0)) == {}  # forgotten
    assert tallies.sum(Owner(IDLE_MAX))["timer"].fires == 1
    assert tallies.sum(Owner(IDLE_MAX, user_namespace=1)) == {}
    assert tallies.sum(None)["timer"].fires == IDLE_MAX + 5


def test_an_owner_with_a_session_is_not_forgotten():
    tallies = Tallies()
    sheet = tallies.open(Owner(7))
    sheet["timer"].fires += 1
    tallies.close(Owner(7))
    tallies.open(Owner(7))  # comes back
    tallies.open(Owner(7))
    tallies.close(Owner(7))
    for uid in range(100, 102 + IDLE_MAX):
        tallies.open(Owner(uid))
        tallies.close(Owner(uid))
    sheet["timer"].fires += 1
    assert tallies.sum(Owner(7))["timer"].fires == 2
