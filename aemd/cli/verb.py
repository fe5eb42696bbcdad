"""What all verbs share: the options that work before and behind the verb, examples in the help, and the
way to the daemon.

grpc takes longer to import than everything else together, so the SDK is imported when a verb first needs
the daemon: `--help` and completion scripts do without.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from aemd.cli.failure import EXIT_HELP, Exit, Failure, exit_of_code, note, report
from aemd.cli.output import FORMATS, Output, color_wanted

if TYPE_CHECKING:
    import aem


@dataclass(slots=True)
class Settings:
    """The common options."""

    address: str | None = None
    form: str = "table"
    no_color: bool = False

    @property
    def output(self) -> Output:
        """Where results go."""
        return Output(self.form, color_wanted(forbidden=self.no_color))

    @contextmanager
    def client(self, *, reconnect: bool = False) -> Iterator[aem.Client]:
        """The daemon. What it refuses within becomes a Failure."""
        import aem

        _tell_notes()
        try:
            client = aem.Client(self.address, label=f"aemctl[{os.getpid()}]", reconnect=reconnect)
        except aem.AemError as error:
            raise failure_of(error, self.address or "") from error
        try:
            yield client
        except aem.AemError as error:
            raise failure_of(error, client.address) from error
        finally:
            client.close()


class _Notes(logging.Handler):
    """What the SDK tells, as notes; a handler's failure is told by the verb that has the handler."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record."""
        if record.exc_info is None:
            note(record.getMessage())


def _tell_notes() -> None:
    log = logging.getLogger("aem")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes())
        log.setLevel(logging.INFO)  # also when a lost connection is back
        log.propagate = False


def failure_of(error: aem.AemError, address: str) -> Failure:
    """What the daemon, or the way to it, said, with the way out."""
    code = getattr(error.code, "name", str(error.code))
    exit_code = exit_of_code(code)
    hints = {
        Exit.UNREACHABLE: f"tried {address}: start the daemon with `systemctl start aemd` or `aemd --user`, "
        "or name its socket with --address or AEMD_ADDRESS",
        Exit.DENIED: "`aemctl status` shows who the daemon takes you for",
    }
    return Failure(
        error.message,
        exit_code=exit_code,
        code=code,
        reason=error.reason,
        hint=hints.get(exit_code, ""),
        metadata=error.metadata,
    )


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and param.name is not None:
        setattr(ctx.ensure_object(Settings), param.name, value)


def common_options() -> list[click.Parameter]:
    """The options that every verb takes, and `aemctl` itself. They are eager: a mistake in another
    option is told in the form that was asked for.
    """
    shared: dict[str, Any] = {"expose_value": False, "is_eager": True, "callback": _store}
    return [
        click.Option(
            ["--address"],
            metavar="ADDRESS",
            help="The daemon, for example unix:/run/aemd/aemd.sock. Default: AEMD_ADDRESS, else the "
            "user's own daemon if it runs, else the system's.",
            **shared,
        ),
        click.Option(
            ["-o", "--output", "form"],
            type=click.Choice(FORMATS),
            help="table for people (default), json, or jsonl: one object a line. Events are one object "
            "a line in both.",
            **shared,
        ),
        click.Option(
            ["--no-color"],
            is_flag=True,
            default=None,
            help="No colours, as with NO_COLOR set. There are none outside of a terminal anyway.",
            **shared,
        ),
    ]


class Verb(click.Command):
    """A verb: a command with the common options and with examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.section = section
        self.params += common_options()

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; its failure is told here, where the output form is known."""
        settings = ctx.ensure_object(Settings)
        try:
            return super().invoke(ctx)
        except Failure as failure:
            report(failure, as_json=settings.form != "table")
            return failure.exit_code

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples."""
        super().format_epilog(ctx, formatter)
        write_block(formatter, "Examples", self.examples)


class Verbs(click.Group):
    """The verbs under their sections, in the order in which they were added."""

    command_class = Verb

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params += common_options()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it so
        """In their order, not the alphabet's."""
        return list(self.commands)

    def sections(self) -> dict[str, list[tuple[str, Verb]]]:
        """The verbs by section, with how they are called here: `policy explain` for one within another."""
        result: dict[str, list[tuple[str, Verb]]] = {}
        for name, verb in self.commands.items():
            if isinstance(verb, Verb):
                result.setdefault(verb.section, []).append((name, verb))
            elif isinstance(verb, Topic):
                for section, inner in verb.sections().items():
                    result.setdefault(section, []).extend((f"{name} {each}", one) for each, one in inner)
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """A heading for each section."""
        for section, verbs in self.sections().items():
            with formatter.section(section):
                formatter.write_dl([(name, verb.get_short_help_str(90)) for name, verb in verbs])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, then the exit codes."""
        super().format_epilog(ctx, formatter)
        write_block(formatter, "Examples", self.examples)
        write_block(formatter, "Exit codes", [f"{code:>3}  {text}" for code, text in EXIT_HELP.items()])


class Topic(Verbs):
    """A verb with verbs of its own."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: it is in the help of its verbs."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """One verb more, in this one's section."""
        if isinstance(cmd, Verb):
            cmd.section = self.section
        super().add_command(cmd, name)


def write_block(formatter: click.HelpFormatter, title: str, lines: Sequence[str]) -> None:
    """Lines under a heading, as they are."""
    if lines:
        with formatter.section(title):
            for line in lines:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
