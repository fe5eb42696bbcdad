from __future__ import annotations

import pytest

from aemd.core.course import ENDS_PER_TURN
from aemd.core.effects import SessionEnded
from aemd.core.engine import Totals
from aemd.core.errors import AemError, Code
from aemd.core.job import JobState
from aemd.core.quota import Quota
from aemd.v1 import job_pb2, session_pb2

NONE, EXPLICIT = job_pb2.ACKNOWLEDGEMENT_NONE, job_pb2.ACKNOWLEDGEMENT_EXPLICIT


def fire(bench, job, count):
    for number in range(count):
        bench.engine.fire(job, b"%d" % number)


def test_resume_keeps_in_flight_what_was_received_and_sends_the_rest_again(bench):
    job = bench.job(acknowledgement=EXPLICIT)
    fire(bench, job, 4)
    bench.entries()
    fire(bench, job, 1)
    bench.lose()
    bench.resume(b1=2)
    assert bench.entries() == [(3, 3, b"2", 2), (4, 4, b"3", 2), (5, 5, b"0", 1)]
    bench.complete(job, 1)
    bench.complete(job, 2)


def test_resume_sends_again_what_was_sent_again_behind_newer_entries(bench):
    job = bench.job(acknowledgement=EXPLICIT)
    fire(bench, job, 3)
    bench.entries()
    bench.nack(job, 1)
    assert bench.entries() == [(1, 1, b"0", 2)]
    bench.lose()
    bench.resume(b1=3)
    assert bench.entries() == [(1, 1, b"0", 3)]


def test_resume_without_acknowledgement_reports_what_was_lost_with_the_stream(bench):
    job = bench.job(acknowledgement=NONE)
    fire(bench, job, 5)
    bench.entries()
    fire(bench, job, 1)
    bench.lose()
    bench.resume(b1=2)
    gap = next(frame.gap for frame in bench.frames() if frame.WhichOneof("frame") == "gap")
    assert (gap.first, gap.last, gap.count) == (3, 5, 3)
    assert (gap.stage, gap.cause) == (session_pb2.STAGE_SESSION, session_pb2.CAUSE_STREAM_LOST)


def test_lost_gap_of_unknown_size_makes_the_whole_loss_unknown(bench):
    job = bench.job(acknowledgement=NONE)
    fire(bench, job, 1)
    bench.engine.gap(job, stage=1, cause=1, count=0)
    bench.entries()
    bench.lose()
    bench.resume()
    gap = bench.frames()[0].gap
    assert (gap.first, gap.last, gap.count, gap.remedy) == (1, 2, 0, session_pb2.REMEDY_RESCAN)


def test_token_changes_and_serves_only_its_own_process(bench, make_principal):
    token = bench.session.token
    for who in (make_principal(1000, 43), make_principal(1001, 42), make_principal(1000, 42, start=8)):
        with pytest.raises(AemError) as raised:
            bench.engine.resume_session(token, who, positions={}, credit=None, now=bench.now)
        assert raised.value.reason == "SESSION_UNKNOWN"
    bench.resume()
    assert bench.session.token != token
    bench.resume()
    with pytest.raises(AemError):
        bench.engine.resume_session(token, bench.principal, positions={}, credit=None, now=bench.now)


def test_token_serves_until_the_one_after_it_has_been_used(bench):
    token, job = bench.session.token, bench.job()
    for _ in range(3):  # each Welcome is lost with its stream
        session = bench.engine.resume_session(
            token, bench.principal, positions={}, credit=None, now=bench.now
        )
        assert session is job.session
        bench.lose()
    bench.engine.end_session(bench.session, "over", bench.now)
    with pytest.raises(AemError):
        bench.resume()


