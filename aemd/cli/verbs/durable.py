"""Verbs for durable jobs: they are made here, followed, and what was put aside of them is tried once more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

import click

from aemd.cli.completion import complete_durables, complete_jobs
from aemd.cli.failure import Exit
from aemd.cli.halt import Halt
from aemd.cli.output import Column
from aemd.cli.parameters import SIZE, SPAN, JobName, Start, parse_cursor
from aemd.cli.text import age_text, preview, safe
from aemd.cli.verb import Settings, Verb
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


@click.command(
    "create-job",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl create-job deploys user channel=deploy",
        "aemctl create-job reports timer calendar='Mon..Fri 09:00' --keep-entries 100 --keep-age 30d",
        "aemctl create-job web socket listen=tcp:127.0.0.1:8080 --stopped",
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
@click.pass_obj
def create_job(
    settings: Settings,
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
    """
    import aem

    with settings.client() as client:
        parameters = checked_parameters(client, module, words)
        keep = aem.Keep(keep_entries or 0, keep_bytes or 0, keep_age_ns or 0)
        chosen = job_options(**options)
        job = client.create_job(
            name, module, parameters, options=chosen, keep=keep, label=label or "", start=not stopped
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

    It goes to the client that answers for the job; there has to be one.
    """
    chosen = [parse_cursor(cursor) for cursor in cursors]
    with settings.client() as client:
        retried = client.retry_parked(job, *chosen)
    row: Row = {"job": job, "retried": retried}
    many = "entry" if retried == 1 else "entries"
    settings.output.event(row, lambda: f"job {safe(str(job))}: {retried} {many} delivered once more")
    return Exit.OK


VERBS: Sequence[click.Command] = (create_job, follow_job, list_parked, retry_parked)
