"""Engine and modules in step: what the engine decides is done here, and modules are called only from here.

The engine is Sans-IO: commands and fires go in, effects come out, and `settle()` carries them out in order
until there are none. A module may refuse (AemError): then the request is refused. Anything else that it
raises is its bug: the job ends with that reason, the traceback goes to the log, and everybody else goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Protocol, cast

from aemd.core import effects
from aemd.core.engine import Engine
from aemd.core.errors import AemError, Code, invalid, not_found
from aemd.core.job import Job, JobState
from aemd.core.limits import Limits
from aemd.core.now import Now
from aemd.core.policy import Policy, Ruling
from aemd.core.principal import Principal
from aemd.core.right import right
from aemd.core.session import Session
from aemd.core.traits import Traits
from aemd.modules.contract import Basic, Delivery, Module
from aemd.modules.need import Need
from aemd.modules.params import parse_values
from aemd.service import errors, log
from aemd.service.authority import MODULE_USER, Authority
from aemd.service.descriptors import Descriptors
from aemd.service.lasting import Lasting
from aemd.service.openings import Openings
from aemd.service.registry import Registry
from aemd.service.syncs import Syncs
from aemd.service.views import packed_params
from aemd.sources.reactor import Reactor
from aemd.v1 import job_pb2, session_pb2

Answer = Callable[["Job | AemError"], None]  # tells a client what became of its request

SHARED_MAX = 4_096  # sets of parameters that are remembered; a real program has few


class Raiser(Protocol):
    """A module whose events are raised by clients: module `user`."""

    def raise_events(
        self,
        principal: Principal,
        channel: str,
        payloads: Sequence[bytes],
        uid: int | None,
        *,
        ruling: Ruling | None,
    ) -> int:
        """Fire an event for each payload on a channel of `uid`, by default the principal's own."""


@dataclass(frozen=True, slots=True)
class Meant:
    """What a registration means: its module, and its parameters as they were given and as they are."""

    traits: Traits
    params: bytes
    values: Mapping[str, object]
    ruling: Ruling | None


