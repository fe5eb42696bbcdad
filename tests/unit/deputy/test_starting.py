"""The messages of core and office."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aemd.deputy.starting import MESSAGE_BYTES, Kind, Message, Program, StartingError, pack, parse

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
MESSAGES = st.builds(
    Message, st.sampled_from(Kind), st.integers(0, (1 << 32) - 1), st.sampled_from(Program), NUMBERS, NUMBERS
)


@given(MESSAGES)
def test_what_is_packed_is_parsed(message):
    assert parse(pack(message)) == message


@given(st.binary(max_size=2 * MESSAGE_BYTES))
def test_anything_else_is_refused(data):
    try:
        message = parse(data)
    except StartingError:
        return
    assert pack(message) == data


@pytest.mark.parametrize("place", [0, 1, 2])
def test_kind_program_and_reserved_field_are_known_ones(place):
    data = bytearray(pack(Message(Kind.START, 1, Program.DEPUTY, 1)))
    data[place] = 0xFF
    with pytest.raises(StartingError):
        parse(bytes(data))
