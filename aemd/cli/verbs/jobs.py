"""Verbs that look after jobs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aemd.cli.completion import complete_jobs, complete_modules
from aemd.cli.failure import Exit, report
from aemd.cli.output import Column
from aemd.cli.parameters import SPAN, JobName
from aemd.cli.plain import plain
from aemd.cli.text import age_text, moment_text, safe, size_text, span_text
from aemd.cli.verb import Settings, Verb, failure_of
from aemd.service.feed import Row

if TYPE_CHECKING:
    import aem
    from aem.v1 import job_pb2

T = TypeVar("T")

SECTION = "Jobs"
STATES = ("registered", "armed", "degraded", "closing")
JOB_ID = JobName()
STAGES = ("kernel", "source", "job", "session")  # where events are lost; the only names

COLUMNS = (
    Column("JOB", lambda job: job["id"], right=True),
    Column("MODULE", lambda job: job["module"]),
    Column("STATE", lambda job: job["state"]),
    Column("PRIO", lambda job: _priority(job), right=True),
    Column("FIRES", lambda job: job["stats"]["fires"], right=True),
    Column("QUEUED", lambda job: job["stats"]["queued"], right=True),
    Column("LAG", lambda job: job["stats"]["lag"], right=True),
    Column("FAILED", lambda job: job["stats"]["failed"], right=True),
    Column("LOST", lambda job: job["stats"]["lost"], right=True),
    Column("UID", lambda job: job["uid"], right=True),
    Column("PID", lambda job: job["pid"], right=True),
    Column("AGE", lambda job: age_text(job["create_time_ns"]), right=True),
    Column("NAME", lambda job: job["durable_name"] or "-"),
    Column("LABEL", lambda job: job["label"] or "-"),
    Column("PARAMETERS", lambda job: params_text(job["params"])),
)


def job_row(job: job_pb2.Job) -> Row:
    """A job as plain values, its statistics always there."""
    from aem.v1 import job_pb2

    row = plain(job)
    row["stats"] = row["stats"] or plain(job_pb2.JobStats())
    row["options"] = row["options"] or plain(job_pb2.Options())
    return row


def params_text(params: dict[str, Any]) -> str:
    """Parameters as they would be typed."""
    return " ".join(f"{name}={_value_text(value)}" for name, value in params.items())


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_value_text(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"'{value}'" if " " in str(value) else str(value)


def _priority(job: Row) -> object:
    priority = job["options"]["priority"]
    return "-" if priority is None else priority


@click.command(
    "list-jobs",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl list-jobs",
        "aemctl list-jobs --module timer --state armed",
        "aemctl list-jobs -o json | jq '.[] | select(.stats.lost > 0).id'",
    ),
)
@click.option("--module", metavar="NAME", shell_complete=complete_modules, help="Only jobs of this module.")
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), help="Only jobs in this state.")
@click.pass_obj
def list_jobs(settings: Settings, /, *, module: str | None, state: str | None) -> None:
    """List your jobs; as root everybody's."""
    with settings.client() as client:
        jobs = client.list_jobs(module=module, state=state)
        settings.output.rows(map(job_row, jobs), COLUMNS, empty="no jobs")


@click.command(
    "show-job",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl show-job 17",
        "aemctl show-job backup",
        "aemctl show-job 17 -o json | jq .stats.last_error",
    ),
)
@click.argument("ids", metavar="JOB...", nargs=-1, required=True, type=JOB_ID, shell_complete=complete_jobs)
@click.pass_obj
def show_job(settings: Settings, /, *, ids: Sequence[int | str]) -> int:
    """Show everything about a job: parameters, options, what happened so far.

    With -o json: one object for one job, an array for several.
    """
    output = settings.output
    rows: list[Row] = []
    with settings.client() as client:
        code = for_each(settings, client, ids, lambda one: rows.append(job_row(client.get_job(one))))
    if output.form == "json" and len(ids) > 1:
        output.rows(rows, COLUMNS, empty="")
        return code
    for place, row in enumerate(rows):
        if place and output.for_people:
            output.line("")
        output.record(row, job_facts(row))
    return code


