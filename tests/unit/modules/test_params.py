"""Parameters: both forms of every kind, defaults, bounds, and errors that name the field and the way out."""

from __future__ import annotations

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.modules.contract import Address, Kind, Parameter
from aemd.modules.params import parse_values
from aemd.v1 import job_pb2

Value = job_pb2.Value
KINDS = {name.removeprefix("PARAMETER_KIND_"): number for name, number in Kind.items()}


def parse(kind: str, value: Value, **more) -> object:
    parameter = Parameter("p", KINDS[kind], "A parameter.", **more)
    return parse_values((parameter,), {"p": value}, Limits())["p"]


def refusal(kind: str, value: Value, **more) -> str:
    with pytest.raises(AemError) as caught:
        parse(kind, value, **more)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.details["field"] == "params.p"
    return caught.value.message


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("TEXT", Value(text=""), ""),
        ("INTEGER", Value(text="0x10"), 16),
        ("INTEGER", Value(integer=-5), -5),
        ("INTEGER", Value(number=7.0), 7),
        ("TRUTH", Value(text="Yes"), True),
        ("TRUTH", Value(truth=False), False),
        ("TRUTH", Value(integer=1), True),
        ("DURATION", Value(text="1h 30min"), 5_400_000_000_000),
        ("DURATION", Value(integer=200), 200),
        ("TIME", Value(text="@1"), 1_000_000_000),
        ("TIME", Value(integer=-1), -1),
        ("SIZE", Value(text="64K"), 65_536),
        ("SIZE", Value(integer=10), 10),
        ("CHOICE", Value(text="red"), "red"),
        ("ADDRESS", Value(text="tcp::80"), Address("tcp", "", 80)),
        ("ADDRESS", Value(data=b"unix:/\xff"), Address("unix", path=b"/\xff")),
        ("BYTES", Value(text="\u00e4"), b"\xc3\xa4"),
        ("BYTES", Value(data=b"\xff"), b"\xff"),
    ],
)
def test_both_forms_give_one_value(kind, value, expected):
    more = {"choices": ("red", "green")} if kind == "CHOICE" else {}
    parsed = parse(kind, value, **more)
    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        ("TEXT", Value(integer=5), "takes text"),
        ("INTEGER", Value(number=1.5), "whole number"),
        ("INTEGER", Value(number=float("nan")), "whole number"),
        ("INTEGER", Value(number=float("inf")), "whole number"),
        ("INTEGER", Value(number=1e300), "too large"),
        ("INTEGER", Value(truth=True), "whole number"),
        ("DURATION", Value(number=2.0), "text with a unit"),
        ("TRUTH", Value(text="perhaps"), "yes or no"),
        ("TRUTH", Value(integer=2), "yes or no"),
        ("SIZE", Value(integer=-1), "at least 0 bytes"),
        ("TEXT", Value(), "empty"),
        ("TEXT", Value(list=job_pb2.ValueList()), "not a list"),
    ],
)
def test_a_wrong_form_is_refused_with_the_right_one(kind, value, complaint):
    assert complaint in refusal(kind, value)


def test_a_wrong_choice_says_what_there_is():
    message = refusal("CHOICE", Value(text="gren"), choices=("red", "green"))
    assert "did you mean green? there are red, green" in message


def test_bounds_are_of_values_and_of_lengths():
    assert "at least 2" in refusal("INTEGER", Value(integer=1), minimum=2)
    assert "at most 5 ns" in refusal("DURATION", Value(integer=6), maximum=5)
    assert "at most 3 bytes" in refusal("TEXT", Value(text="\u00e4\u00e4"), maximum=3)
    assert "at least 1 bytes" in refusal("BYTES", Value(text=""), minimum=1)
    assert parse("INTEGER", Value(text=str((1 << 64) - 1)), maximum=(1 << 64) - 1) == (1 << 64) - 1
    assert "too large" in refusal("INTEGER", Value(text=str(1 << 63)))


def test_an_unknown_name_gets_the_nearest_and_all_names():
    known = (Parameter("every", KINDS["DURATION"], "."), Parameter("after", KINDS["DURATION"], "."))
    with pytest.raises(AemError) as caught:
        parse_values(known, {"evry": Value(text="1s")}, Limits())
    assert (
        caught.value.message == "params.evry: no such parameter; did you mean every?; it takes every, after"
    )
    with pytest.raises(AemError, match="takes none"):
        parse_values((), {"x" * 10_000: Value()}, Limits())


def test_defaults_and_required():
    known = (
        Parameter("a", KINDS["DURATION"], "A span.", default="5s"),
        Parameter("b", KINDS["TEXT"], "Optional."),
        Parameter("c", KINDS["SIZE"], "Sizes.", default="1K", repeated=True),
    )
    assert parse_values(known, {}, Limits()) == {"a": 5_000_000_000, "c": (1024,)}
    needed = Parameter("d", KINDS["TEXT"], "Who.", required=True, example="me")
    with pytest.raises(AemError, match=r"params\.d: is required: Who\.; for example d=me"):
        parse_values((needed,), {}, Limits())


def test_a_repeated_parameter_takes_one_or_several():
    items = job_pb2.ValueList(values=[Value(text="1"), Value(integer=2)])
    assert parse("INTEGER", Value(list=items), repeated=True) == (1, 2)
    assert parse("INTEGER", Value(text="1"), repeated=True) == (1,)
    nested = job_pb2.ValueList(values=[Value(list=items)])
    assert "not a list" in refusal("INTEGER", Value(list=nested), repeated=True)
    empty = Value(list=job_pb2.ValueList())
    assert parse("INTEGER", empty, repeated=True) == ()
    assert "at least one" in refusal("INTEGER", empty, repeated=True, required=True)


def test_all_parameters_together_have_a_limit():
    known = (Parameter("a", KINDS["TEXT"], "."),)
    with pytest.raises(AemError, match="at most 65536"):
        parse_values(known, {"a": Value(text="x" * 65_536)}, Limits())
    with pytest.raises(AemError, match="at most 64"):
        parse_values(known, {f"a{number}": Value(text="") for number in range(65)}, Limits())
