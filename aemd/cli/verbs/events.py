"""Verbs that wait for events and show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import click

from aemd.cli.completion import complete_modules, complete_parameters
from aemd.cli.eventline import event_line, gap_line
from aemd.cli.failure import Exit, Failure, note
from aemd.cli.halt import Halt, Halted
from aemd.cli.parameters import SIZE, SPAN, check_parameters, split_parameters, unknown_module
from aemd.cli.verb import Settings, Verb

if TYPE_CHECKING:
    import aem

SECTION = "Events"
OVERFLOWS = ("drop-oldest", "drop-newest", "latest", "pause-source")
ACKNOWLEDGEMENTS = ("cumulative", "explicit", "none")
Decorated = Callable[..., Any]

_JOB_OPTIONS = (
    click.option(
        "--label", metavar="TEXT", help="What lists call the job; default: the verb, with create-job nothing."
    ),
    click.option("--priority", type=click.IntRange(0, 7), metavar="N", help="0 to 7, 7 first; default 3."),
    click.option(
        "--queue-depth",
        type=click.IntRange(1, 65_536),
        metavar="N",
        help="How many entries may wait; default 1024.",
    ),
    click.option("--queue-bytes", type=SIZE, metavar="SIZE", help="How many bytes may wait; default 1MiB."),
    click.option("--overflow", type=click.Choice(OVERFLOWS), help="What a full queue does."),
    click.option(
        "--ack", "acknowledgement", type=click.Choice(ACKNOWLEDGEMENTS), help="How events are acknowledged."
    ),
    click.option(
        "--ack-timeout",
        "ack_timeout_ns",
        type=SPAN,
        metavar="SPAN",
        help="Deliver again what is not acknowledged after this.",
    ),
    click.option(
        "--attempts-max",
        type=click.IntRange(0),
        metavar="N",
        help="Park an entry after so many deliveries; 0: never.",
    ),
    click.option(
        "--lease",
        "lease_ns",
        type=SPAN,
        metavar="SPAN",
        help="How long the job outlives a lost connection; default 30s.",
    ),
)


def job_arguments(command: Decorated) -> Decorated:
    """MODULE and its parameters, and the options that every job has."""
    for decorate in reversed(_JOB_OPTIONS):
        command = decorate(command)
    words = click.argument("words", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=complete_parameters)
    module = click.argument("module", metavar="MODULE", shell_complete=complete_modules)
    return module(words(command))


one_shot_option: Callable[[Decorated], Decorated] = click.option(
    "--one-shot", is_flag=True, help="End the job when its first event has been handled."
)
JOB_OPTION_NAMES = frozenset(
    (
        "label",
        "priority",
        "queue_depth",
        "queue_bytes",
        "overflow",
        "acknowledgement",
        "ack_timeout_ns",
        "attempts_max",
        "lease_ns",
    )
)


def checked_parameters(client: aem.Client, module: str, words: Sequence[str]) -> dict[str, Any]:
    """The parameters, if the daemon has that module and the module has them."""
    import aem

    given = split_parameters(words)
    try:
        description = client.get_module(module)
    except aem.AemError as error:
        if getattr(error.code, "name", "") != "NOT_FOUND":
            raise
        raise unknown_module(module, [one.id for one in client.list_modules()]) from error
    check_parameters(description, given)
    return given


def job_options(*, one_shot: bool, **given: Any) -> aem.Options:
    """The options of the command line as the SDK has them; what was not given is the daemon's default."""
    import aem

    kinds: dict[str, Callable[[Any], Any]] = {
        "overflow": aem.Overflow,
        "acknowledgement": aem.Acknowledgement,
    }
    chosen: dict[str, Any] = {
        name: kinds[name](value) if name in kinds else value
        for name, value in given.items()
        if value is not None
    }
    return aem.Options(one_shot=one_shot, **chosen)


def is_gap(entry: aem.Event | aem.Gap) -> TypeGuard[aem.Gap]:
    """Whether events were lost here."""
    import aem

    return isinstance(entry, aem.Gap)


def show(settings: Settings, entry: aem.Event | aem.Gap, *, cursor: bool = False) -> None:
    """Print an event or a gap, for people behind the position in its job's history if that is wanted."""
    output, row = settings.output, entry.to_dict()
    line = gap_line if is_gap(entry) else event_line
    place = f"{entry.cursor} " if cursor else ""
    output.event(row, lambda: place + line(output, row))


def entries(halt: Halt, stream: aem.EventStream[Any]) -> Iterator[aem.Event | aem.Gap]:
    """What comes of a job. Raises Halted; the job is shut down whenever this ends."""
    with stream:
        while True:
            try:
                entry = halt.wait(stream.next)
            except StopIteration:
                return
            yield entry