def job_facts(row: Row) -> list[tuple[str, str]]:
    """A job for people."""
    stats, options = row["stats"], row["options"]
    reason = f" ({safe(row['reason'])})" if row["reason"] else ""
    facts = [
        ("job", f"{row['id']}"),
        ("name", _durable_text(row)),
        ("label", safe(row["label"])),
        ("module", row["module"]),
        ("state", f"{row['state']}{reason}"),
        ("parameters", safe(params_text(row["params"]))),
        *_exec_facts(row),
        ("options", _options_text(options)),
        ("owner", f"uid {row['uid']}, pid {row['pid']}, {row['session'] or 'no session'}"),
        ("registered", moment_text(row["create_time_ns"])),
        ("last fired", moment_text(stats["last_fire_time_ns"])),
        ("fires", str(stats["fires"])),
        ("lost", _losses(stats)),
        ("entries", _counts(stats, "delivered", "redelivered", "acknowledged", "failed", "parked")),
        (
            "waiting",
            f"{stats['queued']} queued, {stats['in_flight']} in flight, {size_text(stats['queued_bytes'])}",
        ),
        (
            "position",
            f"head {_cursor(stats['head'])}, acknowledged {_cursor(stats['acked'])}, lag {stats['lag']}",
        ),
    ]
    if stats["last_error"]:
        facts.append(("last error", safe(stats["last_error"])))
        facts.append(("", f"at {moment_text(stats['last_error_time_ns'])}"))
    facts += [(safe(name.replace("_", " ")), safe(text)) for name, text in row["details"].items()]
    return [(name, text) for name, text in facts if text]


def _exec_facts(row: Row) -> list[tuple[str, str]]:
    """What a command job runs, and how that gets on."""
    execution, state = row["exec"], row["exec_state"]
    if execution is None or state is None:
        return []
    parts = [
        "one run for all that waits" if execution["mode"] == "dirty" else "one run for each event",
        f"at most {span_text(execution['timeout_ns'])}",
        f"backoff {span_text(execution['backoff_min_ns'])} to {span_text(execution['backoff_max_ns'])}",
    ]
    if execution["directory"] != "/":
        parts.append(f"in {execution['directory']}")
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in execution["environment"].items())
    last = state["last_time_ns"]
    ended = f"{state['last_result']} after {span_text(state['last_duration_ns'])}, {moment_text(last)}"
    return [
        ("command", safe(shlex.join(execution["command"]))),
        ("", ", ".join(safe(part) for part in parts)),
        ("with", safe(variables)),
        ("runs", f"{state['runs']}, {state['failures']} failed; {_phase_text(state)}"),
        ("last run", safe(ended) if last else ""),
    ]


def _phase_text(state: Row) -> str:
    """What a command job does now."""
    if state["phase"] == "running":
        return f"one is running since {moment_text(state['since_time_ns'])}, pid {state['pid']}"
    if state["phase"] == "waiting":
        why, row = safe(state["waiting_for"]), state["failed_in_a_row"]
        again = f", {row} times in a row" if row > 1 else ""
        return f"the next one waits until {moment_text(state['until_time_ns'])}: {why}{again}"
    words = {"idle": "none is wanted", "halted": "none is begun, for the job is not started"}
    return words.get(state["phase"]) or str(state["phase"])


def _durable_text(row: Row) -> str:
    """The name of a durable job, what is kept of it, and how many read it."""
    keep = row["keep"]
    if not row["durable_name"] or keep is None:
        return row["durable_name"] or ""
    kept = f"{keep['entries']} entries, {size_text(keep['bytes'])}, {span_text(keep['age_ns'])}"
    return f"{row['durable_name']}: keeps {kept}; from {_cursor(row['oldest'])} on; {row['readers']} bound"


def _counts(stats: Row, *names: str) -> str:
    return ", ".join(f"{stats[name]} {name.replace('_', ' ')}" for name in names)


def _losses(stats: Row) -> str:
    """How much was lost, and where, in the words of the Gaps."""
    at = [f"{stats[f'lost_{stage}']} {stage}" for stage in STAGES if stats[f"lost_{stage}"]]
    return f"{stats['lost']}" + (f": {', '.join(at)}" if at else "")


def _cursor(cursor: Row | None) -> str:
    return f"{cursor['epoch']}:{cursor['seq']}" if cursor else "-"


