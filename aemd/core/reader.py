"""A binding of a durable job: it reads the history, at its own pace, from a position of its own.

What is in the history cannot overflow here: a reader takes only what it has room for, and comes back for the
rest when something was dealt with. `paused` says that it does not follow the head just now: it has no room,
or is behind. Within an epoch everything is as with any other binding; the next epoch begins, with number 1,
when the last entry of this one is dealt with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aemd.core.accounts import BYTES, ENTRY_BYTES
from aemd.core.binding import Binding
from aemd.core.entry import OVERFLOWED, Entry, Loss
from aemd.core.history import Cursor, Record
from aemd.core.stats import Stats
from aemd.v1 import session_pb2

if TYPE_CHECKING:
    from aemd.core.durable import Durable
    from aemd.core.job import Job
    from aemd.core.session import Session

TRIMMED = Loss(  # of an epoch whose end is not known any more
    session_pb2.STAGE_JOB, session_pb2.CAUSE_OVERFLOW, remedy=session_pb2.REMEDY_RESCAN, unknown=True
)


class Reader(Binding):
    """A session's hold on a durable job. `follows`: it does not answer for it."""

    __slots__ = ("cut", "epoch", "fetching", "follows", "start")

    def __init__(
        self,
        binding_id: int,
        job: Job,
        session: Session,
        credit: tuple[int, int],
        *,
        at: Cursor,
        follows: bool,
    ) -> None:
        super().__init__(binding_id, job, session, credit)
        self.follows = follows
        self.paused = True
        self.fetching = False  # the store was asked
        self.cut = False  # the rest of this epoch was trimmed, and that is told
        self._begin(at)

    def _begin(self, at: Cursor) -> None:
        self.epoch = at.epoch  # type: ignore[misc]
        self.head = self.sent = self.shown = self.start = at.seq
        self.overdue = None  # of an epoch before; where this one opens, a gap says that something is missing
        self.unknown_to = 1  # likewise, for who has not heard even that

    @property
    def position(self) -> Cursor:
        """Everything up to here was taken."""
        return Cursor(self.epoch, self.head)

    @property
    def drained(self) -> bool:
        """Nothing waits, and nothing is in flight."""
        return not self.queue and not self.unacked

    def restream(self, received: int, now_ns: int) -> None:
        """A new stream begins. What lies before its start a client cannot have missed."""
        super().restream(max(received, self.start), now_ns)

    def take(self, records: list[Record], durable: Durable, now_ns: int) -> bool:
        """Take entries that come behind the position; False if the rest has to wait."""
        for record in records:
            if record.cursor <= self.position:
                continue
            if record.epoch != self.epoch:
                if not self.drained:
                    return False
                self._begin(Cursor(record.epoch, 0))
                if record.first > 1:
                    return True  # what is before it was trimmed, and comes first
            if not self.follows and durable.dealt and durable.is_dealt(record):
                if self.queue:
                    return False  # numbers that are sent together have no hole
                self.head = self.sent = self.shown = record.last
                continue
            if not self._has_room(record):
                return False
            self._push_record(record, now_ns)
            if not self.follows and record.cursor <= durable.seen and self.queue:
                self.queue[-1].attempts = 1
        return True

    def _push_record(self, record: Record, now_ns: int) -> None:
        count = record.last - self.head
        if record.loss is not None:
            self.push_gap(count, record.loss)
        else:
            self.push(record.event, record.key, count, now_ns)
            self.tally.fires -= count  # that was counted when it was recorded

    def _count_lost(self, gap: Entry) -> None:
        assert gap.loss is not None
        self.stats = self.stats or Stats()
        self.stats.lose(gap.loss.stage, gap.last - gap.first + 1)

    def _has_room(self, record: Record) -> bool:
        if record.loss is not None:
            return True
        options = self.options
        if self.depth and (
            self.depth >= options.queue_depth or self.bytes + record.size > options.queue_bytes
        ):
            return False
        account, allowance = self.session.account, self.session.allowance
        cost = len(record.event) + ENTRY_BYTES
        if account.grant(cost, allowance):
            return True
        if cost > account.used_bytes + account.room(allowance):
            return True  # never possible: it becomes a gap
        account.refused[BYTES] += 1
        account.starve(self)
        return False

    def skip(self, oldest: Cursor) -> bool:
        """What comes next was trimmed, up to `oldest`: say so; False if that has to wait."""
        if oldest.epoch == self.epoch:
            self.push_gap(oldest.seq - self.head, OVERFLOWED)
            return True
        if not self.drained:
            return False
        if not self.cut:
            self.cut = True
            self.push_gap(1, TRIMMED)
            return False
        self.cut = False
        self._begin(Cursor(oldest.epoch, 0))
        return True
