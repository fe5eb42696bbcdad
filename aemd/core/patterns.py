"""Patterns of policy: texts with wildcards, as fnmatch(3) has them.

`*` is any number of characters, `?` one, `[abc]`, `[a-z]`, `[!a-z]` one of (not of) a set; case counts. What
a pattern is held against comes from a client, so it is compiled to an expression that cannot be made to
backtrack without end (what Python's fnmatch makes is atomic from star to star).

A pattern for control groups or units is a path whose names are patterns: no wildcard goes over a `/`, and
the pattern covers what is below. So who may make groups and units below his own cannot make one that a
pattern for another's covers: `*.service` is no unit of a user's own manager, user@1000.service/cron.service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import translate

WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Patterns:
    """Some patterns, as they were written; one that matches is enough."""

    texts: tuple[str, ...]
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", re.compile("|".join(map(translate, self.texts))))

    def matches(self, text: str) -> bool:
        """Whether one of them matches the whole of `text`."""
        return self._compiled.match(text) is not None

    def cover(self, other: Patterns) -> bool:
        """Whether these certainly match all that `other` does, going by how both are written."""
        return all(self._covers(text) for text in other.texts)

    def literals(self) -> tuple[str, ...]:
        """Those without wildcards."""
        return tuple(text for text in self.texts if is_literal(text))

    def _covers(self, text: str) -> bool:
        return text in self.texts or "*" in self.texts or (is_literal(text) and self.matches(text))

    def __str__(self) -> str:
        return ", ".join(self.texts)


@dataclass(frozen=True, slots=True)
class PathPatterns:
    """Patterns of control groups or units."""

    texts: tuple[str, ...]
    _compiled: tuple[tuple[re.Pattern[str], ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        made = (tuple(re.compile(translate(name)) for name in _names(text)) for text in self.texts)
        object.__setattr__(self, "_compiled", tuple(made))

    def matches(self, path: str) -> bool:
        """Whether one of them covers `path`."""
        names = _names(path)
        return any(
            len(pattern) <= len(names)
            and all(expression.match(name) for expression, name in zip(pattern, names, strict=False))
            for pattern in self._compiled
        )

    def cover(self, other: PathPatterns) -> bool:
        """Whether these certainly cover all that `other` does, going by how both are written."""
        return all(text in self.texts or (is_literal(text) and self.matches(text)) for text in other.texts)

    def __str__(self) -> str:
        return ", ".join(self.texts)


def patterns(texts: Iterable[str]) -> Patterns:
    """Patterns of `texts`."""
    return Patterns(tuple(texts))


def is_literal(text: str) -> bool:
    """Whether a pattern matches itself and nothing else."""
    return not WILDCARDS & set(text)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]
