"""The engine: commands, fires and times go in; effects and frames come out.

Sans-IO: it calls nobody. Whoever runs it (service/) tells it the time, applies its effects in order, and
carries the frames that `collect` gives. Everything costs by activity: no call looks at all sessions or all
jobs, but those that say so.

Here are the commands for sessions and jobs, and the output; what modules say is in stimuli.py, what clients
answer in answers.py, what follows from both in course.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aemd.core.accounts import Accounts
from aemd.core.answers import Answers
from aemd.core.binding import Binding
from aemd.core.deadlines import Due
from aemd.core.effects import Effect
from aemd.core.errors import invalid, not_found
from aemd.core.freezing import Freezing
from aemd.core.job import Job, JobEvent, JobState
from aemd.core.limits import LABEL_BYTES_MAX, Limits
from aemd.core.now import Now
from aemd.core.principal import Owner, Principal
from aemd.core.progress import Progress
from aemd.core.serving import Serving
from aemd.core.session import Session
from aemd.core.stimuli import Stimuli
from aemd.core.tally import Sheet
from aemd.core.traits import Traits
from aemd.v1 import job_pb2


@dataclass(frozen=True, slots=True)
class Totals:
    """What a principal has, and how much has happened to it."""

    sessions: int
    jobs: int
    fires: int
    lost: int


class Engine(Stimuli, Answers, Serving, Freezing):
    """Jobs, bindings, delivery. `new_token` gives resume tokens that nobody can guess; `accounts` are those
    of the whole daemon.
    """

    def __init__(
        self, limits: Limits, *, new_token: Callable[[], bytes], accounts: Accounts | None = None
    ) -> None:
        super().__init__(limits, accounts)
        self._new_token = new_token
        self.find_session = self._registry.find_session
        self.sessions_of = self._registry.sessions_of
        self.find_job = self._registry.find_job
        self.jobs_of = self._registry.jobs_of
        self.jobs_of_module = self._registry.jobs_of_module
        self.job_count = self._registry.job_count

    def open_session(
        self, principal: Principal, *, label: str, sdk: str, credit: tuple[int, int] | None, now: Now
    ) -> Session:
        """A session for a client that is new; AemError when its user has too many."""
        self.now = now
        _check_label("label", label)
        _check_label("sdk", sdk)
        session = Session(
            self._next_session,
            principal,
            self.accounts.charge(principal, "sessions"),
            self._tallies.open(principal.owner),
            allowance=self.accounts.allowance(principal),
            token=self._new_token(),
            label=label,
            sdk=sdk,
            ready_sessions=self._ready,
            create_time_ns=now.real_ns,
        )
        self._next_session += 1
        self._set_session_credit(session, credit)
        self._registry.add_session(session)
        return session

    def resume_session(
        self,
        token: bytes,
        principal: Principal,
        *,
        positions: Mapping[int, tuple[int, int]],
        credit: tuple[int, int] | None,
        now: Now,
    ) -> Session:
        """The session of `token`, with a new stream and a new token.

        `positions`: binding -> (epoch, seq) received. What is in flight and was received stays in flight; the
        rest is sent again. The credit of the bindings begins at zero. A stream that the session still seemed
        to have is lost by this. AemError NOT_FOUND, reason SESSION_UNKNOWN, if there is no such session or it
        is another process's.
        """
        self.now = now
        session = self._registry.claim(token, principal)
        if session.connected:
            self.lose_stream(session, now)
        self._registry.change_token(session, used=token, token=self._new_token())
        self._deadlines.cancel((Due.LEASE, session))
        session.lapsing = None
        session.connected = True
        session.generation += 1
        session.allowance = self.accounts.allowance(principal)
        session.sheet.resumed += 1
        self._set_session_credit(session, credit)
        for binding in list(session.bindings.values()):
            self._restream(binding, positions.get(binding.id, (0, 0)))
        return session

    def _set_session_credit(self, session: Session, credit: tuple[int, int] | None) -> None:
        limits = self.limits
        events, size = credit or (limits.session_events, limits.session_bytes)
        session.credit_events = min(events, limits.credit_max)
        session.credit_bytes = min(size, limits.credit_max)

    def _restream(self, binding: Binding, position: tuple[int, int]) -> None:
        epoch, seq = position
        received = seq if epoch == binding.epoch else 0 if epoch < binding.epoch else binding.sent
        binding.credit_events = binding.credit_bytes = 0
        if binding.head:
            binding.overdue_gaps(received)
            # A lost stream says nothing about a handler: what the client never saw is not parked.
            self._rewind(binding, binding.unseen(received), None)
            if binding.job.state is JobState.GONE:
                return
            binding.restream(received, self.now.mono_ns)
            self._schedule_ack(binding)
            binding.session.wake(binding)

    def ask_progress(self, session: Session, every_ns: int) -> None:
        """Tell the session on its present stream how far its bindings are, at most so often; 0: never."""
        self._forget_progress(session)
        if not every_ns:
            return
        session.progress = Progress(max(every_ns, self.limits.progress_min_ns))
        for binding in session.bindings.values():
            if binding.stats is not None:  # what it was told before may have been lost with its stream
                binding.stats.shown = (-1, -1, binding.stats.shown[2])
                session.progress.note(session, binding)

    def lose_stream(self, session: Session, now: Now) -> None:
        """The session's stream is lost. Its jobs wait for the client, each as long as its lease says."""
        self.now = now
        if not session.connected:
            return
        session.disconnect()
        self._forget_progress(session)
        session.lost_ns = now.mono_ns
        session.sheet.cut += 1
        for binding in session.bindings.values():
            binding.listed = -1
            if binding.marks is not None:
                binding.marks = None
            if binding.timers is not None:
                self._deadlines.cancel((Due.ACK, binding))
        lease_ns = min(session.leases, default=self.limits.lease_ns)
        self._deadlines.set((Due.LEASE, session), now.mono_ns + lease_ns)

    def end_process(self, pid: int, start_time_ticks: int, now: Now) -> None:
        """A process is gone: its sessions and their jobs end at once."""
        for session in self._registry.sessions_of_process(pid, start_time_ticks):
            self.end_session(session, "its process ended", now)

    def register(
        self,
        session: Session,
        *,
        module: Traits,
        values: Mapping[str, object],
        params: object,
        options: job_pb2.Options,
        label: str,
        credit: tuple[int, int] | None,
        now: Now,
    ) -> Job:
        """A new job, inert and charged to its user; AemError if an option is wrong or there are too many.

        `params` is what the client gave; it is kept as it is, so something small that is shared when equal
        is best.
        """
        self.now = now
        _check_label("label", label)
        parsed = self._options.parse(options, module)
        self._charge_binding(session)
        job = Job(
            self._next_job,
            session.principal,
            traits=module,
            values=values,
            params=params,
            options=parsed,
            label=label,
            create_time_ns=now.real_ns,
        )
        self._next_job += 1
        limits = self.limits
        if credit is None:
            credit = (limits.binding_events, limits.binding_bytes)
        else:
            credit = (min(credit[0], limits.credit_max), min(credit[1], limits.credit_max))
        binding = job.binding = Binding(session.next_binding, job, session, credit)
        session.next_binding += 1
        session.bindings[binding.id] = binding
        session.leases[parsed.lease_ns] += 1
        self._registry.add_job(job)
        return job

    def discard(self, job: Job) -> None:
        """Its module refused it: as if it had never been. The id is used up."""
        job.turn(JobEvent.END)
        if job.durable is not None:
            self._end_durable(job)
            return
        job.binding.discard_waiting()
        job.session.withhold_state(job)
        self._forget(job)

    def start(self, job: Job, now: Now) -> None:
        """Let it fire; AemError if it is about to end."""
        self.now = now
        self._turn(job, JobEvent.START)
        if job.durable is not None:
            job.durable.start_ns = job.durable.start_ns or now.real_ns

    def start_failed(self, job: Job) -> None:
        """Its module refused to start it: it is as inert as before. Whoever asked is told by the caller."""
        if job.state is not JobState.GONE:
            self._turn(job, JobEvent.START_FAILED)
            self._note_stopped(job)

    def stop(self, job: Job, now: Now) -> None:
        """Do not let it fire; what is queued stays."""
        self.now = now
        self._turn(job, JobEvent.STOP)
        self._note_stopped(job)

    def suspend(self, job: Job, reason: str) -> None:
        """A durable job has no source for now: it does not fire, and is to be started again as it was."""
        assert job.durable is not None
        start_ns = job.durable.start_ns
        if job.state in (JobState.ARMED, JobState.DEGRADED):
            self._turn(job, JobEvent.STOP)
        job.durable.start_ns = start_ns
        job.reason = reason
        job.session.tell_state(job)

    def _note_stopped(self, job: Job) -> None:
        if job.durable is not None and job.state is JobState.REGISTERED:
            job.durable.start_ns = 0

    def shutdown(self, job: Job, *, reason: str, deadline_ns: int, now: Now) -> None:
        """End it once what is in flight is dealt with, or after `deadline_ns` nanoseconds (0: the default).

        What is queued is given up. AemError if the deadline is out of bounds.
        """
        self.now = now
        most_ns = self.limits.shutdown_max_ns
        if not 0 <= deadline_ns <= most_ns:
            raise invalid(
                "deadline_ns", f"is {deadline_ns}, must be 0 to {most_ns}", value=deadline_ns, limit=most_ns
            )
        if job.state is JobState.GONE:
            return
        self._turn(job, JobEvent.SHUTDOWN)
        job.reason = reason
        for binding in job.bindings:
            binding.discarded += binding.discard_waiting()
            binding.session.drop(binding)
        if not job.in_flight:
            self._end(job, reason)
            return
        due_ns = now.mono_ns + (deadline_ns or self.limits.shutdown_ns)
        before_ns = self._deadlines.get((Due.SHUTDOWN, job))
        self._deadlines.set((Due.SHUTDOWN, job), due_ns if before_ns is None else min(before_ns, due_ns))

    def end_job(self, job: Job, reason: str, now: Now) -> None:
        """End it at once, whatever is in flight: its module goes, or has a fault."""
        self.now = now
        if job.state is not JobState.GONE:
            self._end(job, reason)

    def set_priority(self, job: Job, priority: int) -> None:
        """Deliver it with another priority, 0 to 7; AemError if there is no such."""
        self.set_options(job, self._options.with_priority(job.options, priority, job.traits))

    def unbind(self, session: Session, binding_id: int, now: Now) -> None:
        """Let go of a job: it ends at once. AemError NOT_FOUND."""
        self.now = now
        binding = session.bindings.get(binding_id)
        if binding is None:
            raise not_found(f"binding {binding_id}")
        self._let_go(binding)

    def take_effects(self) -> list[Effect]:
        """What is to be done, in order; each is given once."""
        if self.accounts.relieved:
            self._relieve()
        effects = self._effects
        self._effects = []
        return effects

    def take_ready(self) -> list[Session]:
        """The sessions that may have something to send; each once."""
        ready = self._ready.copy()
        self._ready.clear()
        for session in ready:
            session.ready = False
            if session.progress is not None:
                self._schedule_progress(session)
        return [session for session in ready if session.connected]

    def collect(self, session: Session, budget_bytes: int, handed_ns: int = 0) -> bytes | None:
        """The next encoded ServerFrame, control first; None: nothing now. `budget_bytes` is what the stream
        can take; one event may go over it. `handed_ns`: the time now, where it is known better than that of
        the turn; it only goes into latencies.
        """
        session.handed_ns = handed_ns or self.now.mono_ns
        frame = session.collect(budget_bytes, self.now.mono_ns)
        if frame is not None:
            sheet = session.sheet
            sheet.frames_out += 1
            sheet.bytes_out += len(frame)
        if session.emptied:
            emptied = list(session.emptied)
            session.emptied.clear()
            for binding in emptied:
                self._settled(binding)
        if session.timed:
            timed = list(session.timed)
            session.timed.clear()
            for binding in timed:
                self._schedule_ack(binding)
        return frame

    def sheet(self, owner: Owner | None) -> Sheet:
        """What was counted of an owner's jobs and sessions, with None of everybody's. Cost: of owners and
        modules.
        """
        return self._tallies.sum(owner)

    def afford(self, principal: Principal, fires: int) -> None:
        """Return if the user of `principal` may fire so often now, else raise AemError."""
        account = self.accounts.find(principal.uid)
        if account is None or fires > account.events_free:
            self.accounts.afford(principal, fires, self.now.mono_ns)

    def change_limits(self) -> None:
        """The limits have changed. What is there already keeps what it has."""
        self._options.forget()

    def change_quotas(self) -> None:
        """Who may have how much has changed. Nothing is taken away. Cost: of all sessions and jobs."""
        for session in (*self._registry.sessions(), *self._registry.houses()):
            session.allowance = self.accounts.allowance(session.principal)
        self.accounts.reload()

    def totals(self, principal: Principal) -> Totals:
        """What `principal` has; for the administrator what all have. Cost: of the sessions."""
        sessions = list(self._registry.sessions_of(principal))
        owner = None if principal.administrator else principal.owner
        tallies = [tally for sheet in self._tallies.of(owner) for tally in sheet.values()]
        return Totals(
            sessions=len(sessions),
            jobs=sum(len(session.bindings) for session in sessions),
            fires=sum(tally.fires for tally in tallies),
            lost=sum(tally.lost.total() for tally in tallies),
        )


def _check_label(field: str, label: str) -> None:
    size = len(label.encode("utf-8", "surrogatepass"))
    if size > LABEL_BYTES_MAX:
        raise invalid(
            field,
            f"has {size} bytes, at most {LABEL_BYTES_MAX} are possible",
            value=size,
            limit=LABEL_BYTES_MAX,
        )
