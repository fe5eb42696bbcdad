"""What clients answer: credit, acknowledgements, completions; and what is sent to them beside events.

A binding that has ended is no fault of the client, whose answer crossed the news: it is ignored. One
that never was is NOT_FOUND.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from aemd.core import encoding
from aemd.core.binding import Binding
from aemd.core.course import Course
from aemd.core.effects import Operate
from aemd.core.entry import Entry, EntryState
from aemd.core.errors import AemError, Code, invalid, not_found
from aemd.core.history import Cursor
from aemd.core.job import Job, JobState
from aemd.core.now import Now
from aemd.core.options import EXPLICIT, NONE
from aemd.core.reader import Reader
from aemd.core.session import Session
from aemd.core.stats import Parked

ERROR_TEXT_MAX = 1_024  # characters of a handler's error that are kept


class Answers(Course):
    """The commands with which a client answers what it was sent."""

    def grant(self, session: Session, binding_id: int, events: int, size: int) -> None:
        """More credit for a binding, or with `binding_id` 0 for the session. What ended meanwhile is no
        fault; AemError NOT_FOUND for a binding that never was.
        """
        most = self.limits.credit_max
        if binding_id:
            binding = self._binding(session, binding_id)
            if binding is None:
                return
            binding.credit_events = min(binding.credit_events + events, most)
            binding.credit_bytes = min(binding.credit_bytes + size, most)
            if binding.listed < 0:
                session.wake(binding)
            return
        session.credit_events = min(session.credit_events + events, most)
        session.credit_bytes = min(session.credit_bytes + size, most)
        if session.bands and session.credit_events > 0 and session.credit_bytes > 0:
            session.mark_ready()

    def ack(self, session: Session, binding_id: int, epoch: int, seq: int, now: Now) -> None:
        """Everything of a binding up to `seq` is dealt with.

        AemError: what was not delivered yet, or a binding with explicit acknowledgement. Without
        acknowledgement it says nothing and is no fault.
        """
        self.now = now
        binding = self._binding(session, binding_id)
        if binding is None:
            return
        self._check_cursor(binding, epoch, seq)
        if binding.options.acknowledgement == EXPLICIT:
            raise AemError(
                Code.FAILED_PRECONDITION,
                "ACKNOWLEDGEMENT_EXPLICIT",
                f"binding {binding_id} is acknowledged entry by entry; send Complete or Nack",
            )
        if epoch == binding.epoch and binding.ack_to(seq, now.mono_ns):
            self._settled(binding)

    def complete(
        self,
        session: Session,
        binding_id: int,
        epoch: int,
        seq: int,
        *,
        error: str | None,
        reply: tuple[str, bytes] | None,
        now: Now,
    ) -> None:
        """The entry that ends at `seq` is dealt with; `error`: its handler failed; `reply`: (operation,
        data), becomes an Operate effect. AemError FAILED_PRECONDITION, reason NOT_IN_FLIGHT, if it was dealt
        with before; then nothing is done.
        """
        self.now = now
        binding = self._binding(session, binding_id)
        if binding is None:
            if reply is None:
                return
            raise _not_in_flight(binding_id, seq)
        self._check_cursor(binding, epoch, seq)
        if reply is not None and isinstance(binding, Reader) and binding.follows:
            raise AemError(
                Code.FAILED_PRECONDITION,
                "FOLLOWS_ONLY",
                f"binding {binding_id} follows jobs/{binding.job.id} and does not answer for it; complete "
                "without a reply, or bind with role REPLY",
            )
        entry = binding.complete(seq, now.mono_ns) if epoch == binding.epoch else None
        if entry is None and (binding.options.acknowledgement != NONE or reply is not None):
            raise _not_in_flight(binding_id, seq)
        if error is not None:
            self._note_failure(binding, error)
        if entry is not None:
            if reply is not None:
                self._effects.append(Operate(binding.job, entry.key, *reply))
            self._settled(binding)

    def _note_failure(self, binding: Binding, error: str) -> None:
        stats = binding.stats
        if stats is not None:
            stats.failed += 1
            binding.tally.failed += 1
            stats.last_error = error[:ERROR_TEXT_MAX]
            stats.last_error_time_ns = self.now.real_ns

    def nack(
        self,
        session: Session,
        binding_id: int,
        epoch: int,
        seq: int,
        *,
        delay_ns: int,
        park: bool,
        reason: str,
        now: Now,
    ) -> None:
        """The entry that ends at `seq` is to be delivered again after `delay_ns`, or parked. AemError if
        it is not in flight.
        """
        self.now = now
        most_ns = self.limits.lease_max_ns
        if not 0 <= delay_ns <= most_ns:
            raise invalid("delay_ns", f"is {delay_ns}, must be 0 to {most_ns}", value=delay_ns, limit=most_ns)
        binding = self._binding(session, binding_id)
        if binding is None:
            return
        self._check_cursor(binding, epoch, seq)
        entry = binding.unacked.get(seq) if binding.unacked and epoch == binding.epoch else None
        if entry is None or entry.state is not EntryState.INFLIGHT:
            raise _not_in_flight(binding_id, seq)
        if reason:
            self._note_failure(binding, reason)
        if park:
            binding.park(entry, reason[:ERROR_TEXT_MAX], self.limits.parked_max)
            self._settled(binding)
        elif delay_ns and self._may_repeat(binding, entry):
            binding.delay(entry, now.mono_ns + delay_ns)
            self._schedule_delay(binding)
        else:
            self._rewind(binding, [entry], reason or "given back")
        binding.seen_to(seq)

    @staticmethod
    def _may_repeat(binding: Binding, entry: Entry) -> bool:
        most = binding.options.attempts_max
        return binding.job.state is not JobState.CLOSING and not (most and entry.attempts >= most)

    def parked_of(self, job: Job) -> list[Parked]:
        """What was put aside of a job, the oldest first."""
        stats = job.binding.stats
        return list(stats.parked_list) if stats is not None else []

    def retry(self, job: Job, cursors: Sequence[Cursor], now: Now) -> int:
        """Deliver what was put aside once more, all of it or what `cursors` name; how many entries.

        AemError: nobody answers for the job, there is no such entry, or its event was not kept.
        """
        self.now = now
        binding = next((held for held in job.bindings if not getattr(held, "follows", False)), None)
        if binding is None or job.state in (JobState.CLOSING, JobState.GONE):
            raise AemError(
                Code.FAILED_PRECONDITION,
                "NOBODY_ANSWERS",
                f"jobs/{job.id}: there is no client that answers for it; bind to it first",
            )
        there = {parked.cursor: parked for parked in self.parked_of(job)}
        missing = [cursor for cursor in cursors if cursor not in there]
        if missing:
            raise not_found(f"parked entry {missing[0].epoch}:{missing[0].seq} of jobs/{job.id}")
        chosen = [there[cursor] for cursor in dict.fromkeys(cursors)] or list(there.values())
        retried = 0
        for parked in chosen:
            if self._retry(binding, parked):
                retried += 1
            elif cursors:
                raise AemError(
                    Code.FAILED_PRECONDITION,
                    "NOT_KEPT",
                    f"entry {parked.epoch}:{parked.last} of jobs/{job.id} cannot be delivered again: its"
                    " event was not kept for want of room (quota history_bytes or queue_bytes), or its epoch"
                    " is over",
                )
        binding.session.wake(binding)
        return retried

    def _retry(self, binding: Binding, parked: Parked) -> bool:
        kept = parked.event is not None and parked.epoch == binding.epoch
        if not kept or not binding.retry(parked, self.now.mono_ns):
            return False
        binding.job.binding.take_back(parked)
        if binding.stats is not None:
            binding.stats.parked -= 1
        return True

    def sync_mark(self, session: Session, job: Job, request_id: int) -> bool:
        """Answer `request_id` with a SyncDone behind everything that is queued for `job` now; False if the
        session does not hold it (any more).

        Never refused: whoever asks sees to it that `session.awaited` stays bounded.
        """
        binding = next((held for held in job.bindings if held.session is session), None)
        if binding is None:
            return False
        if binding.marks is None:
            binding.marks = deque()
        binding.marks.append((job.epoch, job.binding.head, request_id))
        session.awaited += 1
        session.send_marks(binding, None)
        self._check_control(session)
        return True

    def send_control(self, session: Session, frame: bytes) -> None:
        """Queue an encoded ServerFrame ahead of all later data. Lost without a stream; a session that does
        not take its answers is ended.
        """
        session.add_control(frame)
        self._check_control(session)

    def give_room(self, job: Job, key: bytes, size: int) -> None:
        """So much more may be written to `key`. Who has no stream is told when it comes back: it may wait for
        that alone.
        """
        session = job.session
        if session.connected:
            self.send_control(session, encoding.room_frame(job.id, key, size))
        elif job.durable is None:
            session.rooms[job.id, key] = session.rooms.get((job.id, key), 0) + size

    def announce(self, job: Job, frame: bytes) -> None:
        """Send the answer to the registration of `job`; what was said of it before comes behind that."""
        session = job.session
        self.changes.announced(job)
        early = session.withhold_state(job)
        self.send_control(session, frame)
        if early:
            session.tell_state(job)

    def _check_control(self, session: Session) -> None:
        if session.control_bytes > self.limits.control_bytes:
            self.end_session(
                session,
                f"{session.control_bytes} bytes of answers wait and are not read; at most "
                f"{self.limits.control_bytes} may",
                self.now,
                Code.RESOURCE_EXHAUSTED,
            )

    def _binding(self, session: Session, binding_id: int) -> Binding | None:
        """The binding, None if it has ended; AemError NOT_FOUND if it never was."""
        binding = session.bindings.get(binding_id)
        if binding is None and not 0 < binding_id < session.next_binding:
            raise not_found(f"binding {binding_id}")
        return binding

    @staticmethod
    def _check_cursor(binding: Binding, epoch: int, seq: int) -> None:
        if not 0 < epoch <= binding.epoch:
            raise invalid("cursor.epoch", f"is {epoch}, the job's is {binding.epoch}", value=epoch)
        if epoch == binding.epoch and seq > binding.sent:
            raise invalid(
                "cursor.seq", f"is {seq}, delivered is up to {binding.sent}", value=seq, limit=binding.sent
            )


def _not_in_flight(binding_id: int, seq: int) -> AemError:
    return AemError(
        Code.FAILED_PRECONDITION,
        "NOT_IN_FLIGHT",
        f"binding {binding_id}: no entry ends at {seq}, or it is dealt with already",
    )
