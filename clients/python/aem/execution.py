"""Commands that the daemon runs for the events of a durable job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aem.v1 import job_pb2

__all__ = ["Exec"]


@dataclass(frozen=True, slots=True)
class Exec:
    """A command that the daemon runs, as the job's owner, for the events of a durable job.

    `command`: the program and its arguments. `dirty`: one run for all that has happened since the last one
    began, instead of a run for each event. `timeout_ns`: how long a run may take, 1 h if not said.
    `backoff_min_ns`, `backoff_max_ns`: how long to wait after a run that failed: 1 s if not said, then twice
    as long each time, up to 5 min. `environment`: variables more. `directory`: where it is run, / if not
    said.

    >>> Exec(["deploy", "--now"], dirty=True).message().mode == job_pb2.EXEC_MODE_DIRTY
    True
    """

    command: Sequence[str]
    dirty: bool = False
    timeout_ns: int = 0
    backoff_min_ns: int = 0
    backoff_max_ns: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = ""

    def message(self) -> job_pb2.Exec:
        """As it goes over the wire; raises ValueError for what cannot."""
        return job_pb2.Exec(
            command=self.command,
            mode=job_pb2.EXEC_MODE_DIRTY if self.dirty else job_pb2.EXEC_MODE_UNSPECIFIED,
            timeout_ns=self.timeout_ns,
            backoff_min_ns=self.backoff_min_ns,
            backoff_max_ns=self.backoff_max_ns,
            environment=self.environment,
            directory=self.directory,
        )
