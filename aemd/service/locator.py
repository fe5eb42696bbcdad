"""On which line of a TOML file a value stands.

tomllib gives values without places, and an error of configuration must name its line. So the text, which
tomllib has accepted already, is gone through once more, only to see where keys begin: TOML 1.0, as
https://toml.io/en/v1.0.0 describes it. What a value means is not looked at, only where it ends.

A path is a tuple of keys and of indices into arrays. The result has the line (from 1) of every path in the
parsed value: of a table where its header or its first key is, of a value where its key is, and of the parts
of arrays where they begin. For a text that tomllib refuses the result is of no use, but there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"', re.DOTALL)
_BASIC_LONG = re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}', re.DOTALL)
_LITERAL = re.compile(r"'[^'\n]*'")
_LITERAL_LONG = re.compile(r"'''(?:[^']|'(?!''))*'{3,5}", re.DOTALL)
_STRINGS = (_BASIC_LONG, _LITERAL_LONG, _BASIC, _LITERAL)  # the long ones first: """ is also "" and "
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


class _LostError(Exception):
    """What stands here is no TOML."""


def lines_of(text: str) -> Mapping[Path, int]:
    """The line of every path of the TOML document `text`."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    try:
        scanner.document()
    except (_LostError, RecursionError):
        pass
    return scanner.lines


class _Scanner:
    """Where it is in the text, and what it has seen."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._arrays: dict[Path, int] = {}  # of tables: how many there are

    def document(self) -> None:
        """All of it."""
        table: Path = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._peek("[["):
                table = self._header("[[", "]]")
            elif self._peek("["):
                table = self._header("[", "]")
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _header(self, opening: str, closing: str) -> Path:
        line = self._line
        self._take(opening)
        keys = self._keys()
        self._take(closing)
        path: Path = ()
        for key in keys[:-1]:
            path = self._last((*path, key))
            self._note(path, line)
        path = (*path, keys[-1])
        self._note(path, line)
        if opening == "[[":
            count = self._arrays.get(path, 0)
            self._arrays[path] = count + 1
            path = (*path, count)
            self._note(path, line)
        return path

    def _last(self, path: Path) -> Path:
        """What a key in a header stands for: of an array of tables the newest."""
        count = self._arrays.get(path)
        return path if count is None else (*path, count - 1)

    def _pair(self, table: Path) -> None:
        """`key = value`, the key perhaps dotted."""
        line = self._line
        path = table
        for key in self._keys():
            path = (*path, key)
            self._note(path, line)
        self._take("=")
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._peek("["):
            self._array(path)
        elif self._peek("{"):
            self._inline(path)
        elif self._string() is None:
            self._skip(_SCALAR)

    def _array(self, path: Path) -> None:
        self._take("[")
        index = 0
        self._skip(_BLANK)
        while not self._peek("]"):
            self._note((*path, index), self._line)
            self._value((*path, index))
            index += 1
            self._skip(_BLANK)
            if not self._peek("]"):
                self._take(",")
                self._skip(_BLANK)
        self._take("]")

    def _inline(self, path: Path) -> None:
        self._take("{")
        self._skip(_BLANK)
        while not self._peek("}"):
            self._pair(path)
            self._skip(_BLANK)
            if not self._peek("}"):
                self._take(",")
                self._skip(_BLANK)
        self._take("}")

    def _keys(self) -> list[str]:
        keys = [self._key()]
        while self._peek("."):
            self._take(".")
            keys.append(self._key())
        return keys

    def _key(self) -> str:
        self._skip(_SPACE)
        bare = _BARE.match(self._text, self._at)
        if bare is not None:
            self._at = bare.end()
            key = bare.group()
        else:
            quoted = self._string()
            if quoted is None:
                raise _LostError
            key = quoted[1:-1] if quoted[0] == "'" else _ESCAPE.sub(_escaped, quoted[1:-1])
        self._skip(_SPACE)
        return key

    def _string(self) -> str | None:
        """The string that begins here, with its quotes."""
        for form in _STRINGS:
            found = form.match(self._text, self._at)
            if found is not None:
                self._skip(form)
                return found.group()
        return None

    def _skip(self, form: re.Pattern[str]) -> None:
        found = form.match(self._text, self._at)
        if found is not None:
            self._line += self._text.count("\n", self._at, found.end())
            self._at = found.end()

    def _peek(self, token: str) -> bool:
        return self._text.startswith(token, self._at)

    def _take(self, token: str) -> None:
        if not self._peek(token):
            raise _LostError
        self._at += len(token)

    def _note(self, path: Path, line: int) -> None:
        self.lines.setdefault(path, line)


def _escaped(found: re.Match[str]) -> str:
    code = found.group(1)
    if len(code) == 1:
        return _ESCAPES.get(code, code)
    number = int(code[1:], 16)
    return chr(number) if number <= 0x10FFFF else ""
