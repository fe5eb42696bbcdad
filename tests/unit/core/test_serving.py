"""Who answers for a durable job without a client, in the engine."""

from __future__ import annotations

from typing import Any

import pytest

from aemd.core.errors import AemError
from aemd.core.history import Cursor
from aemd.core.job import JobState
from aemd.core.limits import Limits
from aemd.core.quota import Quota
from tests.unit.core.conftest import Bench
from tests.unit.core.test_durable import Shelf

LOTS = 1 << 20


class Server:
    """Takes the entries of one job."""

    def __init__(self, shelf: Shelf, job: Any, *, known: bool = False) -> None:
        self.shelf, self.engine, self.job = shelf, shelf.engine, job
        self.ready: list[Any] = []
        self.reader = self.engine.stand_in(job, self.ready, known=known)

    def take(self, events: int = 1, size: int = LOTS) -> list[Any]:
        taken = self.engine.take(self.reader, events, size)
        self.shelf.fetch()
        return taken

    def answer(self, entry: Any, error: str = "") -> None:
        session, reader, now = self.reader.session, self.reader, self.shelf.bench.now
        if error:
            self.engine.nack(
                session, reader.id, reader.epoch, entry.last, delay_ns=0, park=False, reason=error, now=now
            )
        else:
            self.engine.complete(
                session, reader.id, reader.epoch, entry.last, error=None, reply=None, now=now
            )
        self.shelf.fetch()

    def news(self) -> int:
        """How often there was something to look at since it was asked last."""
        count = len(self.ready)
        for session in self.ready:
            session.ready = False
        self.ready.clear()
        return count


@pytest.fixture
def shelf(bench: Any) -> Shelf:
    return Shelf(bench)


def events(entries: list[Any]) -> list[bytes]:
    return [entry.event for entry in entries]


def test_entries_are_taken_in_order_and_are_in_flight(shelf: Shelf) -> None:
    job = shelf.make()
    server = Server(shelf, job)
    shelf.fire(job, b"a", b"b", b"c")
    assert server.news() == 1
    assert events(server.take()) == [b"a"]
    assert job.in_flight
    assert events(server.take(9)) == [b"b", b"c"]
    assert server.take() == []


def test_what_was_dealt_with_moves_the_jobs_position(shelf: Shelf) -> None:
    job = shelf.make()
    server = Server(shelf, job)
    shelf.fire(job, b"a", b"b")
    for entry in server.take(2):
        server.answer(entry)
    assert job.durable is not None
    assert job.durable.acked == Cursor(1, 2)
    assert not job.in_flight


def test_what_failed_comes_again_before_what_is_behind_it(shelf: Shelf) -> None:
    job = shelf.make()
    server = Server(shelf, job)
    shelf.fire(job, b"a", b"b")
    (first,) = server.take()
    server.answer(first, "no")
    again = server.take(9)
    assert events(again) == [b"a", b"b"]
    assert [entry.attempts for entry in again] == [2, 1]


def test_what_failed_as_often_as_it_may_is_parked(shelf: Shelf) -> None:
    job = shelf.make(attempts_max=1)
    server = Server(shelf, job)
    shelf.fire(job, b"a", b"b")
    server.answer(server.take()[0], "no")
    assert [(one.reason, one.event) for one in shelf.engine.parked_of(job)] == [("no", b"a")]
    assert events(server.take(9)) == [b"b"]
    assert shelf.engine.retry(job, [], shelf.bench.now) == 1
    assert server.news()
    assert events(server.take(9)) == [b"a"]


def test_what_is_given_back_is_not_parked_and_nobody_failed(shelf: Shelf) -> None:
    job = shelf.make(attempts_max=1)
    server = Server(shelf, job)
    shelf.fire(job, b"a")
    shelf.engine.give_back(server.reader, server.take())
    assert shelf.engine.parked_of(job) == []
    assert job.stats.failed == 0
    assert events(server.take()) == [b"a"]


