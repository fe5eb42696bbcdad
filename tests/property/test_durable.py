"""Durable jobs against a model of their clients, and of a store that is slow, full, or lost its last turns.

For every binding the entries delivered tile every number from where it began to the head, epoch by epoch,
in order, without hole or overlap; what the client that answers had dealt with may be left out, and what
cannot be delivered any more is a gap. What is delivered again is byte for byte the same, and is never said to
be new. An epoch that nobody heard the end of is followed by a gap of unknown size. The model sees the encoded
frames and remembers everything that was recorded; in the store, what was asked for is done later, in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aemd.core import durable as memory
from aemd.core import reading
from aemd.core.accounts import ENTRY_BYTES, Accounts
from aemd.core.effects import Fetch
from aemd.core.engine import Engine
from aemd.core.entry import EntryState, Loss
from aemd.core.errors import AemError
from aemd.core.frozen import FrozenSession
from aemd.core.history import NEW, START, Cursor, Keep, Positions, Record
from aemd.core.job import Job, JobState
from aemd.core.limits import MS, Limits
from aemd.core.now import Now
from aemd.core.options import CUMULATIVE, EXPLICIT, NONE, OptionsParser
from aemd.core.principal import Owner, Principal
from aemd.core.quota import DefaultQuotas, Quota
from aemd.core.reader import Reader
from aemd.core.session import Session
from aemd.core.traits import Traits
from aemd.v1 import job_pb2, session_pb2
from tests.property.runs import runs

PRINCIPAL = Principal(Owner(1000), 1000, (), 4242, 99, administrator=False)
LIMITS = Limits(queue_depth=6, queue_bytes=400, lease_ns=60_000 * MS)
LOTS = 1 << 30
SESSIONS_MAX = 3
Number = tuple[int, int]  # epoch, seq


@pytest.fixture(autouse=True, scope="module")
def short_memory() -> Iterator[None]:
    """Little stays in memory and little is fetched at once, so that histories of a few entries are long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "TAIL_RECORDS", 2)
        patch.setattr(memory, "TAIL_BYTES", 200)
        patch.setattr(reading, "FETCH_RECORDS", 3)
        yield


@dataclass(frozen=True)
class Entry:
    """As a client reads it."""

    epoch: int
    first: int
    last: int
    event: bytes | None  # None: a gap
    attempts: int
    cause: int = 0
    unknown: bool = False

    @property
    def numbers(self) -> set[Number]:
        return {(self.epoch, number) for number in range(self.first, self.last + 1)}

    @property
    def content(self) -> tuple[object, ...]:
        return (self.last, self.event, self.cause, self.unknown)


@dataclass
class Disk:
    """What of one job would be there if the machine went down now."""

    records: list[Record] = field(default_factory=list)
    at: Positions = NEW
    dealt: frozenset[Number] = frozenset()  # by the model's account


@dataclass(eq=False, repr=False)
class Kept:
    """A job, and everything that was ever recorded of it."""

    job: Job
    options: job_pb2.Options
    traits: Traits
    keep: int  # entries of history
    records: dict[Number, Record] = field(default_factory=dict)  # by every number that is covered
    ends: dict[int, int] = field(default_factory=lambda: {1: 0})  # epoch -> newest number
    disk: Disk = field(default_factory=Disk)
    given_up: set[Number] = field(default_factory=set)  # the store did not take it
    dealt: set[Number] = field(default_factory=set)  # by who answers
    seen: Cursor = START  # the newest that was sent to who answers
    exhausted: bool = False
    ended: bool = False

    @property
    def head(self) -> Cursor:
        epoch = max(self.ends)
        return Cursor(epoch, self.ends[epoch])

    def add(self, count: int, event: bytes, key: bytes, loss: Loss | None = None) -> None:
        epoch, head = self.head
        record = Record(epoch, head + 1, head + count, 0, key, event, loss)
        self.ends[epoch] = record.last
        self.records |= {(epoch, number): record for number in range(record.first, record.last + 1)}

    def open_epoch(self) -> None:
        self.ends[self.head.epoch + 1] = 0
        self.add(1, b"", b"", Loss(0, session_pb2.CAUSE_RESTART, unknown=True))

    def lose(self, head: Cursor) -> None:
        """What is behind `head` was never written."""
        self.ends = {epoch: end for epoch, end in self.ends.items() if epoch <= head.epoch}
        self.ends[head.epoch] = head.seq
        self.records = {number: record for number, record in self.records.items() if number <= head}
        self.given_up = {number for number in self.given_up if number <= head}
        self.dealt = set(self.disk.dealt)