def _options_text(options: Row) -> str:
    parts = ["one-shot"] if options["one_shot"] else []
    if options["priority"] is not None:
        parts.append(f"priority {options['priority']}")
    if options["queue_depth"]:
        parts.append(f"queue {options['queue_depth']} entries, {size_text(options['queue_bytes'])}")
    words = [(name, options[name]) for name in ("overflow", "acknowledgement")]
    spans = [(name, options[f"{name}_ns"]) for name in ("ack_timeout", "lease")]
    parts += [f"{name} {word}" for name, word in words if word]
    parts += [f"{name.replace('_', ' ')} {span_text(span_ns)}" for name, span_ns in spans if span_ns]
    if options["attempts_max"]:
        parts.append(f"at most {options['attempts_max']} attempts")
    return ", ".join(parts)


def for_each(settings: Settings, client: aem.Client, ids: Iterable[T], act: Callable[[T], object]) -> int:
    """Act on each id and go on after a refusal; the first refusal decides the exit code."""
    import aem

    code = int(Exit.OK)
    for one in ids:
        try:
            act(one)
        except aem.AemError as error:
            failure = failure_of(error, client.address)
            if failure.exit_code == Exit.UNREACHABLE:
                raise failure from error
            report(failure, as_json=not settings.output.for_people)
            code = code or failure.exit_code
    return code


def _change(
    settings: Settings, ids: Sequence[int | str], act: Callable[[aem.Client, int | str], job_pb2.Job]
) -> int:
    output = settings.output
    with settings.client() as client:

        def change(one: int | str) -> None:
            row = job_row(act(client, one))
            output.event(row, lambda: f"job {row['id']} {output.state(row['state'])}")

        return for_each(settings, client, ids, change)


@click.command(
    "start-job", cls=Verb, section=SECTION, examples=("aemctl start-job 17", "aemctl start-job 17 18")
)
@click.argument("ids", metavar="JOB...", nargs=-1, required=True, type=JOB_ID, shell_complete=complete_jobs)
@click.pass_obj
def start_job(settings: Settings, /, *, ids: Sequence[int | str]) -> int:
    """Arm jobs: from now on they fire."""
    return _change(settings, ids, lambda client, one: client.start_job(one))


@click.command("stop-job", cls=Verb, section=SECTION, examples=("aemctl stop-job 17",))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True, type=JOB_ID, shell_complete=complete_jobs)
@click.pass_obj
def stop_job(settings: Settings, /, *, ids: Sequence[int | str]) -> int:
    """Disarm jobs: they fire no more until started; what is queued is still delivered.

    Where the daemon runs a command for a job, its run is ended, and what is queued waits until it is started.
    """
    return _change(settings, ids, lambda client, one: client.stop_job(one))


@click.command("set-priority", cls=Verb, section=SECTION, examples=("aemctl set-priority 17 6",))
@click.argument("one", metavar="JOB", type=JOB_ID, shell_complete=complete_jobs)
@click.argument("priority", metavar="PRIORITY", type=click.IntRange(0, 7))
@click.pass_obj
def set_priority(settings: Settings, /, *, one: int | str, priority: int) -> int:
    """Set the priority of a job: 0 to 7, 7 is served first."""
    output = settings.output
    with settings.client() as client:
        row = job_row(client.set_priority(one, priority))
    output.event(row, lambda: f"job {row['id']} priority {_priority(row)}")
    return Exit.OK


@click.command(
    "shutdown-job",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl shutdown-job 17",
        "aemctl shutdown-job 17 18 --deadline 30s",
    ),
)
@click.argument("ids", metavar="JOB...", nargs=-1, required=True, type=JOB_ID, shell_complete=complete_jobs)
@click.option(
    "--deadline",
    "deadline_ns",
    metavar="SPAN",
    type=SPAN,
    help="How long a handler that runs now may take; default 5s, at most 10min.",
)
@click.pass_obj
def shutdown_job(settings: Settings, /, *, ids: Sequence[int | str], deadline_ns: int | None) -> int:
    """End jobs, each after the handler that runs now; of a durable job the history is given up."""
    deadline = None if deadline_ns is None else deadline_ns / 1e9
    return _change(settings, ids, lambda client, one: client.shutdown_job(one, deadline=deadline))


VERBS: Sequence[click.Command] = (list_jobs, show_job, start_job, stop_job, set_priority, shutdown_job)
