"""Who has what: the tables of sessions and jobs, and the only look-ups there are.

A look-up names who asks: what is another owner's does not exist for anybody but the administrator, and both
answers are the same.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from aemd.core.errors import AemError, Code, not_found
from aemd.core.job import Job
from aemd.core.principal import Owner, Principal
from aemd.core.session import Session


class Registry:
    """Sessions by id, token and process; jobs by owner and id."""

    __slots__ = ("_by_process", "_by_token", "_jobs", "_kinds", "_sessions")

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._by_token: dict[bytes, Session] = {}
        self._by_process: dict[tuple[int, int], dict[int, Session]] = {}
        self._jobs: dict[Owner, dict[int, Job]] = {}  # ids grow, so each is in order
        self._kinds: Counter[tuple[Owner, str]] = Counter()  # jobs of an owner with a module

    # -- sessions ------------------------------------------------------------------------------------

    def add_session(self, session: Session) -> None:
        """A new session."""
        self._sessions[session.id] = session
        self._by_token[session.token] = session
        self._by_process.setdefault(_process(session.principal), {})[session.id] = session

    def remove_session(self, session: Session) -> None:
        """The session is gone."""
        del self._sessions[session.id]
        del self._by_token[session.token]
        self._by_token.pop(session.token_before, None)
        process = _process(session.principal)
        of_process = self._by_process[process]
        del of_process[session.id]
        if not of_process:
            del self._by_process[process]

    def change_token(self, session: Session, *, used: bytes, token: bytes) -> None:
        """The session is found by `token` from now on, and still by the one that was just used.

        For the Welcome with the new one may be lost with its stream, and the client comes back with what it
        has.
        """
        for known in (session.token, session.token_before):
            self._by_token.pop(known, None)
        session.token, session.token_before = token, used
        self._by_token[used] = session
        self._by_token[token] = session

    def add_token(self, token: bytes, session: Session) -> None:
        """The token before the session's own is good for it as well."""
        session.token_before = token
        self._by_token[token] = session

    def claim(self, token: bytes, principal: Principal) -> Session:
        """The session of `token`, if `principal` is the process that it belongs to; else AemError
        NOT_FOUND with reason SESSION_UNKNOWN, whatever was wrong.
        """
        session = self._by_token.get(token)
        if (
            session is None
            or session.principal.owner != principal.owner
            or _process(session.principal) != _process(principal)
        ):
            raise AemError(
                Code.NOT_FOUND,
                "SESSION_UNKNOWN",
                "the session to be resumed is not known: it ended, or its lease did; open a new one",
            )
        return session

    def sessions(self) -> list[Session]:
        """All of them."""
        return list(self._sessions.values())

    def find_session(self, principal: Principal, session_id: int) -> Session:
        """The session, if `principal` may see it; else AemError NOT_FOUND."""
        session = self._sessions.get(session_id)
        if session is None or not (principal.administrator or session.principal.owner == principal.owner):
            raise not_found(f"sessions/{session_id}")
        return session

    def sessions_of(self, principal: Principal) -> Iterator[Session]:
        """The sessions that `principal` may see, by id."""
        for session in self._sessions.values():
            if principal.administrator or session.principal.owner == principal.owner:
                yield session

    def sessions_of_process(self, pid: int, start_time_ticks: int) -> list[Session]:
        """The sessions of one process."""
        return list(self._by_process.get((pid, start_time_ticks), {}).values())

    # -- jobs ----------------------------------------------------------------------------------------

    def add_job(self, job: Job) -> None:
        """A new job, with an id above all that were before."""
        owner = job.owner.owner
        self._jobs.setdefault(owner, {})[job.id] = job
        self._kinds[owner, job.traits.name] += 1

    def remove_job(self, job: Job) -> None:
        """The job is gone."""
        owner = job.owner.owner
        jobs = self._jobs[owner]
        del jobs[job.id]
        if not jobs:
            del self._jobs[owner]
        kind = (owner, job.traits.name)
        left = self._kinds[kind] - 1
        if left:
            self._kinds[kind] = left
        else:
            del self._kinds[kind]

    def find_job(self, principal: Principal, job_id: int) -> Job:
        """The job, if `principal` may see it; else AemError NOT_FOUND."""
        job = self._jobs.get(principal.owner, {}).get(job_id)
        if job is None and principal.administrator:
            job = next((jobs[job_id] for jobs in self._jobs.values() if job_id in jobs), None)
        if job is None or job.session.ended:
            raise not_found(f"jobs/{job_id}")
        return job

    def jobs_of(self, principal: Principal, after: int = 0) -> Iterator[Job]:
        """The jobs that `principal` may see with ids above `after`, by id; not those whose session has
        ended a moment ago. Not to be continued after a job came or went.
        """
        if principal.administrator:
            tables = list(self._jobs.values())
        else:
            tables = [self._jobs.get(principal.owner, {})]
        yield from heapq.merge(*(_beyond(table, after) for table in tables), key=lambda job: job.id)

    def houses(self) -> list[Session]:
        """The sessions without a client: of durable jobs, and of who in the daemon answers for them. Cost: of
        all jobs.
        """
        found: list[Session] = []
        for job in (job for jobs in self._jobs.values() for job in jobs.values()):
            if job.durable is not None:
                found.append(job.session)
                found += [reader.session for reader in job.durable.readers if not reader.session.id]
        return found

    def jobs_of_module(self, name: str) -> list[Job]:
        """All jobs of a module. Cost: of all jobs; for unloading a module."""
        return [job for jobs in self._jobs.values() for job in jobs.values() if job.traits.name == name]

    def job_count(self, principal: Principal, module: str | None = None) -> int:
        """How many jobs `principal` may see, of one module or of all."""
        if module is None and not principal.administrator:
            return len(self._jobs.get(principal.owner, {}))
        return sum(
            count
            for (owner, name), count in self._kinds.items()
            if (principal.administrator or owner == principal.owner) and module in (None, name)
        )


def _beyond(table: dict[int, Job], after: int) -> Iterator[Job]:
    """One by one: whoever wants the first few of many pays for these only."""
    return (job for job_id, job in table.items() if job_id > after and not job.session.ended)


def _process(principal: Principal) -> tuple[int, int]:
    return principal.pid, principal.start_time_ticks
