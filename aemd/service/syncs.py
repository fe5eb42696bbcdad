"""Requests that wait until modules have handed over everything that was queued for jobs in the kernel.

One Sync may ask for all jobs of a session, and a durable job may be asked for by sessions that are not its
own: so they are found from either end.
"""

from __future__ import annotations

from aemd.core.session import Session


class Syncs:
    """Which requests wait for which jobs. Ids of requests mean nothing beyond their session."""

    def __init__(self) -> None:
        self._of_session: dict[Session, dict[tuple[int, int], None]] = {}  # (job, request)
        self._of_job: dict[int, dict[tuple[Session, int], None]] = {}  # by job id

    def add(self, session: Session, job_id: int, request_id: int) -> None:
        """It waits."""
        self._of_session.setdefault(session, {})[job_id, request_id] = None
        self._of_job.setdefault(job_id, {})[session, request_id] = None

    def take(self, session: Session, job_id: int, request_id: int) -> bool:
        """It waits no more; False if it did not."""
        waiting = self._of_session.get(session, {})
        if (job_id, request_id) not in waiting:
            return False
        del waiting[job_id, request_id]
        if not waiting:
            del self._of_session[session]
        self._leave_job(session, job_id, request_id)
        return True

    def of_session(self, session: Session) -> int:
        """How many of a session wait."""
        return len(self._of_session.get(session, ()))

    def of_job(self, job_id: int) -> list[tuple[Session, int]]:
        """Those that wait for a job: (session, request)."""
        return list(self._of_job.get(job_id, ()))

    def forget(self, session: Session) -> None:
        """Nobody waits for those of a session any more."""
        for job_id, request_id in self._of_session.pop(session, ()):
            self._leave_job(session, job_id, request_id)

    def _leave_job(self, session: Session, job_id: int, request_id: int) -> None:
        waiting = self._of_job[job_id]
        del waiting[session, request_id]
        if not waiting:
            del self._of_job[job_id]
