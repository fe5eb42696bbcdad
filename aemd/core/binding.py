"""A binding: one session's hold on a job, with everything that waits or is in flight for it.

Three places hold entries, in this order of delivery:

    unacked   sent and not dealt with, by last number, always in the order of the numbers; those of them that
              are to be sent again stand in `again` (a heap by number) or `delayed` (a heap by time) as well
    queue     never sent, in the order of the numbers

so the numbers of a binding tile: settled, unacked, queue, head. `sent` is the newest number ever sent,
`shown` the newest that the client must have seen if it received all that this stream carried.

Depth and bytes count events in `unacked` and `queue`; gaps are bounded separately (GAPS_MAX). A container
exists only while it holds something: a job that never fired has none.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from aemd.core.entry import (
    ON_ACK,
    ON_DISCARD,
    ON_DUE,
    ON_MERGE,
    ON_NACK,
    ON_PARK,
    ON_REWIND,
    ON_SEND,
    ON_SEND_ONCE,
    OVERFLOWED,
    STREAM_LOST,
    STREAM_LOST_UNKNOWN,
    SUPERSEDED,
    Entry,
    EntryState,
    Loss,
)
from aemd.core.job import JobState, JobStats
from aemd.core.options import CUMULATIVE, DROP_NEWEST, LATEST, NONE, PAUSE_SOURCE

if TYPE_CHECKING:
    from aemd.core.job import Job
    from aemd.core.options import Options
    from aemd.core.session import Session

GAPS_MAX = 64  # neighbouring unequal gaps that wait; more are joined into one
GAPS_UNACKED_MAX = 16  # gaps need no credit, so this many may be in flight
COUNT_MAX = (1 << 32) - 1  # Run.counts is uint32
PAUSE_SLACK = 2  # a pausing source may overshoot to so many times its limits before events are lost
TIMERS_SLACK = 64  # stale acknowledgement timers that are not worth a sweep

_AGAIN, _INFLIGHT = EntryState.AGAIN, EntryState.INFLIGHT


class Parked(NamedTuple):
    """An entry that was put aside."""

    first: int
    last: int
    reason: str


@dataclass(slots=True)
class Stats:
    """Counters of a binding that has fired. Of entries, but `lost` and `told` are of numbers."""

    delivered: int = 0
    redelivered: int = 0
    acknowledged: int = 0
    failed: int = 0
    lost: int = 0  # covered by gaps
    lost_shown: int = 0  # `lost` as the client was last told
    told: int = 0  # of `lost`, those that never fired: the module reported them
    parked: int = 0
    discarded: int = 0
    last_error: str = ""
    last_error_time_ns: int = 0
    parked_list: list[Parked] = field(default_factory=list)


class Binding:
    """A session's hold on a job. Compared and hashed by identity."""

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
        "paused",
        "queue",
        "sent",
        "session",
        "shown",
        "stats",
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
        self.keys: dict[bytes, list[Entry]] | None = None  # OVERFLOW_LATEST: never-sent events by key
        self.marks: deque[tuple[int, int]] | None = None  # (number, request id) of Syncs
        self.stats: Stats | None = None

    # -- fires ---------------------------------------------------------------------------------------

    def push(self, event: bytes, key: bytes, count: int) -> bool:
        """Queue an event that covers the next `count` numbers. True if something was lost by it."""
        first = self.head + 1
        self.head = last = self.head + count
        options = self.options
        queue = self.queue
        size = len(event)
        session = self.session
        session.fires += count
        if queue is None:
            queue = self.queue = deque()
            if self.stats is None:
                self.stats = Stats()
        elif options.coalesce and queue:
            tail = queue[-1]
            if tail.loss is None and tail.key == key and last - tail.first < COUNT_MAX:
                grown = size - len(tail.event)
                tail.state = ON_MERGE[tail.state]
                tail.last = last
                tail.event = event
                self.bytes += grown
                session.queued_bytes += grown
                return False
        if self.depth >= options.queue_depth or self.bytes + size > options.queue_bytes:
            if not self._make_room(size, key):
                self._append_gap(Entry.gap(first, last, OVERFLOWED))
                return True
            queue.append(entry := Entry(first, last, event, key))
            self._note_key(entry)
            self.depth += 1
            self.bytes += size
            session.queued_bytes += size
            return True
        queue.append(entry := Entry(first, last, event, key))
        self.depth += 1
        self.bytes += size
        session.queued_bytes += size
        if options.overflow == LATEST:
            self._note_key(entry)
        return False

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

    def _make_room(self, size: int, key: bytes) -> bool:
        """The queue is full: do what the policy says. True if an event of `size` bytes fits now."""
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
                return False  # what is in flight fills the queue; no drop would help
            while self.depth >= depth_max or self.bytes + size > bytes_max:
                self._drop_one(key)
        return self.depth < depth_max and self.bytes + size <= bytes_max

    def _drop_one(self, key: bytes) -> None:
        """Turn the never-sent event that the policy gives up into a gap."""
        if self.options.overflow == LATEST and self.keys is not None and key in self.keys:
            entry = self.keys[key][0]
            self._count_drop(entry)
            entry.drop(SUPERSEDED)
            self.gaps += 1
            if self.gaps > 2 * self.options.queue_depth + GAPS_MAX:
                self._join_gaps()
            return
        queue = self.queue
        assert queue is not None
        gaps = []
        while queue[0].loss is not None:
            gaps.append(queue.popleft())
        entry = queue.popleft()
        self._count_drop(entry)
        entry.drop(OVERFLOWED)
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
        self._count_lost(entry)

    def _count_lost(self, entry: Entry) -> None:
        lost = entry.last - entry.first + 1
        stats = self.stats = self.stats or Stats()
        stats.lost += lost
        self.session.lost += lost

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
        if gaps > self.options.queue_depth + GAPS_MAX:
            entries = _joined(entries, True)
            gaps = sum(entry.loss is not None for entry in entries)
        self.queue = deque(entries)
        self.gaps = gaps

    # -- sending -------------------------------------------------------------------------------------

    def next_entry(self) -> Entry | None:
        """What is to be sent next, whatever credit says; None if there is nothing, or it must wait for an
        acknowledgement.
        """
        again = self.again
        if again:
            while again:
                entry = again[0][1]
                if entry.state is _AGAIN:
                    return entry
                heapq.heappop(again)
            self.again = None
        queue = self.queue
        if not queue:
            return None
        entry = queue[0]
        if self.unacked:
            if self.options.coalesce:
                return None
            if entry.loss is not None and self.gaps_unacked >= GAPS_UNACKED_MAX:
                return None
        return entry

    def take_queued(self, events: int, room: int, now_ns: int) -> tuple[list[Entry], int, bool]:
        """Send never-sent events, as many as `events` and `room` bytes allow (the last may go over it).

        Returns them, their bytes, and whether each covers one number. The queue begins with an event.
        """
        queue = self.queue
        assert queue is not None
        once = self.options.acknowledgement == NONE
        if self.options.coalesce and not once:
            events = 1
        after = ON_SEND_ONCE if once else ON_SEND
        unacked = self.unacked
        if unacked is None:
            unacked = self.unacked = OrderedDict()
        entries: list[Entry] = []
        spent, plain = 0, True
        while queue and spent < room and len(entries) < events:
            entry = queue[0]
            if entry.loss is not None:
                break
            del queue[0]
            entry.state = after[entry.state]
            entry.attempts = 1
            last = entry.last
            if last != entry.first:
                plain = False
            if not once:
                unacked[last] = entry
            spent += len(entry.event)
            entries.append(entry)
        self._note_sent(entries, spent, once, now_ns)
        return entries, spent, plain

    def _note_sent(self, entries: list[Entry], spent: int, once: bool, now_ns: int) -> None:
        """Bookkeeping for never-sent events that were just sent."""
        self.sent = self.shown = entries[-1].last
        if self.keys is not None:
            for entry in entries:
                self._forget_key(entry)
        if once:
            self.depth -= len(entries)
            self.bytes -= spent
        else:
            self.held_bytes += spent
            self._time(entries, now_ns)
        self._tidy()
        self._charge(len(entries), spent)
        stats = self.stats
        assert stats is not None
        stats.delivered += len(entries)

    def take_again(self, events: int, room: int, now_ns: int) -> tuple[list[Entry], int]:
        """Send entries again, as many as the limits allow and as follow each other without a hole; the next
        one is an event.
        """
        entries: list[Entry] = []
        spent = 0
        while spent < room and len(entries) < events:
            entry = self.next_entry()
            if entry is None or entry.state is not _AGAIN or entry.loss is not None:
                break
            if entries and entry.first != entries[-1].last + 1:
                break
            self._resend(entry)
            spent += len(entry.event)
            entries.append(entry)
        self._time(entries, now_ns)
        self._charge(len(entries), spent)
        return entries, spent

    def _resend(self, entry: Entry) -> None:
        assert self.again is not None
        heapq.heappop(self.again)
        entry.state = ON_SEND[entry.state]
        entry.attempts += 1
        if entry.last > self.shown:
            self.shown = entry.last
            if self.behind is not None:
                self.behind.discard(entry.last)
        else:
            if self.behind is None:
                self.behind = set()
            self.behind.add(entry.last)
        assert self.stats is not None
        self.stats.redelivered += 1

    def take_gap(self, now_ns: int) -> Entry:
        """Send the gap that is next; it needs no credit. Equal gaps behind it travel in it."""
        entry = self.next_entry()
        assert entry is not None
        if entry.state is _AGAIN:
            self._resend(entry)
            self._time([entry], now_ns)
            return entry
        queue = self.queue
        assert queue is not None
        assert self.stats is not None
        queue.popleft()
        self.gaps -= 1
        while queue and queue[0].loss == entry.loss:
            entry.absorb(queue.popleft())
            self.gaps -= 1
        self.sent = self.shown = entry.last
        entry.attempts = 1
        if self.options.acknowledgement == NONE:
            entry.state = ON_SEND_ONCE[entry.state]
            if entry.loss is not None and entry.loss.unknown:
                self.unknown_to = entry.last
        else:
            entry.state = ON_SEND[entry.state]
            if self.unacked is None:
                self.unacked = OrderedDict()
            self.unacked[entry.last] = entry
            self.gaps_unacked += 1
            self._time([entry], now_ns)
        self.stats.delivered += 1
        self.session.delivered += 1
        self._tidy()
        return entry

    def _charge(self, events: int, spent: int) -> None:
        self.credit_events -= events
        self.credit_bytes -= spent
        session = self.session
        session.credit_events -= events
        session.credit_bytes -= spent
        session.queued_bytes -= spent
        session.delivered += events

    def _time(self, entries: list[Entry], now_ns: int) -> None:
        timeout_ns = self.options.ack_timeout_ns
        if not timeout_ns:
            return
        if self.timers is None:
            self.timers = deque()
        if not self.timers and entries:
            self.session.timed.append(self)
        due_ns = now_ns + timeout_ns
        self.timers.extend([(due_ns, entry, entry.attempts) for entry in entries])

    def _tidy(self) -> None:
        """Give up the containers that are empty."""
        if not self.queue:
            self.queue = None
            self.keys = None
        if not self.unacked:
            self.unacked = None
            self.again = self.delayed = self.timers = self.behind = None

    def sent_to(self) -> int:
        """Nothing up to here waits to be sent."""
        entry = self.again[0][1] if self.again else None
        if entry is not None and entry.state is _AGAIN:
            return entry.first - 1
        return self.queue[0].first - 1 if self.queue else self.head

    # -- answers -------------------------------------------------------------------------------------

    @property
    def acked(self) -> int:
        """Everything up to here is dealt with."""
        unacked = self.unacked
        return next(iter(unacked.values())).first - 1 if unacked else self.sent

    def ack_to(self, seq: int) -> int:
        """Everything up to `seq` is dealt with; how many entries that were not before."""
        unacked = self.unacked
        if not unacked:
            return 0
        if seq >= self.sent:
            settled = list(unacked.values())
            unacked.clear()
        else:
            settled = []
            for last, entry in unacked.items():
                if last > seq:
                    break
                settled.append(entry)
            for _ in settled:
                unacked.popitem(last=False)
        size = gaps = 0
        for entry in settled:
            if entry.state is not _INFLIGHT:
                self.session.queued_bytes -= len(entry.event)
            entry.state = ON_ACK[entry.state]
            size += len(entry.event)
            if entry.loss is not None:
                gaps += 1
        self._let_go(len(settled) - gaps, gaps, size)
        assert self.stats is not None
        self.stats.acknowledged += len(settled)
        return len(settled)

    def complete(self, seq: int) -> Entry | None:
        """The entry that ends at `seq` is dealt with; None if there is none that was sent and is not."""
        entry = self.unacked.get(seq) if self.unacked else None
        if entry is None:
            return None
        if entry.state is not _INFLIGHT:
            self.session.queued_bytes -= len(entry.event)
        entry.state = ON_ACK[entry.state]
        assert self.stats is not None
        self.stats.acknowledged += 1
        self._remove(entry)
        return entry

    def park(self, entry: Entry, reason: str, parked_max: int) -> None:
        """Put aside an entry in flight."""
        entry.state = ON_PARK[entry.state]
        stats = self.stats
        assert stats is not None
        stats.parked += 1
        stats.parked_list.append(Parked(entry.first, entry.last, reason))
        if len(stats.parked_list) > parked_max:
            del stats.parked_list[0]
        self._remove(entry)

    def delay(self, entry: Entry, due_ns: int) -> None:
        """Give an entry in flight back; it is to be sent again at `due_ns`."""
        entry.state = ON_NACK[entry.state]
        self.session.queued_bytes += len(entry.event)
        if self.delayed is None:
            self.delayed = []
        heapq.heappush(self.delayed, (due_ns, entry.last, entry))

    def undelay(self, now_ns: int) -> None:
        """Make the entries whose delay is over ready to be sent again."""
        delayed = self.delayed
        while delayed and (delayed[0][2].state is not EntryState.DELAYED or delayed[0][0] <= now_ns):
            entry = heapq.heappop(delayed)[2]
            if entry.state is EntryState.DELAYED:
                entry.state = ON_DUE[entry.state]
                self._queue_again(entry)

    def next_undelay_ns(self) -> int | None:
        """When `undelay` has something to do, or None."""
        return self.delayed[0][0] if self.delayed else None

    def _queue_again(self, entry: Entry) -> None:
        if self.again is None:
            self.again = []
        heapq.heappush(self.again, (entry.last, entry))

    def _remove(self, entry: Entry) -> None:
        assert self.unacked is not None
        del self.unacked[entry.last]
        gap = entry.loss is not None
        self._let_go(int(not gap), int(gap), len(entry.event))

    def _let_go(self, events: int, gaps: int, size: int) -> None:
        self.depth -= events
        self.gaps_unacked -= gaps
        self.bytes -= size
        self.held_bytes -= size
        if not self.unacked:
            self._tidy()
        elif self.timers is not None:
            self._trim_timers()

    # -- rewinding -----------------------------------------------------------------------------------

    def rewind(self, entries: list[Entry], *, reason: str, parked_max: int) -> int:
        """Entries in flight are to be sent again, or parked if they were sent often enough. In a job that is
        closing they are given up. How many entries were settled by that.
        """
        most = self.options.attempts_max
        closing = self.job.state is JobState.CLOSING
        settled = 0
        for entry in entries:
            if closing:
                self._discard_unacked(entry)
                settled += 1
            elif most and entry.attempts >= most:
                self.park(entry, reason, parked_max)
                settled += 1
            else:
                entry.state = ON_REWIND[entry.state]
                self.session.queued_bytes += len(entry.event)
                self._queue_again(entry)
        return settled

    def expired(self, now_ns: int) -> list[Entry]:
        """Entries in flight whose acknowledgement is overdue; with cumulative acknowledgement all in flight
        as soon as one is.
        """
        timers = self.timers
        overdue: list[Entry] = []
        while timers and timers[0][0] <= now_ns:
            _, entry, attempts = timers.popleft()
            if entry.state is _INFLIGHT and entry.attempts == attempts:
                overdue.append(entry)
        if overdue and self.options.acknowledgement == CUMULATIVE:
            return self.in_flight()
        return overdue

    def next_expiry_ns(self) -> int | None:
        """When `expired` may have something to say, or None."""
        timers = self.timers
        while timers and (timers[0][1].state is not _INFLIGHT or timers[0][1].attempts != timers[0][2]):
            timers.popleft()
        return timers[0][0] if timers else None

    def _trim_timers(self) -> None:
        self.next_expiry_ns()
        timers, unacked = self.timers, self.unacked
        assert timers is not None
        if len(timers) > 2 * len(unacked or ()) + TIMERS_SLACK:
            self.timers = deque(
                item for item in timers if item[1].state is _INFLIGHT and item[1].attempts == item[2]
            )

    def in_flight(self) -> list[Entry]:
        """The entries in flight, in order."""
        return [entry for entry in (self.unacked or {}).values() if entry.state is _INFLIGHT]

    def unseen(self, received: int) -> list[Entry]:
        """Entries in flight that a client which received up to `received` may not have."""
        behind = self.behind or ()
        return [entry for entry in self.in_flight() if entry.last > received or entry.last in behind]

    def restream(self, received: int, now_ns: int) -> None:
        """A new stream begins, whose client has seen everything up to `received`.

        With acknowledgement none, what was sent after that is lost: a gap ahead of what was never sent.
        """
        self.deficit = 0
        self.listed = -1
        received = min(received, self.sent)
        if self.options.acknowledgement == NONE and received < self.sent:
            loss = STREAM_LOST
            if self.unknown_to > received:
                loss = STREAM_LOST_UNKNOWN
            gap = Entry.gap(received + 1, self.sent, loss)
            if self.queue is None:
                self.queue = deque()
            self.queue.appendleft(gap)
            self.gaps += 1
            self._count_lost(gap)
            self.sent = received
        self.shown = received
        self.behind = None
        self.timers = None
        self._time(self.in_flight(), now_ns)

    # -- the end -------------------------------------------------------------------------------------

    def discard_waiting(self) -> int:
        """Give up everything that is not in flight; how many entries."""
        given_up = [entry for entry in (self.unacked or {}).values() if entry.state is not _INFLIGHT]
        for entry in given_up:
            self._discard_unacked(entry)
        queue = self.queue or ()
        for entry in queue:
            size = len(entry.event)
            self.bytes -= size
            self.session.queued_bytes -= size
            self.depth -= entry.loss is None
            entry.state = ON_DISCARD[entry.state]
        discarded = len(queue)
        if discarded:
            self.stats = self.stats or Stats()
            self.stats.discarded += discarded
        self.gaps = 0
        self.queue = self.keys = None
        return len(given_up) + discarded

    def discard_in_flight(self) -> None:
        """Give up what is in flight as well."""
        for entry in self.in_flight():
            self._discard_unacked(entry)

    def _discard_unacked(self, entry: Entry) -> None:
        if entry.state is not _INFLIGHT:
            self.session.queued_bytes -= len(entry.event)
        entry.state = ON_DISCARD[entry.state]
        assert self.stats is not None
        self.stats.discarded += 1
        self._remove(entry)

    def job_stats(self) -> JobStats:
        """The counters of its job."""
        stats = self.stats or Stats()
        in_flight = len(self.in_flight())
        return JobStats(
            fires=self.head - stats.told,
            delivered=stats.delivered,
            redelivered=stats.redelivered,
            acknowledged=stats.acknowledged,
            failed=stats.failed,
            lost=stats.lost,
            queued=len(self.queue or ()) + len(self.unacked or ()) - in_flight,
            queued_bytes=self.bytes,
            in_flight=in_flight,
            parked=stats.parked,
            discarded=stats.discarded,
            last_fire_time_ns=self.job.last_fire_ns,
            last_error=stats.last_error,
            last_error_time_ns=stats.last_error_time_ns,
            epoch=self.job.epoch,
            head=self.head,
            acked=self.acked,
        )


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
