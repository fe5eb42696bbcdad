"""The life of an entry: every row of the table is reached by driving the engine, and no other."""

from __future__ import annotations

from types import ModuleType

import pytest

from aemd.core import binding, entry, flight, waiting
from aemd.core.entry import OVERFLOWED, SUPERSEDED, TABLE, Entry, EntryEvent, EntryState, Loss
from aemd.v1 import session_pb2

USERS: list[ModuleType] = [entry, waiting, flight, binding]
NONE = 3  # ACKNOWLEDGEMENT_NONE
EXPLICIT = 2


class Recorder(dict):
    """A column of the table that notes which of its rows were used."""

    def __init__(self, column, event, used):
        super().__init__(column)
        self._event, self._used = event, used

    def __getitem__(self, state):
        after = super().__getitem__(state)
        self._used.add((state, self._event))
        return after


@pytest.fixture
def used(monkeypatch):
    rows: set[tuple[EntryState, EntryEvent]] = set()
    for event in EntryEvent:
        name = f"ON_{event.name}"
        recorder = Recorder(getattr(entry, name), event, rows)
        for module in USERS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, recorder)
    return rows


def overflowing(bench):
    job = bench.job(queue_depth=1, credit=(0, 0))
    for _ in range(3):
        bench.engine.fire(job, b"event")
    bench.engine.gap(job, stage=2, cause=3, count=1)
    bench.engine.gap(job, stage=2, cause=3, count=1)
    bench.entries()
    bench.engine.unbind(bench.session, job.binding.id, bench.now)


def coalescing(bench):
    job = bench.job(coalesce=True)
    bench.engine.fire(job, b"one")
    bench.engine.fire(job, b"two")
    bench.entries()
    bench.ack(job, 2)


def unacknowledged(bench):
    job = bench.job(acknowledgement=NONE)
    bench.engine.fire(job, b"event")
    bench.engine.gap(job, stage=2, cause=3, count=1)
    bench.entries()


def discarded_everywhere(bench):
    job = bench.job(acknowledgement=EXPLICIT, ack_timeout_ns=10_000_000_000)
    for _ in range(4):
        bench.engine.fire(job, b"event")
    bench.entries()
    bench.nack(job, 1, delay_ns=1_000_000)
    bench.engine.grant(bench.session, job.binding.id, 0, 0)
    job.binding.credit_events = 0
    bench.nack(job, 2)
    bench.engine.fire(job, b"event")
    bench.engine.gap(job, stage=2, cause=3, count=1)
    bench.engine.unbind(bench.session, job.binding.id, bench.now)


def delayed(bench):
    job = bench.job()
    for _ in range(3):
        bench.engine.fire(job, b"event")
    bench.entries()
    bench.nack(job, 1, delay_ns=1_000_000)
    bench.nack(job, 2, delay_ns=1_000_000_000)
    bench.wait(1)
    bench.entries()
    bench.nack(job, 3)
    bench.ack(job, 3)


def parked(bench):
    job = bench.job()
    bench.engine.fire(job, b"event")
    bench.entries()
    bench.nack(job, 1, park=True)
    bench.engine.retry(job, (), bench.now)


def test_every_row_of_the_table_is_reached(bench, used):
    for scenario in (overflowing, coalescing, unacknowledged, discarded_everywhere, delayed, parked):
        scenario(bench)
    assert used == set(TABLE)


def test_terminal_states_have_no_way_out():
    left = {state for state, _ in TABLE}
    assert set(EntryState) - left == {EntryState.ACKED, EntryState.DISCARDED}
    assert {event for state, event in TABLE if state is EntryState.PARKED} == {EntryEvent.RETRY}


def test_only_what_was_never_sent_can_be_dropped_or_merged():
    for state, event in TABLE:
        if event in (EntryEvent.DROP, EntryEvent.MERGE, EntryEvent.SEND_ONCE):
            assert state in (EntryState.QUEUED, EntryState.GAP)


def test_unequal_gaps_that_are_joined_keep_what_is_worse():
    first = Entry.gap(1, 2, OVERFLOWED)
    first.absorb(Entry.gap(3, 3, Loss(session_pb2.STAGE_KERNEL, session_pb2.CAUSE_OVERFLOW, "disk", 1, True)))
    assert (first.first, first.last) == (1, 3)
    assert first.loss == Loss(session_pb2.STAGE_JOB, session_pb2.CAUSE_OVERFLOW, "", 1, True)


def test_step_that_the_table_does_not_know_is_a_fault():
    gap = Entry.gap(1, 1, OVERFLOWED)
    with pytest.raises(KeyError):
        gap.drop(SUPERSEDED)
