"""`aemctl top`: which jobs fire how fast, lag and lose, as it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import click

from aemd.cli.board import JOBS_MAX, Board, Sample, totals
from aemd.cli.failure import Exit, Failure
from aemd.cli.halt import Halt, Halted
from aemd.cli.parameters import SPAN
from aemd.cli.plain import plain
from aemd.cli.verb import Settings, Verb
from aemd.cli.verbs.jobs import job_row
from aemd.cli.verbs.metrics import SECTION
from aemd.service.feed import Row

if TYPE_CHECKING:
    import aem

WORDS = {"rate": "r", "lag": "l", "queued": "w", "lost": "x", "failed": "f", "job": "j"}
INTERVAL_MIN_NS = 100_000_000


@click.command(
    "top",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl top",
        "aemctl top --sort lag --interval 500ms",
        "aemctl top --once",
        "aemctl top -o jsonl --count 10 | jq '.jobs[] | select(.lag > 100)'",
    ),
)
@click.option(
    "--interval",
    "interval_ns",
    metavar="SPAN",
    type=SPAN,
    default=2_000_000_000,
    show_default="2s",
    help="How often to look; at least 100ms.",
)
@click.option("--sort", type=click.Choice(tuple(WORDS)), default="rate", show_default=True, help="By what.")
@click.option(
    "--once", is_flag=True, help="Print one table and end. It takes one interval: rates are measured."
)
@click.option("--count", metavar="N", type=click.IntRange(1), help="With jsonl: end after N objects.")
@click.pass_obj
def top(settings: Settings, /, *, interval_ns: int, sort: str, once: bool, count: int | None) -> int:
    """Show live which of your jobs fire, how far they lag, and what is lost; as root everybody's.

    RATE is stimuli a second, LAG those that are not dealt with, QUEUED the entries that wait. The column
    with the star is sorted by; q quits, and the lowest line shows the other keys.

    With -o json one object, with jsonl one object an interval.
    """
    if interval_ns < INTERVAL_MIN_NS:
        raise Failure("--interval is below 100ms", exit_code=Exit.USAGE, reason="USAGE")
    board = Board(WORDS[sort])
    with settings.client() as client:
        if once or not settings.output.for_people:
            times = 1 if once or settings.output.form == "json" else count
            return _plain(settings, client, board, interval_ns=interval_ns, count=times)
        return _live(client, board, interval_ns / 1e9)


def take(client: aem.Client) -> Sample:
    """The daemon now."""
    answer = client.metrics()
    status: Row = {**plain(client.status()), "address": client.address, "time_ns": answer.time_ns}
    jobs = [job_row(job) for job in islice(client.list_jobs(), JOBS_MAX)]
    return Sample(time.monotonic_ns(), status, jobs, totals(answer))


def _plain(
    settings: Settings, client: aem.Client, board: Board, *, interval_ns: int, count: int | None
) -> int:
    output, halt = settings.output, Halt()
    with halt.armed(stdout=True):
        try:
            board.take(take(client))
            while count is None or count > 0:
                halt.wait(lambda: time.sleep(interval_ns / 1e9))
                board.take(take(client))
                if output.for_people:
                    for line in board.lines(10_000, len(board.rows()) + 5)[:-1]:
                        output.line(line.text.rstrip())
                else:
                    output.event({"totals": board.summary(), "jobs": board.rows()}, str)
                count = None if count is None else count - 1
        except Halted as halted:
            return halted.reason
    return Exit.OK


def _live(client: aem.Client, board: Board, interval: float) -> int:
    import curses

    import aem

    from aemd.cli import screen

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Failure(
            "standard input and output are no terminal",
            exit_code=Exit.USAGE,
            reason="NO_TERMINAL",
            hint="take --once, or -o jsonl",
        )

    def sample() -> Sample:
        try:
            return take(client)
        except aem.AemError as error:
            return Sample(time.monotonic_ns(), error=error.message)

    halt = Halt()
    with halt.armed():
        try:
            halt.wait(lambda: screen.run(board, screen.Sampler(sample, interval)))
        except Halted as halted:
            return halted.reason
        except curses.error as error:
            raise Failure(
                f"this terminal cannot show it: {error}",
                reason="NO_TERMINAL",
                hint="take --once, or -o jsonl",
            ) from None
    return Exit.OK


VERBS: Sequence[click.Command] = (top,)
