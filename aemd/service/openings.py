"""What waits for the deputy: registrations and starts whose modules need something done as the caller.

A job that is being opened is the engine's already: it has its id, is charged to its user, is listed and can
be shut down. Its module does not know it yet. So it ends here and not in the module, whatever ends it: its
client, its session, the unloading of its module, the end of the daemon. A stream that is lost takes the
requests with it that it has not been answered: the next one would not know what they were.

What was given and is not taken over, because something else was refused or nobody waits any more, is given
back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from aemd.core.errors import AemError
from aemd.core.job import Job, JobState
from aemd.core.principal import Principal
from aemd.core.session import Session
from aemd.modules.need import Given, Need
from aemd.peer.deputy import Asked, Deputy

Done = Callable[["AemError | None"], None]


class _Opening:
    """A request that waits: what is still to come, and what has been given."""

    __slots__ = ("asked", "done", "given", "job", "known", "left", "opening", "session")

    def __init__(self, job: Job, count: int, done: Done, *, opening: bool, known: bool) -> None:
        self.job = job
        self.known = known or job.durable is not None
        # What outlives a stream does not end with one: a durable job may not even have a session.
        self.session = None if self.known else job.session
        self.done = done
        self.opening = opening
        self.left = count
        self.given: list[Given] = [None] * count
        self.asked: list[Asked] = []

    def withdraw(self) -> None:
        """Nobody waits for it any more."""
        for asked in self.asked:
            asked.cancel()
        give_back(self.given)


class Openings:
    """All that wait, by job."""

    def __init__(self, deputy: Deputy) -> None:
        self._deputy = deputy
        self._openings: dict[Job, list[_Opening]] = {}
        self._sessions: dict[Session, dict[_Opening, None]] = {}
        self._asked: dict[Job, set[Asked]] = {}  # by modules, while the job runs
        self._given: dict[int, Sequence[Given]] = {}  # by job id, while open() or start() runs

    def sessions(self) -> list[Session]:
        """The sessions of which requests wait."""
        return list(self._sessions)

    def of_session(self, session: Session) -> int:
        """How many requests of a session wait."""
        return len(self._sessions.get(session, ()))

    def is_opening(self, job: Job) -> bool:
        """Whether the module does not know it yet."""
        return any(opening.opening for opening in self._openings.get(job, ()))

    def is_new(self, job: Job) -> bool:
        """Whether it is opening for the first time, in a session, so that nobody has been told of it."""
        return any(opening.opening and not opening.known for opening in self._openings.get(job, ()))

    def wait(
        self,
        job: Job,
        needs: Sequence[Need],
        done: Done,
        *,
        opening: bool,
        new: bool = False,
        known: bool = False,
    ) -> None:
        """Have `needs` done as the owner of `job`, and then call `done`, in a later turn. `new`: its owner is
        just making it; a durable job is done for without its owner's process later. `known`: its client knows
        it from the daemon before this one.
        """
        waiting = _Opening(job, len(needs), done, opening=opening, known=known)
        self._openings.setdefault(job, []).append(waiting)
        if waiting.session is not None:
            self._sessions.setdefault(waiting.session, {})[waiting] = None
        for index, need in enumerate(needs):
            owner = job.owner if new else _standing(job)
            waiting.asked.append(self._ask(owner, need, waiting, index))

    def _ask(self, principal: Principal, need: Need, opening: _Opening, index: int) -> Asked:
        def answered(given: Given | AemError) -> None:
            if isinstance(given, AemError):
                self._drop(opening)
                opening.withdraw()
                opening.done(given)
                return
            opening.given[index] = given
            opening.left -= 1
            if opening.left:
                return
            self._drop(opening)
            job_id = opening.job.id
            self._given[job_id] = opening.given
            try:
                opening.done(None)
            finally:
                give_back(self._given.pop(job_id, ()))

        return self._deputy.ask(principal, need, answered, at_home=opening.job.durable is not None)

    def look(self, principal: Principal, need: Need, answered: Callable[[Given | AemError], None]) -> None:
        """Whether `principal` may have something, and lives where it will be done without it; `answered` is
        told in a later turn.
        """
        self._deputy.ask(principal, need, answered, at_home=True)

    def take(self, job: Job) -> Sequence[Given]:
        """What was given for `job`; the module's from now on."""
        return self._given.pop(job.id, ())

    def ask(self, job: Job, need: Need, answered: Callable[[Given | AemError], None]) -> None:
        """One thing more for a job that runs."""
        asked_now = self._asked.setdefault(job, set())

        def told(given: Given | AemError) -> None:
            asked_now.discard(asked)
            if not asked_now:
                self._asked.pop(job, None)
            answered(given)

        asked = self._deputy.ask(_standing(job), need, told)
        asked_now.add(asked)

    def end(self, job: Job, error: AemError, *, starts_only: bool = False) -> bool:
        """The job ends, or is not to start any more: who waits is told `error`. True if it was opening."""
        opened = False
        if not starts_only:
            for asked in self._asked.pop(job, ()):
                asked.cancel()
        for opening in self._openings.get(job, [])[:]:
            if opening.opening and starts_only:
                continue
            opened = opened or opening.opening
            self._drop(opening)
            opening.withdraw()
            opening.done(error)
        return opened

    def forget(self, session: Session) -> list[Job]:
        """Nobody waits any more for what the stream of `session` has asked: the jobs that were being opened,
        and have not ended otherwise.
        """
        found = []
        for opening in list(self._sessions.get(session, ())):
            if opening.opening and opening.job.state is JobState.GONE:
                continue  # whoever is about to tell its module comes to end()
            self._drop(opening)
            opening.withdraw()
            if opening.opening:
                found.append(opening.job)
        return found

    def _drop(self, opening: _Opening) -> None:
        job = opening.job
        waiting = self._openings[job]
        waiting.remove(opening)
        if not waiting:
            del self._openings[job]
        if opening.session is not None:
            of_session = self._sessions[opening.session]
            del of_session[opening]
            if not of_session:
                del self._sessions[opening.session]


def _standing(job: Job) -> Principal:
    """The owner of a job as it is while the job runs: of a durable job no process need be left."""
    return job.owner if job.durable is None else replace(job.owner, pid=0, start_time_ticks=0)


def give_back(given: Sequence[Given]) -> None:
    """Close what nobody took."""
    for one in given:
        if one is not None:
            one.close()