def test_session_with_very_many_jobs_ends_at_once_and_its_jobs_over_turns(bench):
    few = bench.open(bench.principal)
    jobs = [bench.job() for _ in range(2 * ENDS_PER_TURN + 1)]
    job = bench.job(session=few)
    bench.effects()
    bench.engine.end_process(42, 7, bench.now)
    assert bench.session.ended
    assert few.ended
    assert list(bench.engine.sessions_of(bench.principal)) == []
    assert list(bench.engine.jobs_of(bench.principal)) == []
    assert bench.engine.totals(bench.principal).jobs == 0
    with pytest.raises(AemError):
        bench.engine.find_job(bench.principal, jobs[-1].id)
    with pytest.raises(AemError):
        bench.resume()
    released = [bench.effects().count("Release")]
    while bench.engine.next_deadline_ns() is not None:
        bench.wait(1)
        released.append(bench.effects().count("Release"))
        bench.engine.fire(jobs[-1], b"nobody hears it")
    assert released == [ENDS_PER_TURN, ENDS_PER_TURN, 2]
    assert {each.state for each in (*jobs, job)} == {JobState.GONE}
    assert bench.engine.totals(bench.principal) == Totals(sessions=0, jobs=0, fires=1, lost=0)
    bench.job(session=bench.open(bench.principal))


def test_end_of_everything_waits_for_no_turn(bench):
    jobs = [bench.job() for _ in range(ENDS_PER_TURN + 1)]
    away = bench.open(bench.principal)
    jobs.append(bench.job(session=away))
    bench.engine.lose_stream(away, bench.now)
    bench.engine.end_all("the end", bench.now)
    assert {job.state for job in jobs} == {JobState.GONE}
    bench.wait(1)
    assert bench.engine.next_deadline_ns() is None


def test_lease_ends_each_job_in_its_time_and_the_session_with_the_last(bench):
    short, long = bench.job(lease_ns=10**9), bench.job(lease_ns=2 * 10**9)
    bench.lose()
    bench.wait(1_000)
    assert (short.state, long.state) == (JobState.GONE, JobState.ARMED)
    bench.wait(1_000)
    assert long.state is JobState.GONE
    assert bench.effects() == ["Arm", "Arm", "Release", "Release", "SessionEnded"]


def test_end_of_the_process_ends_its_sessions_only(bench, make_principal):
    other = bench.open(make_principal(1000, 43))
    mine, theirs = bench.job(), bench.job(session=other)
    bench.engine.end_process(42, 7, bench.now)
    assert (mine.state, theirs.state) == (JobState.GONE, JobState.ARMED)


def test_job_of_another_owner_does_not_exist_but_for_the_administrator(bench, make_principal):
    job = bench.job()
    with pytest.raises(AemError) as raised:
        bench.engine.find_job(make_principal(1001, 50), job.id)
    assert raised.value.code is Code.NOT_FOUND
    root = make_principal(0, 1, administrator=True)
    assert bench.engine.find_job(root, job.id) is job
    assert list(bench.engine.jobs_of(root)) == [job]
    assert list(bench.engine.jobs_of(bench.principal, after=job.id)) == []


def test_administrator_sees_all_jobs_by_id(bench, make_principal):
    other = bench.open(make_principal(1001, 50))
    jobs = [bench.job(), bench.job(session=other), bench.job()]
    assert list(bench.engine.jobs_of(make_principal(0, 1, administrator=True))) == jobs


def test_limits_are_checked_first_and_refunded(make_bench):
    bench = make_bench(Quota(sessions=1), jobs_per_session=1)
    job = bench.job()
    with pytest.raises(AemError) as raised:
        bench.job()
    assert raised.value.details["key"] == "limits.jobs_per_session"
    with pytest.raises(AemError) as raised:
        bench.open(bench.principal)
    assert raised.value.details["key"] == "quota.sessions"
    bench.engine.discard(job)
    assert bench.job().id == job.id + 1


