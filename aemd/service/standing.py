"""Durable jobs that there are because a file of `jobs.d` says so.

Such a job is as any other durable job of its owner, who answers for it with his programs. What is beyond that
is kept here: files that are new make jobs, those that say something else make them anew, and those that have
gone end them, with their histories. What cannot be made (policy forbids it, its port is taken) is told in the
log and in `aemctl status`, and tried again at the next reload; it is no error of the configuration.

The owner is whom the file names, with his groups as the machine knows them, and with his rights: rules that
name him hold for the job, with what they grant. Those that name a unit or a control group do not, for it has
neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from aemd.core.errors import AemError, Code
from aemd.core.job import Job
from aemd.core.principal import Owner, Principal
from aemd.service import log
from aemd.service.conductor import Conductor
from aemd.service.durables import Durables
from aemd.service.jobfiles import FileJob
from aemd.service.names import Names

GONE = "its file in jobs.d has gone"
CHANGED = "its file in jobs.d says something else now"


@dataclass(frozen=True, slots=True)
class _Place:
    """What makes a durable job one of its own."""

    uid: int
    name: str


class StandingJobs:
    """The durable jobs of the files of one daemon."""

    def __init__(
        self, durables: Durables, conductor: Conductor, names: Names | None = None, *, administrator: int
    ) -> None:
        """`administrator`: root for the system's daemon, else whose daemon it is."""
        self._administrator = administrator
        self._durables = durables
        self._conductor = conductor
        self._names = names or Names()
        self._refused: dict[_Place, str] = {}

    @property
    def refused(self) -> list[str]:
        """What the files say and there is not, and why."""
        return list(self._refused.values())

    def apply(self, jobs: Sequence[FileJob]) -> None:
        """Let there be these, and no others that files have made."""
        self._refused.clear()
        self._conductor.settle()
        self._durables.keep()  # what has ended before has no name any more
        wanted = {_Place(job.uid, job.request.name): job for job in jobs}
        for job, definition in self._durables.of_files():
            assert job.durable is not None
            place = _Place(job.owner.uid, job.durable.name)
            said = wanted.get(place)
            if said is not None and said.request == definition.request:
                del wanted[place]
            else:
                self._end(job, GONE if said is None else CHANGED)
        self._conductor.settle()
        self._durables.keep()  # nor has this
        for place, said in wanted.items():
            self._make(place, said)
        self._conductor.settle()

    def _end(self, job: Job, reason: str) -> None:
        log.get().warning(
            "job of a file ended", **{log.JOB: job.id, log.UID: job.owner.uid, log.REASON: reason}
        )
        self._conductor.engine.end_job(job, reason, self._conductor.now())

    def _make(self, place: _Place, said: FileJob) -> None:
        try:
            check_owner(said.uid, self._administrator)
            answer = partial(self._made, place, said)
            job = self._durables.create(self._owner(said), said.request, answer, origin=said.origin)
        except AemError as error:
            self._made(place, said, error)
        else:
            if job is not None:
                self._made(place, said, job)

    def _made(self, place: _Place, said: FileJob, made: Job | AemError) -> None:
        if not isinstance(made, AemError):
            log.get().info(
                "job of a file", **{log.JOB: made.id, log.UID: said.uid, log.WHAT: said.request.name}
            )
            return
        self._refused[place] = (
            f"{said.origin}: job {said.request.name} of uid {said.uid} cannot be made: {made.message}"
        )
        log.get().error("job of a file cannot be made", **{log.ERROR: self._refused[place]})

    def _owner(self, said: FileJob) -> Principal:
        known = self._names.groups_of(said.uid)
        gid, groups = known if known is not None else (said.uid, ())
        return Principal(
            owner=Owner(said.uid),
            gid=gid,
            groups=groups,
            pid=0,
            start_time_ticks=0,
            administrator=said.uid == self._administrator,
        )


def check_owner(uid: int, daemon_uid: int) -> None:
    """Raise AemError if a daemon of this user can have no jobs of `uid`."""
    if daemon_uid not in (0, uid):
        raise AemError(
            Code.PERMISSION_DENIED,
            "NOT_ALLOWED",
            f"this daemon is uid {daemon_uid}'s and has no jobs of others; take out owner",
        )
