"""What is in flight for a client: acknowledged, given back, timed out, sent again, parked.

`unacked` holds everything that was sent and is not dealt with, always in the order of the numbers. Those of
it that are to be sent again stand in `again` (a heap by number) or `delayed` (a heap by time) as well;
items of those that have meanwhile been dealt with are recognised by their state and skipped.
"""

from __future__ import annotations

import bisect
import heapq
from collections import OrderedDict, deque

from aemd.core.accounts import ENTRY_BYTES, HISTORY
from aemd.core.entry import (
    ON_ACK,
    ON_DISCARD,
    ON_DUE,
    ON_NACK,
    ON_PARK,
    ON_RETRY,
    ON_REWIND,
    ON_SEND,
    STREAM_LOST,
    Entry,
    EntryState,
)
from aemd.core.job import JobState
from aemd.core.options import CUMULATIVE
from aemd.core.stats import Parked, Stats
from aemd.core.waiting import Waiting

TIMERS_SLACK = 64  # stale acknowledgement timers that are not worth a sweep

_INFLIGHT = EntryState.INFLIGHT


class Flight(Waiting):
    """What was sent and is not dealt with."""

    __slots__ = ()

    @property
    def acked(self) -> int:
        """Everything up to here is dealt with."""
        unacked = self.unacked
        return next(iter(unacked.values())).first - 1 if unacked else self.sent

    def ack_to(self, seq: int, now_ns: int) -> int:
        """Everything up to `seq` is dealt with; how many entries that were not before."""
        self.seen_to(seq)
        unacked = self.unacked
        if not unacked:
            return 0
        if self.stats is not None and self.stats.retried:
            settled = self._take_acked(self.stats, seq)
        elif seq >= self.sent:
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
        self._note_acked(settled, gaps, now_ns)
        return len(settled)

    def _take_acked(self, stats: Stats, seq: int) -> list[Entry]:
        """What an Ack of `seq` covers: not what was put aside, is retried and was not delivered since, for
        the client has said that Ack without it.
        """
        assert self.unacked is not None
        coming = stats.undelivered()
        settled = [entry for last, entry in self.unacked.items() if last <= seq and entry not in coming]
        for entry in settled:
            del self.unacked[entry.last]
        return settled

    def _note_acked(self, settled: list[Entry], gaps: int, now_ns: int) -> None:
        assert self.stats is not None
        self.stats.acknowledged += len(settled)
        self.tally.acknowledged += len(settled)
        events = [entry for entry in settled if entry.loss is None] if gaps else settled
        if events:
            self.tally.acknowledgement.add_since(events, now_ns)

    def complete(self, seq: int, now_ns: int) -> Entry | None:
        """The entry that ends at `seq` is dealt with; None if there is none that was sent and is not."""
        self.seen_to(seq)
        entry = self.unacked.get(seq) if self.unacked else None
        if entry is None:
            return None
        if entry.state is not _INFLIGHT:
            self.session.queued_bytes -= len(entry.event)
        entry.state = ON_ACK[entry.state]
        self._note_acked([entry], int(entry.loss is not None), now_ns)
        self._remove(entry)
        return entry

    def park(self, entry: Entry, reason: str, parked_max: int) -> None:
        """Put aside an entry in flight."""
        entry.state = ON_PARK[entry.state]
        stats = self.stats
        assert stats is not None
        stats.parked += 1
        self.tally.parked += 1
        parked = Parked(
            self.epoch, entry.first, entry.last, reason, entry.attempts, entry.key, entry.event, entry.loss
        )
        self.job.binding.put_aside(parked, parked_max)
        self._remove(entry)

    def put_aside(self, parked: Parked, parked_max: int) -> None:
        """Keep it for the list, and with its event for another try, as far as its user has room."""
        stats = self.stats = self.stats or Stats()
        account, allowance, kept = self.session.account, self.session.allowance, stats.parked_list
        if len(kept) >= parked_max:
            account.refund(HISTORY, kept.pop(0).cost)
        for form in (parked, parked.without_event()):
            if account.try_charge(HISTORY, allowance, form.cost):
                kept.append(form)
                return

    def take_back(self, parked: Parked) -> None:
        """It is no longer put aside."""
        assert self.stats is not None
        self.stats.parked_list.remove(parked)
        self.session.account.refund(HISTORY, parked.cost)

    def forget_parked(self) -> None:
        """The job is gone, and the list of what it parked."""
        if self.stats is not None and self.stats.parked_list:
            self.session.account.refund(HISTORY, sum(parked.cost for parked in self.stats.parked_list))
            self.stats.parked_list.clear()

    def retry(self, parked: Parked, now_ns: int) -> bool:
        """Deliver what was put aside once more, ahead of what was never sent; False if its user has no bytes
        for it now.
        """
        event = parked.event or b""
        if not self.session.account.grant(len(event) + ENTRY_BYTES, self.session.allowance):
            return False
        entry = Entry(parked.first, parked.last, event, parked.key, now_ns)
        entry.loss = parked.loss
        entry.attempts = parked.attempts
        entry.state = ON_RETRY[EntryState.PARKED]
        self._put_again(entry)
        self.stats = self.stats or Stats()
        self._note_retried(self.stats, entry)
        if parked.loss is None:
            self.depth += 1
            self.bytes += len(event)
            self.held_bytes += len(event)
            self.session.queued_bytes += len(event)
            self.session.account.bytes_free -= len(event) + ENTRY_BYTES
        assert self.unacked is not None
        self.unacked = OrderedDict(sorted(self.unacked.items()))
        return True

    def _note_retried(self, stats: Stats, entry: Entry) -> None:
        if self.options.acknowledgement != CUMULATIVE:
            return
        retried = stats.retried = stats.retried or set()
        retried.add(entry)
        if len(retried) > 2 * len(self.again or ()):
            stats.undelivered()

    def _put_again(self, entry: Entry) -> None:
        """Put what was not in flight among what is to be sent again; the order is the caller's to restore."""
        if self.unacked is None:
            self.unacked = OrderedDict()
        self.unacked[entry.last] = entry
        self.gaps_unacked += entry.loss is not None
        self._queue_again(entry)

    def _note_overdue(self, entry: Entry) -> None:
        """Its time was over, and it is parked: it may get lost with the stream all the same.

        Neighbours are one range, so there are no more ranges than entries between them, which are in flight.
        """
        ranges = self.overdue = self.overdue or []
        first, last, count = entry.first, entry.last, 1
        place = bisect.bisect(ranges, (first, last, 0))
        if place < len(ranges) and ranges[place][0] == last + 1:
            _, last, behind = ranges.pop(place)
            count += behind
        if place and ranges[place - 1][1] == first - 1:
            place -= 1
            first, _, before = ranges.pop(place)
            count += before
        ranges.insert(place, (first, last, count))

    def seen_to(self, seq: int) -> None:
        """The client has seen everything up to `seq`: it has answered that, and first deliveries are in
        order.
        """
        if self.overdue is not None:
            self.overdue = [item for item in self.overdue if item[1] > seq] or None

    def overdue_gaps(self, received: int) -> None:
        """What was parked by time-out and never seen by a client that received up to `received` becomes
        gaps, to be sent in its place.
        """
        self.seen_to(received)
        ranges, self.overdue = self.overdue or [], None
        if self.job.state is JobState.CLOSING:
            self.discarded += sum(count for _, _, count in ranges)
            return
        for first, last, _ in ranges:
            gap = Entry.gap(max(first, received + 1), last, STREAM_LOST)
            gap.state = ON_REWIND[ON_SEND[gap.state]]  # on the stream that was lost
            self._put_again(gap)
            self._count_lost(gap)
        if ranges and self.unacked:
            self.unacked = OrderedDict(sorted(self.unacked.items()))

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
        self.session.account.refund_bytes(size + events * ENTRY_BYTES)
        if not self.unacked:
            self._tidy()
        elif self.timers is not None:
            self._trim_timers()

    def _tidy(self) -> None:
        """Give up the containers that are empty."""
        if not self.queue:
            self.queue = None
            self.keys = None
        if not self.unacked:
            self.unacked = None
            self.again = self.delayed = self.timers = self.behind = None

    def rewind(self, entries: list[Entry], *, park: str | None, parked_max: int) -> int:
        """Entries in flight are to be sent again, or, if there is a reason to `park` them, parked when they
        were sent often enough. In a job that is closing they are given up. How many entries were settled by
        that.
        """
        most = self.options.attempts_max if park is not None else 0
        closing = self.job.state is JobState.CLOSING
        settled = 0
        for entry in entries:
            if closing:
                self._discard_unacked(entry)
                self.discarded += park is None  # lost with the stream
                settled += 1
            elif most and entry.attempts >= most:
                self.park(entry, park or "", parked_max)
                self._note_overdue(entry)
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

    def _discard_unacked(self, entry: Entry) -> None:
        if entry.state is not _INFLIGHT:
            self.session.queued_bytes -= len(entry.event)
        entry.state = ON_DISCARD[entry.state]
        assert self.stats is not None
        self.stats.discarded += 1
        self.tally.discarded += 1
        self._remove(entry)

    def discard_again(self) -> int:
        """Give up what was sent and waits to be sent again; how many entries."""
        given_up = [entry for entry in (self.unacked or {}).values() if entry.state is not _INFLIGHT]
        for entry in given_up:
            self._discard_unacked(entry)
        return len(given_up)

    def discard_in_flight(self) -> None:
        """Give up what is in flight as well."""
        for entry in self.in_flight():
            self._discard_unacked(entry)
