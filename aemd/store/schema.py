"""The database file: its tables, its version, and how it is opened so that nothing in it is ever made worse.

One SQLite file in WAL mode, mode 0600, held with an exclusive lock for as long as a daemon runs on it:
two daemons on one state directory would each believe that the job ids are theirs. `synchronous=FULL`: what
was committed is on disk when the commit returns; commits are many changes each, made by a thread that nobody
waits for (`worker.py`), so that costs one fsync(2) a batch.

A file that cannot be used (damaged, written by a newer daemon, not readable) is left exactly as it is. The
daemon serves on without durable jobs and says why; what helps stands in the message.

Versions. `PRAGMA user_version` is the number of steps of MIGRATIONS that were taken. A file of an older
version is brought up to date in one transaction; a newer one is refused.
"""

from __future__ import annotations

import os
import sqlite3

APPLICATION_ID = 0x61656D64  # "aemd", in the header of the file; file(1) shows it
CACHE_KIB = 4_096
WAL_PAGES = 1_000  # checkpoint after so many, 4 MiB; SQLite's own default

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('next_job', 1), ('clean', 1);
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        uid INTEGER NOT NULL,
        user_namespace INTEGER NOT NULL,
        pid_namespace INTEGER NOT NULL,
        definition BLOB NOT NULL,
        start_ns INTEGER NOT NULL,
        create_ns INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        head INTEGER NOT NULL,
        oldest_epoch INTEGER NOT NULL,
        oldest INTEGER NOT NULL,
        acked_epoch INTEGER NOT NULL,
        acked INTEGER NOT NULL,
        seen_epoch INTEGER NOT NULL,
        seen INTEGER NOT NULL,
        dealt BLOB NOT NULL,
        entries INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        lost INTEGER NOT NULL,
        UNIQUE (uid, user_namespace, pid_namespace, name)
    );
    CREATE TABLE entries (
        job INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        last INTEGER NOT NULL,
        first INTEGER NOT NULL,
        real_ns INTEGER NOT NULL,
        key BLOB NOT NULL,
        event BLOB,
        loss BLOB,
        PRIMARY KEY (job, epoch, last)
    ) WITHOUT ROWID;
    CREATE TABLE parked (
        job INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        last INTEGER NOT NULL,
        first INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        reason TEXT NOT NULL,
        key BLOB NOT NULL,
        event BLOB,
        loss BLOB,
        PRIMARY KEY (job, epoch, last)
    ) WITHOUT ROWID;
    """,
)
VERSION = len(MIGRATIONS)


class StoreError(Exception):
    """The database cannot be used; the message says which file, why, and what helps.

    `reason` is a word for programs: STORE_DAMAGED, STORE_NEWER, STORE_IN_USE, STORE_FULL, STORE_FAILED.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def open_database(path: str) -> sqlite3.Connection:
    """The database at `path`, made if there is none, locked and up to date; StoreError if it is unusable."""
    mask = os.umask(0o077)
    try:
        database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise explain(path, error) from error
    finally:
        os.umask(mask)
    try:
        _prepare(database, path)
    except sqlite3.Error as error:
        database.close()
        raise explain(path, error) from error
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: str) -> None:
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    _check_version(database, path)
    fresh = _number(database, "PRAGMA schema_version") == 0
    if fresh:
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    database.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(str(found))
    _migrate(database)


def _check_version(database: sqlite3.Connection, path: str) -> None:
    application = _number(database, "PRAGMA application_id")
    version = _number(database, "PRAGMA user_version")
    if application not in (0, APPLICATION_ID) or (not application and version):
        raise StoreError(
            "STORE_DAMAGED",
            f"{path}: is a database of another program; move it away, or name another --state-dir",
        )
    if version > VERSION:
        raise StoreError(
            "STORE_NEWER",
            f"{path}: was written by a newer aemd (schema {version}; this one knows up to {VERSION}); "
            "run that version, or move the file away to begin anew without the durable jobs in it",
        )


def _migrate(database: sqlite3.Connection) -> None:
    version = _number(database, "PRAGMA user_version")
    if version == VERSION:
        return
    steps = "".join(MIGRATIONS[version:])
    try:
        database.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION}; COMMIT;")
    except sqlite3.Error:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _number(database: sqlite3.Connection, statement: str) -> int:
    return int(database.execute(statement).fetchone()[0])


def explain(path: str, error: sqlite3.Error) -> StoreError:
    """What went wrong with the database, in the operator's words."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            "STORE_IN_USE", f"{path}: another daemon works with this file; give each its own --state-dir"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(
            "STORE_DAMAGED",
            f"{path}: is damaged ({error}); restore it from a backup, or move it away, with its -wal, to "
            "begin anew without the durable jobs in it",
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreError("STORE_FULL", f"{path}: the disk, or the quota on it, is full; free some space")
    return StoreError("STORE_FAILED", f"{path}: {error}; see the file system's own messages")
