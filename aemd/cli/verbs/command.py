"""Verbs that connect events with programs: run a command for each event, raise events."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from aemd.cli import surroundings
from aemd.cli.failure import Exit, note
from aemd.cli.halt import Halt, Halted
from aemd.cli.handler import Command, CommandError
from aemd.cli.parameters import SPAN
from aemd.cli.surroundings import environment
from aemd.cli.verb import Settings, Verb
from aemd.cli.verbs.events import SECTION, checked_parameters, job_arguments, job_options, one_shot_option
from aemd.modules.quantity import parse_size

if TYPE_CHECKING:
    import aem

READ_BYTES = 64 * 1024


class WithCommand(Verb):
    """A verb whose arguments end at `--`, behind which stands a command."""

    usage = "-- COMMAND [ARG]..."

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take off the command, which must not be looked at for options."""
        if "--" in args:
            place = args.index("--")
            ctx.meta["command"] = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show the command in the usage."""
        return [*super().collect_usage_pieces(ctx), self.usage]


@click.command(
    "on",
    cls=WithCommand,
    section=SECTION,
    examples=(
        "aemctl on timer calendar='Mon..Fri 09:00' -- ./report.sh",
        "aemctl on user channel=deploy --timeout 5min -- sh -c 'jq -r .payload.payload | ./deploy'",
        """aemctl on process pid=4242 -- sh -c 'echo "status $AEM_EXIT_STATUS"'""",
    ),
)
@job_arguments
@one_shot_option
@click.option(
    "--timeout",
    "timeout_ns",
    type=SPAN,
    metavar="SPAN",
    help="End a run that takes longer: SIGTERM, 5 s later SIGKILL. It counts as failed.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many runs.")
@click.option(
    "--env",
    "variables",
    metavar="NAME[=VALUE]",
    multiple=True,
    help="Let a variable through to the command, or set one. May be given several times.",
)
@click.option("--keep-env", is_flag=True, help="Let all variables through.")
@click.option(
    "--allow-new-privs",
    is_flag=True,
    help="Let the command gain privileges by set-user-ID programs such as sudo.",
)
@click.option(
    "--limit-core",
    default="0",
    metavar="BYTES|unlimited",
    help="The longest core dump of the command.  [default: 0, none]",
)
@click.pass_context
def on(
    ctx: click.Context,
    /,
    *,
    module: str,
    words: Sequence[str],
    timeout_ns: int | None,
    count: int | None,
    variables: Sequence[str],
    keep_env: bool,
    allow_new_privs: bool,
    limit_core: str,
    label: str | None,
    **options: Any,
) -> int:
    """Run a command for each event, one at a time.

    The event stands on the command's standard input as one line of JSON, and in variables: AEM_MODULE,
    AEM_TYPE, AEM_JOB, AEM_SEQ, AEM_EPOCH, AEM_COUNT, AEM_ATTEMPTS, AEM_TIME_NS, and AEM_ with the name of
    each field of the payload (AEM_EXIT_STATUS, AEM_PEER_DISPLAY). Its output goes where aemctl's goes.

    The command has a session of its own and no terminal. Of the variables here it gets PATH, HOME, USER,
    LOGNAME, SHELL, LANG, LANGUAGE, LC_*, TZ and AEMD_ADDRESS; --env gives it more. It cannot gain privileges,
    and leaves no core dumps.

    A run that does not exit with 0 has failed: it is told, counted, and `aemctl show-job` shows the last
    one. The next event is handled nevertheless. Exit code 1 if a run failed.
    """
    command = ctx.meta.get("command")
    if not command:
        raise click.UsageError("there is no command; put it behind --, for example: -- ./report.sh", ctx)
    try:
        around = environment(os.environ, variables, keep=keep_env)
        core_bytes = None if limit_core == "unlimited" else parse_size(limit_core)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None
    surroundings.limit_core(core_bytes)
    if not allow_new_privs:
        surroundings.give_up_privileges()
    settings = ctx.ensure_object(Settings)
    halt = Halt()
    with settings.client(reconnect=True) as client, halt.armed():
        parameters = checked_parameters(client, module, words)
        name = label or f"aemctl on: {command[0]}"
        chosen = job_options(**options)
        run = Command(command, timeout_ns=timeout_ns, environment=around, shield=halt.shielded)
        runs = _Runs(run, count, client.stop)
        try:
            job = client.register(
                module, runs.event, on_gap=runs.gap, options=chosen, label=name, params=parameters
            )
            halt.wait(lambda: client.run(until=lambda: job.state == "GONE"))
        except Halted as halted:
            return halted.reason
    return Exit.REFUSED if runs.failed else Exit.OK


class _Runs:
    """The handler of `on`: runs the command, tells and counts what failed, ends after `count` runs."""

    def __init__(self, command: Command, count: int | None, done: Callable[[], None]) -> None:
        self._command = command
        self._left = count
        self._done = done
        self.failed = 0

    def event(self, event: aem.Event) -> None:
        """Run the command; CommandError becomes the completion's error."""
        try:
            self._command.run(event.to_dict())
        except CommandError as failure:
            self.failed += 1
            note(f"job {event.job.id} event {event.seq}: {failure}")
            raise
        finally:
            if self._left is not None:
                self._left -= 1
                if self._left <= 0:
                    self._done()

    def gap(self, gap: aem.Gap) -> None:
        """Tell of a gap; there is nothing to run for it."""
        note(repr(gap))


@click.command(
    "raise",
    cls=Verb,
    section=SECTION,
    examples=(
        """aemctl raise deploy '{"version": 7}'""",
        "aemctl raise deploy - < payload.bin",
        "tail -f app.log | aemctl raise log --lines -",
    ),
)
@click.argument("channel", metavar="CHANNEL")
@click.argument("payload", metavar="[PAYLOAD|-]", default="")
@click.option("--lines", is_flag=True, help="With -: each line of standard input is an event of its own.")
@click.pass_obj
def raise_event(settings: Settings, /, *, channel: str, payload: str, lines: bool) -> None:
    """Raise an event on a channel, with a payload from the command line or, with -, standard input.

    Whoever watches the channel gets it: aemctl watch user channel=CHANNEL.
    """
    if lines and payload != "-":
        raise click.UsageError("--lines needs - as the payload")
    count = 0
    with settings.client() as client:
        for payloads in _payloads(payload, lines=lines):
            client.raise_event(channel, *payloads)
            count += len(payloads)
    if not settings.output.for_people:
        settings.output.event({"channel": channel, "raised": count}, str)


def _payloads(payload: str, *, lines: bool) -> Iterator[list[bytes]]:
    """Payloads to raise together: with `lines` as many as have come."""
    if payload != "-":
        yield [payload.encode("utf-8", "surrogateescape")]
        return
    if not lines:
        yield [sys.stdin.buffer.read()]
        return
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        if whole:
            yield whole
    if rest:
        yield [rest]


VERBS: Sequence[click.Command] = (on, raise_event)
