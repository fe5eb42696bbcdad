"""Listening sockets that outlast the daemon: the service manager keeps them from one to the next.

A daemon that ends in order gives the listener of each job away, named after the job; the next one finds them
among the descriptors that it is started with. Whoever connects in between waits in the backlog, and is not
refused. What was found is offered once: after that the manager is told to keep nothing, and all is closed
here; a job that took one over has a copy of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from aemd.core.job import Job
from aemd.service.notify import Notifier

LEAVE_SECONDS = 1.0  # a daemon ends within 5 s
STORED_MAX = 500  # of the unit's FileDescriptorStoreMax=512; many make the manager slow


class Lasting:
    """What the manager kept for this daemon, and what it is to keep for the next."""

    def __init__(self, notifier: Notifier, found: Iterable[tuple[str, int]] = ()) -> None:
        self._notifier = notifier
        found = list(found)
        self._found = dict(found)
        self._others = [fd for _, fd in found if fd not in self._found.values()]  # of a name given twice

    def of(self, job_id: int) -> int | None:
        """What the daemon before left of a job; open until clear()."""
        return self._found.get(_name(job_id))

    def clear(self) -> None:
        """Everything was offered: have nothing kept, and close it."""
        for name in self._found:
            self._notifier.forget(name)
        for fd in (*self._found.values(), *self._others):
            os.close(fd)
        self._found, self._others = {}, []

    def leave(self, jobs: Iterable[tuple[Job, int | None]]) -> None:
        """Have descriptors of jobs kept for the next daemon, and wait until that is certain."""
        if not self._notifier:
            return
        left, until = 0, time.monotonic() + LEAVE_SECONDS
        for job, fd in jobs:
            if fd is None:
                continue
            if left == STORED_MAX or time.monotonic() > until:
                break
            if not self._notifier.store(_name(job.id), (fd,), poll=False):
                break  # what is not kept is bound anew
            left += 1
        if left:
            self._notifier.barrier()


def _name(job_id: int) -> str:
    return f"job-{job_id}"
