"""One binding as the client sees it: credit, what was received, what is dealt with, how that is told.

Three ways of telling, as the job's acknowledgement asks:

    cumulative   one Ack for all that was handled since the last; a failure or a Retry is told by itself
    explicit     Complete or Nack for each entry; kept until the daemon is known to have read it, so that
                 a lost stream neither loses an answer nor runs a handler twice
    none         nothing is told

After a Retry in a cumulative binding entries are answered one by one until that one is dealt with: an Ack
would cover it as well.

The binding of a durable job outlives the daemon. It is *suspended* when the daemon does not know it any more,
and *renewed* when it is bound again: what was dealt with here, and what a handler still has, is known by its
numbers when the daemon delivers it again, and only told. Nothing is told of what was not delivered on this
side of the restart (beyond `reached`): a daemon that was killed may not know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aem.errors import Reply
from aem.v1 import event_pb2, job_pb2, session_pb2

if TYPE_CHECKING:
    from aem._registration import Registration

Cursor = tuple[int, int]
ZERO: Cursor = (0, 0)
CUMULATIVE = job_pb2.ACKNOWLEDGEMENT_CUMULATIVE
EXPLICIT = job_pb2.ACKNOWLEDGEMENT_EXPLICIT
NONE = job_pb2.ACKNOWLEDGEMENT_NONE
PARKED_MAX = 1_024  # parked entries that are known again when they come once more


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a handler ended. At most one of the three is set; nothing is plain success."""

    error: str | None = None
    reply: Reply | None = None
    nack: session_pb2.Nack | None = None  # without binding and cursor


SUCCESS = Outcome()


class Window:
    """Credit of a session or a binding: what was given, what is held here, what is owed back.

    Credit goes back when half of it is owed, so that frames stay few; what the daemon has left is then at
    least the other half less what waits here.
    """

    __slots__ = ("bytes", "events", "held_bytes", "held_events", "owed_bytes", "owed_events")

    def __init__(self, events: int, size: int) -> None:
        self.events = events
        self.bytes = size
        self.held_events = self.held_bytes = 0
        self.owed_events = self.owed_bytes = 0

    def receive(self, events: int, size: int) -> None:
        """So much came."""
        self.held_events += events
        self.held_bytes += size

    def consume(self, events: int, size: int, *, grant: bool = True) -> job_pb2.Credit | None:
        """So much is dealt with; returns the credit to give back now, if it is time and `grant`."""
        self.held_events -= events
        self.held_bytes -= size
        self.owed_events += events
        self.owed_bytes += size
        if not grant or (self.owed_events * 2 < self.events and self.owed_bytes * 2 < self.bytes):
            return None
        credit = job_pb2.Credit(events=self.owed_events, bytes=self.owed_bytes)
        self.owed_events = self.owed_bytes = 0
        return credit

    def forget(self, events: int, size: int) -> None:
        """So much is given up, and whoever sent it does not wait for credit."""
        self.held_events -= events
        self.held_bytes -= size

    def reopen(self) -> job_pb2.Credit:
        """The credit for a new stream, where the daemon begins with none."""
        self.owed_events = self.owed_bytes = 0
        return job_pb2.Credit(
            events=max(1, self.events - self.held_events), bytes=max(1, self.bytes - self.held_bytes)
        )


class Entry:
    """An event or a gap that covers the numbers first..last, not parsed yet."""

    __slots__ = ("attempts", "begun", "binding", "data", "epoch", "first", "gap", "lane", "last", "message")

    def __init__(
        self, binding: Binding, epoch: int, first: int, last: int, attempts: int, data: bytes
    ) -> None:
        self.binding = binding
        self.epoch = epoch
        self.first = first
        self.last = last
        self.attempts = attempts
        self.data = data
        self.gap: session_pb2.Gap | None = None
        self.begun = False  # its handler runs, or ran
        self.lane: object = None
        self.message: event_pb2.Event | None = None

    def begin(self) -> None:
        """Its handler is about to run; Session.finish() or discard() follows."""
        self.begun = True
        self.binding.running += 1

    def parse(self) -> event_pb2.Event:
        """The event; raises google.protobuf's DecodeError for bytes that are none."""
        if self.message is None:
            self.message = event_pb2.Event.FromString(self.data)
        return self.message


