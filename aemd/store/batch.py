"""Changes that are committed together, and how they are carried out.

Only what is new is in a batch: of each job at most one set of cursors, the newest. The order within a batch
is that of `commit`; it holds because ids are never used twice and an entry is never written twice.

Trimming is done with the write that makes it necessary, so a history is never longer on disk than it may be.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aemd.core.history import Cursor, Keep, Range, Record
from aemd.store.rows import (
    JobRow,
    ParkedRow,
    entry_columns,
    job_columns,
    pack_ranges,
    parked_columns,
)
from aemd.store.schema import StoreError

TRIM_ROWS = 512  # looked at in one step
PURGE_ROWS = 10_000  # of a job that is gone, in one commit

_PUT_JOB = "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PUT_ENTRY = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SET_HEAD = (
    "UPDATE jobs SET epoch = ?, head = ?, oldest_epoch = ?, oldest = ?, entries = ?, bytes = ?, lost = ?"
    " WHERE id = ?"
)
_SET_ACKED = "UPDATE jobs SET acked_epoch = ?, acked = ?, seen_epoch = ?, seen = ?, dealt = ? WHERE id = ?"
_OLDEST = (
    "SELECT epoch, last, length(key) + coalesce(length(event), 0), real_ns FROM entries WHERE job = ?"
    " ORDER BY epoch, last LIMIT ?"
)
_TRIM = "DELETE FROM entries WHERE job = ? AND (epoch, last) <= (?, ?)"
_PURGE = (
    "DELETE FROM entries WHERE (job, epoch, last) IN"
    " (SELECT job, epoch, last FROM entries WHERE job = ? LIMIT ?)"
)
_PUT_PARKED = "INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_PARKED = "DELETE FROM parked WHERE job = ? AND epoch = ? AND last = ?"


@dataclass(slots=True)
class Extent:
    """How far the history of a job reaches, and what of it is kept; the store's own bookkeeping."""

    keep: Keep
    head: Cursor
    oldest: Cursor
    entries: int
    bytes: int
    lost: int

    @classmethod
    def of(cls, row: JobRow, keep: Keep) -> Extent:
        """Of a job as it stands in the database."""
        at = row.positions
        return cls(keep, at.head, at.oldest, row.entries, row.bytes, at.lost)


Told = Callable[[StoreError | None], None]


@dataclass(slots=True)
class Batch:
    """What is to be written, and who waits for it."""

    jobs: dict[int, tuple[JobRow, Keep]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    entries: dict[int, list[Record]] = field(default_factory=dict)
    acked: dict[int, tuple[Cursor, Cursor, tuple[Range, ...]]] = field(default_factory=dict)
    started: dict[int, int] = field(default_factory=dict)
    parked: dict[tuple[int, int, int], ParkedRow] = field(default_factory=dict)
    unparked: set[tuple[int, int, int]] = field(default_factory=set)
    meta: dict[str, int] = field(default_factory=dict)
    aged_ns: int = 0  # look for entries that are too old; what time it is
    size: int = 0  # bytes of entries
    waiting: list[Told] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.jobs
            or self.gone
            or self.entries
            or self.acked
            or self.started
            or self.parked
            or self.unparked
            or self.meta
            or self.aged_ns
        )

    def forget(self, job: int) -> None:
        """The job is gone, whatever else was to be written of it."""
        self.jobs.pop(job, None)
        self.size -= sum(record.size for record in self.entries.pop(job, ()))
        self.acked.pop(job, None)
        self.started.pop(job, None)
        for key in [key for key in self.parked if key[0] == job]:
            del self.parked[key]
        self.gone.add(job)