@dataclass(eq=False, repr=False)
class Tiling:
    """The numbers that somebody has met of a job, from a cursor on."""

    kept: Kept
    start: Cursor
    skip: frozenset[Number]
    at: Cursor
    cut: bool = False  # the end of the epoch was trimmed, and this was said

    def left_out(self, numbers: Iterator[Number] | set[Number]) -> bool:
        return all(number in self.skip for number in numbers)

    def rest(self) -> set[Number]:
        """What of the present epoch is still to come."""
        epoch, seq = self.at
        return {(epoch, number) for number in range(seq + 1, self.kept.ends.get(epoch, 0) + 1)}

    def take(self, entry: Entry, *, unheard: bool = False) -> None:
        """An entry that was not met before. `unheard`: the end of an epoch may have been lost on its way."""
        if entry.epoch != self.at.epoch:
            assert entry.epoch > self.at.epoch
            told = self.cut or (unheard and entry.unknown) or self.left_out(self.rest())
            assert told, f"{entry} follows {self.at} in silence"
            between = range(self.at.epoch + 1, entry.epoch)
            assert self.cut or (unheard and entry.unknown) or not any(map(self.kept.ends.get, between))
            self.at, self.cut = Cursor(entry.epoch, 0), False
        assert entry.first > self.at.seq
        missing = {(entry.epoch, number) for number in range(self.at.seq + 1, entry.first)}
        assert self.left_out(missing), f"{entry} follows {self.at}, without {missing - self.skip}"
        self.at = Cursor(entry.epoch, entry.last)
        self.cut = entry.unknown and entry.last > self.kept.ends.get(entry.epoch, 0)
        self.cut |= entry.unknown and entry.cause == session_pb2.CAUSE_OVERFLOW


@dataclass(eq=False, repr=False)
class Client:
    """One binding: what was sent to it, and what of that arrived."""

    kept: Kept
    reader: Reader
    start: Cursor
    follows: bool
    seen_before: Cursor  # of the job, as it was bound
    sending: Tiling
    receiving: Tiling
    credit: list[int]
    sent: dict[Number, Entry] = field(default_factory=dict)
    seen: dict[Number, Entry] = field(default_factory=dict)
    settled: set[Number] = field(default_factory=set)
    answered: set[Number] = field(default_factory=set)  # by the client itself
    position: Cursor = START
    resumed: bool = False

    @property
    def once(self) -> bool:
        return bool(self.reader.options.acknowledgement == NONE)

    def settle(self, number: Number, *, answered: bool = True) -> None:
        self.settled.add(number)
        if answered:
            self.answered.add(number)
        if not self.follows:
            self.kept.dealt |= self.sent[number].numbers


@dataclass(eq=False, repr=False)
class Peer:
    """One session, and what is on its way to it."""

    session: Session
    credit: list[int]
    clients: dict[int, Client] = field(default_factory=dict)
    wire: list[bytes] = field(default_factory=list)


def frames_of(data: bytes) -> list[session_pb2.ServerFrame]:
    frame = session_pb2.ServerFrame.FromString(data)
    return list(frame.bundle.frames) if frame.WhichOneof("frame") == "bundle" else [frame]


def entries_of(frame: session_pb2.ServerFrame) -> list[tuple[int, Entry]]:
    """Each entry, with its binding."""
    if frame.WhichOneof("frame") == "gap":
        gap = frame.gap
        assert gap.count in (0, gap.last - gap.first + 1)
        entry = Entry(gap.epoch, gap.first, gap.last, None, gap.attempts, gap.cause, not gap.count)
        return [(gap.binding, entry)]
    found = []
    for run in frame.batch.runs:
        seq = run.first_seq
        for index, event in enumerate(run.events):
            last = seq + (run.counts[index] if run.counts else 1) - 1
            attempts = run.attempts[index] if run.attempts else 1
            found.append((run.binding, Entry(run.epoch, seq, last, event, attempts)))
            seq = last + 1
    return found


