"""The daemon as event modules see it, over the real loop: what they fire is kept for the test to look at."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from aemd.core.accounts import Accounts
from aemd.core.errors import AemError, exhausted
from aemd.core.history import Resumed
from aemd.core.limits import SECOND, Limits
from aemd.core.policy import Ruling
from aemd.core.principal import Owner, Principal
from aemd.core.right import Act, right
from aemd.loop.loop import Loop
from aemd.modules.left import Left
from aemd.peer.deputy import Deputy
from aemd.sources.bound import Bound
from aemd.v1 import event_pb2

WAIT_NS = 10 * SECOND  # for what takes milliseconds; a machine may be busy


def principal(uid: int = 0, *, administrator: bool | None = None, pid_namespace: int = 0) -> Principal:
    """A caller; uid 0 is the administrator unless it is said otherwise."""
    return Principal(
        owner=Owner(uid, pid_namespace=pid_namespace),
        gid=uid,
        groups=(),
        pid=os.getpid(),
        start_time_ticks=0,
        administrator=uid == 0 if administrator is None else administrator,
    )


@dataclass(eq=False)
class FakeJob:
    """A job, as far as a module knows it."""

    id: int
    owner: Principal
    values: dict[str, object]
    label: str = ""
    data: object = None
    resumed: Resumed | None = None
    ruling: Ruling | None = None


@dataclass(frozen=True)
class Fired:
    """One call of fire()."""

    job: FakeJob
    event: event_pb2.Event
    key: bytes
    count: int
    encoded: bytes


@dataclass
class FakeHost:
    """Does what the daemon does for a module, and writes it down.

    `charged`: descriptors by job id. `descriptors_max`: how many one uid may have. `fired_max`: how many
    events all jobs together take; a full job is not paused by itself.
    """

    reactor: Loop
    limits: Limits = field(default_factory=Limits)
    fired: list[Fired] = field(default_factory=list)
    gaps: list[dict[str, object]] = field(default_factory=list)
    rooms: list[tuple[FakeJob, bytes, int]] = field(default_factory=list)
    failed: list[tuple[FakeJob, str]] = field(default_factory=list)
    exhausted: list[tuple[FakeJob, str]] = field(default_factory=list)
    charged: Counter[int] = field(default_factory=Counter)
    descriptors_max: int = 1_000_000
    fired_max: int = 1_000_000
    jobs: int = 0
    deputy: Deputy | None = None
    handed: dict[int, list[object]] = field(default_factory=dict)
    lefts: dict[int, Left] = field(default_factory=dict)
    kept: dict[int, Bound] = field(default_factory=dict)

    def job(self, values: dict[str, object] | None = None, *, owner: Principal | None = None) -> FakeJob:
        """A new job, the administrator's unless said otherwise."""
        self.jobs += 1
        return FakeJob(self.jobs, owner or principal(), values or {})

    def right(self, who: Principal, act: Act, ruling: Ruling | None = None) -> None:
        right(who, act, ruling)

    def satisfy(self, module, job: FakeJob, *, opening: bool = False, starting: bool = False) -> None:
        """Have done what the module needs before open() or start(); AemError if it is refused."""
        try:
            needs = module.needs(job, opening=opening, starting=starting)
            answers: dict[int, object] = {}
            for index, need in enumerate(needs):
                self.deputy.ask(job.owner, need, lambda given, index=index: answers.update({index: given}))
            self.wait_until(lambda: len(answers) == len(needs))
            for answer in answers.values():
                if isinstance(answer, AemError):
                    raise answer
        except AemError:
            if opening:
                self.charged[job.id] = 0
            raise
        self.handed[job.id] = [answers[index] for index in range(len(needs))]

    def given(self, job: FakeJob) -> list[object]:
        return self.handed.pop(job.id)

    def left(self, job: FakeJob) -> Left | None:
        return self.lefts.get(job.id)

    def keep(self, job: FakeJob, bound: Bound) -> None:
        self.kept[job.id] = bound

    def vacating(self, place: str) -> bool:
        return False

    def ask(self, job: FakeJob, need, answered) -> None:
        self.deputy.ask(job.owner, need, answered)

    def charge(self, job: FakeJob, descriptors: int, *, sources: int = 0) -> None:
        used = self.charged.total()
        if used + descriptors > self.descriptors_max:
            raise exhausted("uid", limit=self.descriptors_max, used=used, key="descriptors", what="opening")
        self.charged[job.id] += descriptors

    def refund(self, job: FakeJob, descriptors: int, *, sources: int = 0) -> None:
        self.charged[job.id] -= descriptors
        assert self.charged[job.id] >= 0

    def fire(self, job: FakeJob, event: bytes, *, key: bytes = b"", count: int = 1) -> None:
        self.fired.append(Fired(job, event_pb2.Event.FromString(event), key, count, event))

    def fire_many(self, job: FakeJob, events: Sequence[bytes], *, key: bytes = b"") -> None:
        for event in events:
            self.fire(job, event, key=key)

    def may_read(self, job: FakeJob) -> bool:
        return self.spare(job) > 0

    def spare(self, job: FakeJob, largest: int = 0) -> int:
        return max(self.fired_max - len(self.fired), 0)

    def afford(self, principal: Principal, events: int) -> None:
        """There is always enough."""

    def gap(self, job: FakeJob, **facts: object) -> None:
        self.gaps.append({"job": job, **facts})

    def room(self, job: FakeJob, key: bytes, size: int) -> None:
        self.rooms.append((job, key, size))

    def fail(self, job: FakeJob, reason: str) -> None:
        self.failed.append((job, reason))

    def restore(self, job: FakeJob) -> None:
        self.failed = [entry for entry in self.failed if entry[0] is not job]

    def exhaust(self, job: FakeJob, reason: str) -> None:
        self.exhausted.append((job, reason))

    def wait_until(self, condition: Callable[[], object], *, within_ns: int = WAIT_NS) -> None:
        """Run the loop until `condition()` holds; AssertionError after `within_ns`."""
        deadline_ns = time.monotonic_ns() + within_ns
        while not condition():
            left_ns = deadline_ns - time.monotonic_ns()
            assert left_ns > 0, f"it did not happen within {within_ns / SECOND:g} s"
            self.reactor.turn(left_ns)

    def wait_for(self, count: int = 1) -> list[Fired]:
        """Run the loop until `count` events have been fired; returns all of them."""
        self.wait_until(lambda: len(self.fired) >= count)
        return self.fired


@pytest.fixture
def loop() -> Iterator[Loop]:
    """The real loop. A callback that raised fails the test."""
    faults: list[object] = []
    loop = Loop(on_fault=faults.append)
    yield loop
    loop.close()
    assert not faults


@pytest.fixture
def deputy(loop: Loop) -> Iterator[Deputy]:
    """The real one; every caller is this process."""
    pidfd = os.pidfd_open(os.getpid())
    deputy = Deputy(loop, Accounts(), pidfd_of=lambda _principal: pidfd, limit_ns=5 * SECOND)
    yield deputy
    deputy.close()
    os.close(pidfd)


@pytest.fixture
def host(loop: Loop, deputy: Deputy) -> FakeHost:
    return FakeHost(loop, deputy=deputy)
