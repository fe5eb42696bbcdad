"""Quotas where events meet them: bytes of queues, and events a second."""

from __future__ import annotations

import pytest

from aemd.core.accounts import BYTES, ENTRY_BYTES, EVENTS, PIECE_BYTES
from aemd.core.errors import AemError, Code
from aemd.core.pool import Pool
from aemd.core.quota import Quota
from aemd.core.stats import PARKED_BYTES
from aemd.core.throttle import ENCODING_BYTES
from aemd.v1 import job_pb2, session_pb2

KIB = 1024
COST = KIB + ENTRY_BYTES  # of an event of a KiB
GIVEN = bytes(64 * KIB + ENCODING_BYTES)  # the largest event that one read of a source may give
READ = len(GIVEN) + ENTRY_BYTES


def of_bytes(count: int, **more: int) -> Quota:
    return Quota(queue_bytes=count, **more)


def gaps(bench, session=None):
    """(first, last, cause) of the gaps that go out now."""
    return [
        (frame.gap.first, frame.gap.last, session_pb2.Cause.Name(frame.gap.cause))
        for frame in bench.frames(session)
        if frame.WhichOneof("frame") == "gap"
    ]


def used(session, resource=BYTES):
    return session.account.used(resource)


def test_queues_hold_what_the_quota_says_and_the_next_event_is_a_gap(make_bench, make_principal):
    bench = make_bench(of_bytes(3 * COST))
    job = bench.job(overflow=job_pb2.OVERFLOW_DROP_NEWEST)
    other = bench.open(bench.principal, credit=None)
    elsewhere = bench.job(session=other, overflow=job_pb2.OVERFLOW_DROP_NEWEST)
    for _ in range(2):
        bench.engine.fire(job, bytes(KIB))
    bench.engine.fire(elsewhere, bytes(KIB))
    assert used(bench.session) == 3 * COST
    bench.engine.fire(job, b"")  # one byte too many is too many
    bench.engine.fire(elsewhere, b"")
    assert bench.session.account.refused[BYTES] == 2
    stranger = bench.open(make_principal(1001, 5))
    their_job = bench.job(session=stranger)
    bench.engine.fire(their_job, bytes(KIB))
    assert bench.entries(stranger) == [(1, 1, bytes(KIB), 1)]
    assert gaps(bench) == [(3, 3, "CAUSE_QUOTA")]
    assert gaps(bench, other) == [(2, 2, "CAUSE_QUOTA")]
    bench.ack(job, 3)
    bench.engine.fire(elsewhere, bytes(KIB))
    assert used(bench.session) == 2 * COST


def test_oldest_go_when_the_quota_is_used_up_and_say_why(make_bench):
    bench = make_bench(of_bytes(3 * COST))
    job = bench.job()
    for _ in range(5):
        bench.engine.fire(job, bytes(KIB))
    assert gaps(bench)[0] == (1, 2, "CAUSE_QUOTA")
    assert used(bench.session) == 3 * COST


def test_event_for_which_no_drop_makes_room_is_lost_alone(make_bench):
    bench = make_bench(of_bytes(3 * COST))
    hog, job = bench.job(), bench.job()
    for _ in range(2):
        bench.engine.fire(hog, bytes(KIB))
    bench.engine.fire(job, b"kept")
    bench.engine.fire(job, bytes(2 * KIB))
    assert (1, 1, b"kept", 1) in bench.entries()
    assert job.stats.lost == 1


def test_latest_is_superseded_by_the_quota_too_and_its_gaps_stay_few(make_bench):
    bench = make_bench(of_bytes(4 * COST))
    job = bench.job(overflow=job_pb2.OVERFLOW_LATEST, queue_depth=60_000)
    for number in range(5_000):
        bench.engine.fire(job, bytes(KIB), key=b"%d" % (number % 2))
    binding = job.binding
    assert binding.depth == 4
    assert binding.gaps <= 2 * binding.depth + 65
    assert used(bench.session) == 4 * COST


