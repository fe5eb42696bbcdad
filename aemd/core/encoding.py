"""ServerFrames, assembled by hand from events that are encoded already.

protobuf would copy every event into a message and encode it again, once per subscriber. Here a frame is a
few varints and the events' own bytes, joined once. The result is what protobuf would write (the tests parse
it back); field numbers are those of proto/aem/v1/session.proto. Everything that is rare is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aemd.v1 import session_pb2

if TYPE_CHECKING:
    from aemd.core.entry import Entry

# Tags: (field number << 3) | wire type; 0 is a varint, 2 a length and so many bytes.
_FRAME_BATCH = b"\x2a"  # ServerFrame.batch = 5
_FRAME_GAP = b"\x32"  # ServerFrame.gap = 6
_FRAME_BUNDLE = b"\xca\x01"  # ServerFrame.bundle = 25
_BATCH_RUN = b"\x0a"  # Batch.runs = 1
_BUNDLE_FRAME = b"\x0a"  # ServerBundle.frames = 1
_RUN_COUNTS = b"\x22"  # Run.counts = 4, packed
_RUN_ATTEMPTS = b"\x2a"  # Run.attempts = 5, packed
_RUN_EVENT = b"\x32"  # Run.events = 6
_GAP_SCOPE = b"\x42"  # Gap.scope = 8

_SMALL = [bytes((n,)) for n in range(128)]


def room_frame(job: int, key: bytes, size: int) -> bytes:
    """A Room."""
    frame = session_pb2.ServerFrame()
    frame.room.job, frame.room.key, frame.room.bytes = job, key, size
    return frame.SerializeToString()


def varint(number: int) -> bytes:
    """An unsigned number as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 128:
        return _SMALL[number]
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _field(number: int, value: int) -> bytes:
    return _SMALL[number << 3] + varint(value) if value else b""


_EVENT_HEADERS = tuple(_RUN_EVENT + varint(size) for size in range(4096))


def event_header(size: int) -> bytes:
    """What stands before an event of `size` bytes in a Run."""
    return _EVENT_HEADERS[size] if size < 4096 else _RUN_EVENT + varint(size)


def run_parts(*, binding: int, epoch: int, entries: Sequence[Entry], plain: bool) -> tuple[list[bytes], int]:
    """One Run as a member of Batch.runs, in pieces, and how many bytes they have.

    The entries follow each other without a hole. `plain`: each covers one number and is delivered for the
    first time, so that counts and attempts are absent.
    """
    headers = _EVENT_HEADERS
    body: list[bytes] = []
    for entry in entries:
        event = entry.event
        size = len(event)
        body.append(headers[size] if size < 4096 else _RUN_EVENT + varint(size))
        body.append(event)
    head = _field(1, binding) + _field(2, epoch) + _field(3, entries[0].first)
    if not plain:
        head += _packed(_RUN_COUNTS, [entry.last - entry.first + 1 for entry in entries])
        head += _packed(_RUN_ATTEMPTS, [entry.attempts for entry in entries])
    size = len(head) + sum(map(len, body))
    start = _BATCH_RUN + varint(size) + head
    return [start, *body], size - len(head) + len(start)


def _packed(tag: bytes, numbers: Sequence[int]) -> bytes:
    """A packed repeated field; absent if every number is 1, which is what its absence means in a Run."""
    if all(number == 1 for number in numbers):
        return b""
    body = b"".join(map(varint, numbers))
    return tag + varint(len(body)) + body


def batch_frame(parts: Sequence[bytes], size: int) -> bytes:
    """A ServerFrame with one Batch of the runs whose pieces are given."""
    return b"".join((_FRAME_BATCH, varint(size), *parts))


def gap_frame(*, binding: int, epoch: int, entry: Entry) -> bytes:
    """A ServerFrame with one Gap. `entry` has a loss."""
    loss = entry.loss
    assert loss is not None
    body = (
        _field(1, binding)
        + _field(2, epoch)
        + _field(3, entry.first)
        + _field(4, entry.last)
        + _field(5, loss.stage)
        + _field(6, 0 if loss.unknown else entry.last - entry.first + 1)
        + _field(7, loss.cause)
    )
    if loss.scope:
        scope = loss.scope.encode("utf-8", "replace")
        body += _GAP_SCOPE + varint(len(scope)) + scope
    body += _field(9, loss.remedy) + _field(10, entry.attempts)
    return _FRAME_GAP + varint(len(body)) + body


def bundle_frame(frames: Sequence[bytes]) -> bytes:
    """One ServerFrame for several; a single one stays as it is."""
    if len(frames) == 1:
        return frames[0]
    parts: list[bytes] = []
    for frame in frames:
        parts.append(_BUNDLE_FRAME + varint(len(frame)))
        parts.append(frame)
    return b"".join((_FRAME_BUNDLE, varint(sum(map(len, parts))), *parts))


def job_state_frame(job: int, state: int, reason: str, discarded: int) -> bytes:
    """A ServerFrame with a JobState."""
    frame = session_pb2.ServerFrame()
    frame.job_state.job = job
    frame.job_state.state = state  # type: ignore[assignment]
    frame.job_state.reason = reason
    frame.job_state.discarded = discarded
    return frame.SerializeToString()


def progress_frame(
    binding: int, *, head: tuple[int, int], acked: tuple[int, int], lag: int, lost: int
) -> bytes:
    """A ServerFrame with a Progress."""
    frame = session_pb2.ServerFrame()
    progress = frame.progress
    progress.binding = binding
    progress.head.epoch, progress.head.seq = head
    progress.acked.epoch, progress.acked.seq = acked
    progress.lost = lost
    progress.lag = lag
    return frame.SerializeToString()


def sync_done_frame(request_id: int, *, job: int, binding: int, epoch: int, seq: int) -> bytes:
    """A ServerFrame with a SyncDone."""
    frame = session_pb2.ServerFrame(request_id=request_id)
    done = frame.sync_done
    done.job = job
    done.binding = binding
    done.cursor.epoch = epoch
    done.cursor.seq = seq
    return frame.SerializeToString()
