"""What core and deputy say to each other: every message comes back as it was, and no other bytes are one."""

from hypothesis import given
from hypothesis import strategies as st

from aemd.deputy import protocol
from aemd.deputy.caller import UMASK_DEFAULT, parse_status
from aemd.deputy.protocol import Answer, Flag, Kind, ProtocolError, Request

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
I32 = st.integers(-(1 << 31), (1 << 31) - 1)
REQUESTS = st.builds(
    Request,
    st.sampled_from(list(Kind)),
    U64,
    U32,
    U32,
    st.lists(U32, max_size=20).map(tuple),
    pid=I32,
    flags=st.integers(0, 255),
    type=I32,
    mode=I32,
    backlog=I32,
    access=U32,
    device=U64,
    inode=U64,
    path=st.binary(max_size=200),
    data=st.binary(max_size=200),
)
ANSWERS = st.builds(
    Answer,
    U64,
    I32,
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=protocol.CALL_BYTES_MAX),
    state=st.integers(0, 255),
    device=U64,
    inode=U64,
    reaped=st.booleans(),
)


@given(REQUESTS)
def test_request_comes_back_as_it_was(request):
    assert protocol.parse_request(protocol.pack_request(request)) == request


@given(ANSWERS)
def test_answer_comes_back_as_it_was(answer):
    assert protocol.parse_answer(protocol.pack_answer(answer)) == answer


@given(st.one_of(st.binary(max_size=300), REQUESTS.map(lambda r: protocol.pack_request(r)[:-1])))
def test_bytes_are_a_request_or_a_protocol_error(message):
    try:
        request = protocol.parse_request(message)
    except ProtocolError:
        return
    assert protocol.pack_request(request) == message


@given(st.binary(max_size=100))
def test_bytes_are_an_answer_or_a_protocol_error(message):
    try:
        answer = protocol.parse_answer(message)
    except ProtocolError:
        return
    assert answer.number >= 0


@given(st.binary(max_size=400))
def test_status_of_any_process_gives_a_mask_and_capabilities(status):
    found = parse_status(3, status)
    assert found.root == 3
    assert found.capabilities >= 0 or b"CapEff" in status
    assert found.umask == UMASK_DEFAULT or b"Umask" in status


def test_flags_fit_into_their_byte():
    assert int(Flag.CAPABLE | Flag.DATABASE | Flag.REPLACE) < 256
