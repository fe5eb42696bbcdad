"""Verbs for durable jobs: they are made here, followed, and what was put aside of them is tried once more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from aemd.cli.completion import complete_durables, complete_jobs
from aemd.cli.failure import Exit
from aemd.cli.halt import Halt
from aemd.cli.output import Column
from aemd.cli.parameters import SIZE, SPAN, JobName, Start, parse_cursor
from aemd.cli.text import age_text, preview, safe
from aemd.cli.verb import Settings, Verb
from aemd.cli.verbs.command import WithCommand
from aemd.cli.verbs.events import (
    checked_parameters,
    job_arguments,
    job_options,
    one_shot_option,
    show,
    show_all,
)
from aemd.cli.verbs.jobs import SECTION, job_row
from aemd.service.feed import Row

if TYPE_CHECKING:
    import aem

JOB = JobName()
START = Start()

PARKED_COLUMNS = (
    Column("CURSOR", lambda entry: entry["cursor"]),
    Column("ATTEMPTS", lambda entry: entry["attempts"], right=True),
    Column("KEPT", lambda entry: "yes" if entry["kept"] else "no"),
    Column("AGE", lambda entry: age_text(entry.get("real_time_ns", 0)), right=True),
    Column("TYPE", lambda entry: entry.get("type") or "-"),
    Column("REASON", lambda entry: preview(entry["reason"]) if entry["reason"] else "-"),
)

_EXEC_NAMES = ("dirty", "timeout_ns", "backoff_min_ns", "backoff_max_ns", "variables", "directory")
_EXEC_OPTIONS = (
    click.option("--dirty", is_flag=True, help="One run for all that happened since the last one began."),
    click.option(
        "--timeout",
        "timeout_ns",
        type=SPAN,
        metavar="SPAN",
        help="End a run that takes longer: SIGTERM, 5 s later SIGKILL; default 1h.",
    ),
    click.option(
        "--backoff-min",
        "backoff_min_ns",
        type=SPAN,
        metavar="SPAN",
        help="How long to wait after a run that failed; default 1s. Each time it is twice as long.",
    ),
    click.option(
        "--backoff-max", "backoff_max_ns", type=SPAN, metavar="SPAN", help="At most so long; default 5min."
    ),
    click.option(
        "--env",
        "variables",
        metavar="NAME=VALUE",
        multiple=True,
        help="Set a variable of the command. May be given several times.",
    ),
    click.option("--directory", metavar="PATH", help="Where the command is run; default /."),
)


class MayHaveCommand(WithCommand):
    """A verb behind whose `--` may stand a command."""

    usage = "[-- COMMAND [ARG]...]"


def _exec_options(command: Any) -> Any:
    for decorate in reversed(_EXEC_OPTIONS):
        command = decorate(command)
    return command


def _execution(
    ctx: click.Context, *, variables: Sequence[str], dirty: bool, directory: str | None, **spans: int | None
) -> aem.Exec | None:
    """The command behind `--`, and how it is to be run; None if there is none."""
    import aem

    command = ctx.meta.get("command")
    if not command:
        if command is not None or variables or dirty or directory or any(spans.values()):
            raise click.UsageError("there is no command; put it behind --, for example: -- ./report.sh", ctx)
        return None
    environment = {}
    for word in variables:
        name, given, value = word.partition("=")
        if not (name and given):
            raise click.UsageError(f"--env {word!r} is not NAME=VALUE", ctx)
        environment[name] = value
    return aem.Exec(
        command,
        dirty=dirty,
        environment=environment,
        directory=directory or "",
        **{name: span_ns or 0 for name, span_ns in spans.items()},
    )


@click.command(
    "create-job",
    cls=MayHaveCommand,
    section=SECTION,
    examples=(
        "aemctl create-job deploys user channel=deploy",
        "aemctl create-job reports timer calendar='Mon..Fri 09:00' --keep-entries 100 --keep-age 30d",
        "aemctl create-job web socket listen=tcp:127.0.0.1:8080 --stopped",
        "aemctl create-job nightly timer calendar='*-*-* 03:00' --timeout 20min -- /usr/local/bin/backup",
        "aemctl create-job deploy user channel=deploy --dirty --attempts-max 5 -- sh -c 'jq .payload | ./go'",
    ),
)
@click.argument("name", metavar="NAME")
@job_arguments
@one_shot_option
@click.option(
    "--keep-entries", type=click.IntRange(1), metavar="N", help="How many entries are kept; default 10000."
)
@click.option("--keep-bytes", type=SIZE, metavar="SIZE", help="How many bytes are kept; default 16MiB.")
@click.option("--keep-age", "keep_age_ns", type=SPAN, metavar="SPAN", help="How long; default 7d.")
@click.option("--stopped", is_flag=True, help="Do not start it.")
@_exec_options
@click.pass_context
def create_job(
    ctx: click.Context,
    /,
    *,
    name: str,
    module: str,
    words: Sequence[str],
    keep_entries: int | None,
    keep_bytes: int | None,
    keep_age_ns: int | None,
    stopped: bool,
    label: str | None,
    **options: Any,
) -> int:
    """Make a durable job: it outlives its clients, the daemon and the machine, and keeps a history.

    NAME is yours alone: letters, digits, dots, dashes and underscores. Made again with the same definition it
    is the job that is there; with another one the daemon says what differs.

    With a COMMAND behind -- the daemon runs that for each event, as you, one run at a time. The event stands
    on its standard input as one line of JSON, and in variables as with aemctl on; its output goes to the
    journal, as aemd-job-NAME. A run that does not exit with 0 comes again after a backoff, or is parked after
    --attempts-max. aemctl show-job tells how it gets on.
    """
    import aem

    settings = ctx.ensure_object(Settings)
    chosen_exec = _execution(ctx, **{name: options.pop(name) for name in _EXEC_NAMES})
    with settings.client() as client:
        parameters = checked_parameters(client, module, words)
        keep = aem.Keep(keep_entries or 0, keep_bytes or 0, keep_age_ns or 0)
        chosen = job_options(**options)
        job = client.create_job(
            name,
            module,
            parameters,
            options=chosen,
            keep=keep,
            label=label or "",
            start=not stopped,
            exec=chosen_exec,
        )
    output, row = settings.output, job_row(job)
    output.event(row, lambda: f"job {row['id']} {row['durable_name']} {output.state(row['state'])}")
    return Exit.OK


@click.command(
    "follow-job",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl follow-job deploys",
        "aemctl follow-job deploys --from oldest --count 10",
        "aemctl follow-job deploys --from 1:17 -o json",
        "aemctl follow-job deploys --from 10min",
    ),
)
@click.argument("job", metavar="JOB", type=JOB, shell_complete=complete_durables)
@click.option(
    "--from",
    "start_from",
    metavar="START",
    type=START,
    default="now",
    help="Where to begin: oldest, now (default), behind a cursor such as 1:17, at a time such as "
    "2026-01-31T09:00, or so long ago, 10min.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many events.")
@click.option(
    "--timeout",
    "timeout_ns",
    type=SPAN,
    metavar="SPAN",
    help="End after this. Exit code 124 if --count was given and not reached.",
)
@click.pass_obj
def follow_job(
    settings: Settings,
    /,
    *,
    job: int | str,
    start_from: str | datetime,
    count: int | None,
    timeout_ns: int | None,
) -> int:
    """Show the events of a durable job, beside whoever answers for it.

    One line for each event, its cursor first, or one JSON object with -o json. What is not kept any more is
    a GAP, or, where --from named it, refused with what there is. Ends with the job, with --count,
    --timeout, or on Ctrl-C; the job stays.
    """
    halt = Halt()
    with settings.client(reconnect=True) as client, halt.armed(timeout_ns, stdout=True):
        stream = client.follow(job, start_from=start_from)
        return show_all(halt, stream, partial(show, settings, cursor=True), count=count, ends=False)


@click.command(
    "list-parked",
    cls=Verb,
    section=SECTION,
    examples=("aemctl list-parked deploys", "aemctl list-parked 17 -o json | jq '.[].payload'"),
)
@click.argument("job", metavar="JOB", type=JOB, shell_complete=complete_jobs)
@click.pass_obj
def list_parked(settings: Settings, /, *, job: int | str) -> None:
    """List what was put aside of a job because no handler could deal with it."""
    with settings.client() as client:
        rows = (entry.to_dict() for entry in client.list_parked(job))
        settings.output.rows(rows, PARKED_COLUMNS, empty="nothing is put aside")


@click.command(
    "retry-parked",
    cls=Verb,
    section=SECTION,
    examples=("aemctl retry-parked deploys", "aemctl retry-parked deploys 1:17 1:20"),
)
@click.argument("job", metavar="JOB", type=JOB, shell_complete=complete_jobs)
@click.argument("cursors", metavar="[CURSOR]...", nargs=-1)
@click.pass_obj
def retry_parked(settings: Settings, /, *, job: int | str, cursors: Sequence[str]) -> int:
    """Deliver what was put aside of a job once more: all of it, or what is named.

    It goes to the client that answers for the job, or to its command; there has to be one.
    """
    chosen = [parse_cursor(cursor) for cursor in cursors]
    with settings.client() as client:
        retried = client.retry_parked(job, *chosen)
    row: Row = {"job": job, "retried": retried}
    many = "entry" if retried == 1 else "entries"
    settings.output.event(row, lambda: f"job {safe(str(job))}: {retried} {many} delivered once more")
    return Exit.OK


VERBS: Sequence[click.Command] = (create_job, follow_job, list_parked, retry_parked)
