"""A manual page of a document: the part of Markdown that docs/policy.md uses, as roff."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aemd import __version__

_BLOCKS = re.compile(r"\n\s*\n")
_SPAN = re.compile(r"\*\*(.+?)\*\*|`([^`]+)`|\[([^\]]+)\]\([^)]+\)")


def page(document: str, *, name: str, section: int, summary: str, see_also: str) -> str:
    """The page of a document whose first line is its title."""
    _, _, text = document.partition("\n")
    lines = [
        f'.TH {name.upper()} {section} "" "aemd {__version__}"',
        ".SH NAME",
        f"{name} \\- {summary}",
        ".SH DESCRIPTION",
    ]
    for block in _BLOCKS.split(text.strip("\n")):
        lines += _block(block)
    lines += [".SH SEE ALSO", see_also]
    return '.\\" Made by tools/man.py from docs/policy.md; do not edit.\n' + "\n".join(lines) + "\n"


def _block(block: str) -> Iterator[str]:
    rows = block.split("\n")
    if rows[0].startswith("#"):
        level, _, title = rows[0].partition(" ")
        shown = title.replace("`", "") if "`" in title else title.upper()
        yield f"{'.SH' if level == '##' else '.SS'} {_roff(shown)}"
    elif rows[0].startswith("    "):
        yield from (".PP", ".EX", *(_roff(row) for row in rows), ".EE")
    elif rows[0].startswith("|"):
        for row in rows[2:]:
            key, *cells = [cell.strip() for cell in row.strip("|").split(" | ")]
            yield from (".TP", _spans(key), _spans(" - ".join(cells)))
    elif re.match(r"(\d+\.|-) ", rows[0]):
        for item in re.split(r"\n(?=\d+\. |- )", block):
            mark, _, text = item.partition(" ")
            yield from (f".IP {_roff(mark)} 3", _spans(text))
    else:
        yield from (".PP", _spans(block))


def _spans(text: str) -> str:
    """A paragraph, with what is bold or code in bold."""
    text = " ".join(text.split())
    made, position = [], 0
    for found in _SPAN.finditer(text):
        made.append(_roff(text[position : found.start()]))
        strong, code, link = found.groups()
        made.append(_roff(link) if link else f"\\fB{_roff(strong or code)}\\fR")
        position = found.end()
    made.append(_roff(text[position:]))
    line = "".join(made)
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
