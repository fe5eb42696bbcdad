"""Lines of values in TOML, against documents whose lines are written beside them."""

from __future__ import annotations

import tomllib

from aemd.service.locator import lines_of

DOCUMENT = r'''# 1
top = 1
[table] # 3
a = 1
"b c" = 'x # no comment'
'd.e' = """
7 \""" not the end
8
""""
f.g.h = 10
f . "i" = 11
many = [
  "13", # ] no end
  [14, 14],
  { x = 15, y.z = [15] },
]
"u\u0041" = 17

[[array]]
a = 20
[array.inner]
b = 22
[[array]]
a = 24
inline = { p = 25, q = { r = 25 } }
[[array.deep]]
x = 27
[[array.deep]]
x = 29
[a.b.c]
d = '''

EXPECTED = {
    ("top",): 2,
    ("table",): 3,
    ("table", "a"): 4,
    ("table", "b c"): 5,
    ("table", "d.e"): 6,
    ("table", "f"): 10,
    ("table", "f", "g"): 10,
    ("table", "f", "g", "h"): 10,
    ("table", "f", "i"): 11,
    ("table", "many"): 12,
    ("table", "many", 0): 13,
    ("table", "many", 1): 14,
    ("table", "many", 1, 0): 14,
    ("table", "many", 1, 1): 14,
    ("table", "many", 2): 15,
    ("table", "many", 2, "x"): 15,
    ("table", "many", 2, "y"): 15,
    ("table", "many", 2, "y", "z"): 15,
    ("table", "many", 2, "y", "z", 0): 15,
    ("table", "uA"): 17,
    ("array",): 19,
    ("array", 0): 19,
    ("array", 0, "a"): 20,
    ("array", 0, "inner"): 21,
    ("array", 0, "inner", "b"): 22,
    ("array", 1): 23,
    ("array", 1, "a"): 24,
    ("array", 1, "inline"): 25,
    ("array", 1, "inline", "p"): 25,
    ("array", 1, "inline", "q"): 25,
    ("array", 1, "inline", "q", "r"): 25,
    ("array", 1, "deep"): 26,
    ("array", 1, "deep", 0): 26,
    ("array", 1, "deep", 0, "x"): 27,
    ("array", 1, "deep", 1): 28,
    ("array", 1, "deep", 1, "x"): 29,
    ("a",): 30,
    ("a", "b"): 30,
    ("a", "b", "c"): 30,
    ("a", "b", "c", "d"): 31,
}


def test_every_path_has_its_line():
    text = DOCUMENT + "31"
    tomllib.loads(text)
    assert dict(lines_of(text)) == EXPECTED


def test_lines_are_the_same_with_the_ends_of_another_system():
    text = (DOCUMENT + "31").replace("\n", "\r\n")
    tomllib.loads(text)
    assert dict(lines_of(text)) == EXPECTED


def test_values_of_every_kind_end_where_they_end():
    values = [
        "1",
        "-1.5e3",
        "0xff",
        "inf",
        "true",
        "1979-05-27T07:32:00Z",
        "07:32:00",
        "'a'",
        '"b"',
        "[]",
        "{}",
    ]
    values += ["1979-05-27 07:32:00", "''", '""', '""""""', "''''''", '"""x"""""', "'''y'''''", r'"\\"']
    text = "".join(f"k{number} = {value} # {number}\n" for number, value in enumerate(values))
    tomllib.loads(text)
    assert dict(lines_of(text)) == {(f"k{number}",): number + 1 for number in range(len(values))}


def test_what_is_no_toml_has_some_lines_and_no_error():
    for text in ("", "a", "a = [", "a = {b", '[["', '"', "a = '''", "[a", "= 1", "a = [1 2]", "\\"):
        lines_of(text)
    assert lines_of("a = 1\nb\nc = 1") == {("a",): 1, ("b",): 2}
