"""The course of jobs: how they end, and what follows when something of theirs was dealt with.

Rules of the file: a job's state changes in `_turn` only; whatever settles an entry comes to `_settled`;
whatever ends a job comes to `_end`.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from aemd.core import progress
from aemd.core.accounts import Accounts
from aemd.core.binding import Binding
from aemd.core.deadlines import Deadlines, Due
from aemd.core.effects import Arm, Disarm, Effect, Release, Resume, SessionEnded
from aemd.core.entry import Entry
from aemd.core.errors import Code, exhausted
from aemd.core.job import Action, Job, JobEvent, JobState
from aemd.core.limits import Limits
from aemd.core.now import Now
from aemd.core.options import Options, OptionsParser
from aemd.core.reader import Reader
from aemd.core.reading import Reading
from aemd.core.registry import Registry
from aemd.core.session import Session
from aemd.core.tally import Tallies
from aemd.core.throttle import Throttle
from aemd.core.waiting import Waiting

ENDS_PER_TURN = 2_000  # jobs whose sessions have ended: 10 ms with what their modules do


class Course(Reading):
    """The state of the engine, and the steps that several commands share."""

    def __init__(self, limits: Limits, accounts: Accounts | None = None) -> None:
        self.limits = limits
        self.accounts = accounts or Accounts()
        self.now = Now(0, 0)
        self._options = OptionsParser(limits)
        self._registry = Registry()
        self._tallies = Tallies()
        self._deadlines = Deadlines()
        self._throttle = Throttle(self.accounts, self._deadlines, event_bytes=limits.event_data_bytes)
        self._effects: list[Effect] = []
        self._ready: list[Session] = []
        self._ending: deque[Session] = deque()  # ended, some of their jobs not yet
        self._ends_left = 0  # jobs that may end in the turn of
        self._ends_ns = 0  # this time
        self._next_session = 1
        self._next_job = 1
        self._kept: dict[Job, None] = {}  # durable jobs of which something is to be kept

    def _charge_binding(self, session: Session) -> None:
        """One job more that the session holds; AemError if it, or its user, may not have it."""
        jobs, most = len(session.bindings), self.limits.jobs_per_session
        if jobs >= most:
            raise exhausted(
                "the session",
                limit=most,
                used=jobs,
                key="limits.jobs_per_session",
                what="too many jobs",
                way_out="or open another session",
            )
        account, allowance = session.account, session.allowance
        account.take("registrations_per_second", allowance, self.now.mono_ns)
        account.charge("jobs", allowance)

    def set_options(self, job: Job, options: Options) -> None:
        """Other options for a job, and for all who read it."""
        before = job.options
        job.options = job.binding.options = options
        if job.durable is None:
            return
        for reader in job.durable.readers:
            reader.options = options
            leases = reader.session.leases
            leases[options.lease_ns] += 1
            leases[before.lease_ns] -= 1
            if not leases[before.lease_ns]:
                del leases[before.lease_ns]

    def _turn(self, job: Job, event: JobEvent) -> None:
        action = job.turn(event)
        if job.durable is not None:
            self._kept[job] = None
            for reader in job.durable.readers:
                if not reader.session.id:  # nobody has asked for it there
                    reader.session.tell_state(job)
        if action is Action.ARM:
            self._effects.append(Arm(job))
        elif action is Action.DISARM:
            self._effects.append(Disarm(job))
        elif action is Action.RELEASE:
            self._effects.append(Release(job))

    def _rewind(self, binding: Binding, entries: list[Entry], park: str | None) -> None:
        """Entries in flight go back; those whose job is closing do not, nor, with a reason to
        `park`, those that were sent often enough.
        """
        if not entries:
            return
        settled = binding.rewind(entries, park=park, parked_max=self.limits.parked_max)
        if settled:
            self._settled(binding)
        if settled < len(entries):
            binding.session.wake(binding)

    def _settled(self, binding: Binding) -> None:
        """Entries of `binding` were dealt with: what waited for that may go on."""
        job = binding.job
        if job.state is JobState.GONE:
            return
        if isinstance(binding, Reader):
            self._settled_reader(binding)
            return
        if job.durable is not None:
            self._end_if_over(job)
            return
        if not binding.unacked and (
            job.state is JobState.CLOSING or (job.state is JobState.DRAINING and not binding.queue)
        ):
            self._end(job, job.reason)
            return
        self._tell_settled(binding)
        if binding.paused and binding not in binding.session.account.starved and _has_room(binding):
            binding.paused = False
            self._effects.append(Resume(job))
        if binding.listed < 0:
            binding.session.wake(binding)

    def _tell_settled(self, binding: Binding) -> None:
        if binding.marks is not None:
            binding.session.send_marks(binding, None)
        stats = binding.stats
        if stats is not None and stats.lost != stats.shown[2]:
            progress.tell(binding)

    def _settled_reader(self, reader: Reader) -> None:
        """As above, for one who reads a durable job."""
        job = reader.job
        durable = job.durable
        assert durable is not None
        if not reader.follows:
            durable.note(reader)
            self._kept[job] = None
        if self._end_if_over(job):
            return
        self._tell_settled(reader)
        if reader.paused and _has_room(reader):
            self.read_on(reader)
        elif reader.listed < 0:
            reader.session.wake(reader)

    def _end_if_over(self, job: Job) -> bool:
        """End a durable job that waits for nothing more; whether it did."""
        durable = job.durable
        assert durable is not None
        closed = job.state is JobState.CLOSING and not job.in_flight
        spent = job.state is JobState.DRAINING and durable.acked == (job.epoch, job.binding.head)
        if closed or spent:
            self._end(job, job.reason)
        return closed or spent

    def _relieve(self) -> None:
        """Users have bytes or events again: what waited for them is read again."""
        for binding in self._throttle.fed(self.now.mono_ns):
            if isinstance(binding, Reader):
                self.read_on(binding)
            elif _has_room(binding):
                binding.paused = False
                self._effects.append(Resume(binding.job))

    def _let_go(self, binding: Binding) -> None:
        """A binding ends: of a durable job only that, any other job ends with it."""
        if not isinstance(binding, Reader):
            self._end(binding.job, "let go by its session")
            return
        job, durable = binding.job, binding.job.durable
        assert durable is not None
        if not binding.follows:
            durable.note(binding)
            self._kept[job] = None
        self._leave(binding)
        if job.state is JobState.CLOSING and not job.in_flight:
            self._end(job, job.reason)

    def _leave(self, reader: Reader) -> None:
        """What it had not dealt with stays in the history, for whoever comes."""
        job, durable = reader.job, reader.job.durable
        assert durable is not None
        reader.discard_waiting()
        reader.discard_in_flight()
        if reader.session.connected:
            reader.session.end_marks(reader)
        self._unbind(reader)
        reader.session.account.refund("jobs")
        del durable.readers[reader]
        job.binding.absorb(reader)  # type: ignore[attr-defined]

    def _end(self, job: Job, reason: str) -> None:
        """The job is GONE, whatever was in flight."""
        self._turn(job, JobEvent.END)
        job.reason = reason
        if job.durable is not None:
            self._end_durable(job)
            return
        binding, session = job.binding, job.session
        if binding.queue is not None or binding.unacked is not None:
            binding.discarded += binding.discard_waiting()
            binding.discard_in_flight()
        self._deadlines.cancel((Due.SHUTDOWN, job))
        self._forget(job)
        if session.connected:
            if binding.marks is not None:
                session.send_marks(binding, None)
            session.tell_state(job)

    def _end_durable(self, job: Job) -> None:
        durable = job.durable
        assert durable is not None
        self._deadlines.cancel((Due.SHUTDOWN, job))
        for reader in list(durable.readers):
            self._leave(reader)
            if reader.session.connected:
                reader.session.tell_state(job)
        self._kept[job] = None
        self._throttle.forget(job.binding)
        job.binding.forget_parked()
        durable.charge.refund()
        job.session.charge.refund()
        self._tallies.close(job.owner.owner)
        self._registry.remove_job(job)

    def _forget(self, job: Job) -> None:
        self._unbind(job.binding)
        job.session.account.refund("jobs")
        self._registry.remove_job(job)

    def _unbind(self, binding: Binding) -> None:
        session = binding.session
        session.drop(binding)
        self._throttle.forget(binding)
        binding.forget_parked()
        self._deadlines.cancel((Due.ACK, binding))
        self._deadlines.cancel((Due.DELAY, binding))
        self._deadlines.cancel((Due.READ, binding))
        del session.bindings[binding.id]
        lease_ns = binding.job.options.lease_ns
        session.leases[lease_ns] -= 1
        if not session.leases[lease_ns]:
            del session.leases[lease_ns]

    def _schedule_ack(self, binding: Binding) -> None:
        due_ns = binding.next_expiry_ns() if binding.session.connected else None
        if due_ns is None:
            self._deadlines.cancel((Due.ACK, binding))
        else:
            self._deadlines.set((Due.ACK, binding), due_ns)

    def _schedule_delay(self, binding: Binding) -> None:
        due_ns = binding.next_undelay_ns()
        if due_ns is None:
            self._deadlines.cancel((Due.DELAY, binding))
        else:
            self._deadlines.set((Due.DELAY, binding), due_ns)

    def _schedule_progress(self, session: Session) -> None:
        """There is a time as long as something is to be told."""
        wanted = session.progress
        if wanted is not None and wanted.stale and self._deadlines.get((Due.PROGRESS, session)) is None:
            self._deadlines.set((Due.PROGRESS, session), self.now.mono_ns + wanted.every_ns)

    def _forget_progress(self, session: Session) -> None:
        session.progress = None
        self._deadlines.cancel((Due.PROGRESS, session))

    def tick(self, now: Now) -> None:
        """It is `now`; whatever is due is done."""
        self.now = now
        while (key := self._deadlines.pop_due(now.mono_ns)) is not None:
            due, subject = key
            if due is Due.LEASE:
                self._lapse(subject)
            elif due is Due.SHUTDOWN:
                self._end(subject, f"{subject.reason}; its handler did not end in time")
            elif due is Due.REST:
                self._end_some()
            elif due is Due.PROGRESS:
                subject.progress.tell(subject)
                self._schedule_progress(subject)
            elif due is Due.ACK:
                self._rewind(subject, subject.expired(now.mono_ns), "not acknowledged in time")
                self._schedule_ack(subject)
            elif due is Due.QUOTA:
                self.accounts.relieved[subject] = None
            elif due is Due.READ:
                self.read_on(subject)
            else:
                subject.undelay(now.mono_ns)
                self._schedule_delay(subject)
                subject.session.wake(subject)

    def next_deadline_ns(self) -> int | None:
        """When `tick` has something to do next, CLOCK_MONOTONIC; None: never."""
        return self._deadlines.next_ns()

    def _lapse(self, session: Session) -> None:
        """End the jobs whose lease is over, and the session with the last of them."""
        if session.lapsing is None:
            session.lapsing = sorted(
                ((b.options.lease_ns, b.id) for b in session.bindings.values()), reverse=True
            )
        lapsing = session.lapsing
        waited_ns = self.now.mono_ns - session.lost_ns
        if not lapsing or lapsing[0][0] <= waited_ns:
            self.end_session(session, "its lease ended", self.now)
            return
        while lapsing[-1][0] <= waited_ns:
            binding = session.bindings.get(lapsing.pop()[1])
            if isinstance(binding, Reader):
                self._let_go(binding)
            elif binding is not None:
                self._end(binding.job, "its lease ended")
        self._deadlines.set((Due.LEASE, session), session.lost_ns + lapsing[-1][0])

    def end_session(self, session: Session, reason: str, now: Now, code: Code = Code.CANCELLED) -> None:
        """The session ends at once, and its jobs; those above ENDS_PER_TURN in the turns that follow, so
        that nobody waits for them. Until then they are there, and nobody hears of them.
        """
        self.now = now
        if session.ended:
            return
        session.disconnect()
        self._forget_progress(session)
        session.ended = True
        session.reason = reason
        self._deadlines.cancel((Due.LEASE, session))
        self._registry.remove_session(session)
        self._ending.append(session)
        self._end_some()
        self._effects.append(SessionEnded(session, code, reason))

    def _end_some(self) -> None:
        """End jobs whose sessions have ended, as many as this turn may."""
        if self._ends_ns != self.now.mono_ns:
            self._ends_ns, self._ends_left = self.now.mono_ns, ENDS_PER_TURN
        while self._ending and self._ends_left > 0:
            session = self._ending[0]
            some = list(islice(session.bindings.values(), self._ends_left))
            self._ends_left -= max(len(some), 1)
            for binding in some:
                if isinstance(binding, Reader):
                    self._let_go(binding)
                else:
                    self._end(binding.job, session.reason)
            if session.bindings:
                self._ending.rotate(-1)  # those with few jobs do not wait for it
            else:
                self._ending.popleft()
                self._settle_account(session)
        if self._ending:
            self._deadlines.set((Due.REST, None), self.now.mono_ns + 1)

    def end_all(self, reason: str, now: Now) -> None:
        """All sessions end, and all jobs, in this turn: there is no other."""
        for session in self._registry.sessions():
            self.end_session(session, reason, now)
        while self._ending:
            self._ends_left = ENDS_PER_TURN
            self._end_some()

    def _settle_account(self, session: Session) -> None:
        self._tallies.close(session.principal.owner)
        session.charge.refund()


def _has_room(binding: Waiting) -> bool:
    options = binding.options
    return 2 * binding.depth <= options.queue_depth and 2 * binding.bytes <= options.queue_bytes
