"""The budgets of a connection: so much passes, one more does not; and what ordinary clients send passes."""

import pytest

from aemd.front import accountant as module
from aemd.front.accountant import (
    BUDGETS,
    CONTINUATIONS_MAX,
    HEADER_BYTES_MAX,
    PREFACE,
    SECOND,
    Accountant,
)
from aemd.link import Cut

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_HEADERS = 4
PAYLOADS = {DATA: b"", PRIORITY: b"12345", RST_STREAM: b"1234", PING: b"12345678", WINDOW_UPDATE: b"1234"}


def frame(kind, payload=b"", flags=0, stream=1):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


BEGIN = PREFACE + frame(SETTINGS, stream=0)


@pytest.fixture
def accountant():
    accountant = Accountant(0)
    assert accountant.feed(BEGIN, 0) is None
    return accountant


@pytest.mark.parametrize("kind", [DATA, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, 0xEE])
def test_so_many_at_once_and_not_one_more(accountant, kind):
    budget = BUDGETS[min(kind, 10)]
    burst = budget.burst - (kind == SETTINGS)  # one came at the beginning
    one = frame(kind, PAYLOADS.get(kind, b""))
    assert accountant.feed(one * burst, 0) is None
    assert accountant.feed(one, 0) == budget.cut


def test_so_many_streams_at_once_and_not_one_more(accountant):
    one = frame(HEADERS, b"\x82", END_HEADERS)
    assert accountant.feed(one * BUDGETS[HEADERS].burst, 0) is None
    assert accountant.feed(one, 0) == Cut.HEADERS


def test_budget_is_filled_up_as_time_goes_by(accountant):
    budget, one = BUDGETS[PING], frame(PING, bytes(8))
    assert accountant.feed(one * budget.burst, 0) is None
    for second in range(1, 6):
        assert accountant.feed(one * budget.per_second, second * SECOND) is None
    assert accountant.feed(one, 5 * SECOND) == Cut.PING


def test_long_silence_gives_no_more_than_the_burst(accountant):
    budget, one = BUDGETS[PING], frame(PING, bytes(8))
    assert accountant.feed(one * budget.burst, 0) is None
    assert accountant.feed(one * budget.burst, 3_600 * SECOND) is None
    assert accountant.feed(one, 3_600 * SECOND) == Cut.PING


def test_data_and_messages_are_never_too_many(accountant):
    message = frame(DATA, bytes(16_384))
    for _ in range(20):
        assert accountant.feed(message * 100, 0) is None


def test_header_block_of_the_most_bytes_passes_and_one_more_does_not(accountant):
    assert accountant.feed(frame(HEADERS, bytes(HEADER_BYTES_MAX - 1)), 0) is None
    assert accountant.feed(frame(CONTINUATION, b"x", END_HEADERS), 0) is None
    assert accountant.feed(frame(HEADERS, bytes(HEADER_BYTES_MAX)), 0) is None
    assert accountant.feed(frame(CONTINUATION, b"x"), 0) == Cut.HEADER_BYTES


def test_huge_block_is_refused_by_its_header_alone(accountant):
    assert accountant.feed(frame(HEADERS, bytes(HEADER_BYTES_MAX + 1))[:9], 0) == Cut.HEADER_BYTES


def test_blocks_of_more_bytes_than_a_second_and_the_burst_allow_are_refused(accountant):
    one = frame(HEADERS, bytes(HEADER_BYTES_MAX), END_HEADERS)
    assert accountant.feed(one * (module.HEADER_BYTES_BURST // HEADER_BYTES_MAX), 0) is None
    assert accountant.feed(one * (module.HEADER_BYTES_PER_SECOND // HEADER_BYTES_MAX), SECOND) is None
    assert accountant.feed(one, SECOND) == Cut.HEADER_BYTES


def test_continuations_without_end_are_refused(accountant):
    assert accountant.feed(frame(HEADERS, b"\x82"), 0) is None
    assert accountant.feed(frame(CONTINUATION) * CONTINUATIONS_MAX, 0) is None
    assert accountant.feed(frame(CONTINUATION), 0) == Cut.CONTINUATION


def test_continuation_of_nothing_is_refused(accountant):
    assert accountant.feed(frame(CONTINUATION), 0) == Cut.NOT_HTTP2
    again = Accountant(0)
    again.feed(BEGIN + frame(HEADERS, b"\x82", END_HEADERS), 0)
    assert again.feed(frame(CONTINUATION), 0) == Cut.NOT_HTTP2


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\n\r\n", b"\0", PREFACE[:-1] + b"x", PREFACE + bytes(9)])
def test_what_does_not_begin_as_http2_is_refused(begin):
    assert Accountant(0).feed(begin, 0) == Cut.NOT_HTTP2


def test_acknowledgement_is_no_beginning():
    assert Accountant(0).feed(PREFACE + frame(SETTINGS, flags=1), 0) == Cut.NOT_HTTP2


def test_it_says_how_far_the_client_has_come():
    accountant = Accountant(0)
    for each in BEGIN[:-1]:
        assert accountant.feed(bytes((each,)), 0) is None
        assert not accountant.settled
    accountant.feed(BEGIN[-1:], 0)
    assert accountant.settled
    assert not accountant.called
    accountant.feed(frame(HEADERS, b"\x82", END_HEADERS), 0)
    assert accountant.called


def test_every_kind_of_frame_has_a_budget_that_one_second_does_not_exceed():
    assert len(BUDGETS) == module.BLOCKS + 1
    assert all(budget.per_second <= budget.burst for budget in BUDGETS)
