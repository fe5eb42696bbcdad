"""The shape of the tables in configuration files, and values held against it.

The Structs say what there may be, and msgspec says whether a value is of its type; what is told is in our own
words, and all at once: a table is gone through key by key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from aemd.modules.quantity import parse_duration, parse_size
from aemd.service.files import Problem, Source
from aemd.service.locator import Path

SHOWN_CHARS_MAX = 64  # of a value, in a message

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Meta(pattern=_NAME, description="a name of a-z, A-Z, 0-9, ., _ and -, at most 63")]
_Id = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]
_Ids = Annotated[
    _Id | Annotated[list[_Id], Meta(min_length=1)], Meta(description="a number, or a list of some")
]
_Text = Annotated[str, Meta(min_length=1, max_length=4_096)]
_Texts = Annotated[
    _Text | Annotated[list[_Text], Meta(min_length=1)], Meta(description="text, or a list of texts")
]
_Level = Annotated[
    Literal["debug", "info", "warning", "error"], Meta(description='"debug", "info", "warning" or "error"')
]
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class SubjectTable(msgspec.Struct, forbid_unknown_fields=True):
    """`subject` of a rule or a quota."""

    uid: _Ids | None = None
    gid: _Ids | None = None
    user: _Texts | None = None
    group: _Texts | None = None
    unit: _Texts | None = None
    cgroup: _Texts | None = None
    all: Annotated[Literal[True], Meta(description="true, or left out")] | None = None


class RuleTable(msgspec.Struct, forbid_unknown_fields=True):
    """`[[rule]]`."""

    name: Name
    subject: SubjectTable
    module: _Texts
    effect: Annotated[Literal["allow", "deny"], Meta(description='"allow" or "deny"')]
    params: Annotated[dict[str, _Texts], Meta(description="a table of patterns")] = {}
    grant: Annotated[list[str], Meta(min_length=1, description="a list of grants")] | None = None
    redact: Annotated[list[_Text], Meta(min_length=1, description="a list of fields")] | None = None


class LogTable(msgspec.Struct, forbid_unknown_fields=True):
    """`[log]`."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description='"debug", "info", "warning" or "error"'),
    ] = "info"


class Checker:
    """Holds the values of one file against their types, and keeps what is wrong in `problems`."""

    def __init__(self, source: Source, problems: list[Problem]) -> None:
        self.source = source
        self._problems = problems

    def problem(self, path: Path, message: str) -> None:
        """Something is wrong at `path`."""
        self._problems.append(self.source.problem(path, message))

    def struct(self, path: Path, struct: type[_Struct], table: object) -> _Struct | None:
        """`table` as a `struct`; None if anything is wrong with it."""
        if not isinstance(table, dict):
            self.problem(path, f"{shown(table)}: must be a table")
            return None
        count = len(self._problems)
        known = {field.name: field for field in msgspec.structs.fields(struct)}
        values: dict[str, Any] = {}
        for key, value in table.items():
            field = known.get(key)
            if field is None:
                self.problem((*path, key), f"no such key{meant(key, known)}")
            elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                values[key] = self.struct((*path, key), field.type, value)
            else:
                values[key] = self.value((*path, key), field.type, value)
        for key, field in known.items():
            if field.required and key not in table:
                self.problem((*path, key), "is missing")
        return struct(**values) if len(self._problems) == count else None

    def value(self, path: Path, wanted: Any, value: object) -> Any:
        """`value` as a `wanted`; None if it is none."""
        if value is None:
            self.problem(path, "is missing")
            return None
        try:
            return msgspec.convert(value, wanted)
        except msgspec.ValidationError as error:
            where, text = _part(path, value, str(error))
            self.problem(where, text or f"{shown(value)}: {_must(wanted, str(error))}")
        return None

    def quantity(self, path: Path, key: str, value: object, allowed: tuple[int, int]) -> int | None:
        """A whole number, or a text with a unit where `key` says what it counts."""
        number, error = _number(key, value)
        least, most = allowed
        if number is None:
            self.problem(path, f"{shown(value)}: {error}")
        elif not least <= number <= most:
            self.problem(path, f"{shown(value)}: must be {least} to {most}")
        else:
            return number
        return None

    def element(self, path: Path, index: int) -> Path:
        """The path of an element of a list that may also be written as the only one."""
        return (*path, index) if (*path, index) in self.source.lines else path


def _number(key: str, value: object) -> tuple[int | None, str]:
    unit: tuple[Callable[[str], int], str] | None = None
    if key.endswith(("_bytes", "_bytes_max", "bytes_per_second")):
        unit = parse_size, "64MiB"
    elif key.endswith("_ns"):
        unit = parse_duration, "30s"
    must = f"must be a whole number{f', or text with a unit such as {unit[1]}' if unit else ''}"
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None, must
    if isinstance(value, int):
        return value, ""
    if unit is None:
        return None, must
    try:
        return unit[0](value), ""
    except ValueError as error:
        return None, str(error)


def _part(path: Path, value: object, error: str) -> tuple[Path, str]:
    """Where in a list or table the value is that msgspec refused, and what it is."""
    if isinstance(value, dict):  # of params; msgspec does not say which
        for name, texts in value.items():
            try:
                msgspec.convert(texts, _Texts)
            except msgspec.ValidationError as inner:
                where, text = _part((*path, name), texts, str(inner))
                return where, text or f"{shown(texts)}: must be text, or a list of texts"
    index = re.search(r"\$\[(\d+)\]", error)
    if index is None or not isinstance(value, list):
        return path, ""
    number = int(index.group(1))
    return (*path, number), f"{shown(value[number])}: {_plain(error)}"


def _must(wanted: Any, error: str) -> str:
    described = _description(wanted)
    return f"must be {described}" if described else _plain(error)


def _description(wanted: Any) -> str:
    for meta in getattr(wanted, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    for inner in getattr(wanted, "__args__", ()):
        described = _description(inner)
        if described:
            return described
    return ""


_WORDS = (("`str`", "text"), ("`int`", "a number"), ("Expected", "must be"), (", got", ", is"))


def _plain(error: str) -> str:
    """What msgspec says, less the path and the names of Python's types."""
    text = error.partition(" - at ")[0]
    for theirs, ours in (
        ("`str`", "text"),
        ("`int`", "a number"),
        ("Expected", "must be"),
        (", got", ", is"),
    ):
        text = text.replace(theirs, ours)
    return text.replace("`", "")


def listed(value: Any) -> tuple[Any, ...]:
    """One value, or those of a list."""
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def shown(value: object) -> str:
    """A value as TOML has it, short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…"


def near(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """What was probably meant."""
    likely = get_close_matches(word[:SHOWN_CHARS_MAX], list(known), n=1)
    return f"; did you mean {likely[0]}?" if likely else ""


def meant(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """What was probably meant, and what there is."""
    there = f"there are {', '.join(known)}" if known else "there are none"
    return f"{near(word, known)}; {there}"
