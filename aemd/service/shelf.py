"""What the service manager keeps for the next daemon, and how it is told: paced, in turn, never waited for.

The manager looks at all that it keeps for each descriptor that is added, so what it is asked for is bounded:
in all, for each user (core/pool.py), and in each moment. Who finds no room waits until somebody goes, the
users in turn. What is not wanted any more before its turn came is never told. A manager that takes nothing is
asked again, more and more seldom.

The manager acts on what it is told later, and says so only when asked (BARRIER=1): await_read().
"""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from select import EPOLLHUP

from aemd.core.limits import MS, SECOND
from aemd.core.pool import Pool
from aemd.service.notify import Notifier
from aemd.sources.reactor import Reactor, Timer

KEPT_MAX = 400  # descriptors; the unit allows 512, and connections and the daemon's own come on top
BATCH = 8  # are told in a moment
PAUSE_NS = 100 * MS  # between one and the next
PAUSE_MAX_NS = 10 * SECOND  # while the manager takes nothing
READ_NS = 5 * SECOND  # by then it has read what it was told, or is not waited for


@dataclass(slots=True, eq=False)
class _Kept:
    """What is kept by a name; of whom nobody knows yet where `uid` is -1."""

    uid: int
    descriptors: Sequence[int]
    count: int


class Shelf:
    """The names that are kept, those that wait for that, and those to be forgotten."""

    def __init__(self, notifier: Notifier, reactor: Reactor) -> None:
        self._notifier = notifier
        self._reactor = reactor
        self._kept: dict[str, _Kept] = {}
        self._waiting: OrderedDict[int, OrderedDict[str, _Kept]] = OrderedDict()  # by user
        self._forgotten: deque[str] = deque()
        self._used: Counter[int] = Counter()
        self._pool = Pool(lambda: KEPT_MAX, key="FileDescriptorStoreMax")
        self._timer: Timer | None = None
        self._pause_ns = PAUSE_NS
        self._reading: _Barrier | None = None
        self._unread: list[Callable[[], None]] = []  # wait for the next barrier
        self._patience: Timer | None = None  # of these, with a manager that cannot even be asked

    def __contains__(self, name: str) -> bool:
        """Whether the manager was told to keep it."""
        return name in self._kept

    @property
    def kept(self) -> int:
        """How many descriptors the manager was told to keep."""
        return self._pool.used

    @property
    def waiting(self) -> int:
        """How many names wait for room, or for their turn."""
        return sum(map(len, self._waiting.values()))

    # -- wishes

    def has(self, name: str, count: int) -> None:
        """The manager keeps it since the daemon before."""
        self._add(name, _Kept(-1, (), count))

    def put(self, name: str, uid: int, descriptors: Sequence[int]) -> None:
        """Have it kept when its turn comes; they stay open until then, or until drop(). Of what is there
        already it is only noted whose it is.
        """
        if not self._notifier:
            return
        known = self._kept.get(name)
        if known is not None:
            self._used[known.uid] -= known.count
            self._used[uid] += known.count
            known.uid = uid
            return
        kept = _Kept(uid, tuple(descriptors), len(descriptors))
        self._waiting.setdefault(uid, OrderedDict())[name] = kept

    def drop(self, name: str) -> bool:
        """Have it kept no longer; whether the manager has to be told."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._pool.used -= kept.count
            self._used[kept.uid] -= kept.count
            if not self._used[kept.uid]:
                del self._used[kept.uid]
            self._forgotten.append(name)
            return True
        for uid, names in self._waiting.items():
            if names.pop(name, None) is not None:
                if not names:
                    del self._waiting[uid]
                return False
        return False

    # -- telling

    def flush(self) -> None:
        """Tell as much as may be told now."""
        if self._timer is not None or not (self._forgotten or self._waiting or self._unread):
            return
        if not self._forget():
            self._later(min(2 * self._pause_ns, PAUSE_MAX_NS))
            return
        if self._unread and self._reading is None and not self._ask():
            self._later(min(2 * self._pause_ns, PAUSE_MAX_NS))
            return
        for told in range(BATCH + 1):
            turn = self._next()
            if turn is None:
                return
            if told == BATCH:
                self._later(PAUSE_NS)
            elif not self._store(*turn, wait=False):
                self._later(min(2 * self._pause_ns, PAUSE_MAX_NS))
                return

    def _forget(self, *, wait: bool = False) -> bool:
        while self._forgotten:
            if not self._notifier.forget(self._forgotten[0], wait=wait):
                return False
            self._forgotten.popleft()
        return True

    def _next(self) -> tuple[str, _Kept] | None:
        """Who is next: the users in turn, and who has room."""
        for uid in list(self._waiting):
            name, kept = next(iter(self._waiting[uid].items()))
            used = self._used[uid]
            if used + kept.count <= self._pool.share(used, administrator=False):
                self._waiting.move_to_end(uid)
                return name, kept
        return None

    def _store(self, name: str, kept: _Kept, *, wait: bool) -> bool:
        if not self._notifier.store(name, kept.descriptors, poll=False, wait=wait):
            return False
        names = self._waiting[kept.uid]
        del names[name]
        if not names:
            del self._waiting[kept.uid]
        self._add(name, kept)
        return True

    def _add(self, name: str, kept: _Kept) -> None:
        self._kept[name] = kept
        self._pool.used += kept.count
        self._used[kept.uid] += kept.count

    def _later(self, pause_ns: int) -> None:
        self._pause_ns = pause_ns
        clock = self._reactor.clock("monotonic")
        self._timer = clock.call_at(clock.now_ns() + pause_ns, self._again)

    def _again(self, _now_ns: int) -> None:
        self._timer = None
        self.flush()
        if self._timer is None:
            self._pause_ns = PAUSE_NS

    # -- what it has read

    def await_read(self, done: Callable[[], None]) -> None:
        """Call `done` once the manager has read all that it was told, or that has taken too long."""
        self._unread.append(done)
        if self._patience is None:
            clock = self._reactor.clock("monotonic")
            self._patience = clock.call_at(clock.now_ns() + READ_NS, self._read_no_more)

    def _read_no_more(self, _now_ns: int) -> None:
        for done in self._take_unread():
            done()

    def _take_unread(self) -> list[Callable[[], None]]:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        waiting, self._unread = self._unread, []
        return waiting

    def _ask(self) -> bool:
        reader = self._notifier.begin_barrier()
        if reader < 0:
            return False
        waiting = self._take_unread()

        def over() -> None:
            self._reading = None
            for done in waiting:
                done()

        self._reading = _Barrier(self._reactor, reader, over)
        return True

    # -- the end

    def settle(self, until: float) -> None:
        """Tell all that may be told, waiting for the manager until then, CLOCK_MONOTONIC seconds; what has
        not been told by then is not kept.
        """
        self._stop()
        if self._forget(wait=True):
            while time.monotonic() < until and (turn := self._next()) is not None:
                if not self._store(*turn, wait=True):
                    break
        self._waiting.clear()

    def close(self) -> None:
        """Say what is still to be forgotten, and nothing more."""
        self._stop()
        self._take_unread()
        self._waiting.clear()
        self._forget()
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Barrier:
    """Until the manager closes its end of a pipe."""

    def __init__(self, reactor: Reactor, reader: int, done: Callable[[], None]) -> None:
        self._reactor = reactor
        self._reader = reader
        self._done = done
        clock = reactor.clock("monotonic")
        self._timer = clock.call_at(clock.now_ns() + READ_NS, self._over)
        reactor.add(reader, EPOLLHUP, self._over)

    def _over(self, _event: int) -> None:
        self.close()
        self._done()

    def close(self) -> None:
        """Wait no longer."""
        self._timer.cancel()
        self._reactor.remove(self._reader)
        os.close(self._reader)
