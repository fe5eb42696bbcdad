"""The verb that tells who has what, and may have what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from aemd.cli.output import Column
from aemd.cli.plain import plain
from aemd.cli.text import size_text
from aemd.cli.verb import Settings, Verb
from aemd.service.feed import Row

if TYPE_CHECKING:
    from aem.v1 import admin_pb2

SECTION = "Daemon"


def _amount(row: Row, name: str) -> str:
    """A number for people: sizes with their unit."""
    sized = "bytes" in row["resource"]
    return str(size_text(row[name])) if sized else str(row[name])


COLUMNS = (
    Column("USER", lambda row: row["uid"], right=True),
    Column("RESOURCE", lambda row: row["resource"]),
    Column("USED", lambda row: _amount(row, "used"), right=True),
    Column("LIMIT", lambda row: _amount(row, "limit"), right=True),
    Column("REFUSED", lambda row: row["refused"], right=True),
    Column("FROM", lambda row: row["origin"]),
)


@click.command(
    "quota",
    cls=Verb,
    section=SECTION,
    examples=("aemctl quota", "aemctl quota --all", "aemctl quota --uid 1000 -o json"),
)
@click.option("--uid", type=click.IntRange(0, (1 << 32) - 2), help="Of this user alone.")
@click.option("--all", "everything", is_flag=True, help="Also what is not in use and was never refused.")
@click.pass_obj
def quota(settings: Settings, /, *, uid: int | None, everything: bool) -> None:
    """Show what you have and may have; as root everybody.

    Of a rate, what was used and has not come back yet. FROM is the quota of the policy that sets the limit.
    """
    with settings.client() as client:
        rows = _rows(client.list_quotas(), uid, everything)
        settings.output.rows(rows, COLUMNS, empty="nothing is in use")


def _rows(users: Iterable[admin_pb2.UserQuota], uid: int | None, everything: bool) -> Iterator[Row]:
    for user in users:
        if uid not in (None, user.uid):
            continue
        for use in user.uses:
            if everything or use.used or use.refused:
                yield {"uid": user.uid, **plain(use)}


VERBS: Sequence[click.Command] = (quota,)
