"""A binding: one session's hold on a job, with everything that waits or is in flight for it.

Its numbers tile: dealt with, in flight (flight.py), never sent (waiting.py), head. `sent` is the newest
number ever sent, `shown` the newest that the client must have seen if it received all that this stream
carried. Here is the step between the two: sending.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque

from aemd.core.accounts import ENTRY_BYTES
from aemd.core.entry import (
    ON_SEND,
    ON_SEND_ONCE,
    STREAM_LOST,
    STREAM_LOST_UNKNOWN,
    Entry,
    EntryState,
)
from aemd.core.flight import Flight
from aemd.core.options import NONE
from aemd.core.stats import NOTHING_LOST, JobStats, Stats

GAPS_UNACKED_MAX = 16  # gaps need no credit, so this many may be in flight

_AGAIN = EntryState.AGAIN


class Binding(Flight):
    """A session's hold on a job. Compared and hashed by identity."""

    __slots__ = ()

    def next_entry(self) -> Entry | None:
        """What is to be sent next, whatever credit says; None if there is nothing, or it must wait for an
        acknowledgement.
        """
        again = self.again
        if again:
            while again:
                entry = again[0][1]
                if entry.state is _AGAIN:
                    if self.options.coalesce and self.in_flight():
                        return None  # several, where what was parked unseen became gaps
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

    def sent_to(self) -> int:
        """Nothing up to here waits to be sent."""
        entry = self.again[0][1] if self.again else None
        if entry is not None and entry.state is _AGAIN:
            return entry.first - 1
        return self.queue[0].first - 1 if self.queue else self.head

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
            entry.attempts += 1
            last = entry.last
            if last != entry.first or entry.attempts > 1:
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
            self.session.account.refund_bytes(spent + len(entries) * ENTRY_BYTES)
        else:
            self.held_bytes += spent
            self._time(entries, now_ns)
        self._tidy()
        self._charge(len(entries), spent)
        stats, tally = self.stats, self.tally
        assert stats is not None
        stats.delivered += len(entries)
        tally.delivered += len(entries)
        tally.delivery.add_since(entries, self.session.handed_ns)

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
        self.tally.redelivered += 1

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
        entry.attempts += 1
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
        self.tally.delivered += 1
        self.session.delivered += 1
        self._tidy()
        return entry

    def _charge(self, events: int, spent: int) -> None:
        self.credit_events -= events
        self.credit_bytes -= spent
        self.tally.bytes += spent
        session = self.session
        session.credit_events -= events
        session.credit_bytes -= spent
        session.queued_bytes -= spent
        session.delivered += events

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

    def discard_waiting(self) -> int:
        """Give up everything that is not in flight; how many entries."""
        return self.discard_again() + self.discard_unsent()

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
            lost_at=stats.lost_at or NOTHING_LOST,
        )
