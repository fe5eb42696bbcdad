"""Verbs about the configuration: what policy says, whether files are right, and reading them again."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from typing import Any

import click

from aemd.cli.completion import complete_modules, complete_parameters
from aemd.cli.failure import Exit, Failure
from aemd.cli.parameters import split_parameters
from aemd.cli.plain import plain
from aemd.cli.text import safe
from aemd.cli.verb import Settings, Topic, Verb
from aemd.service.feed import Row

SECTION = "Configuration"
DEFAULT_FOLDER = "/etc/aemd"


@click.command("reload", cls=Verb, section=SECTION, examples=("aemctl reload",))
@click.pass_obj
def reload(settings: Settings) -> None:
    """Have the daemon read its configuration again. Administrator only.

    If anything in it is wrong, what was in force stays. Jobs that are no longer allowed are shut down with
    that reason; no session is dropped. SIGHUP does the same.
    """
    with settings.client() as client:
        row = plain(client.reload_configuration())
    settings.output.event(row, lambda: "\n".join(_reloaded(row)))


def _reloaded(row: Row) -> list[str]:
    configuration, jobs = row["configuration"], row["jobs_ended"]
    files, rules = len(configuration["files"]), configuration["rules"]
    read = f"{files} file{'s' * (files != 1)}, {rules} rule{'s' * (rules != 1)} in force"
    lines = [f"{read}, {jobs} job{'s' * (jobs != 1)} shut down"]
    lines += [f"warning: {safe(warning)}" for warning in configuration["warnings"]]
    if configuration["needs_restart"]:
        lines.append(f"only after a restart: {', '.join(configuration['needs_restart'])}")
    return lines


@click.group("policy", cls=Topic, section=SECTION)
def policy() -> None:
    """Ask what policy says, and check configuration files."""


@policy.command(
    "explain",
    cls=Verb,
    examples=(
        "aemctl policy explain socket listen=tcp::80",
        "aemctl policy explain --uid 1000 process pid=1",
        "aemctl policy explain --user www-data --unit nginx.service socket listen=tcp::443 -o json",
    ),
)
@click.option("--uid", type=click.IntRange(0, (1 << 32) - 2), metavar="N", help="For this user. As root.")
@click.option("--user", metavar="NAME", help="For this user, by name. As root.")
@click.option(
    "--gid",
    type=click.IntRange(0, (1 << 32) - 2),
    metavar="N",
    help="With the user in this group instead of his own.",
)
@click.option("--unit", metavar="UNIT", help="As if the caller were in this systemd unit.")
@click.option("--cgroup", metavar="PATH", help="As if the caller were in this control group.")
@click.argument("module", metavar="MODULE", shell_complete=complete_modules)
@click.argument("words", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=complete_parameters)
@click.pass_obj
def explain(
    settings: Settings,
    /,
    *,
    uid: int | None,
    user: str | None,
    gid: int | None,
    unit: str | None,
    cgroup: str | None,
    module: str,
    words: Sequence[str],
) -> int:
    """Say whether a job may be registered, and which rule decides.

    For yourself, or as root for anybody. Nothing is registered. Without a parameter that the module needs,
    rules are looked at, and rights that depend on it are not. Exit code 0: allowed; 5: denied.
    """
    if user is not None:
        if uid is not None:
            raise Failure("--uid and --user contradict each other", exit_code=Exit.USAGE, reason="USAGE")
        uid = _uid_of(user)
    params = split_parameters(words)
    with settings.client() as client:
        row = plain(
            client.explain_policy(module, params, uid=uid, gid=gid, unit=unit or "", cgroup=cgroup or "")
        )
    settings.output.event(row, lambda: "\n".join(_explained(row)))
    return Exit.OK if row["allowed"] else Exit.DENIED


def _uid_of(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise Failure(
            f"there is no user {name!r}",
            exit_code=Exit.USAGE,
            reason="USER_UNKNOWN",
            hint="give his number with --uid",
        ) from None


def _explained(row: Row) -> list[str]:
    origin = f" ({row['origin']})" if row["origin"] else ""
    lines = [f"{'allowed' if row['allowed'] else 'denied'}: rule {row['rule']}{origin}", f"  {row['reason']}"]
    if row["grants"]:
        lines.append(f"  beyond the user's own rights it grants: {', '.join(row['grants'])}")
    if row["redactions"]:
        lines.append(f"  it takes out of events: {', '.join(row['redactions'])}")
    lines.append("rules, in order:")
    for step in row["steps"]:
        place = f" ({step['origin']})" if step["origin"] else ""
        lines.append(f"  {'->' if step['applies'] else '  '} {step['rule']}{place}: {step['reason']}")
    return [safe(line) for line in lines]


@policy.command(
    "check",
    cls=Verb,
    examples=(
        "aemctl policy check /etc/aemd",
        "aemctl policy check policy.d/50-web.toml",
    ),
)
@click.argument("paths", metavar="FILE|DIR...", nargs=-1, type=click.Path())
@click.pass_obj
def check(settings: Settings, /, *, paths: Sequence[str]) -> int:
    """Check configuration files, without a daemon and without changing anything.

    A directory is one such as /etc/aemd (the default), with aemd.toml, policy.d and jobs.d; files are read as
    if they stood in policy.d in that order, but for one that is called aemd.toml or stands in a jobs.d.
    Modules are those that are installed here, users and groups those of this machine. Every error is
    FILE:LINE: KEY: what is wrong, all at once. Exit code 0: nothing is wrong; 1: something is. Warnings are
    no errors.
    """
    problems, warnings, rules, jobs = _check(paths or (DEFAULT_FOLDER,))
    rows = [{**_problem_row(problem), "severity": "error"} for problem in problems]
    rows += [{**_problem_row(problem), "severity": "warning"} for problem in warnings]
    output = settings.output
    if not output.for_people:
        output.rows(rows, (), empty="")
    else:
        for problem in problems:
            output.line(safe(str(problem)))
        for warning in warnings:
            output.line(safe(f"{warning} (warning)"))
        if not problems:
            also = f", {jobs} job{'s' * (jobs != 1)}" if jobs else ""
            output.line(f"{rules} rule{'s' * (rules != 1)}{also}, nothing wrong")
    return Exit.REFUSED if problems else Exit.OK


def _problem_row(problem: Any) -> Row:
    return {"file": problem.file, "line": problem.line, "key": problem.key, "message": problem.message}


def _check(paths: Sequence[str]) -> tuple[list[Any], list[Any], int, int]:
    """Errors, warnings and how many rules and jobs there are. Imported late: other verbs need none of it."""
    from aemd.service.configuration import interpret
    from aemd.service.files import ConfigurationError, Problem, Source, read, read_file
    from aemd.service.registry import installed_descriptions

    problems: list[Problem] = []
    sources: list[Source] = []
    for path in paths:
        try:
            if os.path.isdir(path):
                sources += read(path, uid=None)
            else:
                sources.append(read_file(path))
        except ConfigurationError as error:
            problems += error.problems
    try:
        configuration = interpret(sources, installed_descriptions())
    except ConfigurationError as error:
        return [*problems, *error.problems], [], 0, 0
    rules, jobs = len(configuration.policy.rules), len(configuration.jobs)
    return problems, list(configuration.warnings), rules, jobs


VERBS: Sequence[click.Command] = (policy, reload)
