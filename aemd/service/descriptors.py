"""The budget of file descriptors.

A process has RLIMIT_NOFILE of them, whoever asks, and what runs out of them fails in places that cannot
say why. So a job's descriptors are charged before they are opened, and refused while there is still enough
for the daemon itself: a reserve, and what its connections hold.
"""

from __future__ import annotations

import resource
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

    def charge(self, job_id: int, count: int) -> None:
        """Give `count` to a job; RESOURCE_EXHAUSTED if there are too few."""
        there = self.limit - self._reserve - self._others()
        if self.charged + count > there:
            raise exhausted(
                "the daemon",
                limit=max(there, 0),
                used=self.charged,
                key=CONFIG_KEY,
                what=f"{count} more file descriptors",
            )
        self.charged += count
        self._jobs[job_id] = self._jobs.get(job_id, 0) + count

    def refund(self, job_id: int, count: int) -> None:
        """Take `count` back from a job."""
        held = self._jobs.get(job_id, 0)
        count = min(count, held)
        self.charged -= count
        if held > count:
            self._jobs[job_id] = held - count
        else:
            self._jobs.pop(job_id, None)

    def release(self, job_id: int) -> None:
        """Take back all that a job holds: it is closed."""
        self.charged -= self._jobs.pop(job_id, 0)

    def held(self, job_id: int) -> int:
        """How many a job holds."""
        return self._jobs.get(job_id, 0)
