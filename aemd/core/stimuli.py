"""What modules say: their jobs fired, lost something, lost their source, or can fire no more.

`fire` is the hot path of the daemon: half a microsecond, nothing looked up by name, nothing allocated but the
entry.
"""

from __future__ import annotations

from collections.abc import Sequence

from aemd.core.accounts import EVENTS
from aemd.core.course import Course
from aemd.core.effects import Pause
from aemd.core.entry import OVER_QUOTA, SOURCE_FAILED, Loss
from aemd.core.job import Job, JobEvent, JobState
from aemd.core.options import PAUSE_SOURCE
from aemd.core.waiting import COUNT_MAX
from aemd.v1 import session_pb2

SPARE_MAX = 1 << 30  # of a job that drops what is too much

_ARMED = JobState.ARMED


class Stimuli(Course):
    """The commands of modules; all of them tolerate a job that has ended."""

    def fire(self, job: Job, event: bytes, *, key: bytes = b"", count: int = 1) -> None:
        """`count` stimuli hit `job`; ignored unless it is armed. `event`: an encoded Event."""
        if job.state is not _ARMED:
            return
        binding = job.binding
        session = binding.session
        now_ns, job.last_fire_ns = self.now
        account = session.account
        if account.events_free <= 0 and not self._may_fire(job, count):
            return
        account.events_free -= 1
        while count > COUNT_MAX:
            binding.push(event, key, COUNT_MAX, now_ns)
            count -= COUNT_MAX
        if binding.push(event, key, count, now_ns) or binding.listed < 0:
            session.wake(binding)
        options = binding.options
        if options.one_shot or options.overflow == PAUSE_SOURCE:
            self._fired(job)

    def fire_many(self, job: Job, events: Sequence[bytes], *, key: bytes = b"") -> None:
        """As if each of `events` had fired alone."""
        options = job.options
        if options.one_shot:
            for event in events:
                self.fire(job, event, key=key)
            return
        if job.state is not _ARMED or not events:
            return
        binding = job.binding
        now_ns, job.last_fire_ns = self.now
        session = binding.session
        account, fires = session.account, len(events)
        if fires > account.events_free and options.overflow != PAUSE_SOURCE:
            fires = account.payable(fires, session.allowance, now_ns)
        account.events_free -= fires
        binding.push_many(events if fires == len(events) else events[:fires], key, now_ns)
        if fires < len(events):
            self._lose_fires(job, len(events) - fires, len(events) - fires)
        session.wake(binding)
        if options.overflow == PAUSE_SOURCE:
            self._fired(job)

    def _may_fire(self, job: Job, count: int) -> bool:
        """Whether one more fire of its user is possible now; else it is lost, and told.

        Where the source can be paused it is possible, and paid for later.
        """
        session = job.session
        if session.account.prepay(1, session.allowance, self.now.mono_ns):
            return True
        if job.options.overflow == PAUSE_SOURCE:
            return True
        self._lose_fires(job, 1, count)
        session.wake(job.binding)
        if job.options.one_shot:
            self._fired(job)
        return False

    def _lose_fires(self, job: Job, fires: int, count: int) -> None:
        job.session.account.refused[EVENTS] += fires
        job.binding.push_lost(count, OVER_QUOTA)

    def may_read(self, job: Job) -> bool:
        """Whether the source of `job` may give an event more for now; False: it is paused, or about to be."""
        binding = job.binding
        if binding.paused:
            return False
        if binding.options.overflow != PAUSE_SOURCE or job.state is not _ARMED:
            return True
        if self._throttle.is_short(binding.session, self.now.mono_ns):
            self._pause(job, for_quota=True)
            return False
        return True

    def spare(self, job: Job, largest: int = 0) -> int:
        """How many more events of at most `largest` bytes, if that is more than a read gives, `job` takes for
        now; 0: it is paused, or about to be.
        """
        binding = job.binding
        if binding.paused:
            return 0
        if binding.options.overflow != PAUSE_SOURCE or job.state is not _ARMED:
            return SPARE_MAX
        spare = self._throttle.spare(binding.session, largest, self.now.mono_ns)
        if not spare:
            self._pause(job, for_quota=True)
        return min(max(binding.options.queue_depth - binding.depth, 1), spare)

    def _pause(self, job: Job, *, for_quota: bool) -> None:
        binding = job.binding
        binding.paused = True
        binding.tally.paused += 1
        if for_quota:
            self._throttle.rest(binding, self.now.mono_ns)
        self._effects.append(Pause(job))

    def _fired(self, job: Job) -> None:
        """The rarer consequences of a fire."""
        binding, options = job.binding, job.options
        if options.one_shot:
            self._turn(job, JobEvent.SPENT)
            job.reason = "one-shot, has fired"
        elif not binding.paused:
            if binding.depth >= options.queue_depth or binding.bytes >= options.queue_bytes:
                self._pause(job, for_quota=False)
            elif self._throttle.is_short(binding.session, self.now.mono_ns):
                self._pause(job, for_quota=True)

    def gap(
        self,
        job: Job,
        *,
        stage: session_pb2.Stage.ValueType,
        cause: session_pb2.Cause.ValueType,
        count: int,
        scope: str = "",
        remedy: session_pb2.Remedy.ValueType = session_pb2.REMEDY_UNSPECIFIED,
    ) -> None:
        """Stimuli of `job` were lost before they fired: `count`, 0 if nobody knows how many. Ignored unless
        it is armed or degraded.
        """
        if job.state is _ARMED or job.state is JobState.DEGRADED:
            self._gap(job, count or 1, Loss(stage, cause, scope, remedy, unknown=not count))

    def _gap(self, job: Job, numbers: int, loss: Loss) -> None:
        job.gap_told = True
        job.binding.push_gap(numbers, loss)
        job.session.wake(job.binding)

    def fail_source(self, job: Job, reason: str) -> None:
        """Its source failed: it is DEGRADED, and the client is told."""
        if job.state is _ARMED:
            job.gap_told = False
            job.binding.tally.source_failures += 1
        self._source(job, JobEvent.SOURCE_FAILED, reason)

    def restore_source(self, job: Job) -> None:
        """Its source is back. Unless the module has said what was lost meanwhile, an unknown number was."""
        if job.state is JobState.DEGRADED and not job.gap_told:
            self._gap(job, 1, SOURCE_FAILED)
        self._source(job, JobEvent.SOURCE_BACK, "")

    def _source(self, job: Job, event: JobEvent, reason: str) -> None:
        before = job.state
        if before is JobState.GONE:
            return
        self._turn(job, event)
        if job.state is not before:
            job.reason = reason
            job.session.tell_state(job)

    def exhaust(self, job: Job, reason: str) -> None:
        """Nothing more can come: it ends once everything that fired is dealt with."""
        if job.state is JobState.GONE:
            return
        self._turn(job, JobEvent.SPENT)
        if job.state is JobState.DRAINING:
            job.reason = reason
            self._settled(job.binding)
