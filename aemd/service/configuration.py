"""The configuration: what `aemd.toml`, `policy.d/*.toml` and `jobs.d/*.toml` of a folder say, as the daemon
works with it.

A configuration with anything wrong in it is not used at all: half of a policy is another policy. Every error
names file, line and key, the value and what would be possible, and all of them are told at once.

    sources = read(folder, uid=0)          the files, parsed (files.py)
    configuration = interpret(sources)     what they say (tables.py, jobfiles.py)

`interpret` is given the descriptions of the event modules, where they are known: only then can it say that a
parameter does not exist. docs/policy.md has every key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aemd.core.limits import Limits
from aemd.core.policy import Policy
from aemd.modules.contract import Description
from aemd.service.files import ConfigurationError, Problem, Source
from aemd.service.jobfiles import FileJob, JobFiles
from aemd.service.tables import Tables


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files say. `log_level` is empty where they say nothing of it; `warnings` are told, and no
    reason to refuse.
    """

    files: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    log_level: str = ""
    policy: Policy = field(default_factory=Policy)
    warnings: tuple[Problem, ...] = ()
    jobs: tuple[FileJob, ...] = ()


def interpret(
    sources: Sequence[Source],
    modules: Mapping[str, Description] | None = None,
    *,
    owner: int | None = None,
) -> Configuration:
    """What files say. `modules`: the event modules that are loaded, by name; None: nobody knows. `owner`: of
    jobs that name none.

    ConfigurationError has everything that is wrong.
    """
    tables = Tables(modules)
    for source in sources:
        if not source.jobs:
            tables.take(source)
    jobs = JobFiles(modules, tables.limits, owner=owner)
    for source in sources:
        if source.jobs:
            jobs.take(source)
    if tables.problems or jobs.problems:
        raise ConfigurationError([*tables.problems, *jobs.problems])
    return Configuration(
        files=tuple(source.file for source in sources),
        limits=tables.limits,
        log_level=tables.level,
        policy=Policy(tables.rules, tables.quotas),
        warnings=(*tables.warnings, *jobs.warnings),
        jobs=tuple(jobs.jobs),
    )
