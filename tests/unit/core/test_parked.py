"""What is put aside: kept, listed, and delivered once more."""

from __future__ import annotations

from typing import Any

import pytest

from aemd.core.accounts import HISTORY
from aemd.core.errors import AemError
from aemd.core.history import Cursor
from aemd.v1 import job_pb2


def park(bench: Any, *events: bytes, **options: Any) -> Any:
    job = bench.job(**options)
    for event in events:
        bench.engine.fire(job, event)
    bench.entries()
    for seq in range(1, len(events) + 1):
        bench.nack(job, seq, park=True, reason="cannot")
    return job


def test_what_was_parked_is_listed_with_its_event_and_reason(bench: Any) -> None:
    job = park(bench, b"a", b"b")
    found = bench.engine.parked_of(job)
    assert [(one.cursor, one.event, one.reason, one.attempts) for one in found] == [
        ((1, 1), b"a", "cannot", 1),
        ((1, 2), b"b", "cannot", 1),
    ]


def test_a_retry_delivers_it_once_more_ahead_of_what_is_new(bench: Any) -> None:
    job = park(bench, b"a", b"b", b"c")
    bench.engine.fire(job, b"new")
    assert bench.engine.retry(job, [Cursor(1, 2)], bench.now) == 1
    assert bench.entries() == [(2, 2, b"b", 2), (4, 4, b"new", 1)]
    assert [one.last for one in bench.engine.parked_of(job)] == [1, 3]
    assert job.stats.parked == 2
    assert bench.engine.retry(job, (), bench.now) == 2
    assert bench.entries() == [(1, 1, b"a", 2), (3, 3, b"c", 2)]
    for seq in (1, 2, 3, 4):
        bench.ack(job, seq)
    assert job.binding.acked == 4
    assert bench.engine.parked_of(job) == []


def test_an_ack_said_before_a_retry_arrived_does_not_cover_it(bench: Any) -> None:
    job = park(bench, b"a")
    bench.engine.fire(job, b"b")
    assert bench.entries() == [(2, 2, b"b", 1)]
    bench.engine.retry(job, (), bench.now)
    bench.ack(job, 2)
    assert bench.entries() == [(1, 1, b"a", 2)]
    assert job.binding.acked == 0
    bench.ack(job, 2)
    assert job.binding.acked == 2
    assert not job.binding.unacked


def test_what_fails_again_is_parked_again(bench: Any) -> None:
    job = park(bench, b"a")
    bench.engine.retry(job, (), bench.now)
    bench.entries()
    bench.nack(job, 1, park=True, reason="still cannot")
    assert [(one.reason, one.attempts) for one in bench.engine.parked_of(job)] == [("still cannot", 2)]


def test_a_retry_waits_for_a_lost_client(bench: Any) -> None:
    job = park(bench, b"a")
    bench.lose()
    assert bench.engine.retry(job, (), bench.now) == 1
    bench.resume(b1=1)
    assert bench.entries() == [(1, 1, b"a", 2)]


def test_what_is_not_parked_cannot_be_retried(bench: Any) -> None:
    job = park(bench, b"a")
    with pytest.raises(AemError, match="1:7") as raised:
        bench.engine.retry(job, [Cursor(1, 7)], bench.now)
    assert raised.value.reason == "NOT_FOUND"


def test_an_event_without_room_is_listed_and_says_that_it_is_not_kept(bench: Any) -> None:
    job = bench.job()
    bench.engine.fire(job, b"x" * 1_000)
    bench.entries()
    account, allowance = bench.session.account, bench.session.allowance
    account.charge(HISTORY, allowance, allowance.quota.history_bytes - 500)
    bench.nack(job, 1, park=True, reason="cannot")
    assert [one.event for one in bench.engine.parked_of(job)] == [None]
    assert bench.engine.retry(job, (), bench.now) == 0
    with pytest.raises(AemError, match="history_bytes") as raised:
        bench.engine.retry(job, [Cursor(1, 1)], bench.now)
    assert raised.value.reason == "NOT_KEPT"
    account.refund(HISTORY, allowance.quota.history_bytes - 500)


def test_the_charge_comes_back_with_the_end_of_the_job(bench: Any) -> None:
    job = park(bench, b"a" * 100, b"b" * 100)
    account = bench.session.account
    assert account.used(HISTORY) > 200
    bench.engine.retry(job, [Cursor(1, 1)], bench.now)
    assert 100 < account.used(HISTORY) < 400
    bench.engine.unbind(bench.session, job.binding.id, bench.now)
    assert account.used(HISTORY) == 0


def test_only_the_newest_are_kept(make_bench: Any) -> None:
    bench = make_bench(parked_max=2)
    job = park(bench, b"a", b"b", b"c")
    assert [one.event for one in bench.engine.parked_of(job)] == [b"b", b"c"]


def test_an_attempt_too_many_parks_again_after_a_retry(bench: Any) -> None:
    job = bench.job(attempts_max=1, ack_timeout_ns=1_000_000)
    bench.engine.fire(job, b"a")
    bench.entries()
    bench.wait(2)
    assert [one.reason for one in bench.engine.parked_of(job)] == ["not acknowledged in time"]
    bench.engine.retry(job, (), bench.now)
    assert bench.entries() == [(1, 1, b"a", 2)]
    bench.wait(2)
    assert [one.attempts for one in bench.engine.parked_of(job)] == [2]


def test_explicit_answers_settle_what_was_retried(bench: Any) -> None:
    job = park(bench, b"a", b"b", acknowledgement=job_pb2.ACKNOWLEDGEMENT_EXPLICIT)
    bench.engine.retry(job, (), bench.now)
    bench.entries()
    bench.complete(job, 2)
    bench.complete(job, 1)
    assert job.binding.acked == 2
