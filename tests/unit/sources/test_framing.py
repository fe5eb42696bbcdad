"""Framing: borders wherever the bytes are cut, and lengths before the bytes are kept."""

from __future__ import annotations

import pytest

from aemd.sources.framing import (
    FrameIncompleteError,
    FrameTooLongError,
    LengthFraming,
    LineFraming,
    parse_length,
    parse_line,
)


def test_line_is_parsed_from_its_offset_without_its_newline():
    assert parse_line(bytearray(b"one\ntwo\nth"), 4, limit_bytes=10) == (b"two", 8)


def test_unfinished_line_is_none_and_moves_nothing():
    assert parse_line(bytearray(b"one\ntw"), 4, limit_bytes=10) == (None, 4)


def test_line_of_exactly_the_limit_is_taken_and_one_more_byte_is_not():
    assert parse_line(bytearray(b"1234\n"), 0, limit_bytes=4) == (b"1234", 5)
    assert parse_line(bytearray(b"1234"), 0, limit_bytes=4) == (None, 0)
    with pytest.raises(FrameTooLongError):
        parse_line(bytearray(b"12345"), 0, limit_bytes=4)
    with pytest.raises(FrameTooLongError):
        parse_line(bytearray(b"12345\n"), 0, limit_bytes=4)


@pytest.mark.parametrize("prefix_bytes", [1, 2, 4, 8])
def test_length_prefix_of_every_size(prefix_bytes):
    text = bytearray((3).to_bytes(prefix_bytes, "big") + b"abc!")
    taken = parse_length(text, 0, limit_bytes=3, prefix_bytes=prefix_bytes)
    assert taken == (b"abc", prefix_bytes + 3)
    assert parse_length(text[:-2], 0, limit_bytes=3, prefix_bytes=prefix_bytes) == (None, 0)
    with pytest.raises(FrameTooLongError):
        parse_length(text[:prefix_bytes], 0, limit_bytes=2, prefix_bytes=prefix_bytes)


def framings():
    return [
        (LineFraming(100), b"one\n\nthree\n", [b"one", b"", b"three"]),
        (LengthFraming(100, 2), b"\0\3one\0\0\0\5three", [b"one", b"", b"three"]),
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_messages_cut_at_every_byte_are_the_same(index):
    for cut in range(len(framings()[index][1]) + 1):
        framing, text, messages = framings()[index]
        framing.feed(text[:cut])
        first = framing.take(10)
        framing.feed(memoryview(text)[cut:])
        assert first + framing.take(10) == messages
        assert framing.finish() is None


@pytest.mark.parametrize("index", [0, 1])
def test_count_bounds_what_is_taken_and_the_rest_stays(index):
    framing, text, messages = framings()[index]
    framing.feed(text)
    assert [framing.take(1) for _ in range(4)] == [[message] for message in messages] + [[]]


def test_messages_before_the_long_one_are_taken():
    line, length = LineFraming(3), LengthFraming(3, 1)
    line.feed(b"a\nbcd\nefgh")
    length.feed(b"\1a\3bcd\4")
    for framing in (line, length):
        assert not framing.too_long
        assert framing.take(10) == [b"a", b"bcd"]
        assert framing.too_long


def test_end_completes_a_line_and_not_a_message():
    line, length = LineFraming(10), LengthFraming(10, 4)
    line.feed(b"one\ntwo")
    assert line.take(10) == [b"one"]
    assert line.finish() == b"two"
    assert line.finish() is None
    length.feed(b"\0")
    assert length.take(10) == []
    with pytest.raises(FrameIncompleteError):
        length.finish()
