"""What the files of `jobs.d` say: durable jobs, with their owners.

A file has any number of `[[job]]`. Everything that can be known without making the job is checked here, and
told with file, line and key: keys, names, owners, parameters as the module's description has them, options
and bounds. docs/policy.md has every key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aemd.core.errors import AemError
from aemd.core.limits import Limits
from aemd.core.options import parse_options
from aemd.core.traits import Traits
from aemd.modules.contract import Delivery, Description
from aemd.modules.params import parse_values
from aemd.service.durables import (
    KEEP_AGE_MAX_NS,
    KEEP_BYTES_MAX,
    KEEP_ENTRIES_MAX,
    check_name,
)
from aemd.service.execution import check_options, parse_exec
from aemd.service.files import Problem, Source
from aemd.service.locator import Path
from aemd.service.names import Names
from aemd.service.shapes import Checker, meant, near, shown
from aemd.v1 import job_pb2

JOBS_MAX = 1_000
LABEL_BYTES_MAX = 256
KEYS = ("name", "module", "params", "owner", "options", "keep", "label", "stopped", "exec")
INT64_MAX = (1 << 63) - 1
UINT32_MAX = (1 << 32) - 1
UID_MAX = UINT32_MAX - 1  # (uid_t) -1 is nobody, chown(2)
_NUMBERS = {
    "priority": (0, 7),
    "queue_depth": (1, UINT32_MAX),
    "queue_bytes": (1, INT64_MAX),
    "ack_timeout_ns": (0, INT64_MAX),
    "attempts_max": (0, UINT32_MAX),
    "lease_ns": (1, INT64_MAX),
}
_WORDS: Mapping[str, Any] = {"overflow": job_pb2.Overflow, "acknowledgement": job_pb2.Acknowledgement}
_OPTIONS = ("one_shot", *_NUMBERS, *_WORDS)
_KEEP = {
    "entries": (1, KEEP_ENTRIES_MAX),
    "keep_bytes": (1, KEEP_BYTES_MAX),
    "age_ns": (1, KEEP_AGE_MAX_NS),
}
_EXEC_SPANS = ("timeout_ns", "backoff_min_ns", "backoff_max_ns")
_EXEC = ("command", "mode", *_EXEC_SPANS, "environment", "directory")


@dataclass(frozen=True, slots=True)
class FileJob:
    """A durable job that a file says: whose, what, and where it says so."""

    uid: int
    request: job_pb2.CreateJobRequest
    origin: str


class JobFiles:
    """Takes the files of `jobs.d`, one by one. `modules`: by name; None: nobody knows them."""

    def __init__(
        self,
        modules: Mapping[str, Description] | None,
        limits: Limits,
        names: Names | None = None,
        *,
        owner: int | None = None,
    ) -> None:
        """`owner`: of jobs that name none; the own user if None."""
        self._owner = os.geteuid() if owner is None else owner
        self._modules = modules
        self._limits = limits
        self._names = names or Names()
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.jobs: list[FileJob] = []
        self._seen: dict[tuple[int, str], str] = {}

    def take(self, source: Source) -> None:
        """One file more."""
        check = Checker(source, self.problems)
        for key, value in source.content.items():
            if key != "job":
                check.problem((key,), f"no such table{meant(key, ('job',))}; files of jobs.d have [[job]]")
            elif not isinstance(value, list):
                check.problem((key,), f"{shown(value)}: must be an array of tables, [[job]]")
            else:
                for index, table in enumerate(value):
                    self._take_job(check, ("job", index), table)

    def _take_job(self, check: Checker, path: Path, table: object) -> None:
        if not isinstance(table, dict):
            check.problem(path, f"{shown(table)}: must be a table, [[job]]")
            return
        if len(self.jobs) >= JOBS_MAX:
            check.problem(path, f"more than {JOBS_MAX} jobs")
            return
        count = len(self.problems)
        for key in table:
            if key not in KEYS:
                check.problem((*path, key), f"no such key{meant(key, KEYS)}")
        request = job_pb2.CreateJobRequest(
            name=check.value((*path, "name"), str, table.get("name")) or "",
            module=check.value((*path, "module"), str, table.get("module")) or "",
            label=check.value((*path, "label"), str, table.get("label", "")) or "",
            stopped=check.value((*path, "stopped"), bool, table.get("stopped", False)) or False,
        )
        uid = self._uid(check, (*path, "owner"), table.get("owner", self._owner))
        self._take_params(check, (*path, "params"), request, table.get("params", {}))
        self._take_options(check, (*path, "options"), request.options, table.get("options", {}))
        self._take_keep(check, (*path, "keep"), request, table.get("keep"))
        if "exec" in table:
            self._take_exec(check, (*path, "exec"), request.exec, table["exec"])
        if len(request.label.encode()) > LABEL_BYTES_MAX:
            check.problem((*path, "label"), f"has more than {LABEL_BYTES_MAX} bytes")
        if uid is None or len(self.problems) > count:
            return
        self._refuse(check, (*path, "name"), lambda: check_name(request.name))
        if request.HasField("exec"):
            self._refuse(check, path, lambda: parse_exec(request.exec))
        self._check_module(check, path, request)
        where = self._seen.setdefault((uid, request.name), check.source.origin(path))
        if where != check.source.origin(path):
            check.problem((*path, "name"), f"{shown(request.name)}: uid {uid} has one of this name, {where}")
        if len(self.problems) == count:
            self.jobs.append(FileJob(uid, request, check.source.origin(path)))

    def _uid(self, check: Checker, path: Path, owner: object) -> int | None:
        if isinstance(owner, str):
            uid = self._names.uid(owner)
            if uid is None:
                known = self._names.known("user")
                check.problem(path, f"{shown(owner)}: there is no such user{near(owner, known)}")
            return uid
        if isinstance(owner, bool) or not isinstance(owner, int) or not 0 <= owner <= UID_MAX:
            check.problem(path, f"{shown(owner)}: must be the name of a user, or a user id")
            return None
        return owner

    def _take_params(
        self, check: Checker, path: Path, request: job_pb2.CreateJobRequest, table: object
    ) -> None:
        if not isinstance(table, dict):
            check.problem(path, f"{shown(table)}: must be a table")
            return
        for name, value in table.items():
            given = [_value(one) for one in value] if isinstance(value, list) else [_value(value)]
            fit = [one for one in given if one is not None]
            if len(fit) < len(given):
                check.problem(
                    (*path, name), f"{shown(value)}: must be text, a number, true, false, or a list"
                )
            elif isinstance(value, list):
                request.params[name].list.values.extend(fit)
            else:
                request.params[name].CopyFrom(fit[0])

    def _take_options(self, check: Checker, path: Path, options: job_pb2.Options, table: object) -> None:
        if not isinstance(table, dict):
            check.problem(path, f"{shown(table)}: must be a table")
            return
        options.SetInParent()  # as in what is stored, so that both compare
        for key, value in table.items():
            where = (*path, key)
            if key in _NUMBERS:
                number = check.quantity(where, key, value, _NUMBERS[key])
                if number is not None:
                    setattr(options, key, number)
            elif key in _WORDS:
                words = _words(_WORDS[key])
                if isinstance(value, str) and value in words:
                    setattr(options, key, words[value])
                else:
                    check.problem(where, f"{shown(value)}: must be one of {', '.join(words)}")
            elif key == "one_shot":
                options.one_shot = check.value(where, bool, value) or False
            else:
                check.problem(where, f"no such option{meant(key, _OPTIONS)}")

    def _take_keep(
        self, check: Checker, path: Path, request: job_pb2.CreateJobRequest, table: object
    ) -> None:
        if table is None:
            return
        if not isinstance(table, dict):
            check.problem(path, f"{shown(table)}: must be a table")
            return
        for key, value in table.items():
            known = "keep_bytes" if key == "bytes" else key  # what the unit is goes by the name
            if known not in _KEEP or key == "keep_bytes":
                check.problem((*path, key), f"no such key{meant(key, ('entries', 'bytes', 'age_ns'))}")
                continue
            number = check.quantity((*path, key), known, value, _KEEP[known])
            if number is not None:
                setattr(request.keep, key, number)

    def _take_exec(self, check: Checker, path: Path, execution: job_pb2.Exec, table: object) -> None:
        if not isinstance(table, dict):
            check.problem(path, f"{shown(table)}: must be a table")
            return
        execution.SetInParent()
        modes = _words(job_pb2.ExecMode)
        for key, value in table.items():
            where = (*path, key)
            if key == "command":
                execution.command.extend(check.value(where, list[str], value) or ())
            elif key == "environment":
                execution.environment.update(check.value(where, dict[str, str], value) or {})
            elif key == "directory":
                execution.directory = check.value(where, str, value) or ""
            elif key in _EXEC_SPANS:
                setattr(execution, key, check.quantity(where, key, value, (1, INT64_MAX)) or 0)
            elif key != "mode":
                check.problem(where, f"no such key{meant(key, _EXEC)}")
            elif isinstance(value, str) and value in modes:
                execution.mode = modes[value]  # type: ignore[assignment]
            else:
                check.problem(where, f"{shown(value)}: must be one of {', '.join(modes)}")

    def _check_module(self, check: Checker, path: Path, request: job_pb2.CreateJobRequest) -> None:
        if self._modules is None:
            return
        module = self._modules.get(request.module)
        if module is None:
            message = (
                f"{shown(request.module)}: no such module is loaded{near(request.module, self._modules)}"
            )
            self.warnings.append(check.source.problem((*path, "module"), message))
            return
        self._refuse(check, path, lambda: parse_values(module.parameters, request.params, self._limits))
        traits = Traits(
            module.name,
            coalesce=module.delivery is Delivery.COALESCE,
            replies=module.replies,
            pausable=module.pausable,
            pause_by_default=module.pause_by_default,
        )
        self._refuse(check, path, lambda: self._check_options(request, traits))

    def _check_options(self, request: job_pb2.CreateJobRequest, traits: Traits) -> None:
        options = parse_options(request.options, traits, self._limits)
        if request.HasField("exec"):
            check_options(request.options, options)

    def _refuse(self, check: Checker, path: Path, attempt: Callable[[], object]) -> None:
        """What the daemon would say to it; its field is the key."""
        try:
            attempt()
        except AemError as error:
            field = error.details.get("field", "")
            keys = field.split(".") if field.startswith(("params", "options", "exec")) else []
            check.problem((*path, *keys), error.message.removeprefix(f"{field}: "))


def _value(value: object) -> job_pb2.Value | None:
    match value:
        case bool():
            return job_pb2.Value(truth=value)
        case int() if -INT64_MAX - 1 <= value <= INT64_MAX:
            return job_pb2.Value(integer=value)
        case float():
            return job_pb2.Value(number=value)
        case str():
            return job_pb2.Value(text=value)
        case _:
            return None


def _words(kind: Any) -> dict[str, int]:
    """DROP_OLDEST of Overflow as drop-oldest."""
    prefix = kind.keys()[0].removesuffix("UNSPECIFIED")
    return {
        name.removeprefix(prefix).lower().replace("_", "-"): number for name, number in kind.items() if number
    }
