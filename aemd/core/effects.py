"""What the core wants done by those who may touch the world.

Effects are collected in the order in which they arose and applied by the service; a later one may depend on
an earlier one. None of them can fail back into the core except as a new command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from aemd.core.errors import Code

if TYPE_CHECKING:
    from aemd.core.history import Cursor, Record
    from aemd.core.job import Job
    from aemd.core.reader import Reader
    from aemd.core.session import Session


@dataclass(frozen=True, slots=True)
class Arm:
    """The module is to start the job. If it refuses: `Engine.start_failed`."""

    job: Job


@dataclass(frozen=True, slots=True)
class Disarm:
    """The module is to stop the job."""

    job: Job


@dataclass(frozen=True, slots=True)
class Release:
    """The job is GONE: the module is to close it. The last effect of a job, armed or not."""

    job: Job


@dataclass(frozen=True, slots=True)
class Operate:
    """A handler's reply for the key of its event; told exactly once."""

    job: Job
    key: bytes
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """The job's queue is full: its source is not to be read."""

    job: Job


@dataclass(frozen=True, slots=True)
class Resume:
    """The job's queue has room again."""

    job: Job


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The session and all its jobs are gone; a stream that it still had is to be ended with `code`."""

    session: Session
    code: Code
    reason: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Entries of a durable job that are not in memory: `Engine.fetched` takes what there is of them."""

    reader: Reader
    after: Cursor
    records_max: int


@dataclass(frozen=True, slots=True)
class Park:
    """An entry of a durable job is to be kept, put aside."""

    job: Job
    record: Record
    attempts: int
    reason: str


Effect: TypeAlias = Arm | Disarm | Release | Operate | Pause | Resume | SessionEnded | Fetch | Park
