"""Registrations on a tape against a model: a daemon is killed at any moment, and the next one finds all that
was committed, and nothing else.

The tape is a real one. The model is a copy of what the engine had when it was committed last, made by looking
at all of it. The tape is so short that records are moved on all the time.
"""

from __future__ import annotations

import itertools
import os
import socket

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from aemd.core.engine import Engine
from aemd.core.errors import AemError
from aemd.core.job import JobState
from aemd.core.limits import Limits
from aemd.core.now import Now
from aemd.core.principal import Owner, Principal
from aemd.core.registrations import SPENT, STARTED, STOPPED, Teller
from aemd.core.session import Session
from aemd.core.traits import Traits
from aemd.service import registrations
from aemd.service.notify import Notifier
from aemd.service.registrations import Registrations
from aemd.v1 import job_pb2

TRAITS = Traits("user")
OPTIONS = Engine(Limits(), new_token=bytes).parse_options
LEFT_BYTES = 600
PICK = st.integers(0, 1 << 16)


def principal(pid):
    return Principal(Owner(1_000 + pid % 2), 1_000, (1, 2), pid, 99, administrator=False, unit=f"u{pid}")


def is_started(job):
    return job.state is JobState.ARMED


def facts(engine):
    """All sessions and jobs that stand, by looking at them."""
    return {
        session.id: (
            session.principal,
            session.token,
            session.token_before,
            session.generation,
            session.label,
            {
                binding.id: (
                    binding.job.id,
                    binding.job.params,
                    binding.job.label,
                    binding.job.options,
                    binding.job.epoch,
                    {JobState.ARMED: STARTED, JobState.DRAINING: SPENT}.get(binding.job.state, STOPPED),
                    binding.job.reason,
                )
                for binding in session.bindings.values()
                if binding.job.state is not JobState.CLOSING
            },
        )
        for session in engine._registry.sessions()
    }


def found(sessions):
    """The same, of what the next daemon has read."""
    return {
        session.id: (
            registered_principal(session),
            session.token,
            session.token_before,
            session.generation,
            session.label,
            {
                job.binding.id: (
                    job.id,
                    job.params,
                    job.label,
                    OPTIONS(job_pb2.Options.FromString(job.options), TRAITS),
                    job.epoch,
                    SPENT if job.spent else STARTED if job.started else STOPPED,
                    job.reason,
                )
                for job in session.jobs
            },
        )
        for session in sessions
    }


def registered_principal(session):
    engine = Engine(Limits(), new_token=bytes)
    return engine.thaw_session(session, Now(0, 0)).principal


