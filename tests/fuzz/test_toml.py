"""Any text at all: lines of TOML, and configuration files."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aemd.modules.socket import Socket
from aemd.modules.timer import Timer
from aemd.service.configuration import interpret
from aemd.service.files import ConfigurationError, parse
from aemd.service.locator import lines_of

MODULES = {"socket": Socket.description, "timer": Timer.description}
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = (ROOT / "docs/examples/policy.d/50-example.toml").read_text()

pieces = st.sampled_from(
    [
        *(
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            "=",
            ".",
            ",",
            "#",
            "\n",
            "\r\n",
            " ",
            "\t",
            "'",
            '"',
            '"""',
            "'''",
        ),
        *(
            "\\",
            "a",
            "b",
            "rule",
            "subject",
            "name",
            "0",
            "1979-05-27",
            "true",
            "\\u0041",
            "é",
            "\0",
            "[[rule]]\n",
        ),
        *(
            "a = 1\n",
            'b = "x"\n',
            "c = [1, 2]\n",
            "d = { e = 1 }\n",
            "[t]\n",
            "[[u]]\n",
            "[u.v]\n",
            "f.g = 2\n",
        ),
    ]
)
documents = st.lists(pieces, max_size=40).map("".join)
keys = st.one_of(
    st.text("abcXYZ019_-", min_size=1, max_size=5),
    st.text(min_size=1, max_size=5).filter(lambda key: key.isprintable()),
)
scalars = st.one_of(
    st.integers(-5, 5), st.booleans(), st.text(max_size=8).filter(str.isprintable), st.just("two\nlines")
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=12,
)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def written(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",\n".join(map(written, value)) + "]"
    if isinstance(value, str):
        return quoted(value) if "\n" not in value else f'"""{value}"""'
    return str(value).lower()


def paths(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        found |= paths(each, (*path, key))
    return found


@settings(max_examples=600)
@given(documents)
@example("a = [{ b = 1 },\n  # c\n  { b = '''x\n''' }]\n")
def test_every_path_of_a_text_that_is_toml_has_a_line_of_it(text: str) -> None:
    # Invariant: whatever the text, lines_of returns; if tomllib takes the text, it has each of its paths.
    lines = lines_of(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    try:
        content = tomllib.loads(text)
    except ValueError:
        return
    assert set(lines) == paths(content)


@settings(max_examples=300)
@given(
    st.dictionaries(keys, trees, min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=4, max_size=4)
)
def test_what_was_written_on_a_line_is_found_there(tree: dict[str, object], gaps: list[int]) -> None:
    # Invariant: each top-level key has the line on which it was written.
    text, expected = "", {}
    for (key, value), gap in zip(tree.items(), gaps, strict=False):
        text += "# gap\n" * gap
        expected[key,] = text.count("\n") + 1
        text += f"{quoted(key)} = {written(value)}\n"
    content = tomllib.loads(text)
    lines = lines_of(text)
    assert set(lines) == paths(content)
    assert {path: line for path, line in lines.items() if len(path) == 1} == expected


def refusal(text: str) -> ConfigurationError | None:
    try:
        interpret([parse("f.toml", text, main=True)], MODULES)
    except ConfigurationError as error:
        return error
    return None


mutations = st.lists(
    st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 12), pieces), min_size=1, max_size=4
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(documents, mutations))
def test_a_file_is_a_policy_or_is_refused_with_places(source: str | list[tuple[int, int, str]]) -> None:
    # Invariant: any text is a Configuration, or a ConfigurationError each of whose problems has a line of it.
    text = source if isinstance(source, str) else EXAMPLE
    for start, length, piece in source if isinstance(source, list) else ():
        text = text[:start] + piece + text[start + length :]
    refused = refusal(text)
    assert refused is None or refused.problems
    for problem in refused.problems if refused is not None else ():
        assert problem.file == "f.toml"
        assert 1 <= problem.line <= text.count("\n") + 1
        assert problem.message
        assert str(problem).startswith(f"f.toml:{problem.line}: ")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5_000, "a = " + "9" * 5_000, "a." * 5_000 + "a = 1", "\ufeffa = 1"]
)
def test_what_is_too_deep_or_too_long_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        interpret([parse("f.toml", text, main=True)])
