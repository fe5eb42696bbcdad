"""What waits for a client and was never sent: the queue of a binding, and what happens when it is full.

The queue holds events and gaps in the order of their numbers. Depth and bytes are limited for events, whether
they wait or are in flight; gaps are bounded separately: equal neighbours are one, and more than GAPS_MAX
neighbours that differ are joined all the same. So nothing that a job does makes its queue grow without bound.

A container exists only while it holds something: a job that never fired has none.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aemd.core.accounts import BYTES, ENTRY_BYTES
from aemd.core.entry import ON_DISCARD, ON_MERGE, OVER_QUOTA, OVERFLOWED, SUPERSEDED, Entry, Loss
from aemd.core.options import DROP_NEWEST, LATEST, PAUSE_SOURCE
from aemd.core.stats import Stats

if TYPE_CHECKING:
    from aemd.core.job import Job
    from aemd.core.options import Options
    from aemd.core.session import Session
    from aemd.core.tally import Tally

GAPS_MAX = 64  # neighbouring unequal gaps that wait; more are joined into one
COUNT_MAX = (1 << 32) - 1  # Run.counts is uint32
PAUSE_SLACK = 2  # a pausing source may overshoot to so many times its limits before events are lost


class Waiting:
    """The fields of a binding, and its queue of what was never sent."""

    __slots__ = (
        "again",
        "behind",
        "bytes",
        "credit_bytes",
        "credit_events",
        "deficit",
        "delayed",
        "depth",
        "discarded",
        "gaps",
        "gaps_unacked",
        "head",
        "held_bytes",
        "id",
        "job",
        "keys",
        "listed",
        "marks",
        "options",
        "overdue",
        "paused",
        "queue",
        "sent",
        "session",
        "shown",
        "stats",
        "tally",
        "timers",
        "unacked",
        "unknown_to",
    )

    def __init__(self, binding_id: int, job: Job, session: Session, credit: tuple[int, int]) -> None:
        self.id = binding_id
        self.job = job
        self.session = session
        self.options: Options = job.options
        self.credit_events, self.credit_bytes = credit
        self.head = 0  # the newest number
        self.sent = 0
        self.shown = 0
        self.depth = 0
        self.bytes = 0
        self.held_bytes = 0  # those of `bytes` that are in unacked
        self.gaps = 0  # in queue
        self.gaps_unacked = 0
        self.deficit = 0  # bytes that it may still send before the next binding's turn
        self.listed = -1  # the band that it is listed in, -1 if none
        self.paused = False
        self.discarded = 0  # entries that were queued when the job ended
        self.unknown_to = 0  # acknowledgement none: newest number of a sent gap of unknown size
        self.queue: deque[Entry] | None = None
        self.unacked: OrderedDict[int, Entry] | None = None
        self.again: list[tuple[int, Entry]] | None = None
        self.delayed: list[tuple[int, int, Entry]] | None = None
        self.timers: deque[tuple[int, Entry, int]] | None = None
        self.behind: set[int] | None = None  # sent again after newer ones: not covered by `shown`
        # Parked by time-out, perhaps never seen: (first, last, entries), in order.
        self.overdue: list[tuple[int, int, int]] | None = None
        self.keys: dict[bytes, list[Entry]] | None = None  # OVERFLOW_LATEST: never-sent events by key
        self.marks: deque[tuple[int, int, int]] | None = None  # (epoch, number, request id) of Syncs
        self.stats: Stats | None = None
        self.tally: Tally = session.sheet[job.traits.name]

    @property
    def epoch(self) -> int:
        """The epoch of its numbers."""
        return self.job.epoch

    def push(self, event: bytes, key: bytes, count: int, now_ns: int) -> bool:
        """Queue an event that covers the next `count` numbers. True if something was lost by it."""
        first = self.head + 1
        self.head = last = self.head + count
        options = self.options
        queue = self.queue
        size = len(event)
        session = self.session
        account = session.account
        cost = size + ENTRY_BYTES
        self.tally.fires += count
        if queue is None:
            queue = self.queue = deque()
            if self.stats is None:
                self.stats = Stats()
        elif options.coalesce and queue:
            tail = queue[-1]
            grown = size - len(tail.event)
            if (
                tail.loss is None
                and tail.key == key
                and last - tail.first < COUNT_MAX
                and (grown <= account.bytes_free or account.grant(grown, session.allowance))
            ):
                tail.state = ON_MERGE[tail.state]
                tail.last = last
                tail.event = event
                self.bytes += grown
                session.queued_bytes += grown
                account.refund_bytes(-grown)
                self.tally.merged += count
                return False
        lost = False
        if (
            cost > account.bytes_free
            or self.depth >= options.queue_depth
            or self.bytes + size > options.queue_bytes
        ):
            loss, lost = self._make_room(size, key)
            if loss is not None:
                self._append_gap(Entry.gap(first, last, loss))
                return True
        queue.append(entry := Entry(first, last, event, key, now_ns))
        self.depth += 1
        self.bytes += size
        session.queued_bytes += size
        account.bytes_free -= cost
        if options.overflow == LATEST:
            self._note_key(entry)
        return lost

    def push_lost(self, count: int, loss: Loss) -> None:
        """`count` stimuli came and are lost: as `push`, without an event."""
        if self.queue is None:
            self.queue = deque()
        self.tally.fires += count
        first = self.head + 1
        self.head += count
        self._append_gap(Entry.gap(first, self.head, loss))

    def push_many(self, events: Sequence[bytes], key: bytes, now_ns: int) -> None:
        """Queue events that cover one number each, as push() would one after the other."""
        options, session = self.options, self.session
        count, size = len(events), sum(map(len, events))
        if (
            options.coalesce
            or options.overflow == LATEST
            or self.depth + count > options.queue_depth
            or self.bytes + size > options.queue_bytes
            or not session.account.grant(size + count * ENTRY_BYTES, session.allowance)
        ):
            for event in events:
                self.push(event, key, 1, now_ns)
            return
        if self.queue is None:
            self.queue = deque()
            if self.stats is None:
                self.stats = Stats()
        first = self.head + 1
        self.queue.extend([Entry(seq, seq, event, key, now_ns) for seq, event in enumerate(events, first)])
        self.head += count
        self.depth += count
        self.bytes += size
        self.tally.fires += count
        session.queued_bytes += size
        session.account.bytes_free -= size + count * ENTRY_BYTES

    def push_gap(self, count: int, loss: Loss) -> None:
        """What was lost before it could fire: `count` numbers, one if it is not known how many."""
        if self.queue is None:
            self.queue = deque()
        stats = self.stats = self.stats or Stats()
        first = self.head + 1
        self.head += count
        stats.told += count
        self._append_gap(Entry.gap(first, self.head, loss))

    def _note_key(self, entry: Entry) -> None:
        if self.options.overflow == LATEST:
            if self.keys is None:
                self.keys = {}
            self.keys.setdefault(entry.key, []).append(entry)

    def _forget_key(self, entry: Entry) -> None:
        """`entry` is no longer an event that was never sent; it is the oldest such of its key."""
        if self.keys is not None:
            same = self.keys[entry.key]
            same.pop(0)
            if not same:
                del self.keys[entry.key]

    def _make_room(self, size: int, key: bytes) -> tuple[Loss | None, bool]:
        """The queue is full, or its user has no bytes at hand: do what the policy says. Returns None if an
        event of `size` bytes fits now, else how it is lost; and whether something was lost already.
        """
        before = self.depth
        loss = self._make_room_here(size, key)
        if loss is None and size + ENTRY_BYTES > self.session.account.bytes_free:
            loss = self._make_room_of_user(size + ENTRY_BYTES, key)
        return loss, self.depth < before

    def _make_room_here(self, size: int, key: bytes) -> Loss | None:
        options = self.options
        depth_max, bytes_max = options.queue_depth, options.queue_bytes
        if options.coalesce:
            depth_max = max(depth_max, 2)  # one in flight and the tail that fires merge into
        if options.overflow == PAUSE_SOURCE:
            depth_max, bytes_max = PAUSE_SLACK * depth_max, PAUSE_SLACK * bytes_max
        elif options.overflow != DROP_NEWEST:
            queue = self.queue
            held = self.depth - (len(queue) - self.gaps if queue else 0)
            if held >= depth_max or self.held_bytes + size > bytes_max:
                return OVERFLOWED  # what is in flight fills the queue; no drop would help
            while self.depth >= depth_max or self.bytes + size > bytes_max:
                self._drop_one(key, OVERFLOWED)
        return None if self.depth < depth_max and self.bytes + size <= bytes_max else OVERFLOWED

    def _make_room_of_user(self, cost: int, key: bytes) -> Loss | None:
        """A quota that is used up is a full queue: what the policy gives up is given up of this queue."""
        account, allowance = self.session.account, self.session.allowance
        if account.grant(cost, allowance):
            return None
        account.refused[BYTES] += 1
        if self.options.overflow in (DROP_NEWEST, PAUSE_SOURCE):
            return OVER_QUOTA
        waiting = len(self.queue or ()) - self.gaps
        if account.room(allowance) + self.bytes - self.held_bytes + waiting * ENTRY_BYTES < cost:
            return OVER_QUOTA  # no drop would help
        while not account.grant(cost, allowance):
            self._drop_one(key, OVER_QUOTA)
        return None

    def _drop_one(self, key: bytes, loss: Loss) -> None:
        """Turn the never-sent event that the policy gives up into a gap."""
        if self.options.overflow == LATEST and self.keys is not None and key in self.keys:
            entry = self.keys[key][0]
            self._count_drop(entry)
            entry.drop(SUPERSEDED if loss is OVERFLOWED else loss)
            self._count_lost(entry)
            self.gaps += 1
            if self.gaps > 2 * self.depth + GAPS_MAX:
                self._join_gaps()
            return
        queue = self.queue
        assert queue is not None
        gaps = []
        while queue[0].loss is not None:
            gaps.append(queue.popleft())
        entry = queue.popleft()
        self._count_drop(entry)
        entry.drop(loss)
        self._count_lost(entry)
        gaps.append(entry)
        self.gaps += 1
        if queue and queue[0].loss is not None:
            gaps.append(queue.popleft())
        before = len(gaps)
        gaps = _joined(gaps, len(gaps) > GAPS_MAX)
        self.gaps -= before - len(gaps)
        queue.extendleft(reversed(gaps))

    def _count_drop(self, entry: Entry) -> None:
        self._forget_key(entry)
        size = len(entry.event)
        self.depth -= 1
        self.bytes -= size
        self.session.queued_bytes -= size
        self.session.account.refund_bytes(size + ENTRY_BYTES)

    def _count_lost(self, gap: Entry) -> None:
        loss = gap.loss
        assert loss is not None
        numbers = gap.last - gap.first + 1
        stats = self.stats = self.stats or Stats()
        stats.lose(loss.stage, numbers)
        self.tally.lose(loss, numbers)

    def _append_gap(self, gap: Entry) -> None:
        """A gap at the tail, joined with an equal one that is there."""
        self._count_lost(gap)
        queue = self.queue
        assert queue is not None
        tail = queue[-1] if queue else None
        if tail is not None and tail.loss is not None and (tail.loss == gap.loss or self.gaps >= GAPS_MAX):
            tail.absorb(gap)
            return
        queue.append(gap)
        self.gaps += 1

    def _join_gaps(self) -> None:
        """Join neighbours; done only when gaps outnumber what the queue may hold, so it pays for itself."""
        assert self.queue is not None
        entries = _joined(list(self.queue), False)
        gaps = sum(entry.loss is not None for entry in entries)
        if gaps > self.depth + GAPS_MAX:
            entries = _joined(entries, True)
            gaps = sum(entry.loss is not None for entry in entries)
        self.queue.clear()
        self.queue.extend(entries)
        self.gaps = gaps

    def discard_unsent(self) -> int:
        """Give up what was never sent; how many entries."""
        queue = self.queue
        if not queue:
            return 0
        size = 0
        for entry in queue:
            size += len(entry.event)
            entry.state = ON_DISCARD[entry.state]
        self.bytes -= size
        self.session.queued_bytes -= size
        events = len(queue) - self.gaps
        self.session.account.refund_bytes(size + events * ENTRY_BYTES)
        self.depth -= events
        self.gaps = 0
        self.queue = self.keys = None
        stats = self.stats = self.stats or Stats()
        stats.discarded += len(queue)
        self.tally.discarded += len(queue)
        return len(queue)


def _joined(entries: list[Entry], unequal: bool) -> list[Entry]:
    """The entries with neighbouring gaps joined: equal ones, or all."""
    joined: list[Entry] = []
    for entry in entries:
        before = joined[-1] if joined else None
        if (
            before is not None
            and before.loss is not None
            and entry.loss is not None
            and (unequal or before.loss == entry.loss)
        ):
            before.absorb(entry)
        else:
            joined.append(entry)
    return joined
