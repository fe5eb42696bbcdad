"""What stands in the tables, as values: a durable job, an entry put aside, and the forms of their columns."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from aemd.core.entry import Loss
from aemd.core.history import NEW, Cursor, Positions, Range, Record
from aemd.core.principal import Owner
from aemd.core.stats import Parked
from aemd.v1 import session_pb2

Columns = tuple[object, ...]
STOPPED, SPENT, ENDING = 0, -1, -2
_RANGE = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class JobRow:
    """A durable job at rest. `definition` is opaque here: what it takes to register it again. `start_ns`:
    when it was started, CLOCK_REALTIME; STOPPED if it is not, SPENT if it has fired for the last time, ENDING
    if it was shut down and only its handlers were waited for.
    `entries` and `bytes`: how much of its history is kept.
    """

    id: int
    name: str
    owner: Owner
    definition: bytes
    start_ns: int
    create_ns: int
    positions: Positions = NEW
    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """An entry of a job that nobody could deal with."""

    job: int
    parked: Parked


def job_columns(row: JobRow) -> Columns:
    """As INSERT takes them."""
    owner, at = row.owner, row.positions
    return (
        row.id,
        row.name,
        owner.uid,
        owner.user_namespace,
        owner.pid_namespace,
        row.definition,
        row.start_ns,
        row.create_ns,
        *at.head,
        *at.oldest,
        *at.acked,
        *at.seen,
        pack_ranges(at.dealt),
        row.entries,
        row.bytes,
        at.lost,
    )


def job_row(columns: tuple) -> JobRow:  # type: ignore[type-arg]
    """A row of SELECT *."""
    number, name, uid, user_namespace, pid_namespace, definition, start_ns, create_ns = columns[:8]
    head, oldest, acked, seen = (Cursor(*columns[place : place + 2]) for place in (8, 10, 12, 14))
    dealt, entries, size, lost = columns[16:]
    return JobRow(
        id=number,
        name=name,
        owner=Owner(uid, user_namespace, pid_namespace),
        definition=definition,
        start_ns=start_ns,
        create_ns=create_ns,
        positions=Positions(head, oldest, acked, unpack_ranges(dealt), seen, lost),
        entries=entries,
        bytes=size,
    )


def entry_columns(job: int, record: Record) -> Columns:
    """As INSERT takes them; an event or a loss, never both."""
    event = record.event if record.loss is None else None
    loss = None if record.loss is None else pack_loss(record.loss)
    return job, record.epoch, record.last, record.first, record.real_ns, record.key, event, loss


def entry_record(columns: tuple) -> Record:  # type: ignore[type-arg]
    """A row of (epoch, last, first, real_ns, key, event, loss)."""
    epoch, last, first, real_ns, key, event, loss = columns
    return Record(
        epoch,
        first,
        last,
        real_ns,
        key=key,
        event=event or b"",
        loss=None if loss is None else unpack_loss(loss),
    )


def parked_columns(row: ParkedRow) -> Columns:
    """As INSERT takes them."""
    parked = row.parked
    loss = None if parked.loss is None else pack_loss(parked.loss)
    facts = (parked.epoch, parked.last, parked.first, parked.attempts, parked.reason)
    return row.job, *facts, parked.key, parked.event, loss


def parked_row(columns: tuple) -> ParkedRow:  # type: ignore[type-arg]
    """A row of SELECT *."""
    job, epoch, last, first, attempts, reason, key, event, loss = columns
    found = None if loss is None else unpack_loss(loss)
    return ParkedRow(job, Parked(epoch, first, last, reason, attempts, key, event, found))


def pack_loss(loss: Loss) -> bytes:
    """As a Gap without its numbers; `count` 1 says that they do count."""
    return session_pb2.Gap(
        stage=loss.stage,
        cause=loss.cause,
        scope=loss.scope,
        remedy=loss.remedy,
        count=0 if loss.unknown else 1,
    ).SerializeToString()


def unpack_loss(packed: bytes) -> Loss:
    """What pack_loss made."""
    gap = session_pb2.Gap.FromString(packed)
    return Loss(gap.stage, gap.cause, gap.scope, gap.remedy, unknown=not gap.count)


def pack_ranges(ranges: Iterable[Range]) -> bytes:
    """(first, last) pairs, 16 bytes each."""
    return b"".join(_RANGE.pack(*pair) for pair in ranges)


def unpack_ranges(packed: bytes) -> tuple[Range, ...]:
    """What pack_ranges made."""
    return tuple(_RANGE.iter_unpack(packed))