class Conductor:
    """Drives engine and modules."""

    def __init__(
        self,
        *,
        engine: Engine,
        reactor: Reactor,
        limits: Limits,
        descriptors: Descriptors,
        registry: Registry,
        authority: Authority,
        openings: Openings,
        lasting: Lasting,
    ) -> None:
        self.engine = engine
        self.reactor = reactor
        self.limits = limits
        self.descriptors = descriptors
        self.registry = registry
        self.authority = authority
        self.openings = openings
        self.lasting = lasting
        self.session_ended: Callable[[Session, AemError], None] = lambda _session, _error: None
        self.registered: Callable[[Job], None] = lambda _job: None
        self.fetch: Callable[[effects.Fetch], None] = lambda _wish: None
        self.options_of: Callable[[Job], job_pb2.Options] = lambda job: job.options.to_pb()
        self._closed: set[Job] = set()  # jobs that their modules do not have (any more, or yet)
        self._traits: dict[str, Traits] = {}  # by module; every job of it holds the same object
        self._shared: dict[tuple[Traits, bytes], tuple[bytes, Mapping[str, object]]] = {}
        self._asking: Job | None = None  # the job of the request that is being settled
        self._refusal: AemError | None = None  # what its module said to that
        self._syncs = Syncs()

    def now(self) -> Now:
        """The time of this turn, as the engine was told it when the turn began."""
        return self.engine.now

    # Requests.

    def find_job(self, principal: Principal, job_id: int, doing: str) -> Job:
        """A job that `principal` may see; AemError NOT_FOUND. `doing` is what the audit says of it."""
        job = self.engine.find_job(principal, job_id)
        self.authority.audit.looked(principal, doing, job.owner.owner)
        return job

    def register(self, session: Session, request: session_pb2.Register, answer: Answer) -> Job | None:
        """Make a job that is really valid, and start it if asked; AemError leaves nothing behind.

        None: something must be done as the caller first, and `answer` is told when the job is valid, or why
        it is not; never, if the session's stream is lost before.
        """
        module = self.registry.get(request.module)
        known = self._traits_of(module)
        params, values = self._values(known, module, request.params)
        ruling = self.authority.rule(session.principal, module.description, values)
        job = self.engine.register(
            session,
            module=known,
            values=values,
            params=params,
            options=request.options,
            label=request.label,
            credit=(request.credit.events, request.credit.bytes) if request.HasField("credit") else None,
            now=self.now(),
        )
        job.ruling = ruling
        if known.needs and self._needs(job, answer, start=request.start):
            return None
        self._open(job, start=request.start)
        return job

    def _needs(self, job: Job, answer: Answer, *, start: bool) -> bool:
        """Whether the module needs something before it can open the job; then it is under way."""
        try:
            needs = _module(job).needs(job, opening=True, starting=start)
        except Exception as error:
            raise self._refused(job, error, "needs") from error
        if not needs:
            return False

        def opened(error: AemError | None) -> None:
            try:
                if error is not None:
                    raise self._refused(job, error, "open")
                self._open(job, start=start)
            except AemError as refusal:
                answer(refusal)
            else:
                answer(job)

        self.openings.wait(job, needs, opened, opening=True, new=True)
        return True

    def _open(self, job: Job, *, start: bool) -> None:
        try:
            _module(job).open(job)
        except Exception as error:
            raise self._refused(job, error, "open") from error
        if start:
            self._start_fresh(job)
        self.registered(job)

    def _refused(self, job: Job, error: Exception, what: str) -> AemError:
        """Undo a job that its module does not have."""
        if job.state is not JobState.GONE:
            self.engine.discard(job)
        self._give_back(job)
        return self._explained(error, what, job)

    # Durable jobs.

    def meant(self, principal: Principal, name: str, params: Mapping[str, job_pb2.Value]) -> Meant:
        """What a registration of `principal` means; AemError if it means nothing, or is not allowed."""
        module = self.registry.get(name)
        known = self._traits_of(module)
        packed, values = self._values(known, module, params)
        return Meant(known, packed, values, self.authority.rule(principal, module.description, values))

    def open_job(self, job: Job, answer: Answer, *, start: bool) -> bool:
        """Make a durable job really valid, and start it if asked; AemError leaves nothing behind.

        False: something must be done as its owner first; then `answer` is told what became of it.
        """
        if job.traits.needs and self._needs(job, answer, start=start):
            return False
        self._open(job, start=start)
        return True

    def reopen_job(self, job: Job, *, start: bool) -> None:
        """Give a durable job to its module again; it stays closed, with the reason, if that refuses."""
        self._closed.add(job)

        def opened(made: Job | AemError) -> None:
            if isinstance(made, AemError) and job.state is not JobState.GONE:
                self.close_job(job, made.message)

        try:
            self._open_closed(job, opened, start=start)
        except AemError as error:
            opened(error)

    def take_up_job(self, job: Job, *, start: bool, taken: Callable[[AemError | None], None]) -> None:
        """Give a job of a session that was handed over to its module; `taken` is told, now or in a later
        turn, when it has it, or why that refuses it.
        """
        module = _module(job)
        try:
            needs = module.needs(job, opening=True, starting=start) if job.traits.needs else ()
        except Exception as error:
            self._not_taken_up(job, self._explained(error, "needs", job), taken)
            return

        def given(error: AemError | None) -> None:
            if error is not None:
                self._not_taken_up(job, error, taken)
                return
            try:
                module.open(job)
            except Exception as failure:
                self._not_taken_up(job, self._explained(failure, "open", job), taken)
                return
            try:
                if start:
                    self._start(job)
                job.resumed = None
            except AemError as refusal:
                taken(refusal)
            else:
                taken(None)

        if needs:
            self.openings.wait(job, needs, given, opening=True, known=True)
        else:
            given(None)

    def _not_taken_up(self, job: Job, error: AemError, taken: Callable[[AemError | None], None]) -> None:
        self._give_back(job)
        if job.state is not JobState.GONE:
            self._closed.add(job)
        taken(error)

    def never_open(self, job: Job) -> None:
        """Its module has nothing more to do with it: what it has fired is still dealt with."""
        self._closed.add(job)

    def close_job(self, job: Job, reason: str) -> None:
        """Take a durable job from its module, for now: it keeps its history, and what it is to do."""
        if job.state is JobState.GONE:
            return
        self.engine.suspend(job, reason)
        self.settle()
        opening = self.openings.end(job, AemError(Code.ABORTED, "JOB_CLOSED", reason))
        if opening or job in self._closed:  # nothing to take away
            return
        self._close(job)
        self._closed.add(job)

    def _values(
        self, known: Traits, module: Module, given: Mapping[str, job_pb2.Value]
    ) -> tuple[bytes, Mapping[str, object]]:
        """A job's parameters, packed and parsed. Equal ones are parsed once and kept once."""
        packed = packed_params(given)
        shared = self._shared.get((known, packed))
        if shared is None:
            values = parse_values(module.description.parameters, given, self.limits)
            if len(self._shared) >= SHARED_MAX:
                self._shared.clear()
            shared = self._shared[known, packed] = (packed, MappingProxyType(values))
        return shared

    def _traits_of(self, module: Module) -> Traits:
        known = self._traits.get(module.description.name)
        if known is None or known.module is not module:
            self._shared.clear()  # what another module's code made of them
            known = self._traits[module.description.name] = traits(module)
        return known

    def _start_fresh(self, job: Job) -> None:
        self.engine.start(job, self.now())
        refusal = self._settle_for(job)
        if refusal is None:
            return
        if job.state is not JobState.GONE:
            self.engine.discard(job)
            self._close(job)
        raise refusal

    def start(self, job: Job, answer: Answer) -> bool:
        """Arm a job; AemError if its module refuses, and the job stays as it was.

        False: something must be done as the caller first; then `answer` is told what became of it.
        """
        if self.openings.is_opening(job):
            raise self._not_open_yet(job)
        if job in self._closed and job.durable is not None and job.state is JobState.REGISTERED:
            return self._open_closed(job, answer, start=True)
        if job.traits.needs and job.state is JobState.REGISTERED:
            try:
                needs = _module(job).needs(job, opening=False, starting=True)
            except Exception as error:
                raise self._explained(error, "needs", job) from error
            if needs:
                self.openings.wait(job, needs, partial(self._start_later, job, answer), opening=False)
                return False
        self._start(job)
        return True

    def _not_open_yet(self, job: Job) -> AemError:
        """Of a job that nobody has been told of yet nobody learns."""
        return not_found(f"jobs/{job.id}") if self.openings.is_new(job) else _is_opening(job)

    def _start_later(self, job: Job, answer: Answer, error: AemError | None) -> None:
        try:
            if error is not None:
                raise error
            self._start(job)
        except AemError as refusal:
            answer(refusal)
        else:
            answer(job)

    def _start(self, job: Job) -> None:
        self.engine.start(job, self.now())
        refusal = self._settle_for(job)
        if refusal is not None:
            raise refusal
        job.resumed = None

    def _open_closed(self, job: Job, answer: Answer, *, start: bool) -> bool:
        """Give a durable job to its module; that may be another one by now, and policy another as well.

        False: something must be done as its owner first; then `answer` is told what became of it.
        """
        assert isinstance(job.params, bytes)
        meant = self.meant(job.owner, job.traits.name, job_pb2.Job.FromString(job.params).params)
        options = self.engine.parse_options(self.options_of(job), meant.traits)
        job.traits, job.values, job.ruling = meant.traits, meant.values, meant.ruling
        self.engine.set_options(job, replace(options, priority=job.options.priority))
        needs: Sequence[Need] = ()
        if job.traits.needs:
            try:
                needs = _module(job).needs(job, opening=True, starting=start)
            except Exception as error:
                self._give_back(job)
                raise self._explained(error, "needs", job) from error
        if not needs:
            self._give(job, start=start)
            return True

        def opened(error: AemError | None) -> None:
            try:
                if error is not None:
                    self._give_back(job)
                    raise error
                self._give(job, start=start)
            except AemError as refusal:
                answer(refusal)
            else:
                answer(job)

        self.openings.wait(job, needs, opened, opening=True)
        return False

    def _give(self, job: Job, *, start: bool) -> None:
        try:
            _module(job).open(job)
        except Exception as error:
            self._give_back(job)
            raise self._explained(error, "open", job) from error
        self._closed.discard(job)
        job.reason = ""
        if start:
            self._start(job)
        job.resumed = None

    def stop(self, job: Job) -> None:
        """Disarm a job; a start that is under way comes to nothing."""
        if self.openings.is_opening(job) and not self.openings.is_new(job):
            raise _is_opening(job)
        stopped = AemError(Code.ABORTED, "STOPPED", f"jobs/{job.id}: it was stopped before it was started")
        self.openings.end(job, stopped, starts_only=True)
        self.engine.stop(job, self.now())
        self.settle()

    def shutdown(self, job: Job, *, by: Principal, deadline_ns: int) -> None:
        """End a job after its running handler, or after `deadline_ns`; 0 is the default one."""
        owned = by.owner == job.owner.owner
        reason = "shut down by its owner" if owned else f"shut down by uid {by.uid}"
        self.engine.shutdown(job, reason=reason, deadline_ns=deadline_ns, now=self.now())
        self.settle()

    def set_priority(self, job: Job, priority: int) -> None:
        """Deliver a job's events with another priority."""
        self.engine.set_priority(job, priority)

    def end_session(self, session: Session, reason: str) -> None:
        """End a session and its jobs at once."""
        self.engine.end_session(session, reason, self.now(), Code.ABORTED)
        self.settle()

    def operate(self, job: Job, key: bytes, name: str, data: bytes) -> None:
        """Do what a client asks of a job, outside of a completion."""
        if self.openings.is_opening(job):
            raise self._not_open_yet(job)
        if job in self._closed:
            raise _is_closed(job)
        try:
            _check_operation(job, name)
            _module(job).operate(job, key, name, data)
        except Exception as error:
            raise self._explained(error, "operate", job) from error
        finally:
            self.settle()

    def settle_reply(self, job: Job) -> None:
        """Carry out the reply that a Complete brought; AemError if the module refuses it."""
        refusal = self._settle_for(job)
        if refusal is not None:
            raise refusal

    def raise_events(
        self, principal: Principal, channel: str, payloads: Sequence[bytes], uid: int | None
    ) -> None:
        """Raise user events; NOT_FOUND where there is no module that takes them."""
        module = self.registry.get(MODULE_USER)
        ruling = None
        if self.authority.rules_on_raise:
            values = {"channel": channel} if uid is None else {"channel": channel, "uid": uid}
            doing = f"raise on channel {channel[:64]}"
            ruling = self.authority.rule(principal, module.description, values, doing=doing)
        cast(Raiser, module).raise_events(principal, channel, payloads, uid, ruling=ruling)

    # Sync.

    def sync(self, session: Session, job: Job, request_id: int) -> None:
        """Tell `session` when everything that was queued for `job` in the kernel is on its way."""
        if job in self._closed or self.openings.is_opening(job):  # then nothing is queued for it
            self._sync_mark(session, job, request_id)
            return
        self._syncs.add(session, job.id, request_id)
        generation = session.generation

        def done() -> None:  # called by the module whenever it likes, so it does not raise
            if session.generation == generation and self._syncs.take(session, job.id, request_id):
                self._sync_mark(session, job, request_id)

        try:
            _module(job).sync(job, done)
        except Exception as error:
            self._syncs.take(session, job.id, request_id)
            raise self._explained(error, "sync", job) from error

    def forget_requests(self, session: Session) -> None:
        """The stream that asked is gone: its request ids mean nothing on the next one."""
        for job in self.openings.forget(session):
            self.engine.discard(job)
            self._give_back(job)
        self._syncs.forget(session)

    def forget_unopened(self) -> None:
        """The daemon ends: whoever waits for a job that is still opening asks the next one."""
        for session in self.openings.sessions():
            self.forget_requests(session)

    def unanswered(self, session: Session) -> int:
        """How many requests of a session are with modules or deputy."""
        return self.syncs_of(session) + self.openings.of_session(session)

    def syncs_of(self, session: Session) -> int:
        """How many Syncs of a session are with the modules."""
        return self._syncs.of_session(session)

    def _sync_mark(self, session: Session, job: Job, request_id: int) -> None:
        if not self.engine.sync_mark(session, job, request_id):  # it was let go meanwhile
            self.engine.send_control(session, errors.result(request_id, not_found(f"jobs/{job.id}")))

    def details(self, job: Job) -> dict[str, str]:
        """The module's own view of a job; empty if it has a bug there."""
        if job.state is JobState.GONE or job in self._closed or self.openings.is_opening(job):
            return {}
        try:
            details = _module(job).details(job)
            if job.ruling is not None:  # what is not in the events is not shown here either
                for field in job.ruling.rule.redactions:
                    details.pop(field, None)
            return details
        except Exception:
            log.get().exception("module failed", **{log.MODULE: job.traits.name, log.JOB: job.id})
            return {}

    def busy(self, job: Job) -> bool:
        """Whether what handlers of the job have answered is still on its way."""
        if job in self._closed or self.openings.is_opening(job):
            return False
        try:
            return _module(job).busy(job)
        except Exception:
            log.get().exception("module failed", **{log.MODULE: job.traits.name, log.JOB: job.id})
            return False

    def memento(self, job: Job) -> bytes | None:
        """What its module needs to go on with the job in the next daemon."""
        if job in self._closed:
            return None
        try:
            ask = getattr(_module(job), "memento", None)
            return ask(job) if ask is not None else None
        except Exception:
            log.get().exception("module failed", **{log.MODULE: job.traits.name, log.JOB: job.id})
            return None

    def anchor(self, job: Job) -> bytes | None:
        """What its module needs to open the job again after this daemon was killed."""
        if job in self._closed or job.data is None:
            return None
        try:
            ask = getattr(_module(job), "anchor", None)
            return ask(job) if ask is not None else None
        except Exception:
            log.get().exception("module failed", **{log.MODULE: job.traits.name, log.JOB: job.id})
            return None

    def leaving(self) -> Iterator[Job]:
        """The jobs that their modules can leave, with what is open, to the next daemon."""
        for module in self.registry:
            if hasattr(module, "leave"):
                for job in self.engine.jobs_of_module(module.description.name):
                    fires = job.state in (JobState.REGISTERED, JobState.ARMED, JobState.DEGRADED)
                    if fires and job not in self._closed and not self.openings.is_opening(job):
                        yield job

    def open_of(self, job: Job) -> Mapping[int, int]:
        """Descriptors of a job that may be left, besides its address."""
        try:
            return _module(job).descriptors(job)
        except Exception:
            log.get().exception("module failed", **{log.MODULE: job.traits.name, log.JOB: job.id})
            return {}

    def leave(self, job: Job, kept: Collection[int]) -> bytes | None:
        """Close a job that the next daemon goes on with; its memento. `kept`: of open_of()."""
        try:
            _module(job).leave(job, bound=self.lasting.keeps(job), kept=kept)
            return self.memento(job)
        except Exception:
            log.get().exception("module failed", **{log.MODULE: job.traits.name, log.JOB: job.id})
            return None
        finally:
            self._close_module(job)
            self._closed.add(job)

    # Policy.

    def change_policy(self, policy: Policy) -> int:
        """Rule by another policy from now on; returns how many jobs it does not allow and are shut down."""
        before = self.authority.policy
        self.authority.install(policy)
        ended = 0
        for module in self.registry:
            name = module.description.name
            if before.about(name) or policy.about(name):
                ended += self._rule_anew(module)
        self.settle()
        return ended

    def _rule_anew(self, module: Module) -> int:
        ended = 0
        ruled: dict[tuple[int, int], tuple[Ruling | None, str]] = {}  # equal jobs share owner and values
        for job in self.engine.jobs_of_module(module.description.name):
            if job in self._closed and not self.openings.is_opening(job):
                continue  # is ruled when it is opened again
            key = (id(job.owner), id(job.values))
            found = ruled.get(key)
            if found is None or job.ruling is not None:
                found = ruled[key] = self._ruled(module, job)
            ruling, refusal = found
            if refusal:
                self._forbid(job, refusal)
                ended += 1
            else:
                job.ruling = ruling
        return ended

    def _forbid(self, job: Job, reason: str) -> None:
        if job.durable is not None:
            self.close_job(job, reason)
        else:
            self.engine.shutdown(job, reason=reason, deadline_ns=0, now=self.now())

    def _ruled(self, module: Module, job: Job) -> tuple[Ruling | None, str]:
        """What policy says to a job now, and why it has to end if it has."""
        try:
            rule, ruling = self.authority.rule_anew(job.owner, module.description, job.values)
        except AemError as error:
            return None, f"policy: {error.message}"
        if not rule.allow:
            return None, f"policy: rule {rule.name}"
        had = job.ruling.rule.grants if job.ruling is not None else frozenset()
        if had <= rule.grants:
            return ruling, ""
        try:
            acts = module.acts(job.owner, job.values)
        except Exception:  # what it was registered for has gone meanwhile, and its source tells
            return ruling, ""
        try:
            for act in acts:
                right(job.owner, act, ruling)
        except AemError:
            return None, f"policy: rule {rule.name} does not grant {', '.join(sorted(had - rule.grants))}"
        return ruling, ""

    # Modules.

    def load_module(self, name: str) -> Module:
        """Load a module, in the place of one of that name, whose jobs are shut down."""
        fresh = self.registry.build(name)
        self._end_jobs(name, f"module {name} was loaded anew")
        self.registry.install(fresh)
        self.authority.greet(fresh.module.description)
        return fresh.module

    def unload_module(self, name: str) -> int:
        """Shut down the module's jobs and forget it; returns how many jobs there were."""
        self.registry.get(name)
        count = self._end_jobs(name, f"module {name} was unloaded")
        self.registry.unload(name)
        self._traits.pop(name, None)
        self.authority.forget(name)
        return count

    def _end_jobs(self, name: str, reason: str) -> int:
        """End all jobs of a module now: their code goes, so no handler's answer can be waited for."""
        jobs = self.engine.jobs_of_module(name)
        for job in jobs:
            if job.durable is not None:
                self.close_job(job, reason)
            else:
                self.engine.end_job(job, reason, self.now())
        self.settle()
        return len(jobs)

    # Effects.

    def settle(self) -> None:
        """Carry out what the engine wants done, until it wants nothing more."""
        while wanted := self.engine.take_effects():
            for effect in wanted:
                self._apply(effect)

    def _settle_for(self, job: Job) -> AemError | None:
        """Settle; what the module of `job` refused meanwhile."""
        self._asking, self._refusal = job, None
        self.settle()
        refusal, self._asking, self._refusal = self._refusal, None, None
        return refusal

    def _apply(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Arm(job):
                self._call(job, "start")
            case effects.Operate(job, key, name, data):
                self._operate(job, key, name, data)
            case effects.Disarm(job):
                self._call(job, "stop")
            case effects.Pause(job):
                self._call(job, "pause")
            case effects.Resume(job):
                self._call(job, "resume")
            case effects.Release(job):
                self._close(job)
            case effects.Fetch():
                self.fetch(effect)
            case effects.SessionEnded(session, code, reason):
                self.forget_requests(session)
                self.session_ended(session, AemError(code, "SESSION_ENDED", reason))

    def _call(self, job: Job, name: str) -> None:
        if job in self._closed:
            return
        try:
            getattr(_module(job), name)(job)
        except Exception as error:
            self._note_refusal(job, self._explained(error, name, job))
            if name == "start":
                self.engine.start_failed(job)

    def _operate(self, job: Job, key: bytes, name: str, data: bytes) -> None:
        if job in self._closed or self.openings.is_opening(job):
            self._note_refusal(job, _is_closed(job))
            return
        try:
            _check_operation(job, name)
            _module(job).operate(job, key, name, data)
        except Exception as error:
            self._note_refusal(job, self._explained(error, "operate", job))

    def _note_refusal(self, job: Job, error: AemError) -> None:
        """Of the job that a request is about somebody is told; of others nobody has asked anything."""
        if job is self._asking:
            self._refusal = error

    def _close(self, job: Job) -> None:
        ended = AemError(Code.ABORTED, "JOB_ENDED", f"jobs/{job.id}: {job.reason or 'it has ended'}")
        opening = self.openings.end(job, ended)
        if job in self._closed:  # it has nothing to give back
            self._closed.discard(job)
            return
        if opening:
            job.session.withhold_state(job)  # nobody has been told of it
            return
        self._close_module(job)
        session = job.session
        if session.ended:  # with all its jobs: nobody is to be told, and each would look through them all
            self.forget_requests(session)
        for asking, request_id in self._syncs.of_job(job.id):
            self._syncs.take(asking, job.id, request_id)
            if job.state is JobState.GONE:
                self.engine.send_control(asking, errors.result(request_id, not_found(f"jobs/{job.id}")))
            else:
                self._sync_mark(asking, job, request_id)

    def _close_module(self, job: Job) -> None:
        try:
            _module(job).close(job)
        except Exception:
            log.get().exception("module failed", **{log.MODULE: job.traits.name, log.JOB: job.id})
        self._give_back(job)

    def _give_back(self, job: Job) -> None:
        """What it held, and its module has not given back."""
        self.descriptors.release(job.id)
        self.lasting.release(job.id)

    def _end_faulty(self, job: Job, reason: str) -> None:
        """Its module has a bug: a job ends, a durable one is closed and can be started again."""
        if job.durable is not None:
            self.reactor.defer(lambda: self.close_job(job, reason))  # not in the middle of a call
        else:
            self.engine.end_job(job, reason, self.now())

    def _explained(self, error: Exception, what: str, job: Job) -> AemError:
        """The error for the client; a module's bug also ends its job."""
        if isinstance(error, AemError):
            return error
        name = job.traits.name
        log.get().error(
            "module failed", **{log.MODULE: name, log.JOB: job.id, log.METHOD: what}, exc_info=error
        )
        if what not in ("needs", "open", "start"):  # then there is no job yet, or it is refused
            self._end_faulty(job, f"module {name} met a fault in {what}()")
        return AemError(
            Code.INTERNAL, "MODULE_FAULT", f"module {name} met a fault; the daemon's log says more"
        )


def traits(module: Module) -> Traits:
    """What the core must know of a module."""
    described = module.description
    return Traits(
        name=described.name,
        coalesce=described.delivery is Delivery.COALESCE,
        keyed=described.keyed,
        replies=described.replies,
        pausable=described.pausable,
        pause_by_default=described.pause_by_default,
        needs=getattr(type(module), "needs", Basic.needs) is not Basic.needs,
        module=module,
    )


def _is_opening(job: Job) -> AemError:
    return AemError(Code.ABORTED, "JOB_OPENING", f"jobs/{job.id}: it is just being opened; ask again")


def _is_closed(job: Job) -> AemError:
    return AemError(Code.FAILED_PRECONDITION, "JOB_CLOSED", f"jobs/{job.id}: {job.reason}; start it first")


def _check_operation(job: Job, name: str) -> None:
    operations = _module(job).description.operations
    if name not in operations:
        raise invalid(
            "operation.name",
            f"{name[:64]!r} is none of module {job.traits.name}; it has: {', '.join(operations) or 'none'}",
        )


def _module(job: Job) -> Module:
    return cast(Module, job.traits.module)