def test_a_long_history_comes_piece_by_piece(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=10)
    shelf.fire(job, *(b"%d" % n for n in range(1_000)))
    shelf.forget_tail(job)
    server = Server(shelf, job)
    shelf.fetch()
    got = []
    while entries := server.take(7):
        got += events(entries)
        for entry in entries:
            server.answer(entry)
    assert got == [b"%d" % n for n in range(1_000)]
    assert shelf.fetches > 1


def test_bytes_bound_what_is_taken_and_one_may_go_over_it(shelf: Shelf) -> None:
    job = shelf.make()
    server = Server(shelf, job)
    shelf.fire(job, b"aaaa", b"bbbb", b"cccc")
    assert events(server.take(9, 5)) == [b"aaaa", b"bbbb"]
    assert events(server.take(9, 1)) == [b"cccc"]


def test_levels_are_one_entry_however_often_they_fire(shelf: Shelf) -> None:
    job = shelf.make(coalesce=True)
    server = Server(shelf, job)
    shelf.fire(job, b"1")
    (first,) = server.take(9)
    shelf.fire(job, b"2", b"3")
    assert server.take(9) == []
    server.answer(first)
    (rest,) = server.take(9)
    assert (rest.first, rest.last, rest.event) == (2, 3, b"3")


def test_no_client_answers_beside_it_and_any_may_follow(shelf: Shelf) -> None:
    job = shelf.make()
    Server(shelf, job)
    with pytest.raises(AemError, match="a command answers for it") as raised:
        shelf.bind(job)
    assert raised.value.reason == "COMMAND_ANSWERS"
    shelf.bind(job, follows=True)
    shelf.fire(job, b"a")
    assert shelf.entries() == [(1, 1, b"a", 1)]


def test_it_is_told_when_the_job_is_stopped_started_suspended_and_gone(shelf: Shelf) -> None:
    job = shelf.make()
    server = Server(shelf, job)
    server.news()
    engine, now = shelf.engine, shelf.bench.now
    steps = (
        lambda: engine.stop(job, now),
        lambda: engine.start(job, now),
        lambda: engine.suspend(job, "policy"),
        lambda: engine.start(job, now),
        lambda: engine.end_job(job, "test", now),
    )
    for step in steps:
        step()
        assert server.news() == 1


def test_shutdown_waits_for_what_was_taken(shelf: Shelf) -> None:
    job = shelf.make()
    server = Server(shelf, job)
    shelf.fire(job, b"a", b"b")
    (entry,) = server.take()
    shelf.engine.shutdown(job, reason="test", deadline_ns=0, now=shelf.bench.now)
    assert job.state is JobState.CLOSING
    assert server.take() == []
    server.answer(entry)
    assert job.state is JobState.GONE
    server.answer(entry)  # late, and for nobody
    shelf.engine.give_back(server.reader, [entry])


def test_it_costs_what_a_binding_costs_and_gives_it_back(shelf: Shelf) -> None:
    job = shelf.make()
    account = shelf.bench.accounts.find(shelf.bench.principal.uid)
    assert account is not None
    assert account.used("jobs") == 1
    Server(shelf, job)
    assert account.used("jobs") == 2
    shelf.engine.end_job(job, "test", shelf.bench.now)
    assert account.used("jobs") == 0


def test_it_is_refused_where_there_is_no_quota_but_not_after_a_restart() -> None:
    shelf = Shelf(Bench(Limits(), Quota(jobs=1)))
    job = shelf.make()
    with pytest.raises(AemError, match="jobs"):
        Server(shelf, job)
    Server(shelf, job, known=True)


def test_its_allowance_is_that_of_a_new_policy(shelf: Shelf) -> None:
    server = Server(shelf, shelf.make())
    shelf.bench.quotas.all = Quota(jobs=7)
    shelf.engine.change_quotas()
    assert server.reader.session.allowance.quota.jobs == 7


def test_a_history_that_was_trimmed_begins_with_a_gap(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=1)
    server = Server(shelf, job)
    shelf.fire(job, *(b"%d" % n for n in range(5_000)))
    shelf.forget_tail(job)
    shelf.engine.trimmed(job, Cursor(1, 4_000))
    server.answer(server.take()[0])
    (gap,) = server.take()
    assert gap.loss is not None
    assert (gap.first, gap.last) == (2, 4_000)