def test_one_shot_job_fires_once_and_ends_when_handled(bench):
    job = bench.job(one_shot=True)
    fire(bench, job, 3)
    assert [entry[:3] for entry in bench.entries()] == [(1, 1, b"0")]
    assert job.state is JobState.DRAINING
    bench.complete(job, 1)
    assert job.state is JobState.GONE
    assert bench.effects() == ["Arm", "Disarm", "Release"]


def test_shutdown_waits_for_the_handler_and_reports_what_was_discarded(bench):
    job = bench.job(credit=(1, 1000))
    fire(bench, job, 3)
    bench.entries()
    bench.engine.shutdown(job, reason="enough", deadline_ns=0, now=bench.now)
    assert job.state is JobState.CLOSING
    bench.complete(job, 1)
    state = bench.frames()[0].job_state
    assert (state.state, state.discarded) == (job_pb2.STATE_GONE, 2)


def test_shutdown_of_a_dead_client_ends_at_its_deadline(bench):
    job = bench.job()
    fire(bench, job, 1)
    bench.entries()
    bench.engine.shutdown(job, reason="enough", deadline_ns=10**9, now=bench.now)
    bench.wait(999)
    assert job.state is JobState.CLOSING
    bench.wait(1)
    assert job.state is JobState.GONE


def test_reply_is_carried_out_once(bench):
    job = bench.job(replies=True, pausable=True)
    bench.engine.fire(job, b"event", key=b"key")
    bench.entries()
    bench.effects()
    bench.complete(job, 1, reply=("write", b"data"))
    effect = bench.engine.take_effects()[0]
    assert (effect.key, effect.name, effect.data) == (b"key", "write", b"data")
    with pytest.raises(AemError) as raised:
        bench.complete(job, 1, reply=("write", b"data"))
    assert raised.value.reason == "NOT_IN_FLIGHT"
    assert bench.effects() == []


def test_handler_that_fails_is_counted_and_its_words_kept(bench):
    job = bench.job()
    fire(bench, job, 1)
    bench.entries()
    bench.complete(job, 1, error="ValueError: no")
    assert (job.stats.failed, job.stats.acknowledged, job.stats.last_error) == (1, 1, "ValueError: no")


def test_attempts_end_in_parking(bench):
    job = bench.job(acknowledgement=EXPLICIT, ack_timeout_ns=10**9, attempts_max=2)
    fire(bench, job, 1)
    bench.entries()
    bench.wait(1_000)
    assert bench.entries() == [(1, 1, b"0", 2)]
    bench.wait(1_000)
    assert (job.stats.parked, job.stats.in_flight) == (1, 0)


def park_by_time_out(bench, **options):
    """A job whose events 1 to 3 were sent, timed out too often and were parked."""
    job = bench.job(ack_timeout_ns=10**9, attempts_max=1, **options)
    fire(bench, job, 3)
    bench.entries()
    bench.wait(1_000)
    assert (job.stats.parked, job.stats.in_flight) == (3, 0)
    return job


def test_parked_on_its_way_and_lost_with_the_stream_is_a_gap(bench):
    job = park_by_time_out(bench)
    fire(bench, job, 1)
    bench.lose()
    bench.resume(b1=1)
    gap, batch = bench.frames()
    assert (gap.gap.first, gap.gap.last, gap.gap.count, gap.gap.attempts) == (2, 3, 2, 1)
    assert (gap.gap.stage, gap.gap.cause) == (session_pb2.STAGE_SESSION, session_pb2.CAUSE_STREAM_LOST)
    assert batch.batch.runs[0].first_seq == 4
    bench.lose()
    bench.resume(b1=3)
    assert bench.entries() == [(4, 4, b"0", 2)]
    bench.ack(job, 4)
    assert (job.stats.acked, job.stats.lost) == (4, 2)


def test_parked_and_seen_is_no_gap(bench):
    job = park_by_time_out(bench)
    fire(bench, job, 1)
    bench.entries()
    bench.ack(job, 4)  # so it has seen what came before
    bench.lose()
    bench.resume()
    assert bench.frames() == []