class Durables(RuleBasedStateMachine):
    """A daemon that is restarted now and then, with two durable jobs and up to three sessions."""

    quota = Quota()

    @initialize(
        coalesce=st.booleans(),
        acknowledgement=st.sampled_from([CUMULATIVE, EXPLICIT, NONE]),
        depth=st.integers(1, 5),
        attempts_max=st.sampled_from([0, 0, 2]),
        keep=st.sampled_from([6, 40]),
        epochs=st.integers(0, 2),
        role=st.sampled_from([None, False, True]),
    )
    def begin(self, coalesce, acknowledgement, depth, attempts_max, keep, epochs, role):
        self.now = Now(1_000 * MS, 10**18)
        self.numbers = itertools.count(1)
        self.tokens = itertools.count(1)
        self.kept: list[Kept] = []
        self.peers: list[Peer] = []
        self.store: list[Callable[[], None]] = []  # what it was asked for, and has not done
        self.syncs: dict[int, tuple[Peer, Client, Cursor]] = {}
        self.full = self.broken = False
        self.refused: dict[Job, None] = {}  # have something that the store did not take
        self.new_engine()
        self.add(
            Traits("plain"),
            job_pb2.Options(ack_timeout_ns=50 * MS, attempts_max=attempts_max, queue_depth=depth + 1),
            keep,
        )
        self.add(
            Traits("levels" if coalesce else "other", coalesce=coalesce),
            job_pb2.Options(
                acknowledgement=acknowledgement,
                queue_depth=depth,
                ack_timeout_ns=0 if acknowledgement == NONE else 50 * MS,
                attempts_max=0 if acknowledgement == NONE else attempts_max,
            ),
            keep,
        )
        self.open_session()
        for _ in range(epochs):
            for which in range(2):
                self.fire_many(which, 2)
                self.doubt(which)
            self.end_turn()
            self.work(2)
        if role is not None:
            for kept in self.kept:
                self.bind_to(self.peers[0], kept, follows=role, at=START)

    def new_engine(self) -> None:
        self.accounts = Accounts(DefaultQuotas(self.quota))
        self.engine = Engine(
            LIMITS, new_token=lambda: next(self.tokens).to_bytes(16, "big"), accounts=self.accounts
        )
        self.engine.tick(self.now)

    def add(self, traits: Traits, options: job_pb2.Options, keep: int) -> None:
        kept = Kept(None, options, traits, keep)  # type: ignore[arg-type]
        self.make(kept)
        self.kept.append(kept)

    def make(self, kept: Kept, positions: Positions | None = None, *, again: bool = False) -> None:
        kept.job = self.engine.keep_job(
            PRINCIPAL,
            job_id=len(self.kept) + 1 if positions is None else kept.job.id,
            name=kept.traits.name,
            module=kept.traits,
            values={},
            params=None,
            options=OptionsParser(LIMITS).parse(kept.options, kept.traits),
            keep=Keep(entries=kept.keep),
            label="",
            create_time_ns=1,
            positions=positions or Positions(),
        )
        if again:
            kept.open_epoch()
            self.engine.begin_epoch(kept.job)
        if kept.exhausted:
            self.engine.exhaust(kept.job, "there was no more")
        else:
            self.engine.start(kept.job, self.now)

    # -- what the machine does

    def pick(self, which: int) -> Kept:
        return self.kept[which % len(self.kept)]

    @rule(
        which=st.integers(0, 1), size=st.sampled_from([0, 10, 90, 150, 450]), key=st.sampled_from([b"", b"k"])
    )
    def fire(self, which, size, key):
        kept = self.pick(which)
        event = next(self.numbers).to_bytes(4, "big") + bytes(size)
        count = 1 + event[3] % 3
        if kept.job.state is JobState.ARMED:
            kept.add(count, event, key)
        self.engine.fire(kept.job, event, key=key, count=count)

    @rule(which=st.integers(0, 1), count=st.integers(1, 12))
    def fire_many(self, which, count):
        kept = self.pick(which)
        events = [next(self.numbers).to_bytes(4, "big") for _ in range(count)]
        if kept.job.state is JobState.ARMED:
            for event in events:
                kept.add(1, event, b"")
        self.engine.fire_many(kept.job, events)

    @rule(which=st.integers(0, 1), count=st.integers(0, 3))
    def lose_some(self, which, count):
        kept = self.pick(which)
        loss = Loss(session_pb2.STAGE_KERNEL, session_pb2.CAUSE_OVERFLOW, unknown=not count)
        if kept.job.state is JobState.ARMED:
            kept.add(count or 1, b"", b"", loss)
        self.engine.gap(kept.job, stage=loss.stage, cause=loss.cause, count=count)

    @rule(after_ms=st.sampled_from([1, 10, 60, 200]))
    def wait(self, after_ms):
        self.now = Now(self.now.mono_ns + after_ms * MS, self.now.real_ns + after_ms * MS)
        self.engine.tick(self.now)

    @rule(days=st.integers(-2, 2))
    def set_clock(self, days):
        """The wall clock is set; nothing here may depend on it."""
        self.now = Now(self.now.mono_ns, self.now.real_ns + days * 86_400_000 * MS)

    @rule(which=st.integers(0, 1))
    def doubt(self, which):
        """Continuity cannot be proven."""
        kept = self.pick(which)
        if kept.job.state is JobState.ARMED and len(kept.ends) < 5:
            kept.open_epoch()
            self.engine.begin_epoch(kept.job)

    @rule(how=st.sampled_from(["shutdown", "exhaust", "priority"]), priority=st.integers(0, 7))
    def meddle(self, how, priority):
        """The second job ends, or is delivered with another priority."""
        kept = self.kept[-1]
        if how == "priority":
            self.engine.set_priority(kept.job, priority)
        elif len(self.kept) < 2 or kept.job.state is JobState.GONE:
            return
        elif how == "shutdown":
            self.engine.shutdown(kept.job, reason="enough", deadline_ns=0, now=self.now)
        elif kept.job.state is JobState.ARMED:
            kept.exhausted = True
            self.engine.exhaust(kept.job, "there is no more")

    # -- the store

    @rule()
    def end_turn(self):
        """What has changed goes to the store."""
        by_job = {kept.job: kept for kept in self.kept}
        for job in {**dict.fromkeys(self.engine.take_kept()), **self.refused}:
            kept, durable = by_job[job], job.durable
            self.refused.pop(job, None)
            if job.state is JobState.GONE:
                kept.ended = True
                continue
            records = list(durable.unrecorded)
            if records and self.full:
                durable.give_up()
                kept.given_up |= {
                    (record.epoch, number)
                    for record in records
                    for number in range(record.first, record.last + 1)
                }
                records = []
                self.refused[job] = None
            elif records:
                durable.unrecorded = []
            positions = Positions(acked=durable.acked, dealt=durable.dealt, seen=durable.seen)
            self.store.append(partial(self.write, kept, job, records, positions, frozenset(kept.dealt)))

    def write(
        self, kept: Kept, job: Job, records: list[Record], at: Positions, dealt: frozenset[Number]
    ) -> None:
        disk = kept.disk
        disk.records = disk.records + records
        head = records[-1].cursor if records else disk.at.head
        lost = disk.at.lost + sum(record.last - record.first + 1 for record in records if record.loss)
        disk.at = replace(at, head=head, lost=lost, oldest=disk.at.oldest)
        disk.dealt = dealt
        surplus = len(disk.records) - kept.keep
        if surplus > 0:
            disk.at = replace(disk.at, oldest=disk.records[surplus - 1].cursor)
            disk.records = disk.records[surplus:]
            if not kept.ended:
                self.engine.trimmed(job, disk.at.oldest)
        job.durable.wrote(head)

    def read(self, kept: Kept, wish: Fetch) -> None:
        found = [record for record in kept.disk.records if record.cursor > wish.after]
        if kept.job.state is not JobState.GONE:
            records = [] if self.broken else found[: wish.records_max]
            self.engine.fetched(wish.reader, records, self.now)

    @rule(count=st.sampled_from([1, 1, 2, 20]))
    def work(self, count):
        """The store does what it was asked for."""
        for step in self.store[:count]:
            step()
        del self.store[:count]

    @rule(full=st.booleans())
    def fill_disk(self, full):
        """It takes nothing more, or something again."""
        self.full = full

    @rule(broken=st.booleans())
    def break_disk(self, broken):
        """Nothing can be read, or something again."""
        self.broken = broken

    @rule()
    def hand_over(self):
        """Another daemon begins, with what is on disk and the sessions of the one before."""
        frozen = self.engine.freeze(started=lambda _: True, memento=lambda _: None, now=self.now)
        estate = msgspec.msgpack.decode(msgspec.msgpack.encode(frozen), type=list[FrozenSession])
        ids = {kept.job.id: kept for kept in self.kept if kept.job.state is not JobState.CLOSING}
        for kept in self.kept:
            if kept.job.state is JobState.CLOSING:  # nobody waits for its handlers any more
                self.engine.end_job(kept.job, "the daemon ends", self.now)
        self.full = False
        self.settle_store()
        self.store.clear()
        self.refused.clear()
        self.syncs.clear()
        next_id = self.engine.next_id
        self.new_engine()
        self.engine.ids_begin(next_id)
        self.kept = [kept for kept in self.kept if not kept.ended]
        for kept in self.kept:
            assert kept.disk.at.head == kept.head
            self.make(kept, kept.disk.at)
        for peer, each in zip(self.peers, sorted(estate, key=lambda session: session.id), strict=True):
            peer.session = self.engine.thaw_session(each, self.now)
            peer.wire.clear()
            held = {}
            for reader in each.readers:
                if reader.job in ids and not ids[reader.job].ended:
                    self.engine.thaw_reader(peer.session, ids[reader.job].job, reader)
                    if ids[reader.job].job.state is JobState.GONE:
                        continue
                    client = held[reader.binding.id] = peer.clients[reader.binding.id]
                    client.reader = peer.session.bindings[reader.binding.id]
            peer.clients = held
            self.engine.await_client(peer.session)

    @rule(in_order=st.booleans(), written=st.integers(0, 9))
    def restart(self, in_order, written):
        """Another daemon begins, with what is on disk, and knows no session."""
        if in_order:
            self.full = False
            for peer in self.peers:
                self.engine.end_session(peer.session, "the daemon ends", self.now)
            self.settle_store()
        else:
            self.work(written)
        self.store.clear()
        self.refused.clear()
        self.peers.clear()
        self.syncs.clear()
        self.new_engine()
        self.kept = [kept for kept in self.kept if not kept.ended]
        for kept in self.kept:
            at = kept.disk.at
            if in_order:
                assert at.head == kept.head
                assert at.seen >= kept.seen
            else:
                at = replace(at, seen=at.head)
                kept.lose(at.head)
                kept.seen = at.head
            self.make(kept, at, again=not in_order)

    def settle_store(self) -> None:
        """Everything that there is to be written and read is."""
        for _ in range(100):
            self.take_effects()
            self.end_turn()
            if not self.store:
                return
            self.work(len(self.store))
        raise AssertionError("the store never comes to rest")

    def take_effects(self) -> None:
        by_job = {kept.job: kept for kept in self.kept}
        for effect in self.engine.take_effects():
            if isinstance(effect, Fetch):
                wish, kept = effect, by_job[effect.reader.job]
                self.store.append(partial(self.read, kept, wish))

    # -- what clients do

    @precondition(lambda self: len(self.peers) < SESSIONS_MAX)
    @rule()
    def open_session(self):
        session = self.engine.open_session(PRINCIPAL, label="", sdk="", credit=(12, 900), now=self.now)
        self.peers.append(Peer(session, [12, 900]))

    def peer(self, which: int) -> Peer:
        return self.peers[which % len(self.peers)]

    @precondition(lambda self: self.peers)
    @rule(
        who=st.integers(0, 5),
        which=st.integers(0, 1),
        follows=st.booleans(),
        where=st.sampled_from(["acked", "acked", "oldest", "now", "cursor"]),
        place=st.integers(0, 60),
    )
    def bind(self, who, which, follows, where, place):
        peer, kept = self.peer(who), self.pick(which)
        if not peer.session.connected or len(peer.clients) >= 4 or kept.job.state is JobState.GONE:
            return
        self.bind_to(peer, kept, follows=follows, at=self.place(kept, where, place))

    def place(self, kept: Kept, where: str, place: int) -> Cursor | None:
        durable = kept.job.durable
        if where == "acked":
            return durable.acked
        if where == "oldest":
            return durable.oldest
        if where == "now":
            return kept.head
        wanted = Cursor(
            *([*sorted(kept.records), (kept.head.epoch, kept.head.seq + 1)][-1 - place % 40 :][0])
        )
        fine = durable.oldest <= wanted <= kept.head
        try:
            found = self.engine.start_of(kept.job, wanted)
        except AemError as error:
            self.expect(error, "CURSOR_EXPIRED" if wanted < durable.oldest else "CURSOR_UNKNOWN")
            assert not fine
            return None
        assert fine
        return found

    def bind_to(self, peer: Peer, kept: Kept, *, follows: bool, at: Cursor | None) -> Client | None:
        if at is None:
            return None
        answering = [
            (other, client)
            for other in self.peers
            for client in other.clients.values()
            if client.kept is kept and not client.follows
        ]
        goes_on = at == kept.job.durable.acked
        try:
            reader = self.engine.bind(
                peer.session, kept.job, at=at, follows=follows, credit=(4, 300), now=self.now
            )
        except AemError as error:
            ending = kept.job.state is JobState.CLOSING
            self.expect(error, "JOB_ENDING" if ending else "ALREADY_BOUND")
            assert ending or (not follows and answering[0][0].session.connected)
            return None
        if not follows:
            for other, client in answering:
                assert not other.session.connected
                del other.clients[client.reader.id]
            if not goes_on:
                kept.dealt.clear()
        skip = frozenset() if follows else frozenset(kept.dealt)
        client = peer.clients[reader.id] = Client(
            kept,
            reader,
            at,
            follows,
            kept.seen,
            Tiling(kept, at, skip, at),
            Tiling(kept, at, skip, at),
            [4, 300],
        )
        if not follows:
            kept.seen = max(kept.seen, at)  # what it passes over counts as sent
        self.engine.read_on(reader)
        return client

    @precondition(lambda self: self.peers)
    @rule(who=st.integers(0, 5), events=st.integers(0, 8), size=st.integers(0, 300))
    def grant(self, who, events, size):
        peer = self.peer(who)
        if peer.session.connected:
            self.engine.grant(peer.session, 0, events, size)
            peer.credit[0] += events
            peer.credit[1] += size
            for number, client in peer.clients.items():
                self.engine.grant(peer.session, number, events, size)
                client.credit[0] += events
                client.credit[1] += size

    def open_entries(self) -> list[tuple[Peer, Client, Number]]:
        """What a client received and did not deal with."""
        return [
            (peer, client, number)
            for peer in self.peers
            if peer.session.connected
            for client in peer.clients.values()
            if client.kept.job.state is not JobState.GONE
            for number in client.seen
            if number not in client.settled and number[0] == client.reader.epoch
        ]

    @precondition(lambda self: self.open_entries())
    @rule(which=st.integers(0, 50), how=st.sampled_from(["ack", "ack", "complete", "later", "again", "park"]))
    def answer(self, which, how):
        entries = self.open_entries()
        peer, client, number = entries[which % len(entries)]
        self.answer_one(peer, client, number, how)

    def answer_one(self, peer: Peer, client: Client, number: Number, how: str) -> None:
        reader, entry = client.reader, client.seen[number]
        explicit = reader.options.acknowledgement == EXPLICIT
        if how == "ack" and not explicit:
            self.engine.ack(peer.session, reader.id, entry.epoch, entry.last, self.now)
            if not client.once:
                for first in [first for first, sent in client.sent.items() if sent.epoch == entry.epoch]:
                    if client.sent[first].last <= entry.last:
                        client.settle(first)
            return
        held = (reader.unacked or {}).get(entry.last)
        flies = held is not None and held.state is EntryState.INFLIGHT
        try:
            if how in ("ack", "complete"):
                self.engine.complete(
                    peer.session, reader.id, entry.epoch, entry.last, error=None, reply=None, now=self.now
                )
                assert client.once or held is not None
            else:
                self.engine.nack(
                    peer.session,
                    reader.id,
                    entry.epoch,
                    entry.last,
                    delay_ns=100 * MS if how == "later" else 0,
                    park=how == "park",
                    reason="no",
                    now=self.now,
                )
                assert flies
        except AemError as error:
            self.expect(error, "NOT_IN_FLIGHT")
            assert not flies
            return
        if not client.once and how not in ("later", "again"):
            client.settle(number)

    @precondition(lambda self: self.peers)
    @rule(who=st.integers(0, 5), which=st.integers(0, 3))
    def sync(self, who, which):
        peer = self.peer(who)
        clients = list(peer.clients.values())
        if clients and peer.session.connected:
            client = clients[which % len(clients)]
            first = next(other for other in clients if other.kept is client.kept)
            if client.kept.job.state in (JobState.ARMED, JobState.DRAINING):
                request = next(self.numbers)
                self.syncs[request] = (peer, first, client.kept.head)
                self.engine.sync_mark(peer.session, client.kept.job, request)

    @precondition(lambda self: self.peers)
    @rule(who=st.integers(0, 5), which=st.integers(0, 3))
    def unbind(self, who, which):
        peer = self.peer(who)
        if peer.clients:
            number = list(peer.clients)[which % len(peer.clients)]
            self.engine.unbind(peer.session, number, self.now)
            del peer.clients[number]

    # -- the streams

    @precondition(lambda self: self.peers)
    @rule(who=st.integers(0, 5), budget=st.sampled_from([1, 100, 1 << 20]), times=st.integers(1, 4))
    def collect(self, who, budget, times):
        peer = self.peer(who)
        self.engine.take_ready()
        for _ in range(times):
            data = self.engine.collect(peer.session, budget)
            if data is None:
                break
            peer.wire.append(data)
            for frame in frames_of(data):
                self.check_sent(peer, frame)

    @precondition(lambda self: self.peers)
    @rule(who=st.integers(0, 5), count=st.integers(1, 5))
    def receive(self, who, count):
        peer = self.peer(who)
        for data in peer.wire[:count]:
            for frame in frames_of(data):
                self.check_received(peer, frame)
        del peer.wire[:count]

    @precondition(lambda self: self.peers)
    @rule(fires=st.integers(0, 2), unread=st.integers(0, 1), settle=st.booleans())
    def pump(self, fires, unread, settle):
        """What usually happens: events, credit, clients that read, and a store that does its work."""
        for which in range(fires * len(self.kept)):
            self.fire(which, 10, b"")
        self.take_effects()
        self.end_turn()
        self.work(len(self.store))
        for who, peer in enumerate(self.peers):
            self.grant(who, 3, 200)
            self.collect(who, 1 << 20, 4)
            self.receive(who, max(len(peer.wire) - unread, 0))
        if settle:
            for entry in self.open_entries():
                if entry[2] not in entry[1].settled and entry[1].kept.job.state is not JobState.GONE:
                    self.answer_one(*entry, "ack")

    @precondition(lambda self: self.peers)
    @rule(who=st.integers(0, 5), resume=st.sampled_from([True, True, False]), forgets=st.booleans())
    def lose_stream(self, who, resume, forgets):
        peer = self.peer(who)
        if peer.session.connected:
            self.engine.lose_stream(peer.session, self.now)
            peer.wire.clear()
            self.forget_syncs(peer)
        if resume:
            self.resume(peer, forgets=forgets)

    def resume(self, peer: Peer, *, forgets: bool = False) -> None:
        """`forgets`: the client says nothing of bindings of which it has received nothing."""
        if peer.session.connected:
            return
        positions = {
            number: tuple(client.position)
            for number, client in peer.clients.items()
            if client.position.seq or not forgets
        }
        self.engine.resume_session(
            peer.session.token, PRINCIPAL, positions=positions, credit=(9, 500), now=self.now
        )
        peer.credit = [9, 500]
        for client in peer.clients.values():
            client.credit = [0, 0]
            client.resumed = True
            if client.once:
                if not client.follows:
                    client.kept.dealt -= {
                        number
                        for first, entry in client.sent.items()
                        if first not in client.seen and entry.epoch == client.reader.epoch
                        for number in entry.numbers
                    }
                client.sent = dict(client.seen)
                epoch = client.reader.epoch
                at = client.receiving.at
                client.sending.at = at if at.epoch == epoch else Cursor(epoch, 0)
                if at.epoch != epoch:
                    client.sending.cut = False

    @precondition(lambda self: self.peers)
    @rule(who=st.integers(0, 5))
    def end_session(self, who):
        peer = self.peer(who)
        self.engine.end_session(peer.session, "enough", self.now)
        self.peers.remove(peer)
        self.forget_syncs(peer)

    def forget_syncs(self, peer: Peer) -> None:
        """Its stream is gone, and nobody waits for the answers."""
        self.syncs = {request: asked for request, asked in self.syncs.items() if asked[0] is not peer}

    # -- what must hold

    @staticmethod
    def expect(error: AemError, reason: str) -> None:
        assert error.reason == reason

    def check_sent(self, peer: Peer, frame: session_pb2.ServerFrame) -> None:
        for binding, entry in entries_of(frame):
            client = peer.clients[binding]
            assert client.kept.job.state is not JobState.CLOSING
            if entry.event is not None:
                for credit in (client.credit, peer.credit):
                    assert min(credit) > 0
                    credit[0] -= 1
                    credit[1] -= len(entry.event)
            number = (entry.epoch, entry.first)
            known = client.sent.get(number)
            if known is not None and entry.attempts == 1:
                self.check_replaced(client, entry)
            elif known is not None:
                assert entry.content == known.content
                assert entry.attempts == known.attempts + 1
                assert number not in client.settled
            else:
                client.sending.take(entry, unheard=client.once and client.resumed)
                self.check_new(client, entry)
            client.sent[number] = entry
            self.note_sent(client, entry)
        if frame.WhichOneof("frame") == "sync_done":
            _, client, mark = self.syncs.pop(frame.request_id)
            done = frame.sync_done
            assert (done.binding, done.cursor.epoch, done.cursor.seq) == (client.reader.id, *mark)
            ended = client.kept.job.state is JobState.GONE  # in this very turn, and says so by this answer
            at, over = client.sending, ended or client.reader.id not in peer.clients
            assert over or at.at >= mark or (at.at.epoch == mark.epoch and at.left_out(at.rest()))

    def note_sent(self, client: Client, entry: Entry) -> None:
        if not client.follows:
            client.kept.seen = max(client.kept.seen, Cursor(entry.epoch, entry.last))
            if client.once:
                client.kept.dealt |= entry.numbers

    def check_new(self, client: Client, entry: Entry) -> None:
        """What is sent for the first time is what was recorded."""
        kept = client.kept
        covered = [kept.records.get(number) for number in sorted(entry.numbers)]
        for earlier, sent in client.sent.items():
            if earlier[0] < entry.epoch:
                assert client.once or earlier in client.settled, "the epoch before is not dealt with"
                assert sent.epoch < entry.epoch
        if entry.event is None:
            self.check_gap(client, entry)
            return
        assert all(record is not None and record.loss is None for record in covered)
        assert covered[-1].last == entry.last
        assert covered[-1].event == entry.event
        mid = client.start == (entry.epoch, entry.first - 1)
        assert mid or covered[0].first == entry.first
        if not client.reader.options.coalesce:
            assert covered[0] is covered[-1]
        assert len({record.key for record in covered}) == 1
        assert not entry.numbers <= client.sending.skip, "this was dealt with"
        before = not client.follows and covered[0].cursor <= client.seen_before
        assert entry.attempts == 1 + before

    def check_gap(self, client: Client, entry: Entry) -> None:
        kept, oldest = client.kept, client.kept.job.durable.oldest
        unknown = False
        for number in sorted(entry.numbers):
            record = kept.records.get(number)
            trimmed = number <= oldest
            lost = entry.cause == session_pb2.CAUSE_STREAM_LOST and client.once and client.resumed
            if record is None:
                assert entry.first == entry.last
                assert oldest.epoch > entry.epoch
                assert entry.unknown
                unknown = True
                continue
            large = len(record.event) > LIMITS.queue_bytes or self.quota.queue_bytes < LOTS // 4
            cut = trimmed and oldest.epoch > entry.epoch
            assert record.loss or trimmed or number in kept.given_up or large or lost
            unknown |= cut or lost or number in kept.given_up
            if record.loss is not None and record.loss.unknown:
                assert entry.unknown or trimmed
                unknown = True
        assert unknown or not entry.unknown

    @staticmethod
    def check_replaced(client: Client, entry: Entry) -> None:
        """A gap for what timed out too often while it was on its way, and got lost with the stream."""
        assert entry.cause == session_pb2.CAUSE_STREAM_LOST
        covered = [number for number in client.sent if number in entry.numbers]
        assert client.sent[covered[-1]].last == entry.last
        for number in covered:
            assert number not in client.seen
            del client.sent[number]
            client.settled.discard(number)

    def check_received(self, peer: Peer, frame: session_pb2.ServerFrame) -> None:
        for binding, entry in entries_of(frame):
            client = peer.clients.get(binding)
            if client is None:
                continue  # it has let go
            number = (entry.epoch, entry.first)
            known = client.seen.get(number)
            if known is None:
                client.receiving.take(entry, unheard=True)
            else:
                assert entry.content == known.content
            client.seen[number] = entry
            client.position = max(client.position, Cursor(entry.epoch, entry.last))

    @invariant()
    def books_balance(self) -> None:
        self.take_effects()
        held = 0
        for peer in self.peers:
            for client in list(peer.clients.values()):
                if client.kept.job.state is JobState.GONE:
                    del peer.clients[client.reader.id]
                    continue
                held += self.check_reader(peer, client)
        account = self.accounts.find(PRINCIPAL.uid)
        if account is not None:
            assert account.used_bytes == held <= self.quota.queue_bytes
            assert all(reader.paused for reader in account.starved)
        for kept in self.kept:
            self.check_job(kept)

    def check_reader(self, peer: Peer, client: Client) -> int:
        reader = client.reader
        queue, unacked = list(reader.queue or ()), dict(reader.unacked or {})
        if not client.once and client.kept.job.state is not JobState.CLOSING:
            for number in [number for number in client.sent if number not in client.settled]:
                if client.sent[number].last not in unacked or number[0] != reader.epoch:
                    assert reader.options.attempts_max, "it forgot what was sent"
                    client.settle(number, answered=False)  # parked, for it was sent too often
        for entry in unacked.values():
            number = (reader.epoch, entry.first)
            assert number not in client.answered or number not in client.sent
            if not client.follows:
                client.kept.dealt.difference_update(
                    (reader.epoch, n) for n in range(entry.first, entry.last + 1)
                )
        events = [entry for entry in [*queue, *unacked.values()] if entry.loss is None]
        assert reader.depth == len(events)
        assert reader.bytes == sum(len(entry.event) for entry in events)
        assert reader.gaps == sum(entry.loss is not None for entry in queue)
        assert reader.depth <= max(reader.options.queue_depth, 2 if reader.options.coalesce else 1)
        assert reader.options is client.kept.job.options
        tiled = reader.sent
        for entry in queue:
            assert entry.first == tiled + 1
            tiled = entry.last
        assert tiled == reader.head or client.kept.job.state is JobState.CLOSING
        return reader.bytes + ENTRY_BYTES * reader.depth

    def check_job(self, kept: Kept) -> None:
        durable = kept.job.durable
        if kept.job.state is JobState.GONE:
            assert not kept.exhausted or durable.acked == kept.head or kept.job.reason == "enough"
            return
        assert (kept.job.epoch, kept.job.binding.head) == kept.head
        assert durable.tail_bytes == sum(record.size for record in durable.tail)
        ends = [record.cursor for record in durable.tail]
        assert ends == sorted(ends)
        dealt = {(durable.acked.epoch, n) for first, last in durable.dealt for n in range(first, last + 1)}
        assert dealt <= kept.dealt | {number for number in dealt if number not in kept.records}

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.drain()
        for peer in self.peers:
            self.engine.end_session(peer.session, "enough", self.now)
        for kept in self.kept:
            self.engine.end_job(kept.job, "enough", self.now)
        self.end_turn()
        assert self.engine.next_deadline_ns() is None
        assert not self.accounts.in_use()
        assert not self.accounts.starving
        assert self.accounts.queue_pool.used == 0

    def drain(self) -> None:
        """Everything is delivered and dealt with, to those who are there and to one more."""
        self.full = self.broken = False
        for peer in self.peers:
            self.resume(peer)
        self.open_session()
        for kept in self.kept:
            if kept.job.state is not JobState.GONE:
                self.bind_to(self.peers[-1], kept, follows=True, at=kept.job.durable.oldest)
                self.fire(self.kept.index(kept), 0, b"")
        self.wait(1_000)  # the disk that failed is asked again
        self.books_balance()
        for _ in range(300):
            before = [client.receiving.at for peer in self.peers for client in peer.clients.values()]
            self.wait(200)
            self.books_balance()
            self.settle_store()
            for who in range(len(self.peers)):
                self.grant(who, LOTS, LOTS)
                self.collect(who, 1 << 20, 50)
                self.receive(who, 50)
            for entry in self.open_entries():
                if entry[2] not in entry[1].settled and entry[1].kept.job.state is not JobState.GONE:
                    self.answer_one(*entry, "ack")
            self.books_balance()
            after = [client.receiving.at for peer in self.peers for client in peer.clients.values()]
            if before == after and not (self.open_entries() or self.accounts.starving or self.store):
                break
        assert not self.syncs
        for peer in self.peers:
            for client in peer.clients.values():
                if client.kept.job.state in (JobState.ARMED, JobState.DRAINING):
                    assert client.receiving.at == client.kept.head
                    assert not client.reader.paused
                    assert client.follows or client.kept.job.durable.acked == client.kept.head


