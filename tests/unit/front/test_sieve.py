"""What passes at the end of a front: no call that begins now, and every byte of all else."""

from __future__ import annotations

import itertools
import struct

from hypothesis import given
from hypothesis import strategies as st

from aemd.front.accountant import PREFACE, Accountant

DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    flags = 4 if kind == HEADERS else 0
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


BEFORE = PREFACE + frame(SETTINGS, 0) + frame(HEADERS, 1, b"h" * 30) + frame(DATA, 1, b"d" * 40)
AFTER = (
    frame(HEADERS, 3, b"n" * 30),  # a call that begins now
    frame(DATA, 1, b"e" * 20),
    frame(DATA, 3, b"n" * 50),
    frame(PING, 0, b"p" * 8),
    frame(HEADERS, 5, b"n"),
    frame(DATA, 5),
    frame(DATA, 1),
)
OLD = AFTER[1] + AFTER[3] + AFTER[6]


def passed(begin: int, pieces: list[int]) -> bytes:
    """What passes in all, if the sieve takes over after `begin` bytes and the rest comes in such pieces."""
    sent = BEFORE + b"".join(AFTER)
    accountant = Accountant(0)
    assert accountant.feed(sent[:begin], 0) is None
    sieve = accountant.sieve()
    assert sieve is not None
    out, edges = sent[:begin], sorted({begin, len(sent), *(begin + piece for piece in pieces)})
    for start, end in itertools.pairwise(edges):
        out += sieve.feed(sent[start:end])
    return out


@given(st.lists(st.integers(0, 300)))
def test_calls_that_begin_after_it_do_not_pass_and_all_else_does(pieces: list[int]) -> None:
    assert passed(len(BEFORE), pieces) == BEFORE + OLD


@given(st.integers(len(PREFACE) + 18 + 30, len(BEFORE)), st.lists(st.integers(0, 300)))
def test_frame_that_has_begun_passes_whole(begin: int, pieces: list[int]) -> None:
    assert passed(begin, pieces) == BEFORE + OLD


@given(st.integers(1, 8), st.lists(st.integers(0, 300)))
def test_header_that_has_passed_in_part_is_not_taken_back(bytes_passed: int, pieces: list[int]) -> None:
    expected = BEFORE + AFTER[0] + AFTER[1] + AFTER[2] + AFTER[3] + AFTER[6]
    assert passed(len(BEFORE) + bytes_passed, pieces) == expected


def test_connection_that_has_not_begun_has_none() -> None:
    accountant = Accountant(0)
    accountant.feed(PREFACE[:5], 0)
    assert accountant.sieve() is None
