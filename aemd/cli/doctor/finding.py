"""What a check has found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How bad it is."""

    OK = "OK"
    WARN = "WARN"  # something of aemd is missing or weaker without it
    FAIL = "FAIL"  # aemd does not work like this


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `found` is what is so, `remedy` what to change, empty where nothing is to be."""

    what: str
    verdict: Verdict
    found: str
    remedy: str = ""


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(what, Verdict.OK, found)


def warn(what: str, found: str, remedy: str) -> Finding:
    """Something is missing or weaker."""
    return Finding(what, Verdict.WARN, found, remedy)


def fail(what: str, found: str, remedy: str) -> Finding:
    """It does not work like this."""
    return Finding(what, Verdict.FAIL, found, remedy)


Check = Callable[[], "Finding | Iterable[Finding]"]


def carried_out(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """The findings of checks, each with a name for when it fails itself."""
    for what, check in checks:
        try:
            found = check()
            findings = [found] if isinstance(found, Finding) else list(found)
        except Exception as error:  # of a machine that is stranger than anybody thought
            findings = [warn(what, f"could not be looked at: {error}", "report this, with the whole output")]
        yield from findings
