"""docs/policy.md says what there is, and nothing that is not."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import msgspec

from aemd.core.limits import AT_START
from aemd.core.policy import GRANTS
from aemd.core.quota import RESOURCES, Quota
from aemd.modules.quantity import parse_size
from aemd.service import audit
from aemd.service.shapes import RuleTable, SubjectTable

TEXT = (Path(__file__).resolve().parents[3] / "docs/policy.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading."""
    below = TEXT.split(f"# {heading}\n")[1].split("\n#")[0]
    rows = [line for line in below.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def keys(heading: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", " ".join(row[0] for row in table(heading))))


def names(struct: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(struct)}


def test_every_key_is_described():
    assert keys("`[[rule]]`") == names(RuleTable)
    assert keys("`subject`") == names(SubjectTable)
    assert keys("`grant`") == set(GRANTS)
    assert keys("`[[quota]]`") == set(RESOURCES)


def test_the_defaults_of_quotas_are_those_of_the_daemon():
    told = {row[0].strip("`"): parse_size(row[1]) for row in table("`[[quota]]`")}
    assert told == {field.name: getattr(Quota(), field.name) for field in fields(Quota)}


def test_what_needs_a_restart_is_named():
    sentence = TEXT.split("both may have a unit: ")[1].split("change with a restart")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == AT_START


def test_the_bounds_of_the_audit_are_named():
    told = re.search(r"More than (\d+) lines a minute of one user, or (\d+) of all", TEXT)
    assert told is not None
    assert tuple(map(int, told.groups())) == (audit.LINES_PER_WINDOW, audit.LINES_PER_WINDOW_ALL)
    assert audit.WINDOW_NS == 60 * audit.SECOND