def test_job_that_closes_counts_what_was_parked_unseen_as_discarded(bench):
    job = park_by_time_out(bench, acknowledgement=EXPLICIT)
    fire(bench, job, 1)
    bench.entries()
    bench.engine.shutdown(job, reason="enough", deadline_ns=0, now=bench.now)
    bench.lose()
    bench.resume(b1=0)
    (frame,) = bench.frames()
    assert (frame.job_state.state, frame.job_state.discarded) == (job_pb2.STATE_GONE, 4)


def test_client_that_reads_no_answers_is_ended(make_bench):
    bench = make_bench(control_bytes=1_000)
    bench.engine.send_control(bench.session, bytes(1_001))
    ended = bench.engine.take_effects()[-1]
    assert isinstance(ended, SessionEnded)
    assert ended.code is Code.RESOURCE_EXHAUSTED


def test_jobs_that_end_are_no_answers_that_are_not_read(make_bench):
    bench = make_bench(control_bytes=1_000)
    jobs = [bench.job() for _ in range(100)]
    for job in jobs:
        bench.engine.end_job(job, "module queues was unloaded", bench.now)
    bench.engine.send_control(bench.session, b"")
    assert not bench.session.ended
    told = [frame.job_state.job for frame in bench.frames(budget_bytes=200) if frame.HasField("job_state")]
    assert told == [job.id for job in jobs]
    assert (bench.session.control_bytes, bench.session.news) == (0, set())


def test_state_is_told_as_it_is_when_it_is_told(bench):
    job = bench.job()
    for _ in range(3):
        bench.engine.fail_source(job, "broken")
        bench.engine.restore_source(job)
    bench.engine.fail_source(job, "broken again")
    states = [frame.job_state for frame in bench.frames() if frame.HasField("job_state")]
    assert [(state.state, state.reason) for state in states] == [(job_pb2.STATE_DEGRADED, "broken again")]


def test_source_that_comes_back_leaves_a_gap_and_the_client_is_told(bench):
    job = bench.job()
    bench.engine.fail_source(job, "broken")
    bench.engine.fire(job, b"ignored")
    frames = bench.frames()
    bench.engine.restore_source(job)
    frames += bench.frames()
    kinds = [frame.WhichOneof("frame") for frame in frames]
    assert kinds == ["job_state", "job_state", "gap"]


def test_sync_is_answered_behind_the_data(bench):
    job = bench.job(credit=(0, 0))
    fire(bench, job, 2)
    bench.engine.sync_mark(bench.session, job, 77)
    assert bench.frames() == []
    bench.engine.grant(bench.session, job.binding.id, 5, 1000)
    frames = bench.frames()
    assert [frame.WhichOneof("frame") for frame in frames] == ["batch", "sync_done"]
    assert (frames[1].request_id, frames[1].sync_done.cursor.seq) == (77, 2)


def test_ack_of_what_was_not_delivered_is_refused(bench):
    job = bench.job()
    with pytest.raises(AemError):
        bench.ack(job, 1)
    with pytest.raises(AemError):
        bench.engine.ack(bench.session, 99, 1, 0, bench.now)


def test_answers_to_a_job_that_has_ended_are_ignored(bench):
    job = bench.job()
    fire(bench, job, 1)
    bench.entries()
    bench.engine.end_job(job, "over", bench.now)
    bench.ack(job, 1)
    bench.complete(job, 1)
    bench.nack(job, 1)
    bench.engine.grant(bench.session, job.binding.id, 1, 1)
    with pytest.raises(AemError):
        bench.complete(job, 1, reply=("write", b""))


def test_many_jobs_end_with_their_session_and_leave_nothing(bench):
    jobs = [bench.job() for _ in range(2_000)]
    bench.engine.end_session(bench.session, "over", bench.now)
    assert all(job.state is JobState.GONE for job in jobs)
    assert bench.engine.next_deadline_ns() is None
    assert bench.engine.totals(bench.principal).jobs == 0
