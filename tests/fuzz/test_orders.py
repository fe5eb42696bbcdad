"""What core and runner say to each other: every value comes back as it was, and no other bytes are one."""

from hypothesis import given
from hypothesis import strategies as st

from aemd.deputy.orders import Begun, End, Ended, OrderError, Start, pack, parse

NUMBERS = st.integers(0, (1 << 63) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
STARTS = st.builds(
    Start,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.lists(NUMBERS, max_size=20),
    st.booleans(),
    st.lists(TEXTS, max_size=10),
    st.dictionaries(TEXTS, TEXTS, max_size=10),
    TEXTS,
    NUMBERS,
    TEXTS,
    TEXTS,
)
MESSAGES = st.one_of(
    STARTS,
    st.builds(End, NUMBERS, NUMBERS),
    st.builds(Begun, NUMBERS, NUMBERS),
    st.builds(Ended, NUMBERS, NUMBERS, NUMBERS, TEXTS, st.booleans(), st.booleans()),
)


@given(MESSAGES)
def test_message_comes_back_as_it_was(message):
    assert parse(pack(message)) == message


@given(st.one_of(st.binary(max_size=300), MESSAGES.map(lambda message: pack(message)[:-1])))
def test_bytes_are_a_message_or_an_order_error(data):
    try:
        message = parse(data)
    except OrderError:
        return
    assert parse(pack(message)) == message
