"""Durable jobs in the engine, with a store that is a list."""

from __future__ import annotations

from typing import Any

import pytest

from aemd.core.accounts import ENTRY_BYTES
from aemd.core.effects import Fetch
from aemd.core.entry import OVERFLOWED, Loss
from aemd.core.errors import AemError
from aemd.core.history import START, Cursor, Keep, Positions, Record
from aemd.core.job import Job, JobState
from aemd.core.limits import SECOND
from aemd.core.options import OptionsParser
from aemd.core.quota import Quota
from aemd.core.reader import Reader
from aemd.core.traits import Traits
from aemd.v1 import job_pb2, session_pb2

LOTS = 1 << 30


class Shelf:
    """Durable jobs on a bench, and what is kept of them."""

    def __init__(self, bench: Any) -> None:
        self.bench, self.engine = bench, bench.engine
        self.kept: list[Record] = []
        self.fetches = 0

    def make(
        self,
        *,
        job_id: int = 0,
        coalesce: bool = False,
        positions: Positions | None = None,
        **options: Any,
    ) -> Job:
        traits = Traits("queues", coalesce=coalesce)
        job = self.engine.keep_job(
            self.bench.principal,
            job_id=job_id,
            name="backup",
            module=traits,
            values={},
            params=None,
            options=OptionsParser(self.bench.limits).parse(job_pb2.Options(**options), traits),
            keep=Keep(),
            label="",
            create_time_ns=1,
            **({} if positions is None else {"positions": positions}),
        )
        self.engine.start(job, self.bench.now)
        return job

    def fire(self, job: Job, *events: bytes) -> None:
        for event in events:
            self.engine.fire(job, event)

    def keep(self, *jobs: Job) -> None:
        """Write what there is to be written, as if the disk had it at once."""
        for job in self.engine.take_kept():
            assert job.durable is not None
            self.kept += job.durable.unrecorded
            job.durable.unrecorded = []
            if self.kept:
                job.durable.wrote(self.kept[-1].cursor)

    def forget_tail(self, job: Job) -> None:
        """Nothing is in memory any more, as after a start."""
        self.keep()
        durable = job.durable
        assert durable is not None
        if durable.tail:
            durable.tail_start = durable.tail[-1].cursor
            durable.tail, durable.tail_bytes = [], 0

    def bind(
        self, job: Job, at: Cursor = START, *, session: Any = None, follows: bool = False, **credit: int
    ) -> Reader:
        reader = self.engine.bind(
            session or self.bench.session,
            job,
            at=at,
            follows=follows,
            credit=(credit.get("events", LOTS), LOTS),
            now=self.bench.now,
        )
        self.engine.read_on(reader)
        self.fetch()
        return reader

    def fetch(self) -> None:
        """Answer what was asked of the store."""
        for effect in self.engine.take_effects():
            if isinstance(effect, Fetch):
                self.fetches += 1
                found = [record for record in self.kept if record.cursor > effect.after][: effect.records_max]
                self.engine.fetched(effect.reader, found, self.bench.now)

    def entries(self, session: Any = None) -> list[tuple[Any, ...]]:
        return list(self.bench.entries(session))

    def complete(self, reader: Reader, seq: int) -> None:
        self.engine.complete(
            reader.session, reader.id, reader.epoch, seq, error=None, reply=None, now=self.bench.now
        )

    def ack(self, reader: Reader, seq: int) -> None:
        self.engine.ack(reader.session, reader.id, reader.epoch, seq, self.bench.now)
        self.fetch()


@pytest.fixture
def shelf(bench: Any) -> Shelf:
    return Shelf(bench)