class Short(Durables):
    """The same where the bytes of queues are used up all the time."""

    quota = Quota(queue_bytes=4 * ENTRY_BYTES)


TestDurables = Durables.TestCase
TestDurablesUnderQuotas = Short.TestCase
TestDurables.settings = TestDurablesUnderQuotas.settings = settings(
    max_examples=runs(300),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture
def machine():
    """For a course that failed once."""
    return Durables()


def begin(machine, *, acknowledgement, epochs):
    machine.begin(
        coalesce=False,
        acknowledgement=acknowledgement,
        depth=1,
        attempts_max=0,
        keep=6,
        epochs=epochs,
        role=False,
    )


def test_what_was_sent_without_acknowledgement_is_a_gap_after_a_handover(machine):
    begin(machine, acknowledgement=NONE, epochs=0)
    machine.pump(fires=1, settle=False, unread=1)
    machine.hand_over()
    machine.teardown()


def test_sync_waits_for_the_gap_that_tells_of_epochs_that_were_trimmed(machine):
    begin(machine, acknowledgement=job_pb2.ACKNOWLEDGEMENT_CUMULATIVE, epochs=1)
    machine.fire_many(count=1, which=0)
    machine.doubt(which=0)
    machine.doubt(which=0)
    machine.sync(which=0, who=0)
    machine.fire_many(count=1, which=0)
    machine.fire_many(count=1, which=0)
    machine.sync(which=0, who=0)
    machine.doubt(which=0)
    machine.fire_many(count=1, which=0)
    machine.pump(fires=0, settle=True, unread=0)
    machine.pump(fires=0, settle=False, unread=0)
    machine.fire_many(count=5, which=0)
    machine.pump(fires=0, settle=True, unread=0)
    machine.doubt(which=0)
    machine.sync(which=0, who=0)
    machine.pump(fires=0, settle=False, unread=0)
    machine.teardown()
