"""One binding as the client sees it: credit, what was received, what is dealt with, how that is told.

Three ways of telling, as the job's acknowledgement asks:

    cumulative   one Ack for all that was handled since the last; a failure or a Retry is told by itself
    explicit     Complete or Nack for each entry; kept until the daemon is known to have read it, so that
                 a lost stream neither loses an answer nor runs a handler twice
    none         nothing is told

After a Retry in a cumulative binding entries are answered one by one until that one is dealt with: an Ack
would cover it as well.
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

    def consume(self, events: int, size: int) -> job_pb2.Credit | None:
        """So much is dealt with; returns the credit to give back now, if it is time."""
        self.held_events -= events
        self.held_bytes -= size
        self.owed_events += events
        self.owed_bytes += size
        if self.owed_events * 2 < self.events and self.owed_bytes * 2 < self.bytes:
            return None
        credit = job_pb2.Credit(events=self.owed_events, bytes=self.owed_bytes)
        self.owed_events = self.owed_bytes = 0
        return credit

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
        "acknowledgement",
        "alive",
        "epoch",
        "handled",
        "id",
        "received",
        "registration",
        "running",
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
        self.received: Cursor = ZERO
        self.handled: Cursor = ZERO  # cumulative: everything up to here is dealt with
        self._ahead: Cursor = ZERO  # the newest that is dealt with while an older one waits for its retry
        self._nacked: set[Cursor] = set()
        self._answers: dict[Cursor, session_pb2.ClientFrame] = {}

    def finish(self, entry: Entry, outcome: Outcome) -> list[session_pb2.ClientFrame] | None:
        """Note that `entry` is dealt with; returns frames to send, or None if an Ack is due some time."""
        cursor = (entry.epoch, entry.last)
        if self.acknowledgement == CUMULATIVE:
            if outcome is SUCCESS and not self._nacked:
                self.handled = cursor
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
            self.handled = (newest.epoch, newest.last)
        return True

    def _finish_apart(self, cursor: Cursor, outcome: Outcome) -> list[session_pb2.ClientFrame]:
        frames = []
        if outcome.nack is not None and not outcome.nack.park:
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
            self.handled = cursor
        frames.append(self._answer(cursor, outcome))
        return [frame for frame in frames if frame is not None]

    def ack(self) -> session_pb2.ClientFrame | None:
        """Everything that is dealt with, in one frame; None if that is nothing."""
        if self.handled == ZERO:
            return None
        epoch, seq = self.handled
        return session_pb2.ClientFrame(
            ack=session_pb2.Ack(binding=self.id, cursor=job_pb2.Cursor(epoch=epoch, seq=seq))
        )

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
        return list(self._answers.values())

    def sift(
        self, entries: list[Entry], waiting: set[Cursor]
    ) -> tuple[list[Entry], list[session_pb2.ClientFrame]]:
        """Of entries that may have been delivered before: those to handle, and answers to say again.

        `waiting` are the entries that wait or run here.
        """
        fresh: list[Entry] = []
        again: list[session_pb2.ClientFrame] = []
        for entry in entries:
            cursor = (entry.epoch, entry.last)
            if cursor in waiting:
                continue
            if entry.attempts < 2 or cursor in self._nacked:
                fresh.append(entry)
            elif cursor in self._answers:
                if self._answers[cursor].HasField("nack"):
                    del self._answers[cursor]
                    fresh.append(entry)
                else:
                    again.append(self._answers[cursor])
            elif self.acknowledgement == CUMULATIVE and cursor <= self.handled:
                ack = self.ack()
                if ack is not None:
                    again.append(ack)
            else:
                fresh.append(entry)
        return fresh, again