class Machine(RuleBasedStateMachine):
    """Engine, tape and model."""

    @initialize()
    def begin(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(registrations, "LEFT_BYTES_MIN", LEFT_BYTES)
        self.patch.setattr(registrations, "WRITE_BYTES", 200)
        self.ears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ears.bind(b"\0aemd-test-%d-%d" % (os.getpid(), id(self)))
        self.notifier = Notifier("@" + self.ears.getsockname()[1:].decode())
        self.tokens = itertools.count()
        self.now = Now(1, 1)
        self.given = (1, 1)  # the next numbers of jobs and sessions when it was committed last
        self.told = {}  # by session: the newest binding that its client knows
        self.bindings = {}  # the same, when it was committed last
        self.start([])
        _, fds, _, _ = socket.recv_fds(self.ears, 1_000, 4)
        (self.fd,) = fds
        self.model = {}

    def start(self, left):
        self.engine = Engine(Limits(), new_token=lambda: b"token %d" % next(self.tokens))
        teller = Teller(is_started, lambda job: b"anchor %d" % job.id)
        self.kept = Registrations(self.engine, self.notifier, left, teller)
        self.kept.open()

    def commit(self):
        self.kept.commit()
        self.model = facts(self.engine)
        self.given = (self.engine.next_id, self.engine.next_session)
        self.bindings = dict(self.told)

    # -- what happens

    @rule(pid=st.integers(1, 3), label=st.text("ab", max_size=3))
    def open_session(self, pid, label):
        self.engine.open_session(principal(pid), label=label, sdk="s", credit=None, now=self.now)

    def session(self, pick) -> Session | None:
        sessions = self.engine._registry.sessions()
        return sessions[pick % len(sessions)] if sessions else None

    def job(self, pick):
        jobs = [
            binding.job
            for session in self.engine._registry.sessions()
            for binding in session.bindings.values()
        ]
        return jobs[pick % len(jobs)] if jobs else None

    @rule(pick=PICK)
    def resume(self, pick):
        session = self.session(pick)
        if session is not None:
            self.engine.resume_session(
                session.token, session.principal, positions={}, credit=None, now=self.now
            )

    @rule(pick=PICK)
    def end_session(self, pick):
        session = self.session(pick)
        if session is not None:
            self.engine.end_session(session, "it ended", self.now)

    @rule(
        pick=PICK,
        params=st.binary(max_size=60),
        start=st.booleans(),
        once=st.booleans(),
        announce=st.booleans(),
    )
    def register(self, pick, params, start, once, announce):
        session = self.session(pick)
        if session is None:
            return
        job = self.engine.register(
            session,
            module=TRAITS,
            values={},
            params=params,
            options=job_pb2.Options(one_shot=once),
            label="l",
            credit=None,
            now=self.now,
        )
        if start:
            self.engine.start(job, self.now)
        if announce:
            self.engine.announce(job, b"")
            self.told[session.id] = job.binding.id
        else:
            self.engine.discard(job)

    @rule(pick=PICK, what=st.sampled_from(["start", "stop", "shutdown", "fire", "exhaust", "end"]))
    def turn(self, pick, what):
        job = self.job(pick)
        if job is None:
            return
        try:
            if what == "start":
                self.engine.start(job, self.now)
            elif what == "stop":
                self.engine.stop(job, self.now)
            elif what == "shutdown":
                self.engine.shutdown(job, reason="asked", deadline_ns=0, now=self.now)
            elif what == "fire" and job.state is JobState.ARMED:
                self.engine.fire(job, b"event")
                self.engine.collect(job.session, 1 << 20)  # in flight from now on
            elif what == "exhaust":
                self.engine.exhaust(job, "over")
            elif what == "end":
                self.engine.end_job(job, "it ended", self.now)
        except AemError:
            pass  # it is about to end

    @rule(pick=PICK, priority=st.integers(0, 7))
    def set_priority(self, pick, priority):
        job = self.job(pick)
        if job is not None:
            self.engine.set_priority(job, priority)

    @rule()
    def end_of_turn(self):
        self.commit()

    @rule(torn=st.binary(max_size=20))
    def kill(self, torn):
        """Nothing more is committed, whatever was written; the next one takes up what there is."""
        end = os.fstat(self.fd).st_size
        os.pwrite(self.fd, torn, end)
        self.told = dict(self.bindings)  # of the rest nobody was told
        self.kept.close()
        self.start([os.dup(self.fd)])
        left = self.kept.sessions()
        assert found(left) == self.model
        assert [job.memento for each in left for job in each.jobs] == [
            b"anchor %d" % job.id for each in left for job in each.jobs
        ]
        assert (self.engine.next_id, self.engine.next_session) == self.given
        for each in left:
            assert each.next_binding > self.bindings.get(each.id, 0)
            session = self.engine.thaw_session(each, self.now)
            for job in each.jobs:
                self.thaw(session, job)
        self.commit()

    def thaw(self, session, frozen):
        options = self.engine.parse_options(job_pb2.Options.FromString(frozen.options), TRAITS)
        job = self.engine.thaw_job(session, frozen, module=TRAITS, values={}, options=options)
        self.engine.begin_epoch(job)
        if frozen.started:
            self.engine.start(job, self.now)

    def teardown(self):
        if not hasattr(self, "kept"):
            return
        self.kept.close()
        self.notifier.close()
        self.ears.close()
        os.close(self.fd)
        self.patch.undo()


TestRegistrations = Machine.TestCase
TestRegistrations.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