def test_level_that_grows_beyond_the_quota_becomes_a_gap_not_a_debt(make_bench):
    bench = make_bench(of_bytes(2 * COST))
    job = bench.job(coalesce=True)
    bench.engine.fire(job, bytes(KIB))
    bench.engine.fire(job, bytes(2 * KIB))
    assert used(bench.session) == 2 * KIB + ENTRY_BYTES
    bench.engine.fire(job, bytes(3 * KIB))
    assert used(bench.session) <= 2 * COST
    assert bench.entries() == [(1, 2, bytes(2 * KIB), 1)]
    bench.ack(job, 2)
    assert gaps(bench) == [(3, 3, "CAUSE_QUOTA")]


@pytest.mark.parametrize(
    "acknowledgement", [job_pb2.ACKNOWLEDGEMENT_CUMULATIVE, job_pb2.ACKNOWLEDGEMENT_NONE]
)
def test_everything_comes_back_however_it_goes(make_bench, acknowledgement):
    bench = make_bench()
    for fate in ("delivered", "acked", "lost", "unbound", "shut down", "discarded"):
        job = bench.job(acknowledgement=acknowledgement, queue_depth=20)
        for size in range(50):
            bench.engine.fire(job, bytes(size))
        if fate != "lost":
            bench.frames()
        if fate == "acked" and acknowledgement == job_pb2.ACKNOWLEDGEMENT_CUMULATIVE:
            bench.ack(job, 45)
        if fate == "unbound":
            bench.engine.unbind(bench.session, job.binding.id, bench.now)
        if fate == "shut down":
            bench.engine.shutdown(job, reason="", deadline_ns=1, now=bench.now)
            bench.wait(1)
        if fate == "discarded":
            bench.engine.end_job(job, "", bench.now)
    bindings = bench.session.bindings.values()
    assert used(bench.session) == sum(b.bytes + b.depth * ENTRY_BYTES for b in bindings)
    bench.engine.end_session(bench.session, "", bench.now)
    assert not bench.accounts.in_use()  # its release found nothing left
    assert bench.accounts.queue_pool.used == 0


def test_source_rests_before_the_quota_is_used_up_and_goes_on_when_bytes_come_free(make_bench):
    bench = make_bench(of_bytes(4 * READ))
    sources = [bench.job(pausable=True, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE) for _ in range(3)]
    bench.effects()
    fired = 0
    while bench.engine.spare(sources[fired % 3]):
        bench.engine.fire(sources[fired % 3], GIVEN)
        fired += 1
    assert fired == 4
    assert all(not bench.engine.spare(job) for job in sources)
    assert bench.effects() == ["Pause"] * 3
    assert used(bench.session) == 4 * READ
    assert [job.stats.lost for job in sources] == [0, 0, 0]
    bench.frames()
    bench.ack(sources[0], 2)  # two reads come free: one source is read again, with one read to spare
    assert bench.effects() == ["Resume"]
    bench.ack(sources[1], 1)
    assert bench.effects() == ["Resume"] * 2


def test_source_that_waits_for_bytes_of_others_goes_on_when_they_return_them(make_bench, make_principal):
    bench = make_bench()
    pool = bench.accounts.queue_pool = Pool(lambda: 64 * READ, key="k")
    other = bench.open(make_principal(0, 5, administrator=True))
    hog = bench.job(session=other, overflow=job_pb2.OVERFLOW_DROP_NEWEST, queue_bytes=64 * 1024 * KIB)
    for _ in range(70):
        bench.engine.fire(hog, GIVEN)
    assert pool.used == 64 * READ
    job = bench.job(pausable=True, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE)
    assert bench.engine.spare(job) == 0
    bench.effects()
    bench.engine.end_session(other, "", bench.now)
    assert "Resume" in bench.effects()
    assert bench.engine.spare(job) > 0


def test_many_sources_that_have_something_in_the_same_turn_lose_nothing(make_bench):
    bench = make_bench(of_bytes(10 * READ))
    hog = bench.job(overflow=job_pb2.OVERFLOW_DROP_NEWEST)
    for _ in range(5):
        bench.engine.fire(hog, GIVEN)
    sources = [bench.job(pausable=True, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE) for _ in range(20)]
    read = 0
    for job in sources:
        if bench.engine.may_read(job):
            bench.engine.fire(job, GIVEN)
            read += 1
    assert read == 5
    assert [job.stats.lost for job in sources] == [0] * 20
    assert bench.engine.spare(bench.job(), 0) > 1_000  # who drops is never asked to wait
    bench.engine.end_job(hog, "", bench.now)
    assert bench.effects().count("Resume") == 4  # the fifth waits until two reads fit


