"""The store on a real file, with its thread, over the real loop."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aemd.core.entry import OVERFLOWED, SOURCE_FAILED
from aemd.core.history import START, Cursor, Keep, Positions, Record
from aemd.core.principal import Owner
from aemd.core.stats import Parked
from aemd.loop.loop import Loop
from aemd.store.rows import STOPPED, JobRow, ParkedRow
from aemd.store.schema import VERSION, StoreError
from aemd.store.store import ID_BLOCK, PENDING_BYTES_MAX, Store

TURN_NS = 1_000_000_000
TURNS_MAX = 100


class Bench:
    """A store at a path, and what it has told."""

    def __init__(self, path: Path, keep: Keep) -> None:
        self.path, self.keep = path, keep
        self.loop = Loop()
        self.trimmed: dict[int, Cursor] = {}
        self.told = 0
        self.store = Store(
            self.loop,
            os.fspath(path),
            keep_of=lambda _row: keep,
            trimmed=self.trimmed.__setitem__,
            written=self._written,
        )
        self.open = True

    def _written(self, _jobs: Iterable[int]) -> None:
        self.told += 1

    def until(self, done: Callable[[], object]) -> None:
        for _ in range(TURNS_MAX):
            if done():
                return
            self.loop.turn(TURN_NS)
        raise AssertionError("it did not come")

    def write(self) -> None:
        """Flush, and wait until it is written."""
        before = self.told
        self.store.flush()
        self.until(lambda: self.told > before)

    def read(
        self, job: int, after: Cursor = START, *, entries_max: int = 1_000, bytes_max: int = 1 << 20
    ) -> list[Record]:
        found: list[list[Record]] = []
        self.store.read(job, after, entries_max=entries_max, bytes_max=bytes_max, done=found.append)
        self.until(lambda: found)
        return found[0]

    def close(self) -> bool:
        self.open = False
        clean = self.store.close()
        self.loop.close()
        return clean


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    benches: list[Bench] = []

    def make(keep: Keep = Keep()) -> Bench:  # noqa: B008 - frozen
        benches.append(Bench(tmp_path / "aemd.db", keep))
        return benches[-1]

    yield make
    for bench in benches:
        if bench.open:
            bench.close()


def job(number: int = 7, *, name: str = "backup", uid: int = 1000) -> JobRow:
    return JobRow(
        id=number,
        name=name,
        owner=Owner(uid),
        definition=b"\x00how to make it",
        start_ns=3,
        create_ns=5,
    )


def event(number: int, *, size: int = 4, real_ns: int = 0, epoch: int = 1) -> Record:
    return Record(epoch, number, number, real_ns or number, key=b"k", event=bytes([number % 256]) * size)


def test_history_survives_its_daemon(make: Make) -> None:
    bench = make()
    records = [
        event(1),
        Record(1, 2, 4, 9, loss=OVERFLOWED),
        Record(1, 5, 5, 9, loss=SOURCE_FAILED),
        event(6),
    ]
    bench.store.put(job(), bench.keep)
    bench.store.append(7, records)
    bench.store.set_acked(7, Cursor(1, 1), Cursor(1, 5), ((5, 5),))
    bench.store.set_started(7, STOPPED)
    bench.write()
    assert bench.store.written_to(7) == (1, 6)
    assert bench.close()

    again = make()
    assert again.store.clean
    assert again.store.jobs == [
        replace(
            job(),
            start_ns=STOPPED,
            positions=Positions(Cursor(1, 6), START, Cursor(1, 1), ((5, 5),), Cursor(1, 5), lost=4),
            entries=4,
            bytes=10,
        )
    ]
    assert again.store.newest == {7: event(6).event}
    assert again.read(7) == records
    assert again.read(7, Cursor(1, 4)) == records[2:]


def test_one_read_gives_no_more_than_was_asked_for(make: Make) -> None:
    bench = make()
    bench.store.put(job(), bench.keep)
    bench.store.append(7, [event(number, size=99) for number in range(1, 11)])
    bench.write()
    assert [record.last for record in bench.read(7, entries_max=3)] == [1, 2, 3]
    assert [record.last for record in bench.read(7, Cursor(1, 3), bytes_max=250)] == [4, 5]
    assert [record.last for record in bench.read(7, bytes_max=1)] == [1]


def test_a_new_epoch_comes_behind_the_old_one(make: Make) -> None:
    bench = make()
    bench.store.put(job(), bench.keep)
    bench.store.append(7, [event(8), Record(2, 1, 1, 9, loss=SOURCE_FAILED), event(2, epoch=2)])
    bench.write()
    assert [record.cursor for record in bench.read(7, Cursor(1, 7))] == [(1, 8), (2, 1), (2, 2)]
    assert [record.cursor for record in bench.read(7, Cursor(2, 1))] == [(2, 2)]


def test_history_is_trimmed_by_count(make: Make) -> None:
    bench = make(Keep(entries=3))
    bench.store.put(job(), bench.keep)
    bench.store.append(7, [event(number) for number in range(1, 1_500)])
    bench.write()
    assert bench.trimmed == {7: (1, 1_496)}
    assert [record.last for record in bench.read(7)] == [1_497, 1_498, 1_499]
    bench.close()
    assert make(Keep(entries=3)).store.jobs[0].positions.oldest == (1, 1_496)


def test_history_is_trimmed_by_bytes(make: Make) -> None:
    bench = make(Keep(bytes=250))
    bench.store.put(job(), bench.keep)
    for number in range(1, 5):
        bench.store.append(7, [event(number, size=99)])
        bench.write()
    assert bench.trimmed == {7: (1, 2)}
    assert [record.last for record in bench.read(7)] == [3, 4]


def test_history_is_trimmed_by_age(make: Make) -> None:
    bench = make(Keep(age_ns=TURN_NS))
    bench.store.put(job(), bench.keep)
    now_ns = bench.loop.real_ns()
    bench.store.append(7, [event(1, real_ns=now_ns - 5 * TURN_NS), event(2, real_ns=now_ns)])
    bench.write()
    assert not bench.trimmed
    bench.store._age(0)
    bench.until(lambda: bench.trimmed)
    assert bench.trimmed == {7: (1, 1)}
    assert [record.last for record in bench.read(7)] == [2]


def test_a_job_that_is_gone_leaves_nothing(make: Make, tmp_path: Path) -> None:
    bench = make(Keep(entries=100_000))
    for number in (7, 8):
        bench.store.put(job(number, name=str(number)), bench.keep)
        bench.store.append(number, [event(n) for n in range(1, 25_000)])
        bench.store.park(ParkedRow(number, Parked(1, 1, 1, "failed", 3, b"", b"event")))
    bench.write()
    bench.store.forget(7)
    bench.write()
    assert bench.read(7) == [] or bench.read(8)  # what is left of 7 is being removed, and nobody asks for it
    bench.close()
    again = make()
    again.until(lambda: again.read(7) == [])
    assert [row.id for row in again.store.jobs] == [8]
    assert len(again.read(8, entries_max=100_000, bytes_max=1 << 30)) == 24_999


def test_a_position_is_found_by_time(make: Make) -> None:
    bench = make()
    bench.store.put(job(), bench.keep)
    bench.store.append(7, [event(number, real_ns=100 * number) for number in range(1, 4)])
    bench.write()
    found: list[Cursor | None] = []
    for real_ns in (0, 150, 200, 301):
        bench.store.find(7, real_ns, found.append)
    bench.until(lambda: len(found) == 4)
    assert found == [(1, 0), (1, 1), (1, 1), None]


def test_what_is_put_aside_is_there_until_it_is_taken_back(make: Make) -> None:
    bench = make()
    bench.store.put(job(), bench.keep)
    rows = [
        ParkedRow(7, Parked(1, 3, 3, "exit status 1", 5, b"key", b"event")),
        ParkedRow(7, Parked(1, 4, 6, "no room", 2)),
        ParkedRow(7, Parked(2, 1, 1, "a gap", 1, b"", b"", SOURCE_FAILED)),
    ]
    for row in rows:
        bench.store.park(row)
    bench.write()
    bench.close()
    again = make()
    assert again.store.parked == rows
    again.store.unpark(7, Cursor(1, 3))
    again.close()
    assert make().store.parked == rows[1:]


def test_a_daemon_that_was_killed_is_noticed(make: Make, tmp_path: Path) -> None:
    program = """if True:
        import os, sys
        from aemd.core.history import Keep
        from aemd.loop.loop import Loop
        from aemd.store.store import Store
        store = Store(Loop(), sys.argv[1], keep_of=None, trimmed=None, written=print)
        store.reserve(17)
        store.flush()
        store._worker.settle()
        os.kill(os.getpid(), 9)
    """
    ended = subprocess.run([sys.executable, "-c", program, tmp_path / "aemd.db"], check=False)
    assert ended.returncode == -9
    store = make().store
    assert not store.clean
    assert store.next_id == 1 + ID_BLOCK


def test_ids_are_taken_in_blocks_and_given_back_at_an_orderly_end(make: Make) -> None:
    bench = make()
    bench.store.reserve(ID_BLOCK)
    bench.store.flush()
    assert bench.store._sent is None
    bench.store.reserve(ID_BLOCK + 1)
    bench.write()
    bench.store.next_id = 3
    bench.close()
    assert make().store.next_id == 3


def test_too_much_that_waits_is_refused_and_the_rest_is_kept(make: Make) -> None:
    bench = make(Keep(bytes=1 << 30))
    bench.store.put(job(), bench.keep)
    half = PENDING_BYTES_MAX // 2
    assert bench.store.append(7, [event(1, size=half)])
    assert not bench.store.append(7, [event(2, size=half)])
    bench.write()
    assert bench.store.append(7, [event(2, size=half)])
    bench.write()
    assert [record.last for record in bench.read(7, bytes_max=1 << 30)] == [1, 2]


def test_changes_of_a_busy_time_are_written_together(make: Make) -> None:
    bench = make()
    bench.store.put(job(), bench.keep)
    bench.store.flush()
    for number in range(1, 11):
        bench.store.append(7, [event(number)])
        bench.store.flush()
    bench.until(lambda: bench.told == 1)
    bench.store.flush()
    bench.until(lambda: bench.told == 2)
    assert bench.store.written_to(7) == (1, 10)


FULL = """if True:
    import os, sys, structlog
    from aemd.core.history import Cursor, Keep, Record
    from aemd.core.principal import Owner
    from aemd.loop.loop import Loop
    from aemd.store import store as module
    from aemd.store.rows import JobRow

    folder, start = sys.argv[1], Cursor(1, 0)
    loop, told = Loop(), []
    def written(_jobs):
        told.append(bool(store.trouble))
    store = module.Store(loop, folder + "/aemd.db", keep_of=None, trimmed=None, written=written)
    keep = Keep(bytes=1 << 30)
    store.put(JobRow(7, "full", Owner(0), b"", 1, 0), keep)
    with open(folder + "/filler", "wb") as filler:
        try:
            while True:
                os.write(filler.fileno(), bytes(4096))
        except OSError:
            pass
    for number in range(1, 9):
        assert store.append(7, [Record(1, number, number, number, event=bytes(10_000))])
        store.flush()
    while not any(told):
        loop.turn(10**9)
    assert "full" in str(store.trouble)
    refused = []
    store.when_written(refused.append)
    assert refused == [store.trouble]
    os.unlink(folder + "/filler")
    while store.written_to(7) != (1, 8):
        loop.turn(10**9)
        store.flush()
    assert store.trouble is None
    found = []
    store.read(7, start, entries_max=99, bytes_max=1 << 30, done=found.extend)
    while not found:
        loop.turn(10**9)
    assert [record.last for record in found] == list(range(1, 9)), found
    assert store.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_told_and_nothing_is_lost_when_there_is_room_again(tmp_path: Path) -> None:
    mounted = 'mount -t tmpfs -o size=200k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, "sh", tmp_path, sys.executable, FULL],
        check=True,
        timeout=50,
    )


