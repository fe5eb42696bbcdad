"""The processes at the other end, one pidfd each however many connections and sessions they have.

A process is named by its pid and start time. Whoever needs to hear of its exit holds it: each of its
connections, and the service for each of its sessions, which may outlive a connection by the lease. When the
last one lets go the pidfd is closed; when the process exits first, `gone` is called once and all holds are
void.
"""

from __future__ import annotations

import os
import select
from collections import Counter
from collections.abc import Callable

from aemd.core.principal import Principal
from aemd.peer.principal import pidfd_alive
from aemd.sources.reactor import Reactor


class Process:
    """One process that somebody holds. `pidfd` is -1 once it has exited or nobody holds it any more."""

    __slots__ = ("connections", "holds", "pidfd", "principal")

    def __init__(self, principal: Principal, pidfd: int) -> None:
        self.principal = principal  # of its first connection; pid and start time are those of all
        self.pidfd = pidfd
        self.holds = 0
        self.connections: set[int] = set()


class Processes:
    """All processes that are held."""

    def __init__(self, reactor: Reactor, gone: Callable[[Process], None], freed: Callable[[], None]) -> None:
        """`freed` is called whenever a descriptor has been given back."""
        self._reactor = reactor
        self._gone = gone
        self._freed = freed
        self._table: dict[tuple[int, int], Process] = {}
        self._per_uid: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._table)

    def of_uid(self, uid: int) -> int:
        """How many of a user's are held."""
        return self._per_uid[uid]

    def holds(self, principal: Principal) -> bool:
        """Whether this very process is held already."""
        return _key(principal) in self._table

    def pidfd_of(self, principal: Principal) -> int:
        """The pidfd of this very process; -1 if it is not held."""
        process = self._table.get(_key(principal))
        return process.pidfd if process is not None else -1

    def hold(self, principal: Principal, pidfd: int) -> Process:
        """Hold the process of a new connection; takes over `pidfd`, which was alive just now. OSError, as of
        epoll_ctl(2), leaves nothing behind.
        """
        key = _key(principal)
        process = self._table.get(key)
        if process is not None and not pidfd_alive(process.pidfd):
            # The start time could not be read, and the pid came round before we saw the first one's exit.
            self._exited(process)
            process = None
        if process is None:
            new = Process(principal, pidfd)
            try:
                self._reactor.add(pidfd, select.EPOLLIN, lambda _events: self._exited(new))
            except OSError:
                os.close(pidfd)
                raise
            process = self._table[key] = new
            self._per_uid[principal.uid] += 1
        else:
            os.close(pidfd)
        process.holds += 1
        return process

    def hold_again(self, principal: Principal) -> Process | None:
        """One hold more on a process that is held; None if it has exited or nobody holds it."""
        process = self._table.get(_key(principal))
        if process is not None:
            process.holds += 1
        return process

    def release(self, process: Process) -> None:
        """One hold less. After the exit it changes nothing."""
        process.holds -= 1
        if process.holds == 0 and process.pidfd >= 0:
            self._drop(process)

    def close(self) -> None:
        """Forget them all."""
        for process in list(self._table.values()):
            self._drop(process)

    def _exited(self, process: Process) -> None:
        self._drop(process)
        self._gone(process)

    def _drop(self, process: Process) -> None:
        del self._table[_key(process.principal)]
        uid = process.principal.uid
        self._per_uid[uid] -= 1
        if not self._per_uid[uid]:
            del self._per_uid[uid]
        self._reactor.remove(process.pidfd)
        os.close(process.pidfd)
        process.pidfd = -1
        self._freed()


def _key(principal: Principal) -> tuple[int, int]:
    return principal.pid, principal.start_time_ticks