def test_room_is_that_for_the_largest_event_that_may_come(make_bench):
    bench = make_bench(of_bytes(10 * READ))
    job = bench.job(pausable=True, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE, queue_depth=100)
    assert bench.engine.spare(job) == 10
    assert bench.engine.spare(job, 4 * READ) == 2


def test_source_that_ends_while_it_rests_leaves_nothing(make_bench):
    bench = make_bench(of_bytes(READ))
    job = bench.job(pausable=True, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE)
    bench.engine.fire(job, GIVEN)
    assert job.binding in bench.session.account.starved
    bench.engine.end_job(job, "", bench.now)
    assert not bench.accounts.starving
    assert used(bench.session) == 0


def test_one_user_leaves_half_of_the_memory_to_the_next(make_bench, make_principal):
    bench = make_bench()
    bench.accounts.queue_pool = Pool(lambda: 64 * 1024 * KIB, key="k")
    shares = []
    for uid in (1001, 1002, 1003):
        session = bench.open(make_principal(uid, uid), credit=None)
        job = bench.job(session=session, queue_depth=65_536, queue_bytes=64 * 1024 * KIB)
        for _ in range(1_100):
            bench.engine.fire(job, GIVEN)
        shares.append(used(session) // READ)
    assert shares == [470, 235, 117]


def test_thirty_queues_of_64_mib_hold_no_more_than_their_user_may(make_bench):
    bench = make_bench(of_bytes(64 * 1024 * KIB))
    event = bytes(64 * KIB)
    for _ in range(30):
        job = bench.job(queue_depth=65_536, queue_bytes=64 * 1024 * KIB)
        for _ in range(1_100):
            bench.engine.fire(job, event)
    held = sum(binding.bytes for binding in bench.session.bindings.values())
    assert held <= 64 * 1024 * KIB
    assert used(bench.session) > 64 * 1024 * KIB - READ


def test_empty_events_are_not_free(make_bench):
    bench = make_bench(of_bytes(100 * ENTRY_BYTES))
    job = bench.job()
    for _ in range(1_000):
        bench.engine.fire(job, b"")
    assert job.binding.depth == 100


def test_events_beyond_the_rate_are_one_gap_with_their_count(make_bench):
    bench = make_bench(Quota(events_per_second=10))
    job, many = bench.job(), bench.job()
    for number in range(20):
        bench.engine.fire(job, b"%d" % number)
    bench.engine.fire_many(many, [b""] * 7)
    assert gaps(bench) == [(1, 7, "CAUSE_QUOTA"), (16, 20, "CAUSE_QUOTA")]
    assert (job.stats.fires, job.stats.lost) == (20, 5)
    assert (many.stats.fires, many.stats.lost) == (7, 7)
    assert bench.session.account.refused[EVENTS] == 12
    bench.wait(500)
    bench.engine.fire_many(many, [b""] * 7)
    assert many.stats.lost == 9
    assert bench.entries()[-1] == (13, 14, "gap", 1)


def test_others_fire_while_one_is_over_its_rate(make_bench, make_principal):
    bench = make_bench(Quota(events_per_second=10))
    job = bench.job()
    other = bench.open(make_principal(1001, 5))
    theirs = bench.job(session=other)
    for _ in range(100):
        bench.engine.fire(job, b"")
    for _ in range(15):
        bench.engine.fire(theirs, b"")
    assert theirs.stats.lost == 0


def test_one_shot_that_fires_over_the_rate_has_fired(make_bench):
    bench = make_bench(Quota(events_per_second=0))
    job = bench.job(one_shot=True)
    bench.engine.fire(job, b"x")
    assert gaps(bench) == [(1, 1, "CAUSE_QUOTA")]
    bench.ack(job, 1)
    assert job.state.name == "GONE"


def test_source_that_is_over_the_rate_rests_until_events_have_come(make_bench):
    bench = make_bench(Quota(events_per_second=16))
    job = bench.job(pausable=True, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE)
    bench.effects()
    bench.engine.fire_many(job, [b""] * 30)  # read at once; 24 are there
    assert bench.effects() == ["Pause"]
    assert job.stats.lost == 0
    due_ns = bench.engine.next_deadline_ns()
    assert due_ns == bench.now.mono_ns + 7 * 1_000_000_000 // 16  # those six, and one more
    bench.wait(437)
    assert bench.effects() == []
    bench.wait(1)
    assert bench.effects() == ["Resume"]
    assert job.stats.lost == 0


def test_requests_are_refused_as_a_whole_with_the_time_to_wait(make_bench):
    bench = make_bench(Quota(events_per_second=10))
    bench.engine.afford(bench.principal, 10)
    bench.engine.fire_many(bench.job(), [b""] * 10)
    with pytest.raises(AemError) as refused:
        bench.engine.afford(bench.principal, 6)
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert refused.value.details["retry_ns"] == "100000000"
    bench.engine.afford(bench.principal, 5)
    with pytest.raises(AemError) as refused:
        bench.engine.afford(bench.principal, 16)
    assert "retry_ns" not in refused.value.details


def test_registrations_and_jobs_end_exactly_at_their_quotas(make_bench):
    bench = make_bench(Quota(jobs=3, registrations_per_second=4))
    jobs = [bench.job() for _ in range(3)]
    with pytest.raises(AemError) as refused:
        bench.job()
    assert refused.value.details["key"] == "quota.jobs"
    bench.engine.discard(jobs[0])
    bench.job()
    bench.engine.discard(jobs[1])
    bench.job()
    bench.engine.discard(jobs[2])
    with pytest.raises(AemError) as refused:
        bench.job()
    assert refused.value.details["key"] == "quota.registrations_per_second"
    bench.wait(250)
    bench.job()


def test_lower_quota_takes_nothing_and_gives_nothing_more(make_bench):
    bench = make_bench(Quota(jobs=3))
    kept = [bench.job() for _ in range(3)]
    bench.engine.fire(kept[0], bytes(KIB))
    bench.quotas.all = Quota(jobs=2, queue_bytes=KIB)
    bench.engine.change_quotas()
    assert used(bench.session) == COST
    assert len(bench.session.bindings) == 3
    bench.engine.discard(kept[2])
    with pytest.raises(AemError):
        bench.job()
    bench.engine.fire(kept[1], b"")
    assert kept[1].stats.lost == 1
    bench.quotas.all = Quota()
    bench.engine.change_quotas()
    bench.engine.fire(kept[1], b"")
    assert kept[1].stats.lost == 1


def test_higher_quota_lets_sources_go_on(make_bench):
    bench = make_bench(of_bytes(READ))
    job = bench.job(pausable=True, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE)
    bench.engine.fire(job, GIVEN)
    bench.effects()
    bench.quotas.all = of_bytes(10 * READ)
    bench.engine.change_quotas()
    assert bench.effects() == ["Resume"]


def test_list_of_what_was_parked_costs_history(make_bench):
    bench = make_bench(Quota(history_bytes=2 * (PARKED_BYTES + 10)), parked_max=5)
    job = bench.job()
    for number in range(1, 5):
        bench.engine.fire(job, b"")
        bench.frames()
        bench.nack(job, number, park=True, reason="0123456789")
    assert job.stats.parked == 4
    assert [parked.first for parked in job.binding.stats.parked_list] == [1, 2]
    assert used(bench.session, "history_bytes") == 2 * (PARKED_BYTES + 10)
    bench.engine.end_job(job, "", bench.now)
    assert used(bench.session, "history_bytes") == 0


def test_bytes_that_a_user_does_not_need_go_back_to_the_pool(make_bench):
    bench = make_bench()
    job = bench.job(queue_depth=10_000, queue_bytes=10_000 * KIB)
    for _ in range(1_000):
        bench.engine.fire(job, bytes(KIB))
    bench.frames()
    bench.ack(job, 1_000)
    assert 0 < bench.accounts.queue_pool.used <= 2 * PIECE_BYTES
