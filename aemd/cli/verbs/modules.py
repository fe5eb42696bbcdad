"""Verbs about event modules: what there is to wait for."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from aemd.cli.completion import complete_modules
from aemd.cli.output import Column
from aemd.cli.plain import plain
from aemd.cli.text import safe
from aemd.cli.verb import Settings, Verb
from aemd.service.feed import Row, dumps

if TYPE_CHECKING:
    from aem.v1 import module_pb2

SECTION = "Modules"
WIDTH_MAX = 100  # longer lines are hard to read
COLUMNS = (
    Column("MODULE", lambda module: module["id"]),
    Column("JOBS", lambda module: module["jobs"], right=True),
    Column("DELIVERY", lambda module: module["delivery"]),
    Column("ORIGIN", lambda module: module["origin"] or "-"),
    Column("SUMMARY", lambda module: module["summary"]),
)


@click.command(
    "list-modules",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl list-modules",
        "aemctl list-modules -o json | jq -r '.[].id'",
    ),
)
@click.pass_obj
def list_modules(settings: Settings) -> None:
    """List the loaded event modules."""
    with settings.client() as client:
        settings.output.rows(map(plain, client.list_modules()), COLUMNS, empty="no modules are loaded")


@click.command(
    "show-module",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl show-module socket",
        "aemctl show-module timer -o json | jq .parameters",
    ),
)
@click.argument("name", metavar="MODULE", shell_complete=complete_modules)
@click.pass_obj
def show_module(settings: Settings, /, *, name: str) -> None:
    """Show a module: its parameters, its events, what a handler may answer."""
    with settings.client() as client:
        _show(settings, client.get_module(name))


@click.command("load-module", cls=Verb, section=SECTION, examples=("aemctl load-module mymodule",))
@click.argument("name", metavar="MODULE")
@click.pass_obj
def load_module(settings: Settings, /, *, name: str) -> None:
    """Load a module, or load it anew. Administrator only.

    The name is that of an entry point in the group aemd.modules of a package which is installed where the
    daemon runs. Jobs of a module that is loaded anew are shut down first.
    """
    with settings.client() as client:
        row = plain(client.load_module(name))
    origin = f" from {safe(row['origin'])}" if row["origin"] else ""
    settings.output.event(row, lambda: f"module {row['id']} loaded{origin}")


@click.command("unload-module", cls=Verb, section=SECTION, examples=("aemctl unload-module mymodule",))
@click.argument("name", metavar="MODULE", shell_complete=complete_modules)
@click.pass_obj
def unload_module(settings: Settings, /, *, name: str) -> None:
    """Unload a module. Its jobs are shut down with that reason. Administrator only."""
    with settings.client() as client:
        jobs = client.unload_module(name)
    ended = f"{jobs} job{'s' * (jobs != 1)} shut down"
    settings.output.event({"module": name, "jobs": jobs}, lambda: f"module {name} unloaded, {ended}")


def _show(settings: Settings, module: module_pb2.Module) -> None:
    output, row = settings.output, plain(module)
    if not output.for_people:
        output.line(dumps(row))
        return
    for line in module_lines(row, min(WIDTH_MAX, shutil.get_terminal_size((WIDTH_MAX, 0)).columns)):
        heading = line.endswith(":") and not line.startswith(" ")
        output.line(output.paint(line, bold=True) if heading else line)


def module_lines(row: Row, width: int) -> list[str]:
    """A module for people, in lines of at most `width` where words allow it."""
    keyed = "ordered by key" if row["keyed"] else ""
    jobs = f"{row['jobs']} job{'s' * (row['jobs'] != 1)}"
    facts = [row["origin"], row["delivery"], keyed, row["payload_message"], jobs]
    lines = [
        f"{row['id']}: {safe(row['summary'])}",
        f"  ({safe(', '.join(fact for fact in facts if fact))})",
    ]
    for paragraph in row["description"].splitlines():
        lines += ["", *textwrap.wrap(safe(paragraph), width, initial_indent="  ", subsequent_indent="  ")]
    lists = {
        "Parameters": [(p["name"], _parameter_text(p)) for p in row["parameters"]],
        "Events": [(e["name"], e["description"]) for e in row["events"]],
        "Operations": [(o["name"], _operation_text(o)) for o in row["operations"]],
    }
    for title, items in lists.items():
        if items:
            lines += ["", f"{title}:", *_listed(items, width)]
    if row["examples"]:
        lines += ["", "Examples:", *(f"  {safe(_example(row['id'], text))}" for text in row["examples"])]
    return lines


def _listed(items: list[tuple[str, str]], width: int) -> list[str]:
    """Names with their texts, the texts wrapped in a column of their own."""
    broad = max(len(name) for name, _ in items) + 4
    lines: list[str] = []
    for name, text in items:
        head = f"  {safe(name)}".ljust(broad)
        lines += textwrap.wrap(safe(text), width, initial_indent=head, subsequent_indent=" " * broad) or [
            head
        ]
    return lines


def _example(module: str, text: str) -> str:
    """A module's example as a command; it may or may not begin with the module's name."""
    return f"aemctl watch {text}" if text.split()[:1] == [module] else f"aemctl watch {module} {text}"


def _parameter_text(parameter: Row) -> str:
    notes = [parameter["kind"]]
    if parameter["choices"]:
        notes = ["|".join(parameter["choices"])]
    if parameter["required"]:
        notes.append("required")
    if parameter["default_text"]:
        notes.append(f"default {parameter['default_text']}")
    if parameter["example"]:
        notes.append(f"e.g. {parameter['name']}={parameter['example']}")
    return f"{parameter['description']} ({', '.join(notes)})"


def _operation_text(operation: Row) -> str:
    data = " (takes data)" if operation["takes_data"] else ""
    return f"{operation['description']}{data}"


VERBS: Sequence[click.Command] = (list_modules, show_module, load_module, unload_module)
