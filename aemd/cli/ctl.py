"""aemctl: the command line of aemd.

Verbs live in `verbs/`; this file puts them together, and is the one place where a failure becomes an exit
code. Only light modules are imported here (`verb.py` says why).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from aemd.cli.completion import PROGRAM, VARIABLE
from aemd.cli.failure import Exit, Failure, report
from aemd.cli.verb import Settings, Verbs
from aemd.cli.verbs import (
    command,
    daemon,
    doctor,
    durable,
    events,
    jobs,
    metrics,
    modules,
    policy,
    quota,
    top,
    units,
)

_EXAMPLES = (
    "aemctl watch timer every=200ms --count 3",
    "aemctl wait process pid=4242 --timeout 10s && echo gone",
    "aemctl on timer calendar='Mon..Fri 09:00' -- ./report.sh",
    "aemctl list-jobs -o json",
)


@click.group(
    cls=Verbs,
    examples=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def cli() -> None:
    """Watch kernel events, and look after the jobs, modules and sessions of aemd.

    Parameters are key=value, as `aemctl show-module MODULE` describes them.

    Results go to standard output, everything else to standard error: what went wrong, its reason in
    brackets, and the way out. With -o json or jsonl that is a JSON object as well, with the fields error,
    code, reason, hint, metadata and exit_code.
    """


for _verbs in (
    events.VERBS,
    command.VERBS,
    jobs.VERBS,
    durable.VERBS,
    modules.VERBS,
    policy.VERBS,
    top.VERBS,
    metrics.VERBS,
    doctor.VERBS,
    daemon.VERBS,
    quota.VERBS,
    units.VERBS,
):
    for _verb in _verbs:
        cli.add_command(_verb)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run aemctl with these arguments, by default those of the process; returns the exit code."""
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name=PROGRAM,
            complete_var=VARIABLE,
            standalone_mode=False,
        )
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return Exit.USAGE
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        settings = ctx.find_object(Settings) if ctx else None
        failure = _usage(error, ctx)
        report(failure, as_json=settings is not None and settings.form != "table")
        return failure.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return Exit.BROKEN_PIPE
    return code if isinstance(code, int) else Exit.OK


def main() -> None:
    """The entry point."""
    sys.exit(int(run()))


def _usage(error: click.ClickException, ctx: click.Context | None) -> Failure:
    """A mistake on the command line, with the way to the help."""
    path = ctx.command_path if ctx else PROGRAM
    return Failure(
        error.format_message(),
        exit_code=Exit.USAGE if error.exit_code == 2 else Exit.REFUSED,
        reason="USAGE",
        hint=f"see `{path} --help`",
    )


def _drop_stdout() -> None:
    """Let the interpreter's last flush go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()
