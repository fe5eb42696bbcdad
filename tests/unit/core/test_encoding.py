"""Frames assembled by hand are what protobuf would write."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aemd.core import encoding
from aemd.core.entry import Entry, Loss
from aemd.v1 import session_pb2

NUMBERS = st.integers(1, (1 << 64) - 1)


def entries_from(first: int, made: list[tuple[int, int, bytes]]) -> list[Entry]:
    entries = []
    for count, attempts, event in made:
        entry = Entry(first, first + count - 1, event, b"", 0)
        entry.attempts = attempts
        entries.append(entry)
        first += count
    return entries


@given(
    binding=NUMBERS,
    epoch=NUMBERS,
    first=st.integers(1, 1 << 60),
    made=st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 300), st.binary(max_size=5000)), min_size=1, max_size=8
    ),
)
def test_batch_is_what_protobuf_writes(binding, epoch, first, made):
    parts, size = encoding.run_parts(
        binding=binding, epoch=epoch, entries=entries_from(first, made), plain=False
    )
    run = session_pb2.Run(binding=binding, epoch=epoch, first_seq=first, events=[e for _, _, e in made])
    if any(count != 1 for count, _, _ in made):
        run.counts.extend(count for count, _, _ in made)
    if any(attempts != 1 for _, attempts, _ in made):
        run.attempts.extend(attempts for _, attempts, _ in made)
    frame = session_pb2.ServerFrame(batch=session_pb2.Batch(runs=[run, run]))
    assert sum(map(len, parts)) == size
    assert encoding.batch_frame(parts + parts, 2 * size) == frame.SerializeToString()


@given(
    numbers=st.tuples(NUMBERS, NUMBERS, st.integers(1, 1 << 40), st.integers(0, 1 << 40)),
    stage=st.integers(0, 4),
    cause=st.integers(0, 5),
    scope=st.text(max_size=200),
    remedy=st.integers(0, 1),
    unknown=st.booleans(),
    attempts=st.integers(1, 1000),
)
def test_gap_is_what_protobuf_writes(numbers, stage, cause, scope, remedy, unknown, attempts):
    binding, epoch, first, more = numbers
    entry = Entry.gap(first, first + more, Loss(stage, cause, scope, remedy, unknown))
    entry.attempts = attempts
    gap = session_pb2.Gap(
        binding=binding,
        epoch=epoch,
        first=first,
        last=first + more,
        stage=stage,
        count=0 if unknown else more + 1,
        cause=cause,
        scope=scope,
        remedy=remedy,
        attempts=attempts,
    )
    frame = encoding.gap_frame(binding=binding, epoch=epoch, entry=entry)
    assert frame == session_pb2.ServerFrame(gap=gap).SerializeToString()


def test_single_frame_needs_no_bundle():
    frame = encoding.progress_frame(1, head=(1, 2), acked=(1, 1), lag=1, lost=0)
    assert encoding.bundle_frame([frame]) is frame


def test_bundle_is_what_protobuf_writes():
    frames = [
        encoding.job_state_frame(7, 5, "gone", 3),
        encoding.sync_done_frame(9, job=7, binding=1, epoch=1, seq=4),
    ]
    bundle = session_pb2.ServerFrame()
    for frame in frames:
        bundle.bundle.frames.append(session_pb2.ServerFrame.FromString(frame))
    assert encoding.bundle_frame(frames) == bundle.SerializeToString()


def test_event_longer_than_the_table_of_headers_has_the_right_header():
    for size in (0, 127, 128, 4095, 4096, 300_000):
        run = session_pb2.Run(events=[bytes(size)]).SerializeToString()
        assert encoding.event_header(size) + bytes(size) == run
