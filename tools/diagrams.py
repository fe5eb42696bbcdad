"""Draws the diagrams of docs/states.md from the tables that the core runs by.

Usage: diagrams.py [--check]; --check writes nothing and fails if the file would change.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aemd.core import entry, job  # noqa: E402

TARGET = ROOT / "docs" / "states.md"

HEAD = """# States

Drawn by `tools/diagrams.py` from the tables in `aemd/core/job.py` and `aemd/core/entry.py`; do not edit.
"""

JOB = """
## A job

What stands behind the stroke is asked of the module. Clients see DRAINING as CLOSING. A step that is not
shown is refused with JOB_ENDING; steps that change nothing are left out.
"""

ENTRY = """
## An entry

An event or a gap, in one binding. QUEUED and GAP were never sent; everything else was, and is frozen.
"""


def diagram(edges: dict[tuple[str, str], list[str]], first: list[str], last: list[str]) -> str:
    """A Mermaid state diagram; `edges` are the labels between two states."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {state}" for state in first]
    lines += [f"    {before} --> {after}: {', '.join(labels)}" for (before, after), labels in edges.items()]
    lines += [f"    {state} --> [*]" for state in last]
    return "\n".join([*lines, "```", ""])


def job_edges() -> dict[tuple[str, str], list[str]]:
    """The steps of a job that change its state."""
    edges: dict[tuple[str, str], list[str]] = {}
    for (state, event), (after, action) in job.TABLE.items():
        if state is not after:
            label = event.name.lower()
            if action is not job.Action.NONE:
                label += f" / {action.name.lower()}"
            edges.setdefault((state.name, after.name), []).append(label)
    return edges


def entry_edges() -> dict[tuple[str, str], list[str]]:
    """The steps of an entry."""
    edges: dict[tuple[str, str], list[str]] = {}
    for (state, event), after in entry.TABLE.items():
        edges.setdefault((state.name, after.name), []).append(event.name.lower())
    return edges


def text() -> str:
    """The whole of docs/states.md."""
    terminal = [state.name for state in entry.EntryState if state not in {row[0] for row in entry.TABLE}]
    return "".join(
        (
            HEAD,
            JOB,
            "\n",
            diagram(job_edges(), ["REGISTERED"], ["GONE"]),
            ENTRY,
            "\n",
            diagram(entry_edges(), ["QUEUED", "GAP"], terminal),
        )
    )


def main() -> int:
    """Write or compare docs/states.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        TARGET.write_text(text())
        return 0
    if TARGET.exists() and TARGET.read_text() == text():
        return 0
    print(f"{TARGET.relative_to(ROOT)} is not what the tables say; run tools/diagrams.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
