"""Positions in the history of a durable job, how much of it is kept, and what was put aside of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from aem._json import payload_dict
from aem.v1 import event_pb2, job_pb2

__all__ = ["Cursor", "Keep", "Parked", "StartFrom"]


class Cursor(NamedTuple):
    """A position in a job's history: everything up to number `seq` of `epoch` lies before it.

    Cursors compare in that order, and are text that can be stored. `event.cursor` is the one behind an event.

    >>> str(Cursor(1, 17)), Cursor.parse("1:17")
    ('1:17', Cursor(epoch=1, seq=17))
    >>> Cursor(2, 1) > Cursor(1, 17)
    True
    """

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor that str() wrote; raises ValueError for any other text."""
        epoch, colon, seq = text.partition(":")
        if not (colon and text.isascii() and epoch.isdigit() and seq.isdigit()) or len(text) > TEXT_MAX:
            raise ValueError(f"{text[:TEXT_MAX]!r} is no cursor; write EPOCH:SEQ, for example 1:17")
        return cls(int(epoch), int(seq))


TEXT_MAX = 41  # two numbers of 64 bits and the colon
StartFrom: TypeAlias = "str | Cursor | datetime | None"


@dataclass(frozen=True, slots=True)
class Keep:
    """How much of a durable job's history is kept; what is beyond any of the three goes, the oldest first.

    `entries`: 10,000 if not said. `bytes`: of events and keys, 16 MiB if not said; they count against the
    quota history_bytes. `age_ns`: nanoseconds, 7 days if not said.

    >>> Keep(entries=100).message().entries
    100
    """

    entries: int = 0
    bytes: int = 0
    age_ns: int = 0

    def message(self) -> job_pb2.Keep:
        """As it goes over the wire; raises ValueError for a number that cannot."""
        return job_pb2.Keep(entries=self.entries, bytes=self.bytes, age_ns=self.age_ns)


@dataclass(frozen=True, slots=True)
class Parked:
    """An entry that was put aside because nobody could deal with it.

    `cursor`: what retry_parked() takes. `first`: the first number that it covers. `attempts`: how often it
    was delivered. `kept`: it can be delivered again. `message`: the event; None if it is
    a gap or was not kept.
    """

    cursor: Cursor
    first: int
    attempts: int
    reason: str
    kept: bool
    message: event_pb2.Event | None

    @classmethod
    def of(cls, entry: job_pb2.ParkedEntry) -> Parked:
        """What the wire says."""
        return cls(
            cursor=Cursor(entry.cursor.epoch, entry.cursor.seq),
            first=entry.first,
            attempts=entry.attempts,
            reason=entry.reason,
            kept=entry.kept,
            message=event_pb2.Event.FromString(entry.event) if entry.event else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON can hold it; the names are stable, those of an event as in Event.to_dict()."""
        found: dict[str, Any] = {
            "cursor": str(self.cursor),
            "first": self.first,
            "attempts": self.attempts,
            "reason": self.reason,
            "kept": self.kept,
        }
        message = self.message
        if message is not None:
            which = message.WhichOneof("payload")
            payload = None if which is None else payload_dict(getattr(message, which))
            found |= {"type": message.type, "real_time_ns": message.real_time_ns, "key": message.key.hex()}
            found["payload"] = payload
        return found
