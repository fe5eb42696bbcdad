"""A durable job's memory: what it has recorded, how far that is dealt with, and who reads it.

The history is shared: it is recorded once, whoever follows. Its newest part, everything that is not on disk
yet included, is the `tail`, which is read at once; what is older is fetched from the store. `acked`, `dealt`
and `seen` are those of the one client that answers; followers keep their positions themselves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aemd.core.entry import OVERFLOWED
from aemd.core.history import Cursor, Keep, Positions, Range, Record

if TYPE_CHECKING:
    from aemd.core.accounts import Charge
    from aemd.core.reader import Reader

TAIL_RECORDS = 1_024  # that stay in memory although they are on disk
TAIL_BYTES = 256 * 1024
DEALT_MAX = 1_024  # ranges dealt with out of order that are remembered; more are delivered again


class Durable:
    """What a durable job has beyond others."""

    __slots__ = (
        "acked",
        "aside_changed",
        "charge",
        "dealt",
        "keep",
        "lost",
        "name",
        "oldest",
        "readers",
        "seen",
        "start_ns",
        "tail",
        "tail_bytes",
        "tail_start",
        "unrecorded",
        "written",
    )

    def __init__(self, name: str, keep: Keep, positions: Positions, charge: Charge) -> None:
        """Of what was recorded before, nothing is in memory. `charge`: for the bytes of `keep`."""
        self.charge = charge
        self.name = name
        self.keep = keep
        self.oldest = positions.oldest
        self.acked = positions.acked
        self.dealt = positions.dealt
        self.aside_changed = False  # what is put aside; since the store was told
        self.start_ns = 0  # when it was started, CLOCK_REALTIME; 0: it is not
        self.seen = positions.seen  # the newest position that an answering client was sent
        self.lost = positions.lost  # numbers that gaps have covered
        self.readers: dict[Reader, None] = {}
        self.tail: list[Record] = []
        self.tail_bytes = 0
        self.tail_start = positions.head  # everything up to here is not in the tail
        self.written = positions.head
        self.unrecorded: list[Record] = []  # for the store, not yet given to it

    def append(self, records: list[Record]) -> None:
        """Entries more."""
        self.tail += records
        self.unrecorded += records
        for record in records:
            self.tail_bytes += record.size
            if record.loss is not None:
                self.lost += record.last - record.first + 1

    def after(self, position: Cursor, records_max: int) -> list[Record] | None:
        """What comes behind `position`, so much at most; None if the tail does not reach back so far."""
        if position < self.tail_start:
            return None
        place = bisect_right(self.tail, position, key=_cursor)
        return self.tail[place : place + records_max]

    def wrote(self, cursor: Cursor) -> None:
        """Everything up to `cursor` is on disk: what the tail has too much may go."""
        self.written = cursor
        if len(self.tail) < 2 * TAIL_RECORDS and self.tail_bytes < 2 * TAIL_BYTES:
            return
        place, size = 0, self.tail_bytes
        most = len(self.tail) - TAIL_RECORDS
        while place < len(self.tail) and self.tail[place].cursor <= cursor:
            if place >= most and size <= TAIL_BYTES:
                break
            size -= self.tail[place].size
            place += 1
        if place:
            self.tail_start = self.tail[place - 1].cursor
            del self.tail[:place]
            self.tail_bytes = size

    def trim(self, oldest: Cursor) -> None:
        """Everything up to `oldest` is no longer kept."""
        self.oldest = max(self.oldest, oldest)

    def give_up(self) -> None:
        """The store takes no more: what it was not given becomes a gap, for those who come later."""
        first = self.unrecorded[0]
        place = bisect_right(self.tail, Cursor(first.epoch, first.first - 1), key=_cursor)
        gone = self.tail[place:]
        self.unrecorded = _given_up(gone)
        self.tail[place:] = self.unrecorded
        self.tail_bytes -= sum(record.size for record in gone)
        self.lost += sum(record.last - record.first + 1 for record in gone if record.loss is None)

    def is_dealt(self, record: Record) -> bool:
        """Whether it was dealt with, though something before it was not."""
        return record.epoch == self.acked.epoch and any(
            first <= record.first and record.last <= last for first, last in self.dealt
        )

    def note(self, reader: Reader) -> None:
        """Remember how far the answering client is."""
        self.seen = max(self.seen, Cursor(reader.epoch, reader.sent))
        beyond = self.dealt if reader.epoch == self.acked.epoch else ()
        acked = reader.acked
        dealt = _joined((*_holes(reader), *(pair for pair in beyond if pair[1] > reader.sent)))
        while dealt and dealt[0][0] <= acked + 1:
            acked = max(acked, dealt.pop(0)[1])
        self.acked = Cursor(reader.epoch, acked)
        self.dealt = tuple(dealt[:DEALT_MAX])

    def seek(self, cursor: Cursor) -> None:
        """The answering client begins elsewhere: what comes behind `cursor` is not dealt with."""
        if cursor != self.acked:
            self.acked = cursor
            self.dealt = ()


def _given_up(records: list[Record]) -> list[Record]:
    """One gap for each epoch. Of how many nobody knew before, nobody knows afterwards."""
    gaps: list[Record] = []
    for record in records:
        loss = OVERFLOWED if record.loss is None else record.loss
        before = gaps[-1] if gaps else None
        if before is None or before.loss is None or before.epoch != record.epoch:
            gaps.append(Record(record.epoch, record.first, record.last, record.real_ns, loss=loss))
            continue
        if loss != before.loss:
            loss = OVERFLOWED.joined(before.loss).joined(loss)
        gaps[-1] = Record(record.epoch, before.first, record.last, record.real_ns, loss=loss)
    return gaps


def _holes(reader: Reader) -> Iterable[Range]:
    """What was sent, is dealt with, and lies behind something that is not."""
    done = reader.acked
    for entry in (reader.unacked or {}).values():
        if entry.first > done + 1:
            yield done + 1, entry.first - 1
        done = entry.last
    if done < reader.sent:
        yield done + 1, reader.sent


def _joined(ranges: Iterable[Range]) -> list[Range]:
    joined: list[Range] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _cursor(record: Record) -> Cursor:
    return record.cursor
