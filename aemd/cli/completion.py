"""Completion in bash, zsh and fish.

click does the work; what is added here is what the daemon knows (modules, their parameters and choices,
ids of jobs and sessions) and key=value: bash breaks words at `=` and `:` and replaces the last piece only,
and no shell may put a space behind `every=`.

A completion that is slow or says something is worse than none: without a daemon, or with one that takes
longer than ANSWER_SECONDS, there is simply nothing to offer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from aemd.cli.verb import Settings

if TYPE_CHECKING:
    import aem
    from aem.v1 import module_pb2

Items = list[CompletionItem[str]]
T = TypeVar("T")

PROGRAM = "aemctl"
VARIABLE = "_AEMCTL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
ANSWER_SECONDS = 2.0  # a person has typed the rest by then
IDS_MAX = 200  # more than that helps nobody

_BASH = """\
%(complete_func)s() {
    local response kind value
    response=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \
%(complete_var)s=bash_complete "$1" 2>/dev/null)
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            file) compopt -o default 2>/dev/null ;;
            dir) compopt -o dirnames 2>/dev/null ;;
            plain)
                COMPREPLY+=("$value")
                [[ $value == *= ]] && compopt -o nospace 2>/dev/null
                ;;
        esac
    done <<< "$response"
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a open open_described closed closed_described response
    local type key descr
    (( ! $+commands[%(prog_name)s] )) && return 1

    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
%(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)}")

    for type key descr in ${response}; do
        if [[ "$type" == "dir" ]]; then
            _path_files -/
        elif [[ "$type" == "file" ]]; then
            _path_files -f
        elif [[ "$key" == *= ]]; then
            if [[ "$descr" == "_" ]]; then open+=("$key"); else open_described+=("$key":"$descr"); fi
        else
            if [[ "$descr" == "_" ]]; then closed+=("$key"); else closed_described+=("$key":"$descr"); fi
        fi
    done

    [[ -n "$open_described" ]] && _describe -V unsorted open_described -U -S ''
    [[ -n "$closed_described" ]] && _describe -V unsorted closed_described -U
    [[ -n "$open" ]] && compadd -U -S '' -V unsorted -a open
    [[ -n "$closed" ]] && compadd -U -V unsorted -a closed
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class Bash(BashComplete):
    """bash, with words as the user typed them."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Not asked: the script is often made on another machine than it runs on."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words of the line before the cursor, and the one that is being typed."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        while len(words) > 1 and "=" in words[0]:  # NAME=value before the command
            words = words[1:]
        open_word = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], open_word

    def complete(self) -> str:
        """What is offered, less what bash takes for finished words."""
        args, incomplete = self.get_completion_args()
        breaks = os.environ.get("COMP_BREAKS", "=:")
        done = max((incomplete.rfind(c) + 1 for c in "=:" if c in breaks), default=0)
        items = self.get_completions(args, incomplete)
        return "\n".join(f"{item.type},{str(item.value)[done:]}" for item in items)


class Zsh(ZshComplete):
    """zsh, without a space behind `every=`."""

    source_template = _ZSH


class Fish(FishComplete):
    """fish, with descriptions that have a comma in them."""

    source_template = FishComplete.source_template.replace('string split ","', 'string split -m 1 ","')


add_completion_class(Bash, "bash")
add_completion_class(Zsh, "zsh")
add_completion_class(Fish, "fish")


def script(command: click.Command, shell: str) -> str:
    """The completion script for one of SHELLS."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell}")
    return kind(command, {}, PROGRAM, VARIABLE).source().rstrip("\n")


@contextmanager
def _in_time() -> Iterator[None]:
    """End the process, silently and with nothing to offer, if the daemon takes too long within."""
    timer = threading.Timer(ANSWER_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ask(ctx: click.Context, question: Callable[[aem.Client], T], otherwise: T) -> T:
    import aem  # noqa: F401 - the time that this takes is not the daemon's

    settings = ctx.find_object(Settings) or Settings()
    try:
        with _in_time(), settings.client() as client:
            return question(client)
    except Exception:  # the shell's line is no place for an error
        return otherwise


def _module_names(ctx: click.Context) -> list[tuple[str, str]]:
    return _ask(ctx, lambda client: [(m.id, m.summary) for m in client.list_modules()], [])


def _items(pairs: Iterable[tuple[str, str]], incomplete: str) -> Items:
    return [CompletionItem(value, help=text or None) for value, text in pairs if value.startswith(incomplete)]


def complete_modules(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Items:
    """Names of loaded modules."""
    return _items(_module_names(ctx), incomplete)


def complete_jobs(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Items:
    """Ids of jobs, and names of durable ones."""
    return _complete_jobs(ctx, incomplete, durable=False)


def complete_durables(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Items:
    """Names of durable jobs."""
    return _complete_jobs(ctx, incomplete, durable=True)


def _complete_jobs(ctx: click.Context, incomplete: str, *, durable: bool) -> Items:
    def question(client: aem.Client) -> list[tuple[str, str]]:
        pairs = []
        for job, _ in zip(client.list_jobs(), range(IDS_MAX), strict=False):
            if not durable:
                pairs.append((str(job.id), f"{job.module} {job.label}".strip()))
            if job.durable_name:
                pairs.append((job.durable_name, f"{job.module} {job.label}".strip()))
        return pairs

    return _items(_ask(ctx, question, []), incomplete)


def complete_sessions(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Items:
    """Ids of sessions."""

    def question(client: aem.Client) -> list[tuple[str, str]]:
        return [(str(session.id), session.label) for session in client.list_sessions()]

    return _items(_ask(ctx, question, []), incomplete)


def complete_parameters(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Items:
    """Parameters of the module that was named, or the values of one of them."""
    if ctx.meta.get("command") is not None:  # behind `--`
        return [CompletionItem(incomplete, type="file")]
    name = ctx.params.get("module")
    if not name:
        return []
    module = _ask(ctx, lambda client: client.get_module(name), None)
    if module is None:
        return []
    key, equals, _ = incomplete.partition("=")
    if equals:
        return _items(((f"{key}={value}", "") for value in parameter_values(module, key)), incomplete)
    given = {word.partition("=")[0] for word in ctx.params.get("words") or ()}
    names = ((f"{p.name}=", p.description) for p in module.parameters if p.name not in given)
    return _items(names, incomplete)


def parameter_values(module: module_pb2.Module, name: str) -> list[str]:
    """The values of a parameter that can be counted: the choices, yes and no."""
    from aem.v1 import module_pb2

    for parameter in module.parameters:
        if parameter.name == name:
            if parameter.kind == module_pb2.PARAMETER_KIND_TRUTH:
                return ["yes", "no"]
            return list(parameter.choices)
    return []
