"""What a person types behind a verb: key=value, job ids, time spans.

Parameters are checked against the description that the daemon gives of the module, so that a module
which was loaded a minute ago is known as well as the built-in ones. Only the names are checked here; the
values are the daemon's business, which has the one parser for them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from aemd.cli.failure import Exit, Failure
from aemd.modules.quantity import parse_duration, parse_size

if TYPE_CHECKING:
    from aem.v1 import module_pb2


class Quantity(click.ParamType[int]):
    """A time span or a number of bytes, in the spellings that parameters have, as a whole number."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a text; a default is a number already."""
        if isinstance(value, int):
            return value
        try:
            number = self._parse(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if number < 0:
            self.fail(f"{value!r} is negative", param, ctx)
        return number


SPAN = Quantity("span", parse_duration)
SIZE = Quantity("size", parse_size)


class ResourceId(click.ParamType[int]):
    """The number of a job or session: 17, or its resource name jobs/17."""

    def __init__(self, collection: str) -> None:
        self.collection = collection
        self.name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Take a number with or without the collection before it."""
        if isinstance(value, int):
            return value
        text = value.removeprefix(f"{self.collection}/")
        if not text.isascii() or not text.isdigit():
            self.fail(f"{value!r} is not an id; write 17 or {self.collection}/17", param, ctx)
        return int(text)


class JobName(click.ParamType["int | str"]):
    """A job: its number, 17 or jobs/17, or the name of a durable one, backup or jobs/backup."""

    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Take a number or a name, with or without `jobs/` before it."""
        if isinstance(value, int):
            return value
        text = value.removeprefix("jobs/")
        if text.isascii() and text.isdigit():
            return int(text)
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
            self.fail(
                f"{value!r} is neither an id nor a name; write 17, jobs/17 or the name of a durable job",
                param,
                ctx,
            )
        return str(text)


class Start(click.ParamType["str | datetime"]):
    """Where to begin in a history: oldest, now, a cursor 1:17, a time, or how long ago."""

    name = "start"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | datetime:
        """Words and cursors stay text; a time without a zone is local, and a span is so long ago."""
        if isinstance(value, datetime) or value in ("oldest", "now") or re.fullmatch(r"\d+:\d+", value):
            return value  # type: ignore[no-any-return]
        try:
            return datetime.now().astimezone() - timedelta(microseconds=parse_duration(value) / 1_000)
        except (ValueError, OverflowError):
            pass  # then it is a date
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r}: write oldest, now, a cursor such as 1:17, a time such as 2026-01-31T09:00, or"
                " 10min for so long ago",
                param,
                ctx,
            )


def parse_cursor(text: str) -> tuple[int, int]:
    """EPOCH:SEQ as a cursor."""
    if not re.fullmatch(r"\d{1,20}:\d{1,20}", text, re.ASCII):
        raise Failure(
            f"{text!r} is not a cursor",
            exit_code=Exit.USAGE,
            reason="NOT_A_CURSOR",
            hint="cursors are EPOCH:SEQ, as `aemctl list-parked` shows them, for example 1:17",
        )
    epoch, _, seq = text.partition(":")
    return int(epoch), int(seq)


def split_parameters(words: Iterable[str]) -> dict[str, str | list[str]]:
    """key=value words by key; a key that comes several times has a list."""
    result: dict[str, str | list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Failure(
                f"{word!r} is not a parameter",
                exit_code=Exit.USAGE,
                reason="NOT_A_PARAMETER",
                hint="parameters are key=value, for example every=1s",
            )
        before = result.get(key)
        if before is None:
            result[key] = value
        else:
            result[key] = [*before, value] if isinstance(before, list) else [before, value]
    return result


def check_parameters(module: module_pb2.Module, given: Mapping[str, object]) -> None:
    """Refuse names that the module does not have, and say which one was probably meant."""
    known = [parameter.name for parameter in module.parameters]
    for key in given:
        if key in known:
            continue
        likely = nearest(key, known)
        meant = f"; did you mean {likely}=?" if likely else ""
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise Failure(
            f"module {module.id} has no parameter {key!r}{meant}",
            exit_code=Exit.USAGE,
            reason="UNKNOWN_PARAMETER",
            hint=f"{has}; see `aemctl show-module {module.id}`",
            metadata={"field": key, "module": module.id},
        )


def unknown_module(name: str, known: Sequence[str]) -> Failure:
    """The failure for a module that is not loaded."""
    likely = nearest(name, known)
    meant = f"; did you mean {likely}?" if likely else ""
    return Failure(
        f"no module {name!r} is loaded{meant}",
        exit_code=Exit.NOT_FOUND,
        code="NOT_FOUND",
        reason="MODULE_NOT_FOUND",
        hint=f"loaded: {', '.join(known)}" if known else "no module is loaded",
        metadata={"module": name},
    )


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    by_start = [name for name in known if word and name.startswith(word)]
    if len(by_start) == 1:
        return by_start[0]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return close[0] if close else None