@click.command(
    "watch",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl watch timer every=200ms --count 3",
        "aemctl watch timer calendar='Mon..Fri 09:00'",
        "aemctl watch process pid=4242 -o json",
        "aemctl watch socket listen=tcp:127.0.0.1:8080 --timeout 1min",
        "aemctl watch user channel=deploy --overflow drop-newest --queue-depth 10",
    ),
)
@job_arguments
@one_shot_option
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many events.")
@click.option(
    "--timeout",
    "timeout_ns",
    type=SPAN,
    metavar="SPAN",
    help="End after this. Exit code 124 if --count was given and not reached.",
)
@click.pass_obj
def watch(
    settings: Settings,
    /,
    *,
    module: str,
    words: Sequence[str],
    count: int | None,
    timeout_ns: int | None,
    label: str | None,
    **options: Any,
) -> int:
    """Show the events of a job as they come.

    One line for each event, or one JSON object with -o json. Lost events are shown too, as a GAP. Ends
    with the job, with --count, --timeout, or on Ctrl-C; the job is shut down then.
    """
    halt = Halt()
    with settings.client(reconnect=True) as client, halt.armed(timeout_ns, stdout=True):
        parameters = checked_parameters(client, module, words)
        chosen = job_options(**options)
        stream = client.events(module, label=label or "aemctl watch", options=chosen, params=parameters)
        tell = partial(show, settings)
        return show_all(halt, stream, tell, count=count, ends=options["one_shot"])


def show_all(
    halt: Halt,
    stream: aem.EventStream[Any],
    tell: Callable[[aem.Event | aem.Gap], None],
    *,
    count: int | None,
    ends: bool,
) -> int:
    """Tell what comes of a job, until `count` events have come; the exit code. `ends`: the job may end before
    that.
    """
    seen = 0
    try:
        for entry in entries(halt, stream):
            tell(entry)
            seen += not is_gap(entry)
            if seen == count:
                return Exit.OK
    except Halted as halted:
        open_ended = halted.reason is Exit.TIMEOUT and count is None
        return Exit.OK if open_ended else halted.reason
    return _job_ended(stream.job, seen, None if ends else count)


def _job_ended(job: aem.Job, seen: int, count: int | None) -> int:
    """The job ended by itself, or somebody else ended it."""
    if job.reason:
        note(f"job {job.id} ended: {job.reason}")
    if count is None or seen >= count:
        return Exit.OK
    note(f"there were {seen} of {count} events")
    return Exit.REFUSED


@click.command(
    "wait",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl wait process pid=4242 --timeout 10s && echo gone",
        "aemctl wait process pid=4242 --missing-ok --quiet",
        "aemctl wait user channel=deploy -o json | jq -r .payload.payload",
    ),
)
@job_arguments
@click.option("--timeout", "timeout_ns", type=SPAN, metavar="SPAN", help="Give up after this, exit code 124.")
@click.option(
    "--missing-ok",
    is_flag=True,
    help="What is to be waited for is gone already: exit code 0 instead of 4.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing, not even the event.")
@click.pass_obj
def wait(
    settings: Settings,
    /,
    *,
    module: str,
    words: Sequence[str],
    timeout_ns: int | None,
    missing_ok: bool,
    quiet: bool,
    label: str | None,
    **options: Any,
) -> int:
    """Wait for one event.

    Exit code 0 when it came, 124 if --timeout came first, as with timeout(1). A process that is gone
    already is exit code 4, or 0 with --missing-ok.
    """
    halt = Halt()
    with settings.client(reconnect=True) as client, halt.armed(timeout_ns, stdout=True):
        parameters = checked_parameters(client, module, words)
        chosen = job_options(one_shot=True, **options)
        try:
            stream = client.events(module, label=label or "aemctl wait", options=chosen, params=parameters)
            return _first(settings, halt, stream, quiet=quiet)
        except Halted as halted:
            return halted.reason
        except _aem_error() as error:
            if missing_ok and error.code.name == "NOT_FOUND":
                return Exit.OK
            raise


def _aem_error() -> type[aem.AemError]:
    import aem

    return aem.AemError


def _first(settings: Settings, halt: Halt, stream: aem.EventStream[Any], *, quiet: bool) -> int:
    for entry in entries(halt, stream):
        if is_gap(entry):
            note(f"{entry!r}; waiting on")
            continue
        if not quiet:
            show(settings, entry)
        return Exit.OK
    why = f": {stream.job.reason}" if stream.job.reason else ""
    raise Failure(f"the job ended before an event came{why}", reason="JOB_ENDED")


VERBS: Sequence[click.Command] = (watch, wait)
