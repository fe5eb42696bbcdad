"""Parameters: whatever a client sends, parse_values gives values of the promised types or raises AemError."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.modules.address import FAMILIES, parse_address
from aemd.modules.contract import Address, Kind, Parameter
from aemd.modules.params import parse_values
from aemd.modules.quantity import INT64_MAX, INT64_MIN, parse_duration, parse_time
from aemd.v1 import job_pb2

LIMITS = Limits(params_max=8, params_bytes=1024)
TYPES = {
    Kind.PARAMETER_KIND_TEXT: str,
    Kind.PARAMETER_KIND_INTEGER: int,
    Kind.PARAMETER_KIND_TRUTH: bool,
    Kind.PARAMETER_KIND_DURATION: int,
    Kind.PARAMETER_KIND_TIME: int,
    Kind.PARAMETER_KIND_SIZE: int,
    Kind.PARAMETER_KIND_CHOICE: str,
    Kind.PARAMETER_KIND_ADDRESS: Address,
    Kind.PARAMETER_KIND_BYTES: bytes,
}
PARAMETERS = tuple(
    Parameter(f"{shape}{kind}", kind, "A parameter.", choices=("red", "green"), repeated=shape == "r")
    for kind in TYPES
    for shape in "sr"
)

wordy = st.text(alphabet="0123456789.:@[]*+-%/ " + string.ascii_letters + "\0\u00b5", max_size=40)
likely = st.sampled_from(
    [
        *(f"{family}:" for family in FAMILIES),
        "1h 30min",
        "@17.5",
        "2026-02-30T00:00:00Z",
        "64K",
        "0x",
        "infinity",
    ]
)
texts = st.one_of(st.text(max_size=300), wordy, st.builds(str.__add__, likely, wordy))
scalars = st.one_of(
    st.builds(job_pb2.Value),
    st.builds(job_pb2.Value, text=texts),
    st.builds(job_pb2.Value, integer=st.integers(INT64_MIN, INT64_MAX)),
    st.builds(job_pb2.Value, number=st.floats()),
    st.builds(job_pb2.Value, truth=st.booleans()),
    st.builds(job_pb2.Value, data=st.binary(max_size=200)),
)
lists = st.lists(scalars, max_size=3).map(lambda items: job_pb2.Value(list=job_pb2.ValueList(values=items)))
nested = lists.map(lambda item: job_pb2.Value(list=job_pb2.ValueList(values=[item])))
names = st.one_of(st.sampled_from([parameter.name for parameter in PARAMETERS]), st.text(max_size=100))


def parsed_or_error(values: dict[str, job_pb2.Value]) -> dict[str, object] | AemError:
    try:
        return parse_values(PARAMETERS, values, LIMITS)
    except AemError as error:
        return error


@settings(max_examples=1_000)
@given(st.dictionaries(names, st.one_of(scalars, lists, nested), max_size=3))
def test_any_values_parse_to_their_types_or_raise_aem_error(values: dict[str, job_pb2.Value]) -> None:
    # Invariant: a value of the kind's type for each name given, or AemError INVALID_ARGUMENT of one field.
    parsed = parsed_or_error(values)
    if isinstance(parsed, AemError):
        assert parsed.code is Code.INVALID_ARGUMENT
        assert parsed.details["field"].startswith("params")
        assert len(parsed.message) < 1_000
        return
    assert parsed.keys() == values.keys()
    for parameter in PARAMETERS:
        if parameter.name in parsed:
            value = parsed[parameter.name]
            items = value if parameter.repeated else (value,)
            assert isinstance(items, tuple)
            assert all(type(item) is TYPES[parameter.kind] for item in items)


@settings(max_examples=300)
@given(texts)
def test_an_address_written_out_parses_to_itself(text: str) -> None:
    # Invariant: parse(str(address)) == address, except that bytes that are no UTF-8 are shown escaped.
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


@given(st.integers(0, INT64_MAX))
def test_a_duration_in_nanoseconds_is_exact(span_ns: int) -> None:
    # Invariant: no float is in between.
    assert parse_duration(f"{span_ns}ns") == span_ns
    assert parse_duration(f"{span_ns // 10**9}.{span_ns % 10**9:09}s") == span_ns


@given(st.integers(INT64_MIN, INT64_MAX))
def test_a_time_of_the_epoch_is_exact(time_ns: int) -> None:
    # Invariant: no float is in between, before 1970 neither.
    sign, size = "-" if time_ns < 0 else "", abs(time_ns)
    assert parse_time(f"@{sign}{size // 10**9}.{size % 10**9:09}") == time_ns


@pytest.mark.parametrize("count", [9, 64])
def test_too_many_parameters_are_refused_before_any_is_parsed(count: int) -> None:
    values = {f"x{number}": job_pb2.Value(text="") for number in range(count)}
    with pytest.raises(AemError, match="at most 8"):
        parse_values(PARAMETERS, values, LIMITS)
