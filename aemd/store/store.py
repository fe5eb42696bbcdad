"""What durable jobs leave behind: the store, as the rest of the daemon knows it.

Changes are noted during a turn and go to the thread together at its end, or, while it is still busy with
the batch before, together with those of later turns: under load batches grow by themselves, and each costs
one fsync(2). A change is safe once its batch is written; `written_to` says how far that is for a job.

What cannot be written (the disk is full, the device fails) is kept and tried again, first soon, then more
seldom. Meanwhile durable jobs go on from memory, up to PENDING_BYTES_MAX; what comes beyond that is
refused, and whoever records it has to say that it was lost. `trouble` tells why.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping

import structlog

from aemd.core.history import Cursor, Keep, Range, Record
from aemd.core.limits import SECOND
from aemd.sources.reactor import Reactor, Timer
from aemd.store.batch import Batch, Extent, Told, Writer
from aemd.store.rows import JobRow, ParkedRow, job_row, parked_row
from aemd.store.schema import StoreError, explain, open_database
from aemd.store.worker import Find, Query, Read, Worker

PENDING_BYTES_MAX = 64 * 1024 * 1024  # of entries that wait to be written
RETRY_MIN_NS = 1 * SECOND
RETRY_MAX_NS = 30 * SECOND
AGE_CHECK_NS = 60 * SECOND  # how often histories are looked at for what is too old, while there is a job
_NEWEST = (
    "SELECT event FROM entries WHERE job = ? AND event IS NOT NULL ORDER BY epoch DESC, last DESC LIMIT 1"
)
ID_BLOCK = 65_536  # job ids are taken from the file in blocks: one write for so many jobs


class Store:
    """The durable jobs of one daemon. Everything is called from the loop, and answers come there."""

    def __init__(
        self,
        reactor: Reactor,
        path: str,
        *,
        keep_of: Callable[[JobRow], Keep],
        trimmed: Callable[[int, Cursor], None],
        written: Callable[[Iterable[int]], None],
    ) -> None:
        """Open the file; StoreError if it cannot be used.

        `keep_of` says how much of a job's history is kept; `trimmed` hears that of a job everything up to a
        position is gone; `written` that more has been written, and of which jobs, or, with none, that it
        could not be.
        """
        self.path = path
        self.trouble: StoreError | None = None
        self._reactor = reactor
        self._trimmed = trimmed
        self._told = written
        self._clock = reactor.clock("monotonic")
        database = open_database(path)
        try:
            self.jobs = [job_row(row) for row in database.execute("SELECT * FROM jobs ORDER BY id")]
            meta = dict(database.execute("SELECT name, value FROM meta"))
            newest = ((row.id, database.execute(_NEWEST, (row.id,)).fetchone()) for row in self.jobs)
            self.newest: dict[int, bytes] = {job: found[0] for job, found in newest if found is not None}
            self.parked = [parked_row(row) for row in database.execute("SELECT * FROM parked")]
            self.clean = bool(meta["clean"])
            self.next_id = meta["next_job"]
            self._reserved = self.next_id + ID_BLOCK
            beginning = [(0, "clean"), (self._reserved, "next_job")]
            database.execute("BEGIN")
            database.executemany("UPDATE meta SET value = ? WHERE name = ?", beginning)
            database.execute("COMMIT")
        except sqlite3.Error as error:
            database.close()
            raise explain(path, error) from error
        except BaseException:
            database.close()
            raise
        writer = Writer(database, {row.id: Extent.of(row, keep_of(row)) for row in self.jobs})
        writer.purge_orphans()
        self._worker = Worker(reactor, database, writer, written=self._written, failed=self._failed)
        self._next = Batch()
        self._sent: Batch | None = None
        self._closing = False
        self._retry: Timer | None = None
        self._retry_ns = RETRY_MIN_NS
        self._written_to: dict[int, Cursor] = {row.id: row.positions.head for row in self.jobs}
        self._aging: Timer | None = None
        self._age_later()

    # -- what is to be written

    def reserve(self, job_id: int) -> None:
        """Job ids up to this one are used: none is given out again, whatever becomes of the daemon."""
        if job_id >= self._reserved:
            self._reserved = job_id + ID_BLOCK
            self._next.meta["next_job"] = self._reserved

    def put(self, row: JobRow, keep: Keep) -> None:
        """A durable job is there, or was changed."""
        self._next.jobs[row.id] = (row, keep)
        self._written_to.setdefault(row.id, row.positions.head)
        self._age_later()

    def forget(self, job: int) -> None:
        """It is gone, with its history."""
        self._next.forget(job)
        self._written_to.pop(job, None)

    def append(self, job: int, records: list[Record]) -> bool:
        """More history; False if so much waits already that it is not taken."""
        size = sum(record.size for record in records)
        if self.pending_bytes + size > PENDING_BYTES_MAX:
            return False
        self._next.entries.setdefault(job, []).extend(records)
        self._next.size += size
        return True

    def set_acked(self, job: int, acked: Cursor, seen: Cursor, dealt: tuple[Range, ...]) -> None:
        """What its answering client has dealt with, and what it was sent."""
        self._next.acked[job] = (acked, seen, dealt)

    def set_started(self, job: int, start_ns: int) -> None:
        """When it was started; STOPPED or SPENT."""
        self._next.started[job] = start_ns

    def park(self, row: ParkedRow) -> None:
        """An entry was put aside."""
        key = (row.job, *row.parked.cursor)
        self._next.parked[key] = row
        self._next.unparked.discard(key)

    def unpark(self, job: int, cursor: Cursor) -> None:
        """It is no longer put aside."""
        key = (job, *cursor)
        self._next.parked.pop(key, None)
        self._next.unparked.add(key)

    def flush(self) -> None:
        """The turn is over: write what it has changed, unless the thread is still at it."""
        if self._sent is None and self._retry is None and self._next and not self._closing:
            self._sent, self._next = self._next, Batch()
            self._worker.submit(self._sent)

    def is_new(self, job: int) -> bool:
        """Whether it was put, or changed, and that is not on disk yet."""
        return job in self._next.jobs or (self._sent is not None and job in self._sent.jobs)

    def when_written(self, told: Told) -> None:
        """Tell `told` once everything that was said up to now is on disk, or why it is not there yet."""
        if self._retry is not None:
            told(self.trouble)
        elif self._next:
            self._next.waiting.append(told)
        elif self._sent is not None:
            self._sent.waiting.append(told)
        else:
            told(None)

    @property
    def pending_bytes(self) -> int:
        """Bytes of entries that are not written yet."""
        return self._next.size + (self._sent.size if self._sent is not None else 0)

    def written_to(self, job: int) -> Cursor:
        """Everything of the job up to here is on disk."""
        return self._written_to[job]

    # -- what is to be read

    def read(
        self,
        job: int,
        after: Cursor,
        *,
        entries_max: int,
        bytes_max: int,
        done: Callable[[list[Record]], None],
    ) -> None:
        """Entries of `job` behind `after` that are on disk; `done` gets none if the disk fails."""
        self._worker.submit(Read(job, after, entries_max, bytes_max, done))

    def find(self, job: int, real_ns: int, done: Callable[[Cursor | None], None]) -> None:
        """The position before the first entry of `job` that was recorded at or after a time."""
        self._worker.submit(Find(job, real_ns, done))

    # -- the end

    def close(self, *, whole: bool = True) -> bool:
        """Write everything; True if the next daemon can rely on it that nothing is missing. `whole`: nothing
        was refused by append() and is still to come.
        """
        self._closing = True  # what is said of a write asks for no other
        for timer in (self._retry, self._aging):
            if timer is not None:
                timer.cancel()
        if self._sent is not None and self._retry is None:
            self._worker.settle()
        if self._sent is not None and self._retry is not None:  # it failed: one last time
            self._send(self._sent)
        if self._sent is None:
            self._next.meta |= {"clean": int(whole), "next_job": self.next_id}
            batch, self._next = self._next, Batch()
            self._send(batch)
        return self._worker.close() and self._sent is None and whole

    def _send(self, batch: Batch) -> None:
        self._sent = batch
        self._worker.submit(batch)
        self._worker.settle()

    # -- what the thread says

    def _written(self, batch: Batch, trimmed: Mapping[int, Cursor], error: sqlite3.Error | None) -> None:
        if error is not None:
            self._fail(batch, error)
            return
        self._sent = None
        self._retry_ns = RETRY_MIN_NS
        if self.trouble is not None:
            self.trouble = None
            structlog.get_logger().warning("store works again", path=self.path)
        for job, records in batch.entries.items():
            if job in self._written_to:
                self._written_to[job] = records[-1].cursor
        for job, oldest in trimmed.items():
            self._trimmed(job, oldest)
        self._told(batch.entries)
        self._tell(batch, None)

    def _fail(self, batch: Batch, error: sqlite3.Error) -> None:
        found = explain(self.path, error)
        if self.trouble is None:
            structlog.get_logger().error("store cannot be written", reason=found.reason, error=str(found))
        self.trouble = found
        self._tell(batch, found)
        self._retry = self._clock.call_at(self._clock.now_ns() + self._retry_ns, self._again)
        self._retry_ns = min(2 * self._retry_ns, RETRY_MAX_NS)
        self._told(())

    def _tell(self, batch: Batch, trouble: StoreError | None) -> None:
        waiting, batch.waiting = batch.waiting, []
        for told in waiting:
            told(trouble)

    def _again(self, _now_ns: int) -> None:
        self._retry = None
        if self._sent is not None:
            self._worker.submit(self._sent)

    def _failed(self, query: Query, error: sqlite3.Error) -> None:
        found = explain(self.path, error)
        structlog.get_logger().error("store cannot be read", reason=found.reason, error=str(found))
        if isinstance(query, Find):
            query.done(None)
        else:
            query.done([])

    def _age_later(self) -> None:
        if self._aging is None and self._written_to:
            self._aging = self._clock.call_at(self._clock.now_ns() + AGE_CHECK_NS, self._age)

    def _age(self, _now_ns: int) -> None:
        self._aging = None
        self._next.aged_ns = self._reactor.real_ns()
        self.flush()
        self._age_later()
