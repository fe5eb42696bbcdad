"""Exit codes, and how a failure is told.

One line says what was wrong and the reason code, a second one the way out. With `-o json` and `-o jsonl`
the same goes to standard error as one JSON object, so that standard output holds results only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum

import click

from aemd.cli.text import safe


class Exit(IntEnum):
    """What aemctl exits with; EXIT_HELP says it to people."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    DENIED = 5
    TIMEOUT = 124
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


EXIT_HELP: Mapping[Exit, str] = {
    Exit.OK: "done",
    Exit.REFUSED: "the daemon refused, or something failed on the way",
    Exit.USAGE: "a wrong option, parameter or value",
    Exit.UNREACHABLE: "no daemon answers",
    Exit.NOT_FOUND: "there is no such job, module, session or process, or it is somebody else's",
    Exit.DENIED: "permission denied",
    Exit.TIMEOUT: "the time limit of --timeout came first",
    Exit.INTERRUPTED: "interrupted (SIGINT)",
    Exit.BROKEN_PIPE: "nobody reads standard output any more",
    Exit.TERMINATED: "terminated (SIGTERM)",
}

# By the name of the canonical code. A value that the daemon rejects is the user's as much as one that
# aemctl rejects; everything not named here is REFUSED.
_BY_CODE = {
    "INVALID_ARGUMENT": Exit.USAGE,
    "UNAVAILABLE": Exit.UNREACHABLE,
    "DEADLINE_EXCEEDED": Exit.UNREACHABLE,
    "NOT_FOUND": Exit.NOT_FOUND,
    "PERMISSION_DENIED": Exit.DENIED,
    "UNAUTHENTICATED": Exit.DENIED,
}


class Failure(Exception):  # noqa: N818 - how a command ends
    """Ends the command with `exit_code`; `hint` says the way out, `code` and `reason` are for programs."""

    def __init__(
        self,
        message: str,
        *,
        exit_code: Exit = Exit.REFUSED,
        code: str = "",
        reason: str = "",
        hint: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = int(exit_code)
        self.code = code
        self.reason = reason
        self.hint = hint
        self.metadata = dict(metadata or {})


def exit_of_code(code: str) -> Exit:
    """The exit code for a canonical code's name."""
    return _BY_CODE.get(code, Exit.REFUSED)


def report(failure: Failure, *, as_json: bool) -> None:
    """Tell a failure on standard error."""
    if as_json:
        facts = {
            "error": failure.message,
            "code": failure.code,
            "reason": failure.reason,
            "hint": failure.hint,
            "metadata": failure.metadata,
            "exit_code": failure.exit_code,
        }
        click.echo(json.dumps(facts, ensure_ascii=False), err=True)
        return
    reason = f" [{failure.reason}]" if failure.reason else ""
    click.echo(f"aemctl: {safe(failure.message)}{reason}", err=True)
    if failure.hint:
        click.echo(f"  {safe(failure.hint)}", err=True)


def note(message: str) -> None:
    """Something worth knowing that is neither a result nor a failure."""
    click.echo(f"aemctl: {safe(message)}", err=True)
