"""The life of an entry: an event or a gap that covers the numbers [first, last] of a job.

States are those of the table below and nobody else decides one: whoever moves an entry does it through a
column of the table, `entry.state = ON_ACK[entry.state]`, where a step that the table does not know is a
KeyError and so a bug. (Columns, because this is done for every event: a look-up with one small integer.)

An entry is *frozen* once it was sent: what is delivered again is byte for byte the same. Only QUEUED and GAP
were never sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from aemd.v1 import session_pb2


class EntryState(IntEnum):
    """Where an entry is in its life."""

    QUEUED = 1  # an event, never sent
    GAP = 2  # a gap, never sent
    INFLIGHT = 3  # sent, not yet dealt with
    DELAYED = 4  # given back; not to be sent before its time
    AGAIN = 5  # to be sent again, ahead of what was never sent
    ACKED = 6
    PARKED = 7
    DISCARDED = 8  # given up with its job


class EntryEvent(IntEnum):
    """What can happen to an entry."""

    MERGE = 1  # a fire joined a coalescing tail, or a gap its equal neighbour
    DROP = 2  # overflow, or superseded
    SEND = 3
    SEND_ONCE = 4  # sent with acknowledgement none: forgotten
    ACK = 5  # Ack >= last, or Complete
    REWIND = 6  # stream lost, or acknowledgement timed out
    NACK = 7
    DUE = 8  # the delay of its Nack is over
    PARK = 9  # Nack with park, or as many attempts as there may be
    DISCARD = 10  # the job ends
    RETRY = 11  # somebody wants it delivered once more


_S, _E = EntryState, EntryEvent

TABLE: dict[tuple[EntryState, EntryEvent], EntryState] = {
    (_S.QUEUED, _E.MERGE): _S.QUEUED,
    (_S.QUEUED, _E.DROP): _S.GAP,
    (_S.QUEUED, _E.SEND): _S.INFLIGHT,
    (_S.QUEUED, _E.SEND_ONCE): _S.ACKED,
    (_S.QUEUED, _E.DISCARD): _S.DISCARDED,
    (_S.GAP, _E.MERGE): _S.GAP,
    (_S.GAP, _E.SEND): _S.INFLIGHT,
    (_S.GAP, _E.SEND_ONCE): _S.ACKED,
    (_S.GAP, _E.DISCARD): _S.DISCARDED,
    (_S.INFLIGHT, _E.ACK): _S.ACKED,
    (_S.INFLIGHT, _E.REWIND): _S.AGAIN,
    (_S.INFLIGHT, _E.NACK): _S.DELAYED,
    (_S.INFLIGHT, _E.PARK): _S.PARKED,
    (_S.INFLIGHT, _E.DISCARD): _S.DISCARDED,
    (_S.DELAYED, _E.DUE): _S.AGAIN,
    (_S.DELAYED, _E.ACK): _S.ACKED,
    (_S.DELAYED, _E.DISCARD): _S.DISCARDED,
    (_S.AGAIN, _E.SEND): _S.INFLIGHT,
    (_S.AGAIN, _E.ACK): _S.ACKED,
    (_S.AGAIN, _E.DISCARD): _S.DISCARDED,
    (_S.PARKED, _E.RETRY): _S.AGAIN,
}


def _column(event: EntryEvent) -> dict[EntryState, EntryState]:
    return {state: after for (state, happened), after in TABLE.items() if happened is event}


ON_MERGE = _column(_E.MERGE)
ON_DROP = _column(_E.DROP)
ON_SEND = _column(_E.SEND)
ON_SEND_ONCE = _column(_E.SEND_ONCE)
ON_ACK = _column(_E.ACK)
ON_REWIND = _column(_E.REWIND)
ON_NACK = _column(_E.NACK)
ON_DUE = _column(_E.DUE)
ON_PARK = _column(_E.PARK)
ON_DISCARD = _column(_E.DISCARD)
ON_RETRY = _column(_E.RETRY)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a gap says beside its numbers. Two neighbouring gaps with equal losses are one gap.

    `unknown`: nobody knows how many events; the wire says count 0. Otherwise it is one for each number.
    """

    stage: session_pb2.Stage.ValueType
    cause: session_pb2.Cause.ValueType
    scope: str = ""
    remedy: session_pb2.Remedy.ValueType = session_pb2.REMEDY_UNSPECIFIED
    unknown: bool = False

    def joined(self, other: Loss) -> Loss:
        """One loss that covers both: stage and cause of the older, and whatever is worse of the rest."""
        return Loss(
            stage=self.stage,
            cause=self.cause,
            scope=self.scope if self.scope == other.scope else "",
            remedy=max(self.remedy, other.remedy),
            unknown=self.unknown or other.unknown,
        )


OVERFLOWED = Loss(session_pb2.STAGE_JOB, session_pb2.CAUSE_OVERFLOW)
SUPERSEDED = Loss(session_pb2.STAGE_JOB, session_pb2.CAUSE_SUPERSEDED)
OVER_QUOTA = Loss(session_pb2.STAGE_JOB, session_pb2.CAUSE_QUOTA)
STREAM_LOST = Loss(session_pb2.STAGE_SESSION, session_pb2.CAUSE_STREAM_LOST)
STREAM_LOST_UNKNOWN = Loss(  # a gap of unknown size was among what was lost
    session_pb2.STAGE_SESSION,
    session_pb2.CAUSE_STREAM_LOST,
    remedy=session_pb2.REMEDY_RESCAN,
    unknown=True,
)
SOURCE_FAILED = Loss(
    session_pb2.STAGE_SOURCE,
    session_pb2.CAUSE_SOURCE_FAILED,
    remedy=session_pb2.REMEDY_RESCAN,
    unknown=True,
)


class Entry:
    """An event (`event` holds its bytes, `loss` is None) or a gap (`loss` is set, `event` is empty)."""

    __slots__ = ("attempts", "event", "fired_ns", "first", "key", "last", "loss", "state")

    first: int
    last: int
    event: bytes
    key: bytes
    state: EntryState
    loss: Loss | None
    attempts: int  # how often it was delivered
    fired_ns: int  # when the first of its stimuli came, CLOCK_MONOTONIC; of a gap it says nothing

    def __init__(self, first: int, last: int, event: bytes, key: bytes, fired_ns: int) -> None:
        self.first = first
        self.last = last
        self.event = event
        self.key = key
        self.state = EntryState.QUEUED
        self.loss = None
        self.attempts = 0
        self.fired_ns = fired_ns

    @classmethod
    def gap(cls, first: int, last: int, loss: Loss) -> Entry:
        """A gap that was never sent."""
        entry = cls(first, last, b"", b"", 0)
        entry.state = EntryState.GAP
        entry.loss = loss
        return entry

    def drop(self, loss: Loss) -> None:
        """Become a gap; only before it was ever sent."""
        self.state = ON_DROP[self.state]
        self.event = self.key = b""
        self.loss = loss

    def absorb(self, other: Entry) -> None:
        """Take the gap that follows this gap into it; both were never sent."""
        mine, theirs = self.loss, other.loss
        assert mine is not None
        assert theirs is not None
        self.state = ON_MERGE[self.state]
        self.last = other.last
        if mine != theirs:
            self.loss = mine.joined(theirs)
