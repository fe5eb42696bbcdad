"""The thread that works on the database, and the way to it and back.

The event core never waits for a disk: batches and reads go to one thread through a queue, what became of them
comes back through another, and an eventfd tells the loop. One thread, because SQLite takes one writer, and so
a read is answered behind all writes that were asked for before it.

A batch that could not be written is not lost: it goes back to whoever sent it, with the error, to be tried
again.
"""

from __future__ import annotations

import os
import select
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from aemd.core.history import Cursor, Record
from aemd.sources.reactor import Reactor
from aemd.store.batch import Batch, Writer
from aemd.store.rows import entry_record

END_SECONDS = 10.0  # for what is queued when the daemon ends; one slow fsync

_READ = (
    "SELECT epoch, last, first, real_ns, key, event, loss FROM entries"
    " WHERE job = ? AND (epoch, last) > (?, ?) ORDER BY epoch, last LIMIT ?"
)
_FIND = "SELECT epoch, first FROM entries WHERE job = ? AND real_ns >= ? ORDER BY epoch, last LIMIT 1"


@dataclass(frozen=True, slots=True)
class Read:
    """Wants the entries of `job` behind `after`: so many at most, and, but for one, no more bytes."""

    job: int
    after: Cursor
    entries_max: int
    bytes_max: int
    done: Callable[[list[Record]], None]

    def run(self, database: sqlite3.Connection) -> list[Record]:
        """The entries."""
        found: list[Record] = []
        size = 0
        for row in database.execute(_READ, (self.job, *self.after, self.entries_max)):
            record = entry_record(row)
            size += record.size
            if found and size > self.bytes_max:
                break
            found.append(record)
        return found


@dataclass(frozen=True, slots=True)
class Find:
    """Wants the position before the first entry of `job` that was recorded at or after a time; None: all are
    older.
    """

    job: int
    real_ns: int
    done: Callable[[Cursor | None], None]

    def run(self, database: sqlite3.Connection) -> Cursor | None:
        """The position."""
        row = database.execute(_FIND, (self.job, self.real_ns)).fetchone()
        return None if row is None else Cursor(row[0], row[1] - 1)


Query = Read | Find


class Worker:
    """One thread, one connection."""

    def __init__(
        self,
        reactor: Reactor,
        database: sqlite3.Connection,
        writer: Writer,
        *,
        written: Callable[[Batch, dict[int, Cursor], sqlite3.Error | None], None],
        failed: Callable[[Query, sqlite3.Error], None],
    ) -> None:
        """`written` is told of every batch, with what was trimmed, or with the error that kept it from being
        written; `failed` of a query that could not be answered. Both are called from the loop.
        """
        self._reactor = reactor
        self._database = database
        self._writer = writer
        self._written = written
        self._failed = failed
        self._asked: SimpleQueue[Batch | Query | threading.Event | None] = SimpleQueue()
        self._answers: deque[Callable[[], None]] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        reactor.add(self._bell, select.EPOLLIN, self._rung)
        self._thread: threading.Thread | None = None  # until there is something to do
        if writer.purges:
            self._begin()

    def submit(self, wish: Batch | Query) -> None:
        """Do this after everything that was submitted before."""
        self._asked.put(wish)
        if self._thread is None:
            self._begin()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._work, name="aemd-store", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Wait until what was submitted is done, as long as that may take at the end, and tell of it."""
        if self._thread is None:
            return
        done = threading.Event()
        self._asked.put(done)
        done.wait(END_SECONDS)
        self._answer()

    def close(self) -> bool:
        """Finish what was submitted, and end; False if that took too long. What became of it is told."""
        ended = True
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(END_SECONDS)
            ended = not self._thread.is_alive()
        self._reactor.remove(self._bell)
        if ended:
            self._answer()
            self._database.close()
            os.close(self._bell)
        return ended

    # -- on the loop

    def _rung(self, _events: int) -> None:
        os.eventfd_read(self._bell)
        self._answer()

    def _answer(self) -> None:
        while self._answers:
            self._answers.popleft()()

    # -- on the thread

    def _work(self) -> None:
        while True:
            if self._writer.purges and self._asked.empty():
                self._purge()
                continue
            wish = self._asked.get()
            if wish is None:
                return
            if isinstance(wish, threading.Event):
                wish.set()
                continue
            self._answers.append(self._write(wish) if isinstance(wish, Batch) else self._ask(wish))
            os.eventfd_write(self._bell, 1)

    def _write(self, batch: Batch) -> Callable[[], None]:
        try:
            trimmed = self._writer.commit(batch)
        except sqlite3.Error as error:
            failure = error
            return lambda: self._written(batch, {}, failure)
        return lambda: self._written(batch, trimmed, None)

    def _ask(self, query: Query) -> Callable[[], None]:
        try:
            found = query.run(self._database)
        except sqlite3.Error as error:
            failure = error
            return lambda: self._failed(query, failure)
        return lambda: query.done(found)  # type: ignore[arg-type]

    def _purge(self) -> None:
        try:
            self._writer.purge()
        except sqlite3.Error:
            self._writer.put_off()
