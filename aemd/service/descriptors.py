"""The budget of file descriptors.

A process has RLIMIT_NOFILE of them, whoever asks, and what runs out of them fails in places that cannot
say why. So a job's descriptors are charged before they are opened, and refused while there is still enough
for the daemon itself: a reserve, and what its connections hold.

Nor may one user take them all. Whoever is not the administrator gets at most half of what the others have
left, so that whoever comes next still finds some: a half, a quarter, an eighth. dbus-broker divides its
pools in the same spirit (util/user.c).
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable

from aemd.core.errors import exhausted

CONFIG_KEY = "RLIMIT_NOFILE (LimitNOFILE= of the unit)"


def raise_limit() -> int:
    """Take all descriptors that the kernel lets this process have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Descriptors:
    """Who holds how many."""

    def __init__(self, *, limit: int, reserve: int, others: Callable[[], int]) -> None:
        """`limit`: of the process; `reserve`: kept back for the daemon; `others`: what holds descriptors
        without being a job, counted when asked.
        """
        self.limit = limit
        self.charged = 0
        self._reserve = reserve
        self._others = others
        self._jobs: dict[int, int] = {}
        self._users: Counter[int] = Counter()
        self._payers: dict[int, int] = {}  # by job id: the uid that is charged, where one is

    def charge(self, job_id: int, count: int, *, uid: int | None = None) -> None:
        """Give `count` to a job; RESOURCE_EXHAUSTED if there are too few.

        `uid`: whose share pays for it; None: the administrator's, who may have all there are.
        """
        there = max(self.limit - self._reserve - self._others(), 0)
        subject, limit, used = "the daemon", there, self.charged
        if uid is not None:
            used = self._users[uid]
            subject, limit = f"uid {uid}", (there - self.charged + used) // 2
        if used + count > limit:
            raise exhausted(
                subject, limit=max(limit, 0), used=used, key=CONFIG_KEY, what=f"{count} more file descriptors"
            )
        self.charged += count
        self._jobs[job_id] = self._jobs.get(job_id, 0) + count
        if uid is not None:
            self._users[uid] += count
            self._payers[job_id] = uid

    def refund(self, job_id: int, count: int) -> None:
        """Take `count` back from a job."""
        held = self._jobs.get(job_id, 0)
        count = min(count, held)
        self.charged -= count
        uid = self._payers.get(job_id)
        if uid is not None:
            self._users[uid] -= count
        if held > count:
            self._jobs[job_id] = held - count
            return
        self._jobs.pop(job_id, None)
        self._payers.pop(job_id, None)
        if uid is not None and not self._users[uid]:
            del self._users[uid]

    def release(self, job_id: int) -> None:
        """Take back all that a job holds: it is closed."""
        self.refund(job_id, self.held(job_id))

    def held(self, job_id: int) -> int:
        """How many a job holds."""
        return self._jobs.get(job_id, 0)
