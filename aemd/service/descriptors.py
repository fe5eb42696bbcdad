"""The budget of file descriptors, and of the kernel objects behind them.

A process has RLIMIT_NOFILE descriptors, whoever asks, and what runs out of them fails in places that cannot
say why. So a job's descriptors are charged before they are opened, and refused while there is still enough
for the daemon itself: a reserve, and what its connections hold. How users share the rest is core/pool.py's.

The job holds the charge: what it has not given back when it is closed is refunded then.
"""

from __future__ import annotations

import resource
from collections.abc import Callable

from aemd.core.accounts import Account, Accounts
from aemd.core.pool import Pool
from aemd.core.principal import Principal

CONFIG_KEY = "RLIMIT_NOFILE (LimitNOFILE= of the unit)"


def raise_limit() -> int:
    """Take all descriptors that the kernel lets this process have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class _Held:
    """What one job holds."""

    __slots__ = ("account", "descriptors", "sources")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.descriptors = 0
        self.sources = 0


class Descriptors:
    """Which job holds how many."""

    def __init__(self, *, limit: int, reserve: int, others: Callable[[], int], accounts: Accounts) -> None:
        """`limit`: of the process; `reserve`: kept back for the daemon; `others`: what holds descriptors
        without being a job, counted when asked.
        """
        self.limit = limit
        self._accounts = accounts
        self._pool = Pool(lambda: max(limit - reserve - others(), 0), key=CONFIG_KEY)
        accounts.pools["descriptors"] = self._pool
        self._jobs: dict[int, _Held] = {}

    @property
    def charged(self) -> int:
        """How many all jobs hold."""
        return self._pool.used

    def charge(self, job_id: int, count: int, *, owner: Principal, sources: int = 0) -> None:
        """Give a job of `owner` so many descriptors and `sources`; RESOURCE_EXHAUSTED if there are too few,
        and it is given nothing.
        """
        account = self._accounts.of(owner)
        allowance = self._accounts.allowance(owner)
        account.charge("descriptors", allowance, count)
        try:
            account.charge("sources", allowance, sources)
        except BaseException:
            account.refund("descriptors", count)
            raise
        held = self._jobs.get(job_id)
        if held is None:
            held = self._jobs[job_id] = _Held(account)
            account.hold()
        held.descriptors += count
        held.sources += sources

    def refund(self, job_id: int, count: int, *, sources: int = 0) -> None:
        """Take so many back from a job; no more than it holds, for it may have inherited what is open."""
        held = self._jobs.get(job_id)
        if held is None:
            return
        count, sources = min(count, held.descriptors), min(sources, held.sources)
        held.account.refund("descriptors", count)
        held.account.refund("sources", sources)
        held.descriptors -= count
        held.sources -= sources
        if not held.descriptors and not held.sources:
            del self._jobs[job_id]
            held.account.release()

    def release(self, job_id: int) -> None:
        """Take back all that a job holds: it is closed."""
        held = self._jobs.get(job_id)
        if held is not None:
            self.refund(job_id, held.descriptors, sources=held.sources)

    def held(self, job_id: int) -> int:
        """How many a job holds."""
        held = self._jobs.get(job_id)
        return held.descriptors if held is not None else 0
