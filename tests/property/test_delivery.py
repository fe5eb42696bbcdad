"""The engine against a model of a client: whatever happens, the invariant of the wire holds.

For every binding, the entries delivered tile every number from its start to the head, in order, without hole
or overlap; what is delivered again is byte for byte the same. The model sees nothing but the encoded frames,
parsed by protobuf, between which and the client a network may lose whatever was not yet received. Streams are
lost, clients stop reading, the wall clock is set, and the daemon ends in order and another goes on: what is
handed over goes through its own encoding.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Pool
from hypothesis.stateful import (
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from aemd.core.accounts import ENTRY_BYTES, Accounts
from aemd.core.effects import Operate, Release, SessionEnded
from aemd.core.engine import Engine
from aemd.core.entry import EntryState
from aemd.core.errors import AemError
from aemd.core.frozen import FrozenSession
from aemd.core.job import Job, JobState
from aemd.core.limits import MS, Limits
from aemd.core.now import Now
from aemd.core.options import CUMULATIVE, EXPLICIT, NONE, PAUSE_SOURCE, OptionsParser
from aemd.core.principal import Owner, Principal
from aemd.core.quota import DefaultQuotas, Quota
from aemd.core.traits import Traits
from aemd.core.waiting import GAPS_MAX, PAUSE_SLACK
from aemd.v1 import job_pb2, session_pb2
from tests.property.runs import runs

PRINCIPAL = Principal(Owner(1000), 1000, (), 4242, 99, administrator=False)
LIMITS = Limits(queue_depth=6, queue_bytes=400, lease_ns=60_000 * MS)
MODULES = [
    Traits("queues"),
    Traits("levels", coalesce=True),
    Traits("replies", replies=True, keyed=True, pausable=True, pause_by_default=True),
]
LOTS = 1 << 30


@dataclass
class Told:
    """An entry as it was last delivered."""

    last: int
    content: object
    attempts: int


@dataclass
class Client:
    """What the client of one binding knows, and what was sent to it."""

    job: Job
    credit: list[int]
    sent: dict[int, Told] = field(default_factory=dict)  # by first number: everything ever sent
    next_sent: int = 1
    seen: dict[int, Told] = field(default_factory=dict)  # what the client received
    next_seen: int = 1
    position: int = 0  # newest number received
    settled: set[int] = field(default_factory=set)  # first numbers that the client dealt with
    returned: set[int] = field(default_factory=set)  # given back, and not received again
    replaced: int = 0  # entries that were parked unseen, and for which a gap was sent instead
    gone: int | None = None  # discarded, once the client was told

    @property
    def once(self) -> bool:
        return self.job.options.acknowledgement == NONE


def frames_of(data: bytes) -> list[session_pb2.ServerFrame]:
    frame = session_pb2.ServerFrame.FromString(data)
    return list(frame.bundle.frames) if frame.WhichOneof("frame") == "bundle" else [frame]


def entries_of(frame: session_pb2.ServerFrame) -> list[tuple[int, int, int, object, int, int]]:
    """(binding, first, last, content, attempts, size) of each entry; size -1 for a gap."""
    if frame.WhichOneof("frame") == "gap":
        gap = frame.gap
        content = (gap.stage, gap.count, gap.cause, gap.scope, gap.remedy)
        assert gap.count in (0, gap.last - gap.first + 1)
        return [(gap.binding, gap.first, gap.last, content, gap.attempts, -1)]
    entries = []
    for run in frame.batch.runs:
        seq = run.first_seq
        assert len(run.counts) in (0, len(run.events))
        assert len(run.attempts) in (0, len(run.events))
        for event, count, attempts in itertools.zip_longest(
            run.events, run.counts, run.attempts, fillvalue=None
        ):
            last = seq + (count or 1) - 1
            entries.append((run.binding, seq, last, event, attempts or 1, len(event)))
            seq = last + 1
    return entries


class Delivery(RuleBasedStateMachine):
    """One session with a few jobs."""

    jobs = Pool("jobs")
    quota = Quota()

    @initialize(
        target=jobs,
        modules=st.lists(st.sampled_from(MODULES[:2]), min_size=2, max_size=2),
        first=st.booleans(),
        second=st.sampled_from([CUMULATIVE, EXPLICIT, NONE]),
        dies=st.sampled_from([False, False, True]),
    )
    def begin(self, modules, first, second, dies):
        self.dies = dies
        self.tokens = itertools.count(1)
        self.now = Now(1_000 * MS, 10**18)
        self.new_engine()
        self.credit = [8, 600]
        self.session = self.engine.open_session(PRINCIPAL, label="", sdk="", credit=(8, 600), now=self.now)
        self.clients: dict[int, Client] = {}
        self.wire: list[bytes] = []
        self.numbers = itertools.count(1)
        self.syncs: dict[int, tuple[Client, int]] = {}
        self.released: set[int] = set()
        options = [
            job_pb2.Options(ack_timeout_ns=50 * MS, attempts_max=2 if first else 0, queue_depth=5),
            job_pb2.Options(
                acknowledgement=second, queue_depth=4, ack_timeout_ns=0 if second == NONE else 50 * MS
            ),
        ]
        return multiple(*(self.add(module, each) for module, each in zip(modules, options, strict=True)))

    def new_engine(self) -> None:
        self.accounts = Accounts(DefaultQuotas(self.quota))
        self.engine = Engine(
            LIMITS, new_token=lambda: next(self.tokens).to_bytes(16, "big"), accounts=self.accounts
        )

    # -- what the daemon's world does

    @precondition(lambda self: len(self.clients) < 5)
    @rule(
        target=jobs,
        module=st.sampled_from(MODULES),
        one_shot=st.sampled_from([False, False, False, True]),
        overflow=st.integers(0, 4),
        acknowledgement=st.integers(0, 3),
        depth=st.integers(1, 6),
        timeout_ns=st.sampled_from([0, 0, 50 * MS]),
        attempts_max=st.sampled_from([0, 0, 2]),
        priority=st.integers(0, 7),
    )
    def register(
        self, module, one_shot, overflow, acknowledgement, depth, timeout_ns, attempts_max, priority
    ):
        options = job_pb2.Options(
            one_shot=one_shot,
            overflow=overflow,
            acknowledgement=acknowledgement,
            queue_depth=depth,
            ack_timeout_ns=timeout_ns,
            attempts_max=attempts_max,
            priority=priority,
        )
        try:
            return self.add(module, options)
        except AemError as error:
            self.expect(error, "INVALID_FIELD")
            return multiple()

    def add(self, module: Traits, options: job_pb2.Options) -> int:
        """The number of its binding."""
        job = self.engine.register(
            self.session,
            module=module,
            values={},
            params=b"",
            options=options,
            label="",
            credit=(4, 300),
            now=self.now,
        )
        self.engine.start(job, self.now)
        self.clients[job.binding.id] = Client(job, [4, 300])
        return job.binding.id

    @rule(
        number=jobs, size=st.integers(0, 120), key=st.sampled_from([b"", b"a", b"b"]), count=st.integers(1, 3)
    )
    def fire(self, number, size, key, count):
        event = next(self.numbers).to_bytes(4, "big") + bytes(size)
        self.engine.fire(self.clients[number].job, event, key=key, count=count)

    @rule(number=jobs, count=st.integers(1, 20))
    def fire_many(self, number, count):
        job = self.clients[number].job
        self.engine.fire_many(job, [next(self.numbers).to_bytes(4, "big") for _ in range(count)])

    @rule(number=jobs, count=st.integers(0, 3), scope=st.sampled_from(["", "x", "y"]))
    def gap(self, number, count, scope):
        self.engine.gap(
            self.clients[number].job,
            stage=session_pb2.STAGE_KERNEL,
            cause=session_pb2.CAUSE_OVERFLOW,
            count=count,
            scope=scope,
        )

    @rule(after_ms=st.sampled_from([1, 10, 60, 200]))
    def wait(self, after_ms):
        self.now = Now(self.now.mono_ns + after_ms * MS, self.now.real_ns + after_ms * MS)
        self.engine.tick(self.now)

    @rule(days=st.integers(-2, 2))
    def set_clock(self, days):
        """The wall clock is set; nothing here may depend on it."""
        self.now = Now(self.now.mono_ns, self.now.real_ns + days * 86_400_000 * MS)

    @rule(resume=st.booleans(), events=st.integers(0, 9))
    def restart(self, resume, events):
        """The daemon ends in order, and another goes on with what it hands over."""
        frozen = self.engine.freeze(
            started=lambda job: job.state in (JobState.ARMED, JobState.DEGRADED),
            memento=lambda _job: b"",
            now=self.now,
        )
        (handed_over,) = msgspec.msgpack.decode(msgspec.msgpack.encode(frozen), type=list[FrozenSession])
        for client in self.clients.values():
            if client.job.state is JobState.CLOSING:  # is not handed over, and the client finds it gone
                self.engine.end_job(client.job, "the daemon ends", self.now)
        self.keep_effects()
        self.wire.clear()
        self.syncs.clear()
        next_id = self.engine.next_id
        self.new_engine()
        self.engine.ids_begin(next_id)
        self.session = self.engine.thaw_session(handed_over, self.now)
        for each in handed_over.jobs:
            module = next(module for module in MODULES if module.name == each.module)
            options = OptionsParser(LIMITS).parse(job_pb2.Options.FromString(each.options), module)
            job = self.engine.thaw_job(self.session, each, module=module, values={}, options=options)
            if each.started:
                self.engine.start(job, self.now)
            self.clients[each.binding.id].job = job
        self.engine.await_client(self.session)
        if resume:
            self.resume(events, 500)

    # -- what the client does

    @rule(number=jobs, events=st.integers(0, 8), size=st.integers(0, 300))
    def grant(self, number, events, size):
        self.grant_to(self.clients[number], events, size)

    def grant_to(self, client: Client, events: int, size: int) -> None:
        if self.session.connected and client.job.state is not JobState.GONE:
            self.engine.grant(self.session, client.job.binding.id, events, size)
            client.credit[0] += events
            client.credit[1] += size

    @rule(events=st.integers(0, 20), size=st.integers(0, 1000))
    def grant_session(self, events, size):
        if self.session.connected:
            self.engine.grant(self.session, 0, events, size)
            self.credit[0] += events
            self.credit[1] += size

    @rule(number=jobs)
    def sync(self, number):
        job = self.clients[number].job
        if job.state is not JobState.GONE and self.session.connected:
            request = next(self.numbers)
            self.syncs[request] = (self.clients[number], job.binding.head)
            self.engine.sync_mark(self.session, job, request)

    def open_entries(self, *, answered: bool = False) -> list[tuple[Client, int, Told]]:
        """What the client received and did not deal with (or, `answered`, did)."""
        if not self.session.connected:
            return []
        return [
            (client, first, told)
            for client in self.clients.values()
            for first, told in client.seen.items()
            if (first in client.settled) == answered and client.job.state is not JobState.GONE
        ]

    @precondition(lambda self: self.open_entries())
    @rule(which=st.integers(0, 50))
    def ack(self, which):
        entries = [entry for entry in self.open_entries() if entry[0].job.options.acknowledgement != EXPLICIT]
        if entries:
            client, _, told = entries[which % len(entries)]
            self.engine.ack(self.session, client.job.binding.id, 1, told.last, self.now)
            if not client.once:
                client.settled |= {first for first, sent in client.sent.items() if sent.last <= told.last}

    @precondition(lambda self: self.open_entries())
    @rule(which=st.integers(0, 50), reply=st.booleans(), fail=st.booleans())
    def complete(self, which, reply, fail):
        entries = self.open_entries()
        client, first, told = entries[which % len(entries)]
        held = told.last in (client.job.binding.unacked or {})
        if self.answer(client, told.last, reply=reply, fail=fail):
            assert held or (client.once and not reply)
            client.settled.add(first)
        else:
            assert not held

    @precondition(lambda self: self.open_entries(answered=True))
    @rule(which=st.integers(0, 50))
    def complete_twice(self, which):
        entries = self.open_entries(answered=True)
        client, _, told = entries[which % len(entries)]
        assert not self.answer(client, told.last, reply=True, fail=False)

    def answer(self, client: Client, last: int, *, reply: bool, fail: bool) -> bool:
        """Complete an entry; whether the engine took it. A reply is carried out exactly once."""
        self.keep_effects()
        try:
            self.engine.complete(
                self.session,
                client.job.binding.id,
                1,
                last,
                error="failed" if fail else None,
                reply=("write", b"x") if reply else None,
                now=self.now,
            )
        except AemError as error:
            self.expect(error, "NOT_IN_FLIGHT")
            assert self.keep_effects() == 0
            return False
        assert self.keep_effects() == reply
        return True

    @precondition(lambda self: self.open_entries())
    @rule(which=st.integers(0, 50), delay_ms=st.sampled_from([0, 0, 100]), park=st.booleans())
    def nack(self, which, delay_ms, park):
        entries = self.open_entries()
        client, first, told = entries[which % len(entries)]
        entry = (client.job.binding.unacked or {}).get(told.last)
        in_flight = entry is not None and entry.state is EntryState.INFLIGHT
        try:
            self.engine.nack(
                self.session,
                client.job.binding.id,
                1,
                told.last,
                delay_ns=delay_ms * MS,
                park=park,
                reason="no",
                now=self.now,
            )
        except AemError as error:
            self.expect(error, "NOT_IN_FLIGHT")
            assert not in_flight
        else:
            assert in_flight
            (client.settled if park else client.returned).add(first)

    @precondition(lambda self: len(self.clients) > 2)
    @rule(number=consumes(jobs), how=st.sampled_from(["shutdown", "shutdown soon", "unbind", "exhaust"]))
    def end(self, number, how):
        job = self.clients[number].job
        if job.state is JobState.GONE:
            return
        if how == "unbind":
            self.engine.unbind(self.session, job.binding.id, self.now)
            assert job.state is JobState.GONE
        elif how == "exhaust":
            self.engine.exhaust(job, "exhausted")
        else:
            deadline_ns = 0 if how == "shutdown" else 100 * MS
            self.engine.shutdown(job, reason="enough", deadline_ns=deadline_ns, now=self.now)

    @rule(number=jobs, how=st.sampled_from(["start", "stop", "fail", "priority"]), priority=st.integers(0, 7))
    def meddle(self, number, how, priority):
        job = self.clients[number].job
        try:
            if how == "start":
                self.engine.start(job, self.now)
            elif how == "stop":
                self.engine.stop(job, self.now)
                self.engine.start(job, self.now)
            elif how == "fail":
                self.engine.fail_source(job, "broken")
                self.engine.restore_source(job)
            else:
                self.engine.set_priority(job, priority)
        except AemError as error:
            self.expect(error, "JOB_ENDING")

    # -- the stream

    @rule(budget=st.sampled_from([1, 100, 1 << 20]), times=st.integers(1, 4))
    def collect(self, budget, times):
        self.engine.take_ready()
        for _ in range(times):
            data = self.engine.collect(self.session, budget)
            if data is None:
                break
            self.wire.append(data)
            for frame in frames_of(data):
                self.check_sent(frame)

    @rule(count=st.integers(1, 5))
    def receive(self, count):
        for data in self.wire[:count]:
            for frame in frames_of(data):
                self.check_received(frame)
        del self.wire[:count]

    @rule(fires=st.integers(0, 3), unread=st.integers(0, 1))
    def pump(self, fires, unread):
        """What usually happens: events, credit, and a client that reads."""
        for number in self.clients:
            for _ in range(fires):
                self.fire(number, 10, b"", 1)
            self.grant(number, 4, 200)
        self.grant_session(3, 200)
        self.collect(1 << 20, 5)
        self.receive(max(len(self.wire) - unread, 0))

    @rule(resume=st.sampled_from([True, True, False]), events=st.integers(0, 9))
    def lose_stream(self, resume, events):
        if self.session.connected:
            self.engine.lose_stream(self.session, self.now)
            assert self.engine.collect(self.session, LOTS) is None
            self.wire.clear()
            self.syncs.clear()
        if resume:
            self.resume(events, 500)

    def resume(self, events: int, size: int) -> None:
        if self.session.connected:
            return
        positions = {number: (1, client.position) for number, client in self.clients.items()}
        token = self.session.token
        session = self.engine.resume_session(
            token, PRINCIPAL, positions=positions, credit=(events, size), now=self.now
        )
        assert session is self.session
        assert session.token != token
        self.credit = [events, size]
        for client in self.clients.values():
            client.credit = [0, 0]
            if client.once:
                client.next_sent = client.next_seen
                client.sent = dict(client.seen)

    # -- what must hold

    @staticmethod
    def expect(error: AemError, reason: str) -> None:
        assert error.reason == reason

    def check_sent(self, frame: session_pb2.ServerFrame) -> None:
        for number, first, last, content, attempts, size in entries_of(frame):
            client = self.clients[number]
            assert client.gone is None
            if size >= 0:
                assert min(client.credit) > 0
                assert min(self.credit) > 0
                for credit in (client.credit, self.credit):
                    credit[0] -= 1
                    credit[1] -= size
            known = client.sent.get(first)
            if size < 0 and attempts == 1 and known is not None:
                self.replace(client, first, last, content)
            elif known is None:
                assert first == client.next_sent
                assert attempts == 1
                client.next_sent = last + 1
            else:
                assert (known.last, known.content) == (last, content)
                assert attempts == known.attempts + 1
                assert first not in client.settled
            client.sent[first] = Told(last, content, attempts)
            if client.job.options.coalesce and not client.once:
                assert len(client.job.binding.in_flight()) <= 1
        if frame.WhichOneof("frame") == "job_state" and frame.job_state.state == job_pb2.STATE_GONE:
            client = next(c for c in self.clients.values() if c.job.id == frame.job_state.job)
            assert client.job.state is JobState.GONE
            client.gone = frame.job_state.discarded
        elif frame.WhichOneof("frame") == "sync_done":
            client, head = self.syncs.pop(frame.request_id)
            assert frame.sync_done.cursor.seq == head
            assert client.next_sent > head or client.job.state is JobState.GONE

    def check_received(self, frame: session_pb2.ServerFrame) -> None:
        for number, first, last, content, attempts, _ in entries_of(frame):
            client = self.clients[number]
            known = client.seen.get(first)
            if known is None:
                assert first == client.next_seen
                client.next_seen = last + 1
            else:
                assert (known.last, known.content) == (last, content)
            client.returned.discard(first)
            client.seen[first] = Told(last, content, attempts)
            client.position = max(client.position, last)

    @staticmethod
    def replace(client: Client, first: int, last: int, content: object) -> None:
        """A gap for what timed out too often while it was on its way, and got lost with the stream."""
        stage, _, cause, _, _ = content
        assert (stage, cause) == (session_pb2.STAGE_SESSION, session_pb2.CAUSE_STREAM_LOST)
        covered = [number for number in client.sent if first <= number <= last]
        assert client.sent[covered[-1]].last == last
        for number in covered:
            assert number not in client.seen
            del client.sent[number]
        client.replaced += len(covered)

    @invariant()
    def books_balance(self) -> None:
        waiting = 0
        for client in self.clients.values():
            waiting += self.check_binding(client)
        if not self.session.ended:
            assert self.session.queued_bytes == waiting
        self.check_account()
        self.keep_effects()
        for client in self.clients.values():
            assert (client.job.id in self.released) == (client.job.state is JobState.GONE)

    def check_account(self) -> None:
        """What is charged is what is there, and no more than there may be."""
        account, bindings = self.session.account, list(self.session.bindings.values())
        held = sum(binding.bytes + ENTRY_BYTES * binding.depth for binding in bindings)
        assert account.used_bytes == held <= self.quota.queue_bytes
        assert account.used("jobs") == len(bindings)
        parked = [kept.cost for binding in bindings if binding.stats for kept in binding.stats.parked_list]
        assert account.used("history_bytes") == sum(parked) <= self.quota.history_bytes
        assert all(binding.paused for binding in account.starved)

    def keep_effects(self) -> int:
        """Take note of the effects; how many of them were replies."""
        replies = 0
        for effect in self.engine.take_effects():
            assert not isinstance(effect, SessionEnded)
            replies += isinstance(effect, Operate)
            if isinstance(effect, Release):
                assert effect.job.id not in self.released
                self.released.add(effect.job.id)
        return replies

    def check_binding(self, client: Client) -> int:
        binding = client.job.binding
        queue, unacked = list(binding.queue or ()), dict(binding.unacked or {})
        if client.job.state is JobState.GONE:
            assert not queue
            assert not unacked
            assert binding.id not in self.session.bindings
            return 0
        numbers = [number for entry in queue for number in (entry.first, entry.last)]
        assert numbers == sorted(numbers)
        if client.job.state is not JobState.CLOSING:
            tiled = binding.sent
            for entry in queue:
                assert entry.first == tiled + 1
                tiled = entry.last
            assert tiled == binding.head
        assert list(unacked) == sorted(unacked)
        events = [entry for entry in [*queue, *unacked.values()] if entry.loss is None]
        assert binding.depth == len(events)
        assert binding.bytes == sum(len(entry.event) for entry in events)
        assert binding.held_bytes == sum(len(entry.event) for entry in unacked.values())
        assert binding.gaps == sum(entry.loss is not None for entry in queue)
        assert binding.gaps_unacked == sum(entry.loss is not None for entry in unacked.values())
        self.check_bounds(client)
        stats = client.job.stats
        assert stats.head == stats.fires + (binding.stats.told if binding.stats else 0)
        if not client.once:
            # Every entry that was ever sent is dealt with, or the engine still has it.
            over = {told.last for first, told in client.sent.items() if first in client.settled}
            assert not over & set(unacked)
            sent = sum(entry.attempts > 0 for entry in unacked.values())
            over_now = stats.acknowledged + stats.parked - client.replaced
            assert (
                len(client.sent) == over_now + sent + (stats.discarded if not queue else 0)
                or client.job.state is JobState.CLOSING
            )
        waits = [entry for entry in unacked.values() if entry.state is not EntryState.INFLIGHT]
        return sum(len(entry.event) for entry in [*queue, *waits])

    def check_bounds(self, client: Client) -> None:
        binding, options = client.job.binding, client.job.options
        factor = PAUSE_SLACK if options.overflow == PAUSE_SOURCE else 1
        depth = max(options.queue_depth, 2) if options.coalesce else options.queue_depth
        assert binding.depth <= factor * depth
        if not options.coalesce:
            assert binding.bytes <= factor * options.queue_bytes
        assert binding.gaps <= 2 * depth + GAPS_MAX + 2

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        if not self.dies:
            self.drain()
        self.engine.end_process(PRINCIPAL.pid, PRINCIPAL.start_time_ticks, self.now)
        assert self.engine.next_deadline_ns() is None
        assert not self.accounts.in_use()
        assert not self.accounts.starving
        assert self.accounts.queue_pool.used == 0

    def drain(self) -> None:
        """Everything is delivered and dealt with."""
        self.resume(LOTS, LOTS)
        self.grant_session(LOTS, LOTS)
        for client in self.clients.values():
            self.grant_to(client, LOTS, LOTS)
        for _ in range(400):
            self.wait(200)
            self.collect(1 << 20, 50)
            self.receive(50)
            for client in self.clients.values():
                self.finish(client)
            self.books_balance()
            open_ends = any(self.unfinished(client) for client in self.clients.values())
            if not self.wire and not open_ends and not self.accounts.starving:
                break
        self.collect(1 << 20, 50)
        self.books_balance()
        assert not self.syncs
        for client in self.clients.values():
            assert not self.unfinished(client)
            if client.job.state is not JobState.GONE:
                assert client.next_seen == client.job.binding.head + 1
                assert client.job.state not in (JobState.CLOSING, JobState.DRAINING)
                assert not client.job.binding.paused
            else:
                assert client.gone is not None or self.session.generation > 1

    def finish(self, client: Client) -> None:
        binding = client.job.binding
        for last, entry in list((binding.unacked or {}).items()):
            if entry.state is not EntryState.INFLIGHT or entry.first in client.returned:
                continue  # the client waits for it
            if entry.first in client.seen:
                self.engine.complete(self.session, binding.id, 1, last, error=None, reply=None, now=self.now)
                client.settled.add(entry.first)

    @staticmethod
    def unfinished(client: Client) -> bool:
        return bool(client.job.binding.unacked or client.job.binding.queue)


class Short(Delivery):
    """The same under quotas that are used up all the time."""

    quota = Quota(queue_bytes=6 * ENTRY_BYTES, events_per_second=100, history_bytes=300)


TestDelivery = Delivery.TestCase
TestDeliveryUnderQuotas = Short.TestCase
TestDelivery.settings = TestDeliveryUnderQuotas.settings = settings(
    max_examples=runs(200),
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
