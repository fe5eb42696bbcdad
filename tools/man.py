"""Writes the manual pages from the help texts of the commands, so that the two cannot say different things.

Usage: man.py [--check]; --check writes nothing and fails if a page would change.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import markdown

from aemd import __version__
from aemd.cli.failure import EXIT_HELP
from aemd.cli.verb import Verb, Verbs, common_options
from aemd.cli.verbs.events import JOB_OPTION_NAMES

HOME = Path(__file__).resolve().parent.parent / "docs" / "man"
ENVIRONMENT = (
    ("AEMD_ADDRESS", "The daemon's address, for example unix:/run/aemd/aemd.sock."),
    ("NO_COLOR", "If set, no colours."),
    ("XDG_RUNTIME_DIR", "Below it is the socket of the user's own daemon, aemd/aemd.sock."),
)
FILES = (
    (
        "/etc/aemd/aemd.toml, /etc/aemd/policy.d/*.toml, /etc/aemd/jobs.d/*.toml",
        "The configuration, aemd.toml(5).",
    ),
    ("/run/aemd/aemd.sock", "The socket of the system's daemon."),
    (
        "/run/aemd-deputy.sock, /run/aemd-runner.sock",
        "Those of its deputy and runner, for aemd.service alone.",
    ),
    ("$XDG_RUNTIME_DIR/aemd/aemd.sock", "The socket of a user's own daemon (aemd --user)."),
)


@dataclass(frozen=True, slots=True)
class Page:
    """A manual page: its name, section, and where its click command is."""

    name: str
    section: int
    summary: str
    module: str
    command: str
    see_also: tuple[str, ...]


PAGES = (
    Page(
        "aemctl",
        1,
        "the command line of aemd",
        "aemd.cli.ctl",
        "cli",
        ("aemd(8)", "aemd.toml(5)", "timeout(1)", "jq(1)"),
    ),
    Page(
        "aemd",
        8,
        "delivers kernel events with their data",
        "aemd.cli.daemon",
        "main",
        ("aemctl(1)", "aemd.toml(5)"),
    ),
)


def roff(text: str) -> str:
    """Text as roff takes it: backslashes and hyphens as themselves, no line that is a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines())


def paragraphs(text: str | None) -> Iterator[str]:
    """The paragraphs of a help text."""
    for number, block in enumerate(inspect.cleandoc(text or "").split("\n\n")):
        if number:
            yield ".PP"
        yield roff(" ".join(block.replace("\b", "").split()))


def option_lines(parameters: Sequence[click.Parameter], ctx: click.Context) -> Iterator[str]:
    """A tagged paragraph for each option."""
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is not None and isinstance(parameter, click.Option):
            yield from (".TP", f".B {roff(record[0])}", roff(record[1]))


def examples(lines: Sequence[str]) -> Iterator[str]:
    """Lines as they are typed."""
    if lines:
        yield from (".PP", ".EX", *(roff(f"  {line}") for line in lines), ".EE")


def verb_lines(name: str, verb: Verb, parent: click.Context) -> Iterator[str]:
    """A verb: usage, what it does, its own options, examples."""
    ctx = click.Context(verb, info_name=verb.name, parent=parent)
    usage = " ".join(piece for piece in verb.collect_usage_pieces(ctx) if piece != "[OPTIONS]")
    shared = {tuple(option.opts) for option in common_options()}
    own = [p for p in verb.params if tuple(p.opts) not in shared and p.name not in JOB_OPTION_NAMES]
    yield f".SS {roff(name)} {roff(usage)}".rstrip()
    yield from paragraphs(verb.help)
    yield from option_lines(own, ctx)
    yield from examples(verb.examples)


def render(page: Page, command: click.Command) -> str:
    """The page in roff, as man(7) describes it."""
    ctx = click.Context(command, info_name=page.name)
    usage = " ".join(command.collect_usage_pieces(ctx))
    lines = [
        f'.TH {page.name.upper()} {page.section} "" "aemd {__version__}"',
        ".SH NAME",
        f"{page.name} \\- {page.summary}",
        ".SH SYNOPSIS",
        f".B {page.name}",
        roff(usage),
        ".SH DESCRIPTION",
        *paragraphs(command.help),
        ".SH OPTIONS",
        *option_lines(command.params, ctx),
    ]
    if isinstance(command, Verbs):
        for section, verbs in command.sections().items():
            lines.append(f".SH {section.upper()}")
            for name, verb in verbs:
                lines += verb_lines(name, verb, ctx)
        watch = command.commands["watch"]
        lines += [".SH JOB OPTIONS", "watch, wait, on and create-job take these, too."]
        lines += option_lines([p for p in watch.params if p.name in JOB_OPTION_NAMES], ctx)
    lines += tail(page, command)
    return '.\\" Made by tools/man.py from the help texts; do not edit.\n' + "\n".join(lines) + "\n"


def tail(page: Page, command: click.Command) -> Iterator[str]:
    """What stands behind the options: examples, exit codes, environment, files."""
    shown = getattr(command, "examples", ())
    if shown:
        yield ".SH EXAMPLES"
        yield from examples(shown)
    if isinstance(command, Verbs):
        yield ".SH EXIT STATUS"
        yield from tagged((str(int(code)), text) for code, text in EXIT_HELP.items())
        yield from (".SH ENVIRONMENT", *tagged(ENVIRONMENT))
    yield from epilog(command)
    yield from (".SH FILES", *tagged(FILES))
    yield from (".SH SEE ALSO", ", ".join(page.see_also))


def epilog(command: click.Command) -> Iterator[str]:
    """The blocks below a command's options: a heading, then lines as they are."""
    for block in inspect.cleandoc(command.epilog or "").replace("\b\n", "").split("\n\n"):
        title, *lines = block.splitlines() or [""]
        if title:
            yield f".SH {title.removesuffix(':').upper()}"
            yield from (".EX", *(roff(line.removeprefix("  ")) for line in lines), ".EE")


def tagged(pairs: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> Iterator[str]:
    """A tagged paragraph for each pair."""
    for name, text in pairs:
        yield from (".TP", f".B {roff(name)}", roff(text))


def pages() -> Iterator[tuple[Path, str]]:
    """Every page: where it stands, and what it says."""
    for page in PAGES:
        text = render(page, getattr(importlib.import_module(page.module), page.command))
        yield HOME / f"{page.name}.{page.section}", text
    text = markdown.page(
        (HOME.parent / "policy.md").read_text(),
        name="aemd.toml",
        section=5,
        summary="configuration and policy of aemd",
        see_also="aemctl(1), aemd(8), systemd.unit(5), cgroups(7)",
    )
    yield HOME / "aemd.toml.5", text


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale = []
    for path, text in pages():
        if check and (not path.exists() or path.read_text() != text):
            stale.append(path)
        elif not check:
            HOME.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for path in stale:
        print(f"{path.name}: not what the help texts give; run tools/man.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