def test_two_daemons_do_not_share_a_file(make: Make) -> None:
    make()
    with pytest.raises(StoreError, match="another daemon") as raised:
        make()
    assert raised.value.reason == "STORE_IN_USE"


@pytest.mark.parametrize(
    ("reason", "prepare"),
    [
        ("STORE_DAMAGED", lambda path: path.write_bytes(b"this is no database, whatever its name says" * 99)),
        ("STORE_DAMAGED", lambda path: _sql(path, "PRAGMA application_id = 1; CREATE TABLE theirs (x)")),
        (
            "STORE_NEWER",
            lambda path: _sql(
                path, f"PRAGMA application_id = 1634037092; PRAGMA user_version = {VERSION + 1}"
            ),
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_left_as_it_is(
    make: Make, tmp_path: Path, reason: str, prepare: Callable[[Path], None]
) -> None:
    path = tmp_path / "aemd.db"
    prepare(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=str(path)) as raised:
        make()
    assert raised.value.reason == reason
    assert path.read_bytes() == before


def test_damage_in_the_middle_of_a_file_is_found(make: Make, tmp_path: Path) -> None:
    bench = make()
    bench.store.put(job(), bench.keep)
    bench.store.append(7, [event(number, size=2_000) for number in range(1, 200)])
    bench.write()
    bench.close()
    path = tmp_path / "aemd.db"
    content = bytearray(path.read_bytes())
    for page in range(3, len(content) // 4096, 2):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        make()


def test_nobody_else_can_read_the_file(make: Make, tmp_path: Path) -> None:
    make()
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def _sql(path: Path, script: str) -> None:
    database = sqlite3.connect(path)
    database.executescript(script)
    database.close()