class Writer:
    """Carries batches out, on the thread that owns the connection."""

    def __init__(self, database: sqlite3.Connection, extents: dict[int, Extent]) -> None:
        self._database = database
        self._extents = extents
        self._purging: set[int] = set()  # jobs that are gone, with entries that are still there
        self._stuck = False  # the disk failed over it; not before it has taken something again

    def commit(self, batch: Batch) -> dict[int, Cursor]:
        """Write it, all or nothing; returns the jobs whose oldest entries were trimmed, and up to where.

        sqlite3.Error: nothing was written, and the batch can be tried again.
        """
        execute = self._database.execute
        changed: dict[int, Extent] = {}
        execute("BEGIN IMMEDIATE")
        try:
            self._write_jobs(batch, changed)
            self._write_entries(batch, changed)
            for job, (acked, seen, dealt) in batch.acked.items():
                execute(_SET_ACKED, (*acked, *seen, pack_ranges(dealt), job))
            for job, start_ns in batch.started.items():
                execute("UPDATE jobs SET start_ns = ? WHERE id = ?", (start_ns, job))
            self._write_parked(batch)
            for name, value in batch.meta.items():
                execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
            trimmed = self._trim_long(batch.entries, changed)
            if batch.aged_ns:
                trimmed |= self._trim_old(batch, changed)
            for job, extent in changed.items():
                columns = (*extent.head, *extent.oldest, extent.entries, extent.bytes, extent.lost, job)
                execute(_SET_HEAD, columns)
            execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                execute("ROLLBACK")
            raise
        for job in batch.gone:
            self._extents.pop(job, None)
        self._extents |= changed
        self._purging |= batch.gone
        self._stuck = False
        return trimmed

    @property
    def purges(self) -> bool:
        """Whether entries of jobs that are gone are still to be removed."""
        return bool(self._purging) and not self._stuck

    def purge(self) -> None:
        """Remove some of them."""
        job = next(iter(self._purging))
        if self._database.execute(_PURGE, (job, PURGE_ROWS)).rowcount < PURGE_ROWS:
            self._purging.discard(job)
            self._database.execute("PRAGMA incremental_vacuum")

    def put_off(self) -> None:
        """The disk failed over it."""
        self._stuck = True

    def purge_orphans(self) -> None:
        """After a start: what a daemon that was killed had not removed yet."""
        rows = self._database.execute(
            "SELECT DISTINCT job FROM entries WHERE job NOT IN (SELECT id FROM jobs)"
        )
        self._purging |= {job for (job,) in rows}

    def _extent(self, job: int, changed: dict[int, Extent]) -> Extent:
        extent = changed.get(job)
        if extent is None:
            known = self._extents[job]
            extent = changed[job] = Extent(
                known.keep, known.head, known.oldest, known.entries, known.bytes, known.lost
            )
        return extent

    def _write_jobs(self, batch: Batch, changed: dict[int, Extent]) -> None:
        execute = self._database.execute
        for job in batch.gone:
            execute("DELETE FROM jobs WHERE id = ?", (job,))
            execute("DELETE FROM parked WHERE job = ?", (job,))
        for job, (row, keep) in batch.jobs.items():
            execute(_PUT_JOB, job_columns(row))
            changed[job] = Extent.of(row, keep)

    def _write_entries(self, batch: Batch, changed: dict[int, Extent]) -> None:
        for job, records in batch.entries.items():
            self._database.executemany(_PUT_ENTRY, [entry_columns(job, record) for record in records])
            extent = self._extent(job, changed)
            extent.head = max(extent.head, records[-1].cursor)
            extent.entries += len(records)
            extent.bytes += sum(record.size for record in records)
            extent.lost += sum(
                record.last - record.first + 1 for record in records if record.loss is not None
            )

    def _write_parked(self, batch: Batch) -> None:
        self._database.executemany(_PUT_PARKED, [parked_columns(row) for row in batch.parked.values()])
        self._database.executemany(_DROP_PARKED, list(batch.unparked))

    def _trim_long(self, written: Iterable[int], changed: dict[int, Extent]) -> dict[int, Cursor]:
        """Of histories that have grown too long, the oldest entries."""
        trimmed = {}
        for job in written:
            extent = changed[job]
            while extent.entries > extent.keep.entries or extent.bytes > extent.keep.bytes:
                most, entries, size = extent.keep, extent.entries, extent.bytes
                end: Cursor | None = None
                for epoch, last, length, _ in self._database.execute(_OLDEST, (job, TRIM_ROWS)):
                    if entries <= most.entries and size <= most.bytes:
                        break
                    end, entries, size = Cursor(epoch, last), entries - 1, size - length
                if end is None:
                    break
                self._cut(job, extent, end, entries, size)
                trimmed[job] = end
        return trimmed

    def _trim_old(self, batch: Batch, changed: dict[int, Extent]) -> dict[int, Cursor]:
        """Of every history, the entries that are older than it keeps them."""
        trimmed = {}
        for job in self._extents.keys() | changed.keys():
            known = changed.get(job) or self._extents[job]
            if not known.entries or job in batch.gone:
                continue
            before_ns = batch.aged_ns - known.keep.age_ns
            end: Cursor | None = None
            entries, size = known.entries, known.bytes
            for epoch, last, length, real_ns in self._database.execute(_OLDEST, (job, TRIM_ROWS)):
                if real_ns >= before_ns:
                    break
                end, entries, size = Cursor(epoch, last), entries - 1, size - length
            if end is not None:
                self._cut(job, self._extent(job, changed), end, entries, size)
                trimmed[job] = end
        return trimmed

    def _cut(self, job: int, extent: Extent, end: Cursor, entries: int, size: int) -> None:
        self._database.execute(_TRIM, (job, *end))
        extent.oldest, extent.entries, extent.bytes = end, entries, size
