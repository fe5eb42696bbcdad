"""One engine, one session and what is needed to drive them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from aemd.core.accounts import Accounts
from aemd.core.engine import Engine
from aemd.core.job import Job
from aemd.core.limits import MS, SECOND, Limits
from aemd.core.now import Now
from aemd.core.principal import Owner, Principal
from aemd.core.quota import Quota
from aemd.core.traits import Traits
from aemd.v1 import job_pb2, session_pb2

LOTS = 1 << 30


class FixedQuotas:
    """Everybody has the same, but those in `of_uid`."""

    def __init__(self, quota: Quota) -> None:
        self.all = quota
        self.of_uid: dict[int, Quota] = {}

    def quota(self, principal: Principal) -> tuple[Quota, dict[str, str]]:
        return self.of_uid.get(principal.uid, self.all), {}


class Bench:
    """An engine with one session that has all the credit it may want."""

    def __init__(self, limits: Limits, quota: Quota | None = None) -> None:
        tokens = itertools.count(1)
        self.limits = limits
        self.quotas = FixedQuotas(quota or Quota())
        self.accounts = Accounts(self.quotas)
        self.engine = Engine(
            limits, new_token=lambda: next(tokens).to_bytes(16, "big"), accounts=self.accounts
        )
        self.now = Now(100 * SECOND, 10**18)
        self.engine.tick(self.now)
        self.principal = principal(1000, 42)
        self.session = self.open(self.principal)

    def open(self, who: Principal, credit: tuple[int, int] | None = (LOTS, LOTS)) -> Any:
        return self.engine.open_session(who, label="test", sdk="none", credit=credit, now=self.now)

    def job(
        self,
        *,
        session: Any = None,
        module: str = "queues",
        start: bool = True,
        credit: tuple[int, int] | None = (LOTS, LOTS),
        label: str = "",
        coalesce: bool = False,
        replies: bool = False,
        pausable: bool = False,
        **options: Any,
    ) -> Job:
        job = self.engine.register(
            session or self.session,
            module=Traits(module, coalesce=coalesce, replies=replies, pausable=pausable),
            values={},
            params=None,
            options=job_pb2.Options(**options),
            label=label,
            credit=credit,
            now=self.now,
        )
        if start:
            self.engine.start(job, self.now)
        return job

    def frames(self, session: Any = None, budget_bytes: int = LOTS) -> list[session_pb2.ServerFrame]:
        """Everything that goes out now, as protobuf reads it."""
        frames = []
        while (data := self.engine.collect(session or self.session, budget_bytes)) is not None:
            frame = session_pb2.ServerFrame.FromString(data)
            frames += list(frame.bundle.frames) if frame.WhichOneof("frame") == "bundle" else [frame]
        return frames

    def entries(self, session: Any = None, budget_bytes: int = LOTS) -> list[tuple[Any, ...]]:
        """(first, last, event or "gap", attempts) of everything that goes out now."""
        found: list[tuple[Any, ...]] = []
        for frame in self.frames(session, budget_bytes):
            if frame.WhichOneof("frame") == "gap":
                found.append((frame.gap.first, frame.gap.last, "gap", frame.gap.attempts))
            for run in frame.batch.runs:
                seq = run.first_seq
                for index, event in enumerate(run.events):
                    count = run.counts[index] if run.counts else 1
                    attempts = run.attempts[index] if run.attempts else 1
                    found.append((seq, seq + count - 1, event, attempts))
                    seq += count
        return found

    def ack(self, job: Job, seq: int) -> None:
        self.engine.ack(self.session, job.binding.id, 1, seq, self.now)

    def complete(self, job: Job, seq: int, error: str | None = None, reply: Any = None) -> None:
        self.engine.complete(self.session, job.binding.id, 1, seq, error=error, reply=reply, now=self.now)

    def nack(self, job: Job, seq: int, delay_ns: int = 0, park: bool = False, reason: str = "") -> None:
        self.engine.nack(
            self.session,
            job.binding.id,
            1,
            seq,
            delay_ns=delay_ns,
            park=park,
            reason=reason,
            now=self.now,
        )

    def wait(self, ms: int) -> None:
        self.now = Now(self.now.mono_ns + ms * MS, self.now.real_ns + ms * MS)
        self.engine.tick(self.now)

    def lose(self) -> None:
        self.engine.lose_stream(self.session, self.now)

    def resume(self, **received: int) -> None:
        """Come back; `received` is b1=5 for binding 1 up to number 5."""
        self.engine.resume_session(
            self.session.token,
            self.principal,
            positions={int(name[1:]): (1, seq) for name, seq in received.items()},
            credit=(LOTS, LOTS),
            now=self.now,
        )
        for binding in self.session.bindings:
            self.engine.grant(self.session, binding, LOTS, LOTS)

    def effects(self) -> list[str]:
        """The names of the effects since the last call."""
        return [type(effect).__name__ for effect in self.engine.take_effects()]


def principal(uid: int, pid: int, *, administrator: bool = False, start: int = 7) -> Principal:
    return Principal(Owner(uid), uid, (), pid, start, administrator)


@pytest.fixture
def bench() -> Bench:
    return Bench(Limits())


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    return lambda quota=None, **limits: Bench(Limits(**limits), quota)


@pytest.fixture
def make_principal() -> Callable[..., Principal]:
    return principal
