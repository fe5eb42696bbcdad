"""What a command job is to do: its `Exec` checked, with the defaults filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aemd.core.errors import AemError, Code, invalid, over_quota
from aemd.core.limits import SECOND
from aemd.core.options import NONE, Options
from aemd.core.principal import Principal
from aemd.core.quota import Quota
from aemd.service.feed import PREFIX
from aemd.v1 import job_pb2

WORDS_MAX = 256
WORDS_BYTES_MAX = 64 * 1024  # with the environment; the kernel takes 128 KiB for one word
VARIABLES_MAX = 64
DIRECTORY_BYTES_MAX = 4_095  # PATH_MAX of limits.h without its NUL
TIMEOUT_NS = 3_600 * SECOND
TIMEOUT_MAX_NS = 7 * 86_400 * SECOND
BACKOFF_MIN_NS = 1 * SECOND
BACKOFF_MAX_NS = 300 * SECOND
BACKOFF_MOST_NS = 86_400 * SECOND
SPAN_LEAST_NS = SECOND // 1_000
DIRTY_EVENTS_MAX = 256  # of one run: 10 to 20 ms of the core; what is beyond them is for the next one
DIRTY_BYTES_MAX = 256 * 1024  # likewise; of events, which are longer as JSON


@dataclass(frozen=True, slots=True)
class Execution:
    """A command, and how it is to be run."""

    command: tuple[str, ...]
    dirty: bool
    timeout_ns: int
    backoff_min_ns: int
    backoff_max_ns: int
    environment: Mapping[str, str]
    directory: str

    def backoff_ns(self, failures: int) -> int:
        """How long to wait after so many failures in a row."""
        return min(self.backoff_min_ns << min(failures - 1, 40), self.backoff_max_ns)

    def to_pb(self) -> job_pb2.Exec:
        """As it goes over the wire."""
        return job_pb2.Exec(
            command=self.command,
            mode=job_pb2.EXEC_MODE_DIRTY if self.dirty else job_pb2.EXEC_MODE_QUEUE,
            timeout_ns=self.timeout_ns,
            backoff_min_ns=self.backoff_min_ns,
            backoff_max_ns=self.backoff_max_ns,
            environment=self.environment,
            directory=self.directory,
        )


def parse_exec(given: job_pb2.Exec) -> Execution:
    """Check it and fill in the defaults; raises AemError with the field, its value and the limit."""
    given.DiscardUnknownFields()
    _check_command(given)
    if given.mode not in job_pb2.ExecMode.values():
        raise invalid("exec.mode", f"is {given.mode}, which is no mode; there are QUEUE and DIRTY")
    timeout_ns = _span("timeout_ns", given.timeout_ns, TIMEOUT_NS, TIMEOUT_MAX_NS)
    least_ns = _span("backoff_min_ns", given.backoff_min_ns, BACKOFF_MIN_NS, BACKOFF_MOST_NS)
    most_ns = _span("backoff_max_ns", given.backoff_max_ns, max(BACKOFF_MAX_NS, least_ns), BACKOFF_MOST_NS)
    if most_ns < least_ns:
        raise invalid(
            "exec.backoff_max_ns",
            f"is {most_ns}, must be at least backoff_min_ns, {least_ns}",
            value=most_ns,
            limit=least_ns,
        )
    directory = given.directory or "/"
    if not directory.startswith("/") or "\0" in directory or len(directory.encode()) > DIRECTORY_BYTES_MAX:
        raise invalid(
            "exec.directory",
            f"{directory[:64]!r} is no absolute path of at most {DIRECTORY_BYTES_MAX} bytes",
        )
    return Execution(
        command=tuple(given.command),
        dirty=given.mode == job_pb2.EXEC_MODE_DIRTY,
        timeout_ns=timeout_ns,
        backoff_min_ns=least_ns,
        backoff_max_ns=most_ns,
        environment=dict(given.environment),
        directory=directory,
    )


def _check_command(given: job_pb2.Exec) -> None:
    words, environment = given.command, given.environment
    if not words or not words[0]:
        raise invalid("exec.command", "is required: the program, and with it its arguments")
    if len(words) > WORDS_MAX:
        raise invalid(
            "exec.command",
            f"has {len(words)} words, at most {WORDS_MAX} are possible",
            value=len(words),
            limit=WORDS_MAX,
        )
    if any("\0" in word for word in words):
        raise invalid("exec.command", "has a NUL, which no argument can have")
    if "/" in words[0] and not words[0].startswith("/"):
        raise invalid(
            "exec.command",
            f"{words[0][:64]!r} is relative; give an absolute path, or a name without a slash",
        )
    if len(environment) > VARIABLES_MAX:
        raise invalid(
            "exec.environment",
            f"has {len(environment)} variables, at most {VARIABLES_MAX} are possible",
            value=len(environment),
            limit=VARIABLES_MAX,
        )
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise invalid("exec.environment", f"{name[:64]!r} is no name: letters, digits and underscores")
        if name.startswith(PREFIX):
            raise invalid("exec.environment", f"{name[:64]}: names that begin with {PREFIX} are the daemon's")
        if "\0" in value:
            raise invalid("exec.environment", f"{name[:64]} has a NUL, which no variable can have")
    size = sum(len(word.encode()) for word in (*words, *environment, *environment.values()))
    if size > WORDS_BYTES_MAX:
        raise invalid(
            "exec.command",
            f"has {size} bytes with its environment, at most {WORDS_BYTES_MAX} are possible",
            value=size,
            limit=WORDS_BYTES_MAX,
        )


def _span(field: str, value: int, default: int, most: int) -> int:
    if value and not SPAN_LEAST_NS <= value <= most:
        raise invalid(
            f"exec.{field}", f"is {value}, must be {SPAN_LEAST_NS} to {most}", value=value, limit=most
        )
    return value or default


def check_options(given: job_pb2.Options, options: Options) -> None:
    """Raise AemError for options that contradict a command."""
    if options.acknowledgement == NONE:
        raise invalid(
            "options.acknowledgement",
            "ACKNOWLEDGEMENT_NONE is not possible with exec: the exit status acknowledges; leave it out",
            value="ACKNOWLEDGEMENT_NONE",
        )
    if given.ack_timeout_ns:
        raise invalid(
            "options.ack_timeout_ns",
            "has no meaning with exec; exec.timeout_ns is the time of a run",
            value=given.ack_timeout_ns,
        )


def check_owner(principal: Principal, quota: Quota, daemon_uid: int) -> None:
    """Raise AemError if the daemon can, or may, run no commands as `principal`."""
    if daemon_uid not in (0, principal.uid):
        raise AemError(
            Code.PERMISSION_DENIED,
            "NOT_ALLOWED",
            f"this daemon is uid {daemon_uid}'s and runs no commands as uid {principal.uid}",
        )
    if principal.network_namespace:
        raise AemError(
            Code.FAILED_PRECONDITION,
            "NAMESPACE",
            "the caller is in another network namespace than the daemon, whose commands would leave it; make"
            " the job from outside, or let the administrator put it into jobs.d",
        )
    if not quota.children:
        raise over_quota("children", uid=principal.uid, used=0, limit=0, more=1)