def test_who_binds_gets_what_was_recorded_before(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a", b"b")
    shelf.bind(job)
    assert shelf.entries() == [(1, 1, b"a", 1), (2, 2, b"b", 1)]
    shelf.fire(job, b"c")
    assert shelf.entries() == [(3, 3, b"c", 1)]


def test_what_is_not_in_memory_is_fetched(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, *(b"%d" % n for n in range(1_000)))
    shelf.forget_tail(job)
    reader = shelf.bind(job, queue_depth=None)
    shelf.fetch()
    got = []
    while entries := shelf.entries():
        got += entries
        shelf.ack(reader, got[-1][1])
        shelf.fetch()
    assert [entry[0] for entry in got] == list(range(1, 1_001))
    assert shelf.fetches > 1


def test_a_session_that_ends_leaves_the_job_and_what_it_had_not_dealt_with(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a", b"b", b"c")
    reader = shelf.bind(job)
    assert len(shelf.entries()) == 3
    shelf.ack(reader, 1)
    shelf.engine.end_session(shelf.bench.session, "test", shelf.bench.now)
    assert job.state is JobState.ARMED
    assert job.durable is not None
    assert job.durable.acked == (1, 1)
    other = shelf.bench.open(shelf.bench.principal)
    shelf.bind(job, job.durable.acked, session=other)
    assert shelf.entries(other) == [(2, 2, b"b", 2), (3, 3, b"c", 2)]


def test_what_was_dealt_with_out_of_order_does_not_come_again(shelf: Shelf) -> None:
    job = shelf.make(acknowledgement=job_pb2.ACKNOWLEDGEMENT_EXPLICIT)
    shelf.fire(job, b"a", b"b", b"c", b"d", b"e")
    reader = shelf.bind(job)
    shelf.entries()
    for seq in (2, 3, 5):
        shelf.complete(reader, seq)
    assert job.durable is not None
    assert (job.durable.acked, job.durable.dealt) == ((1, 0), ((2, 3), (5, 5)))
    shelf.engine.end_session(shelf.bench.session, "test", shelf.bench.now)
    other = shelf.bench.open(shelf.bench.principal)
    again = shelf.bind(job, job.durable.acked, session=other)
    got = shelf.entries(other)
    while more := (shelf.engine.read_on(again), shelf.entries(other))[1]:
        got += more
    assert got == [(1, 1, b"a", 2), (4, 4, b"d", 2)]
    shelf.complete(again, 1)
    assert (job.durable.acked, job.durable.dealt) == ((1, 3), ((5, 5),))
    shelf.complete(again, 4)
    assert (job.durable.acked, job.durable.dealt) == ((1, 5), ())


def test_one_answers_and_any_number_follow(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    shelf.bind(job)
    others = [shelf.bench.open(shelf.bench.principal) for _ in range(3)]
    with pytest.raises(AemError, match="answers for it") as raised:
        shelf.bind(job, session=others[0])
    assert raised.value.reason == "ALREADY_BOUND"
    for other in others:
        shelf.bind(job, session=other, follows=True)
    shelf.fire(job, b"b")
    for session in (None, *others):
        assert shelf.entries(session) == [(1, 1, b"a", 1), (2, 2, b"b", 1)]


def test_a_lost_client_makes_room_for_one_that_is_there(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    reader = shelf.bind(job)
    shelf.entries()
    shelf.bench.lose()
    other = shelf.bench.open(shelf.bench.principal)
    shelf.bind(job, session=other)
    assert reader.id not in shelf.bench.session.bindings
    assert shelf.entries(other) == [(1, 1, b"a", 2)]


def test_who_follows_cannot_reply(shelf: Shelf) -> None:
    job = shelf.make(acknowledgement=job_pb2.ACKNOWLEDGEMENT_EXPLICIT)
    shelf.fire(job, b"a")
    follower = shelf.bind(job, follows=True)
    shelf.entries()
    shelf.engine.take_effects()
    with pytest.raises(AemError) as raised:
        shelf.engine.complete(
            follower.session, follower.id, 1, 1, error=None, reply=("write", b"x"), now=shelf.bench.now
        )
    assert raised.value.reason == "FOLLOWS_ONLY"
    assert shelf.engine.take_effects() == []
    shelf.complete(follower, 1)


def test_who_follows_changes_nothing_for_who_answers(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    follower = shelf.bind(job, follows=True)
    shelf.entries()
    shelf.ack(follower, 1)
    assert job.durable is not None
    assert job.durable.acked == START
    assert job.durable.seen == START


def test_a_reader_without_room_comes_back_for_the_rest(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=4)
    shelf.fire(job, *(b"%d" % n for n in range(20)))
    reader = shelf.bind(job)
    assert reader.depth == 4
    got = []
    while entries := shelf.entries():
        got += entries
        shelf.ack(reader, got[-1][1])
    assert [(first, attempts) for first, _, _, attempts in got] == [(n, 1) for n in range(1, 21)]
    shelf.fire(job, b"next")
    assert shelf.entries() == [(21, 21, b"next", 1)]


def test_at_most_once_reads_it_all(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=4, acknowledgement=job_pb2.ACKNOWLEDGEMENT_NONE)
    shelf.fire(job, *(b"%d" % n for n in range(20)))
    shelf.bind(job)
    got = []
    while entries := shelf.entries():
        got += entries
    assert [entry[0] for entry in got] == list(range(1, 21))
    assert job.durable is not None
    assert job.durable.acked == (1, 20)


def test_what_was_trimmed_under_a_reader_becomes_a_gap(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=2)
    shelf.fire(job, *(b"%d" % n for n in range(10)))
    reader = shelf.bind(job)
    got = shelf.entries()
    shelf.engine.trimmed(job, Cursor(1, 7))
    shelf.ack(reader, 2)
    got += shelf.entries()
    assert got[2:] == [(3, 7, "gap", 1), (8, 8, b"7", 1), (9, 9, b"8", 1)]


def test_a_cursor_that_is_not_there_is_refused_with_what_there_is(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, *(b"%d" % n for n in range(10)))
    shelf.engine.trimmed(job, Cursor(1, 4))
    assert shelf.engine.start_of(job, Cursor(1, 4)) == (1, 4)
    assert shelf.engine.start_of(job, Cursor(1, 10)) == (1, 10)
    for cursor, reason in (
        ((1, 3), "CURSOR_EXPIRED"),
        ((1, 11), "CURSOR_UNKNOWN"),
        ((2, 0), "CURSOR_UNKNOWN"),
    ):
        with pytest.raises(AemError) as raised:
            shelf.engine.start_of(job, Cursor(*cursor))
        assert raised.value.reason == reason
        assert raised.value.details["oldest"] == "1:4"
        assert raised.value.details["head"] == "1:10"


def test_a_new_epoch_opens_with_a_gap_when_the_old_one_is_dealt_with(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a", b"b")
    shelf.engine.begin_epoch(job)
    shelf.fire(job, b"c")
    reader = shelf.bind(job)
    assert shelf.entries() == [(1, 1, b"a", 1), (2, 2, b"b", 1)]
    shelf.ack(reader, 2)
    assert reader.epoch == 2
    assert shelf.entries() == [(1, 1, "gap", 1), (2, 2, b"c", 1)]
    shelf.ack(reader, 2)
    assert job.durable is not None
    assert job.durable.acked == (2, 2)


def test_an_epoch_that_was_trimmed_away_ends_with_a_gap_of_unknown_size(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=1)
    shelf.fire(job, b"a", b"b")
    shelf.engine.begin_epoch(job)
    shelf.fire(job, b"c", b"d")
    reader = shelf.bind(job)
    assert shelf.entries() == [(1, 1, b"a", 1)]
    shelf.engine.trimmed(job, Cursor(2, 2))
    shelf.ack(reader, 1)
    gaps = [frame.gap for frame in shelf.bench.frames() if frame.HasField("gap")]
    assert [(gap.epoch, gap.first, gap.count) for gap in gaps] == [(1, 2, 0)]
    shelf.ack(reader, 2)
    assert reader.epoch == 2
    assert shelf.entries() == [(1, 2, "gap", 1), (3, 3, b"d", 1)]


def test_levels_that_wait_for_a_reader_are_one(shelf: Shelf) -> None:
    job = shelf.make(coalesce=True)
    reader = shelf.bind(job)
    shelf.fire(job, b"a")
    assert shelf.entries() == [(1, 1, b"a", 1)]
    shelf.fire(job, b"b", b"c")
    shelf.ack(reader, 1)
    assert shelf.entries() == [(2, 3, b"c", 1)]


def test_losses_that_are_reported_are_kept(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.engine.gap(job, stage=session_pb2.STAGE_KERNEL, cause=session_pb2.CAUSE_OVERFLOW, count=3)
    shelf.keep()
    assert shelf.kept == [
        Record(
            1, 1, 3, shelf.bench.now.real_ns, loss=Loss(session_pb2.STAGE_KERNEL, session_pb2.CAUSE_OVERFLOW)
        )
    ]
    assert job.stats.lost == 3
    assert job.stats.fires == 0


def test_shutdown_waits_for_the_handlers_of_all_who_read(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    reader = shelf.bind(job)
    follower_session = shelf.bench.open(shelf.bench.principal)
    follower = shelf.bind(job, session=follower_session, follows=True)
    shelf.entries()
    shelf.entries(follower_session)
    shelf.engine.shutdown(job, reason="test", deadline_ns=0, now=shelf.bench.now)
    shelf.ack(reader, 1)
    assert job.state is JobState.CLOSING
    shelf.ack(follower, 1)
    assert job.state is JobState.GONE
    for session in (shelf.bench.session, follower_session):
        states = [f.job_state.state for f in shelf.bench.frames(session) if f.HasField("job_state")]
        assert states == [job_pb2.STATE_GONE]
        assert not session.bindings
    with pytest.raises(AemError):
        shelf.engine.find_job(shelf.bench.principal, job.id)


def test_shutdown_ends_it_when_its_time_is_over(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    shelf.bind(job)
    shelf.entries()
    shelf.engine.shutdown(job, reason="test", deadline_ns=SECOND, now=shelf.bench.now)
    shelf.bench.wait(1_001)
    assert job.state is JobState.GONE


def test_a_one_shot_job_ends_when_its_event_is_dealt_with(shelf: Shelf) -> None:
    job = shelf.make(one_shot=True)
    shelf.fire(job, b"a", b"b")
    assert job.state is JobState.DRAINING
    reader = shelf.bind(job)
    assert shelf.entries() == [(1, 1, b"a", 1)]
    shelf.ack(reader, 1)
    assert job.state is JobState.GONE


def test_a_stream_that_comes_back_goes_on(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a", b"b")
    reader = shelf.bind(job)
    shelf.entries()
    shelf.bench.lose()
    shelf.fire(job, b"c")
    shelf.bench.resume(**{f"b{reader.id}": 1})
    assert shelf.entries() == [(2, 2, b"b", 2), (3, 3, b"c", 1)]


def test_what_the_store_does_not_take_is_a_gap_for_those_who_come_later(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    shelf.keep()
    shelf.bind(job, follows=True)
    shelf.fire(job, b"b", b"c")
    assert shelf.entries() == [(1, 1, b"a", 1), (2, 2, b"b", 1), (3, 3, b"c", 1)]
    assert job.durable is not None
    job.durable.give_up()
    shelf.fire(job, b"d")
    job.durable.give_up()
    shelf.fire(job, b"e")
    shelf.keep()
    assert [(record.first, record.last, record.loss) for record in shelf.kept] == [
        (1, 1, None),
        (2, 4, OVERFLOWED),
        (5, 5, None),
    ]
    other = shelf.bench.open(shelf.bench.principal)
    shelf.bind(job, session=other, follows=True)
    assert shelf.entries(other) == [(1, 1, b"a", 1), (2, 4, "gap", 1), (5, 5, b"e", 1)]


def test_a_job_as_it_was_goes_on_with_its_numbers(shelf: Shelf) -> None:
    at = Positions(head=Cursor(3, 17), oldest=Cursor(3, 10), acked=Cursor(3, 16), seen=Cursor(3, 17))
    shelf.kept = [Record(3, n, n, n, event=b"%d" % n) for n in range(11, 18)]
    job = shelf.make(positions=at)
    shelf.fire(job, b"next")
    reader = shelf.bind(job, at.acked)
    shelf.fetch()
    assert reader.epoch == 3
    assert shelf.entries() == [(17, 17, b"17", 2), (18, 18, b"next", 1)]


def test_the_tail_in_memory_is_bounded_by_what_is_on_disk(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, *(bytes(100) for _ in range(10_000)))
    assert job.durable is not None
    assert len(job.durable.tail) == 10_000
    shelf.keep()
    assert len(job.durable.tail) <= 1_024
    assert job.durable.tail_bytes == sum(record.size for record in job.durable.tail)
    assert job.durable.after(START, 1) is None


def test_sync_is_answered_behind_what_was_recorded(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=2)
    shelf.fire(job, b"a", b"b", b"c")
    reader = shelf.bind(job)
    shelf.engine.sync_mark(shelf.bench.session, job, 99)
    frames = shelf.bench.frames()
    assert not any(frame.HasField("sync_done") for frame in frames)
    shelf.ack(reader, 2)
    frames = shelf.bench.frames()
    assert [frame.WhichOneof("frame") for frame in frames] == ["batch", "sync_done"]
    assert frames[1].sync_done.binding == reader.id
    assert frames[1].sync_done.cursor.seq == 3


def test_reader_whose_user_has_no_bytes_left_waits_for_them_and_loses_nothing(make_bench: Any) -> None:
    shelf = Shelf(make_bench(Quota(queue_bytes=3 * (10 + ENTRY_BYTES))))
    job = shelf.make()
    other = shelf.bench.open(shelf.bench.principal)
    hog = shelf.bench.job(session=other)
    for _ in range(3):
        shelf.engine.fire(hog, bytes(10))
    reader = shelf.bind(job)
    shelf.fire(job, *[b"%010d" % number for number in range(5)])
    assert shelf.entries() == []
    shelf.engine.end_session(other, "", shelf.bench.now)
    shelf.fetch()
    told = []
    for seq in (3, 5):
        told += shelf.entries()
        shelf.ack(reader, seq)
    assert told == [(number + 1, number + 1, b"%010d" % number, 1) for number in range(5)]
    assert shelf.bench.session.account.used("queue_bytes") == 0


def test_entry_that_is_more_than_its_reader_may_ever_hold_is_a_gap(make_bench: Any) -> None:
    shelf = Shelf(make_bench(Quota(queue_bytes=1_000)))
    job = shelf.make()
    shelf.bind(job)
    shelf.fire(job, bytes(800), b"small")
    assert [entry[:3] for entry in shelf.entries()] == [(1, 1, "gap"), (2, 2, b"small")]


def test_fires_of_a_durable_job_over_the_rate_are_a_gap_in_its_history(make_bench: Any) -> None:
    shelf = Shelf(make_bench(Quota(events_per_second=2)))
    job = shelf.make()
    shelf.fire(job, *[b"x"] * 5)
    shelf.bind(job)
    assert [entry[:2] for entry in shelf.entries()] == [(1, 1), (2, 2), (3, 3), (4, 5)]
    assert (job.stats.fires, job.stats.lost) == (5, 2)


def test_durable_job_comes_back_after_a_restart_whatever_its_user_may_have_by_now(make_bench: Any) -> None:
    bench = make_bench(Quota(history_bytes=1, jobs=0, registrations_per_second=0))
    shelf = Shelf(bench)
    with pytest.raises(AemError):
        shelf.make()
    assert not bench.accounts.of(bench.principal).used("history_bytes")
    job = shelf.make(job_id=7)
    assert bench.accounts.of(bench.principal).used("history_bytes") == Keep().bytes
    bench.engine.end_session(bench.session, "", bench.now)
    shelf.engine.end_job(job, "", bench.now)
    assert not bench.accounts.in_use()


def test_registration_of_a_durable_job_counts_as_any_other(make_bench: Any) -> None:
    shelf = Shelf(make_bench(Quota(registrations_per_second=1)))
    shelf.make()
    with pytest.raises(AemError) as refused:
        shelf.make()
    assert refused.value.details["key"] == "quota.registrations_per_second"


def test_durable_job_that_ends_gives_everything_back(make_bench: Any) -> None:
    bench = make_bench(Quota(history_bytes=Keep().bytes))
    shelf = Shelf(bench)
    job = shelf.make()
    with pytest.raises(AemError) as refused:
        shelf.make()
    assert refused.value.details["key"] == "quota.history_bytes"
    shelf.bind(job)
    shelf.fire(job, b"a", b"b")
    shelf.entries()
    shelf.engine.end_session(bench.session, "", bench.now)
    assert bench.accounts.in_use()  # it outlives its session
    shelf.engine.end_job(job, "", bench.now)
    assert not bench.accounts.in_use()


@pytest.mark.parametrize("depth", [3, 64])
@pytest.mark.parametrize("coalesce", [False, True])
def test_many_events_at_once_are_recorded_as_those_events_one_by_one(
    make_bench: Any, depth: int, coalesce: bool
) -> None:
    facts = []
    for at_once in (True, False):
        shelf = Shelf(make_bench(Quota(events_per_second=7)))
        job = shelf.make(queue_depth=depth, coalesce=coalesce)
        reader = shelf.bind(job)
        found = []
        for events in ([b"1", b"22"], [], [b"3"], [b"%d" % n for n in range(4, 12)]):
            if at_once:
                shelf.engine.fire_many(job, events, key=b"k")
            else:
                for event in events:
                    shelf.engine.fire(job, event, key=b"k")
            assert job.durable is not None
            found.append((job.binding.head, job.durable.lost, job.durable.tail_bytes))
            found.append((reader.head, reader.paused, reader.depth, job.binding.tally.fires))
        shelf.keep()
        facts.append((found, shelf.kept, job.stats, shelf.entries()))
    assert facts[0] == facts[1]
    assert [(record.first, record.last) for record in facts[0][1][-2:]] == [(10, 10), (11, 11)]
    assert facts[0][1][-1].loss is not None


def test_unknown_losses_that_the_store_does_not_take_stay_unknown(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    shelf.engine.begin_epoch(job)
    shelf.fire(job, b"b")
    assert job.durable is not None
    job.durable.give_up()
    shelf.fire(job, b"c")
    job.durable.give_up()
    shelf.keep()
    assert [(gap.epoch, gap.first, gap.last) for gap in shelf.kept] == [(1, 1, 1), (2, 1, 3)]
    assert [gap.loss.unknown for gap in shelf.kept if gap.loss is not None] == [False, True]
    assert job.durable.lost == 4
    assert job.durable.tail == shelf.kept


def test_what_was_trimmed_while_it_was_asked_for_is_a_gap(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, *(b"%d" % n for n in range(1, 7)))
    shelf.forget_tail(job)
    reader = shelf.engine.bind(
        shelf.bench.session, job, at=START, follows=True, credit=(LOTS, LOTS), now=shelf.bench.now
    )
    shelf.engine.read_on(reader)
    shelf.kept = shelf.kept[4:]
    shelf.engine.trimmed(job, Cursor(1, 4))
    shelf.fetch()
    shelf.fetch()
    assert shelf.entries() == [(1, 4, "gap", 1), (5, 5, b"5", 1), (6, 6, b"6", 1)]


def test_disk_that_failed_is_asked_again(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    shelf.forget_tail(job)
    kept, shelf.kept = shelf.kept, []
    shelf.bind(job)
    assert shelf.entries() == []
    shelf.kept = kept
    shelf.bench.wait(1_000)
    shelf.fetch()
    assert shelf.entries() == [(1, 1, b"a", 1)]


def test_disk_that_failed_is_not_asked_for_who_has_gone(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    shelf.forget_tail(job)
    shelf.kept = []
    reader = shelf.bind(job)
    shelf.engine.unbind(shelf.bench.session, reader.id, shelf.bench.now)
    assert shelf.engine.next_deadline_ns() is None


def test_sync_waits_for_the_epochs_before(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a", b"b")
    shelf.engine.begin_epoch(job)
    reader = shelf.bind(job)
    shelf.engine.sync_mark(shelf.bench.session, job, 99)
    assert [frame.WhichOneof("frame") for frame in shelf.bench.frames()] == ["batch"]
    shelf.ack(reader, 2)
    frames = shelf.bench.frames()
    assert [frame.WhichOneof("frame") for frame in frames[:2]] == ["gap", "sync_done"]
    assert (frames[1].sync_done.cursor.epoch, frames[1].sync_done.cursor.seq) == (2, 1)


@pytest.mark.parametrize("how", ["unbind", "end_job"])
def test_sync_is_answered_when_its_reader_goes(shelf: Shelf, how: str) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    reader = shelf.bind(job, events=0)
    shelf.engine.sync_mark(shelf.bench.session, job, 99)
    assert shelf.bench.session.awaited == 1
    if how == "unbind":
        shelf.engine.unbind(shelf.bench.session, reader.id, shelf.bench.now)
    else:
        shelf.engine.end_job(job, "", shelf.bench.now)
    assert [frame.request_id for frame in shelf.bench.frames() if frame.HasField("sync_done")] == [99]
    assert shelf.bench.session.awaited == 0


def test_stream_that_comes_back_lost_nothing_before_where_it_was_bound(shelf: Shelf) -> None:
    job = shelf.make(acknowledgement=job_pb2.ACKNOWLEDGEMENT_NONE)
    shelf.fire(job, b"a", b"b")
    shelf.bind(job, Cursor(1, 1))
    shelf.entries()
    shelf.bench.lose()
    shelf.bench.resume()
    assert shelf.entries() == [(2, 2, "gap", 1)]


def test_what_nobody_saw_of_an_epoch_is_not_told_in_the_next(shelf: Shelf) -> None:
    job = shelf.make(ack_timeout_ns=50_000_000, attempts_max=1)
    shelf.fire(job, b"a", b"b", b"c")
    shelf.engine.begin_epoch(job)
    reader = shelf.bind(job)
    assert len(shelf.entries()) == 3
    shelf.bench.wait(60)  # they are parked, and the next epoch begins
    shelf.fetch()
    assert reader.epoch == 2
    shelf.bench.lose()
    shelf.bench.resume()
    assert shelf.entries()[0][:3] == (1, 1, "gap")
    assert not (reader.unacked or {}).keys() - {1}


def test_stream_that_was_lost_where_an_epoch_ended_lost_an_unknown_number(shelf: Shelf) -> None:
    job = shelf.make(acknowledgement=job_pb2.ACKNOWLEDGEMENT_NONE)
    shelf.fire(job, b"a", b"b")
    shelf.engine.begin_epoch(job)
    reader = shelf.bind(job)
    while shelf.bench.frames():
        shelf.engine.read_on(reader)
    shelf.fire(job, b"c")
    shelf.bench.frames()
    shelf.bench.lose()
    shelf.bench.resume(**{f"b{reader.id}": 1})
    gaps = [frame.gap for frame in shelf.bench.frames() if frame.HasField("gap")]
    assert [(gap.epoch, gap.first, gap.last, gap.count) for gap in gaps] == [(2, 1, 2, 0)]


def test_job_that_can_fire_no_more_stays_until_its_events_are_dealt_with(shelf: Shelf) -> None:
    job = shelf.make()
    shelf.fire(job, b"a")
    shelf.engine.exhaust(job, "its process has ended")
    assert job.state is JobState.DRAINING
    reader = shelf.bind(job)
    assert shelf.entries() == [(1, 1, b"a", 1)]
    shelf.ack(reader, 1)
    assert job.state is JobState.GONE


def test_job_that_closes_is_not_read_on(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=2)
    shelf.fire(job, *(b"%d" % n for n in range(6)))
    shelf.forget_tail(job)
    reader = shelf.bind(job)
    assert len(shelf.entries()) == 2
    late = shelf.engine.bind(
        shelf.bench.open(shelf.bench.principal),
        job,
        at=START,
        follows=True,
        credit=(LOTS, LOTS),
        now=shelf.bench.now,
    )
    shelf.engine.read_on(late)
    shelf.engine.shutdown(job, reason="test", deadline_ns=0, now=shelf.bench.now)
    shelf.fetch()
    shelf.complete(reader, 1)
    assert shelf.entries() == shelf.entries(late.session) == []
    shelf.complete(reader, 2)
    assert job.state is JobState.GONE


def test_priority_is_that_of_all_who_read(shelf: Shelf) -> None:
    job = shelf.make()
    reader = shelf.bind(job)
    shelf.engine.set_priority(job, 7)
    assert reader.options.priority == 7


def test_reader_that_waits_for_bytes_is_fed_though_another_needed_none(make_bench: Any) -> None:
    shelf = Shelf(make_bench(Quota(queue_bytes=2 * ENTRY_BYTES)))
    bench = shelf.bench
    trimmed, job = shelf.make(), shelf.make()
    hog = bench.job(session=bench.open(bench.principal))
    shelf.engine.fire(hog, bytes(10))
    readers = [shelf.bind(trimmed), shelf.bind(job)]
    event = bytes(300 - ENTRY_BYTES)
    shelf.fire(trimmed, event)
    shelf.fire(job, event)
    assert [reader.paused for reader in readers] == [True] * 2
    shelf.engine.trimmed(trimmed, Cursor(1, 1))
    shelf.engine.end_session(hog.session, "", bench.now)
    shelf.fetch()
    assert shelf.entries() == [(1, 1, "gap", 1)]
    bench.wait(10)
    shelf.fetch()
    assert shelf.entries() == [(1, 1, event, 1)]


def test_reader_that_has_caught_up_waits_for_no_bytes(make_bench: Any) -> None:
    shelf = Shelf(make_bench(Quota(queue_bytes=2 * ENTRY_BYTES)))
    job = shelf.make()
    reader = shelf.bind(job)
    shelf.fire(job, bytes(10), bytes(250))
    assert shelf.entries() == [(1, 1, bytes(10), 1)]
    assert shelf.bench.accounts.starving
    shelf.engine.ack(reader.session, reader.id, 1, 1, shelf.bench.now)
    assert shelf.entries() == [(2, 2, bytes(250), 1)]
    assert not shelf.bench.accounts.starving


def test_what_a_lost_stream_took_of_an_epoch_is_counted_in_its_own_numbers(shelf: Shelf) -> None:
    job = shelf.make(acknowledgement=job_pb2.ACKNOWLEDGEMENT_NONE)
    shelf.fire(job, b"a", b"b")
    shelf.engine.begin_epoch(job)
    shelf.fire(job, b"c", b"d")
    reader = shelf.bind(job, events=2)
    shelf.engine.trimmed(job, Cursor(2, 2))
    shelf.engine.grant(shelf.bench.session, reader.id, LOTS, LOTS)
    while shelf.bench.frames():
        pass
    assert reader.position == (2, 3)
    shelf.bench.lose()
    shelf.engine.resume_session(
        shelf.bench.session.token,
        shelf.bench.principal,
        positions={reader.id: (2, 2)},
        credit=(LOTS, LOTS),
        now=shelf.bench.now,
    )
    gaps = [frame.gap for frame in shelf.bench.frames() if frame.HasField("gap")]
    assert [(gap.epoch, gap.first, gap.last, gap.count) for gap in gaps] == [(2, 3, 3, 1)]


def test_job_that_closes_sends_nothing_more(shelf: Shelf) -> None:
    job = shelf.make(queue_depth=2)
    shelf.fire(job, *(b"%d" % n for n in range(6)))
    reader = shelf.bind(job)
    assert len(shelf.entries()) == 2
    shelf.engine.shutdown(job, reason="test", deadline_ns=0, now=shelf.bench.now)
    shelf.ack(reader, 1)
    assert shelf.entries() == []


def test_a_hold_is_not_handed_over_to_a_job_that_has_ended(bench: Any) -> None:
    shelf = Shelf(bench)
    job = shelf.make()
    bench.engine.bind(bench.session, job, at=START, follows=True, credit=None, now=bench.now)
    (frozen,) = bench.engine.freeze(started=lambda _: True, memento=lambda _: None, now=bench.now)
    bench.engine.end_job(job, "there is nothing more", bench.now)
    used = bench.session.account.used("jobs")
    bench.engine.thaw_reader(bench.session, job, frozen.readers[0])
    assert bench.session.account.used("jobs") == used
    assert bench.session.bindings == {}
