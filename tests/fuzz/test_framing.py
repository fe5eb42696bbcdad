"""Invariants: however the bytes are cut, the messages are the same, and joined again they are the bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aemd.sources.framing import FrameIncompleteError, LengthFraming, LineFraming

CUTS = st.lists(st.integers(0, 40), max_size=30)


def drive(framing, text: bytes, cuts: list[int], count: int) -> list[bytes]:
    """Everything taken, however the bytes come; what waits is never more than a message and a piece."""
    frames = []
    offset = 0
    for cut in [*cuts, len(text)]:
        framing.feed(text[offset : offset + cut])
        offset += cut
        while not framing.too_long:
            taken = framing.take(count)
            assert len(taken) <= count
            frames += taken
            if len(taken) < count:
                break
    return frames


@given(
    text=st.text(alphabet="ab\n\r", max_size=200),
    cuts=CUTS,
    limit=st.integers(1, 30),
    count=st.integers(1, 5),
)
def test_lines(text, cuts, limit, count):
    """Joined with LF, the lines and what finish() gives are the bytes, up to a line that is too long."""
    data = text.encode()
    framing = LineFraming(limit)
    frames = drive(framing, data, cuts, count)
    lines = data.split(b"\n")
    assert frames == lines[: len(frames)]
    assert all(len(frame) <= limit for frame in frames)
    if framing.too_long:
        assert len(lines[len(frames)]) > limit
    else:
        assert len(frames) == len(lines) - 1
        assert (framing.finish() or b"") == lines[-1]


@given(
    messages=st.lists(st.binary(max_size=40), max_size=10),
    tail=st.binary(max_size=5),
    cuts=CUTS,
    prefix=st.sampled_from((1, 2, 4, 8)),
    count=st.integers(1, 5),
)
def test_length_prefixed(messages, tail, cuts, prefix, count):
    """The messages that were written are those that come, whatever follows them."""
    data = b"".join(len(message).to_bytes(prefix, "big") + message for message in messages)
    framing = LengthFraming(40, prefix)
    frames = drive(framing, data + tail, cuts, count)
    assert frames[: len(messages)] == messages
    assert all(len(frame) <= 40 for frame in frames)


@given(
    data=st.binary(max_size=300), cuts=CUTS, prefix=st.sampled_from((1, 2, 4, 8)), limit=st.integers(0, 64)
)
def test_any_bytes_as_length_prefixed(data, cuts, prefix, limit):
    """Any bytes give messages within the limit, in order; no byte is used twice or passed over."""
    framing = LengthFraming(limit, prefix)
    frames = drive(framing, data, cuts, 3)
    again = b"".join(len(frame).to_bytes(prefix, "big") + frame for frame in frames)
    assert data.startswith(again)
    assert all(len(frame) <= limit for frame in frames)
    if framing.too_long:
        return
    try:
        framing.finish()
    except FrameIncompleteError:
        assert len(again) < len(data)
    else:
        assert again == data
