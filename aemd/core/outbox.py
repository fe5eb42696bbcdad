"""What leaves a session: control first, then events, fairly.

Between bindings: deficit round robin by bytes (Shreedhar and Varghese 1995) in eight bands, the highest
priority first. A lower band that waits gets a turn whenever STARVATION_BYTES have gone out above it, so it
waits for a bounded number of bytes, not for ever. A binding is listed in a band while it has an event to send
and credit of its own; the session's credit is looked at when its turn comes. Gaps need no credit: a binding
whose next entry is a gap is `urgent`.

Frames come out as large as there is reason for: what waits, up to BATCH_EVENTS_MAX and BATCH_BYTES_MAX.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from aemd.core import encoding
from aemd.core.entry import EntryState
from aemd.core.job import JobState
from aemd.core.limits import BATCH_BYTES_MAX, BATCH_EVENTS_MAX

if TYPE_CHECKING:
    from aemd.core.binding import Binding
    from aemd.core.job import Job
    from aemd.core.progress import Progress

QUANTUM_BYTES = 16 * 1024  # a binding's turn; an eighth of a full batch
STARVATION_BYTES = 64 * 1024  # sent above a waiting band before it gets a turn
EVENT_OVERHEAD_BYTES = 8  # so that empty events count as something
GAP_COST_BYTES = 32


class _Writer:
    """One frame in the making."""

    __slots__ = ("events", "frames", "parts", "room", "size")

    def __init__(self, room: int) -> None:
        self.room = room  # bytes
        self.events = BATCH_EVENTS_MAX
        self.frames: list[bytes] = []
        self.parts: list[bytes] = []
        self.size = 0

    def run(self, parts: list[bytes], size: int, events: int) -> None:
        self.parts += parts
        self.size += size
        self.room -= size
        self.events -= events

    def frame(self, frame: bytes) -> None:
        self.close_batch()
        self.frames.append(frame)
        self.room -= len(frame)
        self.events -= 1

    def close_batch(self) -> None:
        if self.parts:
            self.frames.append(encoding.batch_frame(self.parts, self.size))
            self.parts, self.size = [], 0

    def finish(self) -> bytes | None:
        self.close_batch()
        return encoding.bundle_frame(self.frames) if self.frames else None


class Outbox:
    """The sending half of a session."""

    __slots__ = (
        "awaited",
        "bands",
        "connected",
        "control",
        "control_bytes",
        "credit_bytes",
        "credit_events",
        "delivered",
        "emptied",
        "favoured",
        "handed_ns",
        "news",
        "passed_bytes",
        "progress",
        "queued_bytes",
        "ready",
        "ready_sessions",
        "rooms",
        "timed",
        "urgent",
    )

    def __init__(self, ready_sessions: list[Outbox]) -> None:
        self.ready_sessions = ready_sessions
        self.ready = False
        self.connected = True
        self.control: deque[bytes | Job] = deque()  # frames, and jobs whose state is to be told
        self.control_bytes = 0  # of the frames; of jobs there are no more than the client made
        self.news: set[Job] = set()  # in control
        self.rooms: dict[tuple[int, bytes], int] = {}  # came without a stream: (job, key) -> bytes
        self.awaited = 0  # Syncs of bindings that wait for what was queued before them
        self.credit_events = 0
        self.credit_bytes = 0
        self.delivered = 0
        self.handed_ns = 0  # when what is collected now is handed over, CLOCK_MONOTONIC
        self.queued_bytes = 0  # of events that wait to be sent
        self.bands: dict[int, OrderedDict[Binding, None]] = {}
        self.urgent: dict[Binding, None] = {}
        self.emptied: list[Binding] = []  # sent so much that their jobs must be looked at
        self.progress: Progress | None = None  # where the client wants to know how far it is
        self.timed: list[Binding] = []  # have something in flight that may time out
        self.passed_bytes = 0  # sent by the highest band since a lower one had its turn
        self.favoured = 0  # the lower band that had it

    # -- what is listed ------------------------------------------------------------------------------

    def wake(self, binding: Binding) -> None:
        """`binding` may have become able to send."""
        if not self.connected:
            return
        if self.progress is not None:
            self.progress.note(self, binding)  # type: ignore[arg-type]
        entry = binding.next_entry()
        if entry is None:
            return
        if entry.loss is not None:
            self.urgent[binding] = None
            self.mark_ready()
        elif binding.credit_events > 0 and binding.credit_bytes > 0:
            if binding.listed < 0:
                self._list(binding)
            if self.credit_events > 0 and self.credit_bytes > 0:
                self.mark_ready()

    def mark_ready(self) -> None:
        """There is something to collect."""
        if not self.ready:
            self.ready = True
            self.ready_sessions.append(self)

    def _list(self, binding: Binding) -> None:
        priority = binding.options.priority
        binding.listed = priority
        band = self.bands.get(priority)
        if band is None:
            band = self.bands[priority] = OrderedDict()
        band[binding] = None

    def unlist(self, binding: Binding) -> None:
        """`binding` has nothing to send for now."""
        if binding.listed >= 0:
            band = self.bands[binding.listed]
            del band[binding]
            if not band:
                del self.bands[binding.listed]
            binding.listed = -1
        binding.deficit = 0

    def drop(self, binding: Binding) -> None:
        """`binding` will send nothing more."""
        self.unlist(binding)
        self.urgent.pop(binding, None)
        if self.progress is not None:
            self.progress.stale.pop(binding, None)

    def disconnect(self) -> None:
        """The stream is lost, and the answers that waited for it."""
        self.connected = False
        self.control.clear()
        self.control_bytes = 0
        self.news.clear()
        self.awaited = 0
        self.credit_events = self.credit_bytes = 0
        for band in self.bands.values():
            for binding in band:
                binding.listed = -1
        self.bands.clear()
        self.urgent.clear()
        self.emptied.clear()
        self.timed.clear()

    # -- what goes out -------------------------------------------------------------------------------

    def collect(self, budget_bytes: int, now_ns: int) -> bytes | None:
        """The next ServerFrame of about `budget_bytes` at most (an event may go over it); None: nothing."""
        room = min(budget_bytes, BATCH_BYTES_MAX)
        if room <= 0:
            return None
        if self.control:
            return self._take_control(room)
        if not self.connected:
            return None
        writer = _Writer(room)
        while writer.events > 0 and writer.room > 0:
            binding = self._next_binding()
            if binding is None:
                break
            if binding.deficit <= 0:
                binding.deficit += QUANTUM_BYTES
            self._visit(binding, writer, now_ns)
            self._place(binding)
        return writer.finish()

    def _take_control(self, room: int) -> bytes:
        control = self.control
        frames: list[bytes] = []
        while control:
            item = control[0]
            if isinstance(item, bytes):
                frame = item
            else:
                frame = encoding.job_state_frame(
                    item.id, item.state.wire, item.reason, item.binding.discarded
                )
            room -= len(frame)
            if frames and room < 0:
                break
            del control[0]
            frames.append(frame)
            if isinstance(item, bytes):
                self.control_bytes -= len(item)
            else:
                self.news.discard(item)
        return encoding.bundle_frame(frames)

    def _next_binding(self) -> Binding | None:
        if self.urgent:
            binding = next(iter(self.urgent))
            del self.urgent[binding]
            return binding
        bands = self.bands
        if not bands or self.credit_events <= 0 or self.credit_bytes <= 0:
            return None
        top = max(bands)
        if len(bands) == 1:
            self.passed_bytes = 0
        elif self.passed_bytes >= STARVATION_BYTES:
            self.passed_bytes = 0
            lower = sorted(priority for priority in bands if priority != top)
            below = [priority for priority in lower if priority < self.favoured]
            top = self.favoured = (below or lower)[-1]
        return next(iter(bands[top]))

    def _visit(self, binding: Binding, writer: _Writer, now_ns: int) -> None:
        """Send of `binding` what its turn, both credits and the frame allow."""
        while writer.events > 0 and writer.room > 0:
            entry = binding.next_entry()
            if entry is None:
                break
            if entry.loss is not None:
                self._send_gap(binding, writer, now_ns)
                continue
            events = min(binding.credit_events, self.credit_events, writer.events)
            room = min(binding.credit_bytes, self.credit_bytes, writer.room, binding.deficit)
            if events <= 0 or room <= 0:
                break
            if entry.state is EntryState.AGAIN:
                entries, spent = binding.take_again(events, room, now_ns)
                plain = False
            else:
                entries, spent, plain = binding.take_queued(events, room, now_ns)
            parts, size = encoding.run_parts(
                binding=binding.id, epoch=binding.epoch, entries=entries, plain=plain
            )
            writer.run(parts, size, len(entries))
            self._count(binding, spent + EVENT_OVERHEAD_BYTES * len(entries))
            if binding.marks is not None:
                self.send_marks(binding, writer)

    def _count(self, binding: Binding, spent: int) -> None:
        binding.deficit -= spent
        self.passed_bytes += spent

    def _send_gap(self, binding: Binding, writer: _Writer, now_ns: int) -> None:
        entry = binding.take_gap(now_ns)
        writer.frame(encoding.gap_frame(binding=binding.id, epoch=binding.epoch, entry=entry))
        self._count(binding, GAP_COST_BYTES)
        if binding.marks is not None:
            self.send_marks(binding, writer)

    def end_marks(self, binding: Binding) -> None:
        """Answer all Syncs of a binding that ends: nothing more will come."""
        marks, binding.marks = binding.marks or (), None
        for mark in marks:
            self.add_control(self._sync_done(binding, *mark))

    def _sync_done(self, binding: Binding, epoch: int, seq: int, request_id: int) -> bytes:
        self.awaited -= 1
        return encoding.sync_done_frame(
            request_id, job=binding.job.id, binding=binding.id, epoch=epoch, seq=seq
        )

    def send_marks(self, binding: Binding, writer: _Writer | None) -> None:
        """Answer the Syncs behind whose numbers nothing waits any more. Where a job that is closing has given
        up what waited, they are answered at its end. What is missing of an epoch before is told by what the
        present one begins with, so that comes first.
        """
        if binding.job.state is JobState.CLOSING:
            return
        marks, at = binding.marks, (binding.epoch, binding.sent_to())
        while marks and at >= marks[0][:2] and (at[1] or at[0] == marks[0][0]):
            frame = self._sync_done(binding, *marks.popleft())
            if writer is not None:
                writer.frame(frame)
            else:
                self.add_control(frame)
        if not marks:
            binding.marks = None

    def add_control(self, frame: bytes) -> None:
        """Queue an encoded ServerFrame ahead of all later data; nothing if there is no stream."""
        if self.connected:
            self.control.append(frame)
            self.control_bytes += len(frame)
            self.mark_ready()

    def tell_state(self, job: Job) -> None:
        """Tell of the state that `job` has when it is its turn; nothing if there is no stream.

        Many jobs may end in one turn, and a source may come and go while the client does not read: neither
        may count as answers that it does not take.
        """
        if self.connected and job not in self.news:
            self.news.add(job)
            self.control.append(job)
            self.mark_ready()

    def withhold_state(self, job: Job) -> bool:
        """Do not tell of `job`; whether it was to be told."""
        if job not in self.news:
            return False
        self.news.discard(job)
        self.control.remove(job)
        return True

    def _place(self, binding: Binding) -> None:
        """List `binding` where it belongs after its turn."""
        job = binding.job
        if binding.paused or job.state is JobState.DRAINING or job.durable is not None:
            self.emptied.append(binding)
        entry = binding.next_entry()
        if entry is None:
            self.unlist(binding)
        elif entry.loss is not None:
            self.urgent[binding] = None
        elif binding.credit_events <= 0 or binding.credit_bytes <= 0:
            self.unlist(binding)
        elif binding.listed < 0:
            self._list(binding)
        elif binding.deficit <= 0:
            if binding.listed == binding.options.priority:
                self.bands[binding.listed].move_to_end(binding)
            else:
                self.unlist(binding)
                self._list(binding)
