"""Verbs about the daemon itself: how it does, who is connected; and about this program."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Sequence

import click

from aemd import __version__
from aemd.cli.completion import SHELLS, complete_sessions, script
from aemd.cli.failure import Exit
from aemd.cli.output import Column
from aemd.cli.parameters import ResourceId
from aemd.cli.plain import plain
from aemd.cli.text import age_text, moment_text, safe, size_text
from aemd.cli.verb import Settings, Verb
from aemd.cli.verbs.jobs import for_each
from aemd.service.feed import Row

SECTION = "Daemon"
SESSION_ID = ResourceId("sessions")
COLUMNS = (
    Column("SESSION", lambda session: session["id"], right=True),
    Column("UID", lambda session: (session["principal"] or {}).get("uid", "-"), right=True),
    Column("PID", lambda session: (session["principal"] or {}).get("pid", "-"), right=True),
    Column("CONNECTED", lambda session: "yes" if session["connected"] else "no"),
    Column("JOBS", lambda session: session["jobs"], right=True),
    Column("DELIVERED", lambda session: session["delivered"], right=True),
    Column("QUEUED", lambda session: size_text(session["queued_bytes"]), right=True),
    Column("AGE", lambda session: age_text(session["create_time_ns"]), right=True),
    Column("SDK", lambda session: session["sdk"] or "-"),
    Column("LABEL", lambda session: session["label"] or "-"),
)


@click.command("list-sessions", cls=Verb, section=SECTION, examples=("aemctl list-sessions",))
@click.pass_obj
def list_sessions(settings: Settings) -> None:
    """List your sessions; as root everybody's."""
    with settings.client() as client:
        settings.output.rows(map(plain, client.list_sessions()), COLUMNS, empty="no sessions")


@click.command("end-session", cls=Verb, section=SECTION, examples=("aemctl end-session 3",))
@click.argument(
    "ids", metavar="SESSION...", nargs=-1, required=True, type=SESSION_ID, shell_complete=complete_sessions
)
@click.pass_obj
def end_session(settings: Settings, /, *, ids: Sequence[int]) -> int:
    """End sessions with their jobs."""
    output = settings.output
    with settings.client() as client:

        def end(one: int) -> None:
            jobs = client.end_session(one) or 0
            row: Row = {"session": one, "jobs": jobs}
            output.event(row, lambda: f"session {one} ended, {jobs} job{'s' * (jobs != 1)} with it")

        return for_each(settings, client, ids, end)


@click.command(
    "status",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl status",
        "aemctl status -o json | jq .lost",
    ),
)
@click.pass_obj
def status(settings: Settings) -> None:
    """Show how the daemon does, and who it takes you for."""
    with settings.client() as client:
        row = plain(client.status())
        address = client.address
    settings.output.record(row, status_facts(row, address))


def status_facts(row: Row, address: str) -> list[tuple[str, str]]:
    """The daemon for people. What only the administrator is told is left out for others."""
    kind = "of one user" if row["user_instance"] else "of the system"
    facts = [
        ("daemon", f"aemd {row['version']}, {kind}" + (", DRAINING" if row["draining"] else "")),
        ("address", address),
        ("process", f"pid {row['pid']}, uid {row['uid']}"),
        ("started", moment_text(row["start_time_ns"])),
        ("kernel", row["kernel"]),
        ("modules", " ".join(row["modules"]) or "none"),
        ("jobs", str(row["jobs"])),
        ("sessions", f"{row['sessions']} over {row['connections']} connections"),
        ("events", f"{row['fires']} fired, {row['lost']} lost and reported"),
    ]
    if row["descriptors_max"]:
        facts += [
            ("descriptors", f"{row['descriptors_open']} of {row['descriptors_max']}"),
            ("fronts", f"{row['fronts']}, {row['fronts_replaced']} replaced"),
            ("memory", size_text(row["resident_bytes"])),
            ("wake-ups", str(row["wakeups"])),
        ]
    facts += _configuration_facts(row["configuration"])
    facts += caller_facts(row["caller"] or {})
    return [(name, safe(text)) for name, text in facts]


def _configuration_facts(configuration: Row | None) -> list[tuple[str, str]]:
    """What is in force; only the administrator is told."""
    if not configuration:
        return []
    files, rules = configuration["files"], configuration["rules"]
    read = f"{rules} rule{'s' * (rules != 1)} of {len(files)} file{'s' * (len(files) != 1)}"
    facts = [("configuration", f"{read}, read {moment_text(configuration['load_time_ns'])}")]
    if configuration["error"]:
        when = moment_text(configuration["error_time_ns"])
        facts.append(("", f"NOT RELOADED at {when}; what was in force stays:"))
        facts += [("", line) for line in configuration["error"].splitlines()]
    facts += [("", f"warning: {warning}") for warning in configuration["warnings"]]
    if configuration["needs_restart"]:
        facts.append(("", f"only after a restart: {', '.join(configuration['needs_restart'])}"))
    return facts


def caller_facts(caller: Row) -> list[tuple[str, str]]:
    """Who the daemon takes the caller for; what it knows nothing of is left out."""
    if not caller:
        return []
    refusal = caller.get("not_administrator") or "another user"
    proven = "yes" if caller.get("proven") else "no, so nothing is granted for control group and unit"
    facts = [
        ("you", f"{user_text(caller['uid'])}, {group_text(caller['gid'])}, pid {caller['pid']}"),
        ("your groups", ", ".join(group_text(gid) for gid in caller["groups"]) or "none besides"),
        ("your program", caller.get("executable", "")),
        ("your cgroup", caller.get("cgroup", "")),
        ("your unit", caller.get("unit", "")),
        ("your label", caller.get("security_label", "")),
        ("proven", proven),
        ("administrator", "yes" if caller.get("administrator") else f"no: {refusal}"),
    ]
    return [(name, text) for name, text in facts if text]


def user_text(uid: int) -> str:
    """A user by number, and by the name that it has here."""
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except (KeyError, OverflowError):
        return f"uid {uid}"


def group_text(gid: int) -> str:
    """A group likewise."""
    try:
        return f"gid {gid} ({grp.getgrgid(gid).gr_name})"
    except (KeyError, OverflowError):
        return f"gid {gid}"


@click.command("version", cls=Verb, section="This program", examples=("aemctl version",))
@click.pass_obj
def version(settings: Settings) -> None:
    """Show the version of aemctl; that of the daemon is in `aemctl status`."""
    settings.output.event({"version": __version__}, lambda: f"aemctl {__version__}")


@click.command(
    "completion",
    cls=Verb,
    section="This program",
    examples=(
        "aemctl completion bash > /etc/bash_completion.d/aemctl",
        "aemctl completion zsh > /usr/share/zsh/site-functions/_aemctl",
        "aemctl completion fish > ~/.config/fish/completions/aemctl.fish",
        'eval "$(aemctl completion bash)"      # in this shell only',
    ),
)
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, /, *, shell: str) -> int:
    """Print the completion script for bash, zsh or fish.

    It completes verbs and options, and from the daemon, if it runs, the names of modules, their parameters
    and choices, and the ids of jobs and sessions.
    """
    click.echo(script(ctx.find_root().command, shell))
    return Exit.OK


VERBS: Sequence[click.Command] = (status, list_sessions, end_session, version, completion)
