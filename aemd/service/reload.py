"""The configuration in force, and how another takes its place while the daemon runs.

Everything is read and checked before anything is changed: a configuration with an error leaves all as it was,
and the error stands in `aemctl status` until one without is read. No session is dropped. Jobs that the new
policy does not allow are shut down with that reason, and the durable jobs of files become what the files say;
limits and quotas hold for what comes, and take nothing away from who has more already.

At the start there is nothing to keep, so a daemon with a broken configuration does not start.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.modules.contract import Description
from aemd.service import log
from aemd.service.conductor import Conductor
from aemd.service.config import Config
from aemd.service.configuration import Configuration, interpret
from aemd.service.files import ConfigurationError, Source, read
from aemd.service.standing import StandingJobs
from aemd.v1 import admin_pb2

SHOWN_PROBLEMS_MAX = 8  # in one message; `aemctl policy check` shows all


def read_sources(config: Config) -> list[Source]:
    """The files of a daemon; none where it has no folder for them."""
    return read(config.config_dir, uid=config.uid) if config.config_dir else []


def told(error: ConfigurationError) -> str:
    """What is wrong, in so many words as one message has room for."""
    shown = [str(problem) for problem in error.problems[:SHOWN_PROBLEMS_MAX]]
    left = len(error.problems) - len(shown)
    return "\n".join([*shown, f"and {left} more; see aemctl policy check"] if left else shown)


class Reload:
    """What is in force, and what became of the last attempt to change it."""

    def __init__(self, config: Config, limits: Limits, conductor: Conductor, standing: StandingJobs) -> None:
        self._standing = standing
        self._config = config
        self._limits = limits
        self._conductor = conductor
        self._configuration = Configuration()
        self._load_time_ns = time.time_ns()
        self._late: list[str] = []  # limits that only a restart changes
        self._error = ""
        self._error_time_ns = 0

    def begin(self) -> None:
        """The modules are loaded: the policy of the start holds. ConfigurationError."""
        self._install(interpret(read_sources(self._config), self._modules(), owner=self._config.uid))

    def begin_jobs(self) -> None:
        """The durable jobs are there: let there be those of the files, too."""
        self._standing.apply(self._configuration.jobs)

    def reload(self) -> int:
        """Read the configuration again; returns how many jobs are no longer allowed and were shut down.

        AemError FAILED_PRECONDITION, CONFIGURATION_INVALID: it is wrong, and nothing has changed.
        """
        try:
            fresh = interpret(read_sources(self._config), self._modules(), owner=self._config.uid)
        except ConfigurationError as error:
            raise self._refused(error) from None
        self._late = self._limits.change(fresh.limits)
        self._conductor.engine.change_limits()
        if not self._config.log_level:
            log.configure(fresh.log_level or log.LEVEL_DEFAULT)
        ended = self._install(fresh)
        self._standing.apply(fresh.jobs)
        log.get().info("configuration reloaded", **{log.RULES: len(fresh.policy.rules), log.JOBS: ended})
        return ended

    def view(self) -> admin_pb2.Configuration:
        """What `aemctl status` shows."""
        configuration = self._configuration
        return admin_pb2.Configuration(
            files=configuration.files,
            load_time_ns=self._load_time_ns,
            rules=len(configuration.policy.rules),
            error=self._error,
            error_time_ns=self._error_time_ns,
            warnings=[*map(str, configuration.warnings), *self._standing.refused],
            needs_restart=self._late,
        )

    def _install(self, configuration: Configuration) -> int:
        self._configuration = configuration
        self._load_time_ns = time.time_ns()
        self._error, self._error_time_ns = "", 0
        for warning in configuration.warnings:
            log.get().warning("configuration doubtful", **{log.ERROR: str(warning)})
        if self._late:
            log.get().warning("limits that need a restart", **{log.LIMITS: self._late})
        ended = self._conductor.change_policy(configuration.policy)
        self._conductor.engine.change_quotas()
        return ended

    def _refused(self, error: ConfigurationError) -> AemError:
        self._error, self._error_time_ns = told(error), time.time_ns()
        log.get().error(
            "configuration refused", **{log.ERROR: self._error, log.PROBLEMS: len(error.problems)}
        )
        first = error.problems[0]
        return AemError(
            Code.FAILED_PRECONDITION,
            "CONFIGURATION_INVALID",
            f"{self._error}; what was in force stays",
            file=first.file,
            line=first.line,
            configuration_key=first.key,
        )

    def _modules(self) -> Mapping[str, Description]:
        return {module.description.name: module.description for module in self._conductor.registry}
