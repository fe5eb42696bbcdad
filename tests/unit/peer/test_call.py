"""A gRPC call by hand: what comes back. Whether what is sent is understood, real daemons say."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aemd.peer.call import ANSWER_BYTES_MAX, Call, CallError

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM = 1


def frame(kind: int, flags: int = 0, stream: int = 1, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


ANSWER = (
    frame(SETTINGS, stream=0, payload=bytes(6))
    + frame(PING, stream=0, payload=bytes(8))
    + frame(HEADERS, payload=b"headers")
    + frame(DATA, payload=b"\0\0\0\0\5hello")
    + frame(HEADERS, END_STREAM, payload=b"trailers")
)


def new_call() -> Call:
    return Call("/a.B/C", b"request")


@given(st.lists(st.integers(0, len(ANSWER))))
def test_answer_in_any_pieces_is_an_answer_at_its_last_byte(cuts: list[int]) -> None:
    call = new_call()
    edges = sorted({0, len(ANSWER), *cuts})
    pieces = [ANSWER[start:end] for start, end in itertools.pairwise(edges)]
    assert [call.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@given(st.binary(max_size=300))
def test_garbage_is_an_answer_or_an_error_and_nothing_else(garbage: bytes) -> None:
    call = new_call()
    try:
        call.feed(garbage)
    except CallError:
        assert not call.answered


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (b"", "closed"),
        (frame(HEADERS, END_STREAM, payload=b"trailers alone"), "refused"),
        (frame(DATA, payload=b"") + frame(HEADERS, END_STREAM), "refused"),
        (frame(RST_STREAM, payload=bytes(4)), "reset"),
        (frame(GOAWAY, stream=0, payload=bytes(8)), "goes away"),
    ],
)
def test_what_is_no_answer_is_an_error(piece: bytes, words: str) -> None:
    with pytest.raises(CallError, match=words):
        new_call().feed(piece)


def test_frames_of_other_streams_are_no_answer() -> None:
    call = new_call()
    assert not call.feed(frame(DATA, END_STREAM, stream=3, payload=b"\0\0\0\0\0"))
    assert not call.feed(frame(RST_STREAM, stream=3, payload=bytes(4)))


def test_what_is_read_is_bounded() -> None:
    call = new_call()
    for _ in range(ANSWER_BYTES_MAX // 1_024):
        assert not call.feed(bytes(1_024))
    with pytest.raises(CallError, match="bytes came"):
        call.feed(b"x")


def test_header_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="126"):
        Call("/" + "a" * 126, b"")