class Binding:
    """The session's hold on one job."""

    __slots__ = (
        "_ahead",
        "_answers",
        "_nacked",
        "_parked",
        "acknowledgement",
        "alive",
        "before",
        "epoch",
        "handled",
        "id",
        "reached",
        "received",
        "registration",
        "running",
        "start",
        "window",
    )

    def __init__(
        self, number: int, registration: Registration, *, epoch: int, acknowledgement: int, window: Window
    ) -> None:
        self.id = number
        self.registration = registration
        self.epoch = epoch
        self.acknowledgement = acknowledgement
        self.window = window
        self.alive = True
        self.running = 0  # handlers
        self.start: Cursor = ZERO  # what comes up to here was put aside before, and is retried
        self.received: Cursor = ZERO
        self.reached: Cursor = ZERO  # the newest that was received since it was bound
        self.before: Cursor = ZERO  # what comes up to here may have been received before it was bound anew
        self.handled: Cursor = ZERO  # cumulative: everything up to here is dealt with
        self._ahead: Cursor = ZERO  # the newest that is dealt with while an older one waits for its retry
        self._nacked: set[Cursor] = set()
        self._parked: dict[Cursor, None] = {}  # by handlers; they come once more if somebody retries them
        self._answers: dict[Cursor, session_pb2.ClientFrame] = {}

    def finish(self, entry: Entry, outcome: Outcome) -> list[session_pb2.ClientFrame] | None:
        """Note that `entry` is dealt with; returns frames to send, or None if an Ack is due some time."""
        cursor = (entry.epoch, entry.last)
        if self.acknowledgement == CUMULATIVE:
            if outcome is SUCCESS and not self._nacked:
                self.handled = max(self.handled, cursor)
                return None
            return self._finish_apart(cursor, outcome)
        if self.acknowledgement != EXPLICIT:
            return []
        frame = self._answers[cursor] = self._answer(cursor, outcome)
        return [frame]

    def finish_plain(self, newest: Entry) -> bool:
        """Note that everything up to `newest` went well; False if that has to be done one by one."""
        if self._nacked:
            return False
        if self.acknowledgement == CUMULATIVE:
            self.handled = max(self.handled, (newest.epoch, newest.last))
        return True

    def _finish_apart(self, cursor: Cursor, outcome: Outcome) -> list[session_pb2.ClientFrame]:
        frames = []
        told = cursor <= self.reached
        if outcome.nack is not None and not (outcome.nack.park and told):
            if not self._nacked:
                frames.append(self.ack())
                self._ahead = self.handled
            self._nacked.add(cursor)
        elif self._nacked:
            self._nacked.discard(cursor)
            self._ahead = max(self._ahead, cursor)
            if not self._nacked:
                self.handled = self._ahead
        else:
            frames.append(self.ack())
            self.handled = max(self.handled, cursor)
        if told:
            frames.append(self._answer(cursor, outcome))
            self._note_parked(cursor, outcome)
        return [frame for frame in frames if frame is not None]

    def ack(self) -> session_pb2.ClientFrame | None:
        """Everything that is dealt with, in one frame; None if that is nothing."""
        epoch, seq = min(self.handled, self.reached)
        if not seq:
            return None
        return session_pb2.ClientFrame(
            ack=session_pb2.Ack(binding=self.id, cursor=job_pb2.Cursor(epoch=epoch, seq=seq))
        )

    def _note_parked(self, cursor: Cursor, outcome: Outcome) -> None:
        self._parked.pop(cursor, None)
        if outcome.nack is not None:  # a Retry is known by _nacked
            self._parked[cursor] = None
            if len(self._parked) > PARKED_MAX:
                del self._parked[next(iter(self._parked))]

    def _answer(self, cursor: Cursor, outcome: Outcome) -> session_pb2.ClientFrame:
        where = job_pb2.Cursor(epoch=cursor[0], seq=cursor[1])
        frame = session_pb2.ClientFrame()
        if outcome.nack is not None:
            frame.nack.CopyFrom(outcome.nack)
            frame.nack.binding = self.id
            frame.nack.cursor.CopyFrom(where)
            return frame
        frame.complete.binding = self.id
        frame.complete.cursor.CopyFrom(where)
        if outcome.error is not None:
            frame.complete.status.code = 2  # UNKNOWN
            frame.complete.status.message = outcome.error
        elif outcome.reply is not None:
            frame.complete.reply.name = outcome.reply.operation
            frame.complete.reply.data = outcome.reply.data
        return frame

    def confirm(self, cursor: Cursor, frame: session_pb2.ClientFrame) -> None:
        """The daemon has read the answer for `cursor`."""
        if self._answers.get(cursor) is frame:
            del self._answers[cursor]

    def answers(self) -> list[session_pb2.ClientFrame]:
        """The answers that the daemon may not have read."""
        return [frame for cursor, frame in self._answers.items() if cursor <= self.reached]

    @property
    def place(self) -> Cursor:
        """Everything up to here was received and needs no second delivery, but for what waits here."""
        return min(((epoch, seq - 1) for epoch, seq in self._nacked), default=self.received)

    def suspend(self) -> None:
        """The daemon does not know it any more; it is to be bound again."""
        self.reached = ZERO
        self.before = max(self.before, self.received)

    def renew(self, number: int, start: Cursor) -> None:
        """It is bound again, and goes on behind `start`."""
        self.id = number
        self.epoch = start[0]
        self.received = self.reached = start
        if self._nacked and not (still := {cursor for cursor in self._nacked if cursor > start}):
            self._nacked = still
            self.handled = max(self.handled, self._ahead)
        for cursor, frame in list(self._answers.items()):
            if cursor <= start:
                del self._answers[cursor]
            elif frame.HasField("nack"):
                frame.nack.binding = number
            else:
                frame.complete.binding = number

    def begin_epoch(self, epoch: int) -> None:
        """The daemon was killed: nothing of the epoch before comes again, and it takes no answer for it."""
        self.epoch = epoch
        begins = (epoch, 0)
        self._answers = {cursor: frame for cursor, frame in self._answers.items() if cursor > begins}
        self._parked = {cursor: None for cursor in self._parked if cursor > begins}
        if self._nacked and not (still := {cursor for cursor in self._nacked if cursor > begins}):
            self._nacked = still
            self.handled = max(self.handled, self._ahead)

    def reach(self, newest: Cursor) -> None:
        """Everything up to `newest` has come."""
        self.received = max(self.received, newest)
        self.reached = max(self.reached, newest)

    def forget_answers(self) -> None:
        """Everything that was received before it was bound anew has come again, or is dealt with."""
        for cursor in [one for one in self._answers if one <= self.before]:
            del self._answers[cursor]

    def sift(
        self, entries: list[Entry], waiting: set[Cursor]
    ) -> tuple[list[Entry], list[session_pb2.ClientFrame]]:
        """Of entries that may have been delivered before: those to handle, and answers to say again.

        `waiting` are the entries that wait or run here.
        """
        fresh: list[Entry] = []
        again: list[session_pb2.ClientFrame] = []
        dealt = False
        for entry in entries:
            cursor = (entry.epoch, entry.last)
            if cursor in waiting:
                continue
            if (entry.attempts < 2 and cursor > self.before) or cursor in self._nacked:
                fresh.append(entry)
            elif cursor in self._answers:
                if self._answers[cursor].HasField("nack"):
                    del self._answers[cursor]
                    fresh.append(entry)
                else:
                    again.append(self._answers[cursor])
            elif self._is_dealt(cursor):
                dealt = True
            else:
                fresh.append(entry)
        ack = self.ack() if dealt else None
        return fresh, again if ack is None else [*again, ack]

    def _is_dealt(self, cursor: Cursor) -> bool:
        """Whether an Ack says so; what was put aside and is retried comes out of its order."""
        if self.acknowledgement != CUMULATIVE or cursor in self._parked:
            return False
        return self.start < cursor <= self.handled
