"""Results on standard output: aligned columns for people, JSON for programs.

The same plain dicts feed both. Tables are columns set apart by two spaces, nothing else, so that
`awk '{print $1}'` works; `json` is one document, `jsonl` one object a line. Streams are objects a line in
both, each flushed at once.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import click

from aemd.cli.text import safe
from aemd.service.feed import Row, dumps

FORMATS = ("table", "json", "jsonl")

_STATE_COLORS = {"armed": "green", "registered": "yellow", "degraded": "red", "closing": "magenta"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its title and what it shows of a row. `right` aligns numbers."""

    title: str
    show: Callable[[Row], object]
    right: bool = False


def color_wanted(*, forbidden: bool) -> bool:
    """Whether standard output is a terminal that takes colours; NO_COLOR as at no-color.org."""
    return (
        not forbidden
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
        and sys.stdout.isatty()
    )


def width(text: str) -> int:
    """How many cells of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def align(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[list[str]]:
    """The same cells, padded to the width of their column; the last column is left as it is."""
    if not rows:
        return []
    widths = [max(width(row[i]) for row in rows) for i in range(len(right))]
    last = len(right) - 1

    def pad(cell: str, i: int) -> str:
        space = " " * (widths[i] - width(cell))
        return space + cell if right[i] else cell if i == last else cell + space

    return [[pad(cell, i) for i, cell in enumerate(row)] for row in rows]


@dataclass(slots=True)
class Output:
    """Where results go, and in which form."""

    form: str = "table"
    color: bool = False

    @property
    def for_people(self) -> bool:
        """Whether somebody reads it."""
        return self.form == "table"

    def paint(self, text: str, color: str | None = None, *, bold: bool = False) -> str:
        """`text` in a colour, if colours are wanted."""
        return click.style(text, fg=color, bold=bold or None) if self.color else text

    def line(self, text: str) -> None:
        """One line, at once."""
        # The prepared text has colours only if they are wanted, so click need not look for them.
        click.echo(text, color=True)

    def event(self, row: Row, text: Callable[[], str]) -> None:
        """One object of a stream."""
        self.line(text() if self.for_people else dumps(row))

    def rows(self, rows: Iterable[Row], columns: Sequence[Column], *, empty: str) -> None:
        """A list. `empty` is said to people when there is nothing."""
        if self.form == "jsonl":
            for row in rows:
                self.line(dumps(row))
        elif self.form == "json":
            self._array(rows)
        else:
            self._table(rows, columns, empty)

    def record(self, row: Row, facts: Sequence[tuple[str, str]]) -> None:
        """One thing in full: `facts` for people, `row` for programs."""
        if not self.for_people:
            self.line(dumps(row))
            return
        broad = max((width(name) for name, _ in facts), default=0)
        for name, text in facts:
            if not name:
                self.line(f"  {text}")
                continue
            label = self.paint(f"{name:>{broad}}", "cyan")
            self.line(f"{label}  {text}")

    def state(self, text: str) -> str:
        """A cell that begins with a job's state, in that state's colour."""
        color = _STATE_COLORS.get(text.strip())
        return self.paint(text, color) if color else text

    def _array(self, rows: Iterable[Row]) -> None:
        lead = "["
        for row in rows:
            self.line(f"{lead}{dumps(row)}") if lead == "[" else self.line(f",{dumps(row)}")
            lead = ","
        self.line("[]" if lead == "[" else "]")

    def _table(self, rows: Iterable[Row], columns: Sequence[Column], empty: str) -> None:
        cells = [[safe(str(column.show(row))) for column in columns] for row in rows]
        if not cells:
            click.echo(empty, err=True)
            return
        head = [column.title for column in columns]
        state = head.index("STATE") if "STATE" in head else -1
        aligned = align([head, *cells], [column.right for column in columns])
        self.line("  ".join(self.paint(cell, bold=True) for cell in aligned[0]))
        for row in aligned[1:]:
            self.line("  ".join(self.state(cell) if i == state else cell for i, cell in enumerate(row)))
