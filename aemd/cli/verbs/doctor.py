"""`aemctl doctor`: what is right and wrong with this machine, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from aemd.cli.failure import Exit
from aemd.cli.output import Column
from aemd.cli.text import safe
from aemd.cli.verb import Settings, Verb
from aemd.cli.verbs.metrics import SECTION
from aemd.service.feed import Row

COLORS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
COLUMNS = (
    Column("VERDICT", lambda row: row["verdict"]),
    Column("AREA", lambda row: row["area"]),
    Column("WHAT", lambda row: row["what"]),
    Column("FOUND", lambda row: row["found"]),
)


@click.command(
    "doctor",
    cls=Verb,
    section=SECTION,
    examples=("aemctl doctor", "aemctl doctor -o json | jq '.[] | select(.verdict != \"OK\")'"),
)
@click.pass_obj
def doctor(settings: Settings) -> int:
    """Look for what is wrong with kernel, machine and daemons, and say what to change.

    Kernel features are tried, not looked up. Nothing is changed, and no daemon is needed. WARN: something of
    aemd is missing or weaker; FAIL: it does not work like this, and the exit code is 1. Root sees more.
    """
    output, worst = settings.output, Exit.OK
    rows: list[Row] = []
    area = ""
    for row in examine(settings.address):
        if row["verdict"] == "FAIL":
            worst = Exit.REFUSED
        if not output.for_people:
            rows.append(row)
            continue
        if row["area"] != area:
            area = row["area"]
            output.line(output.paint(area, bold=True))
        verdict = output.paint(f"{row['verdict']:<4}", COLORS[row["verdict"]])
        output.line(f"  {verdict}  {safe(row['what'])}: {safe(row['found'])}")
        if row["remedy"]:
            output.line(f"        -> {safe(row['remedy'])}")
    if not output.for_people:
        output.rows(rows, COLUMNS, empty="")
    return worst


def examine(address: str | None) -> Iterator[Row]:
    """Every finding, the kernel's first: what is tried there wants no gRPC in the process."""
    from aemd.cli.doctor import daemons, kernel, machine
    from aemd.cli.doctor.finding import carried_out

    areas = (("kernel", kernel.checks()), ("machine", machine.checks()), ("daemons", daemons.checks(address)))
    for area, checks in areas:
        for found in carried_out(checks):
            yield {
                "area": area,
                "what": found.what,
                "verdict": found.verdict.value,
                "found": found.found,
                "remedy": found.remedy,
            }


VERBS: Sequence[click.Command] = (doctor,)
