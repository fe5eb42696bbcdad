"""What the daemon does for its modules: the Host of `modules/contract.py`, over the engine.

Fires are the hot path, and there is nothing in between: the engine's own methods stand here. What they cause
is carried out at the end of the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from aemd.core.accounts import Charge
from aemd.core.engine import Engine
from aemd.core.errors import AemError
from aemd.core.job import Job as CoreJob
from aemd.core.limits import Limits
from aemd.core.principal import Principal
from aemd.modules.contract import Job
from aemd.modules.left import Left
from aemd.modules.need import Errand, Given
from aemd.service.authority import Authority
from aemd.service.descriptors import Descriptors
from aemd.service.lasting import Lasting
from aemd.service.openings import Openings
from aemd.sources.bound import Bound
from aemd.sources.reactor import Reactor
from aemd.v1 import session_pb2


class ModuleHost:
    """The Host of every module."""

    def __init__(
        self,
        *,
        reactor: Reactor,
        limits: Limits,
        engine: Engine,
        descriptors: Descriptors,
        authority: Authority,
        openings: Openings,
        lasting: Lasting,
    ) -> None:
        self.reactor = reactor
        self.limits = limits
        self.right = authority.right
        self._engine = engine
        self._descriptors = descriptors
        self._openings = openings
        self._lasting = lasting
        self.vacating = lasting.vacating

    def given(self, job: Job) -> Sequence[Given]:
        """What came out of needs(job)."""
        return self._openings.take(cast(CoreJob, job))

    def ask(self, job: Job, need: Errand, answered: Callable[[Given | AemError], None]) -> None:
        """Have one thing more done as the owner of `job`."""
        self._openings.ask(cast(CoreJob, job), need, answered)

    def charge(self, job: Job, descriptors: int, *, sources: int = 0) -> None:
        """Reserve descriptors before they are opened, and kernel objects before they are made."""
        self._descriptors.charge(job.id, descriptors, owner=job.owner, sources=sources)

    def refund(self, job: Job, descriptors: int, *, sources: int = 0) -> None:
        """Give back what charge() took."""
        self._descriptors.refund(job.id, descriptors, sources=sources)

    def hold(self, job: Job, resource: str, count: int = 1) -> Charge:
        """Charge something else to the user of `job`."""
        return self._engine.accounts.charge(job.owner, resource, count)

    def left(self, job: Job) -> Left | None:
        """What the service manager has kept of `job` since the daemon before."""
        return self._lasting.of(job.id)

    def keep(self, job: Job, bound: Bound) -> None:
        """Have the service manager keep the address of `job`."""
        self._lasting.keep(cast(CoreJob, job), bound)

    def fire(self, job: Job, event: bytes, *, key: bytes = b"", count: int = 1) -> None:
        """A stimulus hit `job`."""
        ruling = job.ruling
        if ruling is not None and ruling.redact is not None:
            event = ruling.redact(event)
        self._engine.fire(cast(CoreJob, job), event, key=key, count=count)

    def fire_many(self, job: Job, events: Sequence[bytes], *, key: bytes = b"") -> None:
        """Stimuli hit `job`, one after the other."""
        ruling = job.ruling
        if ruling is not None and ruling.redact is not None:
            events = [ruling.redact(event) for event in events]
        self._engine.fire_many(cast(CoreJob, job), events, key=key)

    def may_read(self, job: Job) -> bool:
        """Whether `job` takes one event more for now; False: it is paused."""
        return self._engine.may_read(cast(CoreJob, job))

    def spare(self, job: Job, largest: int = 0) -> int:
        """How many more events `job` takes for now; 0: it is paused."""
        return self._engine.spare(cast(CoreJob, job), largest)

    def afford(self, principal: Principal, events: int) -> None:
        """Return if so many events of the caller's user may fire now, else raise AemError."""
        self._engine.afford(principal, events)

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
        """Events of `job` were lost before they could fire."""
        self._engine.gap(
            cast(CoreJob, job), stage=stage, cause=cause, count=count, scope=scope, remedy=remedy
        )

    def room(self, job: Job, key: bytes, size: int) -> None:
        """The client may write `size` more bytes to `key`."""
        self._engine.give_room(cast(CoreJob, job), key, size)

    def fail(self, job: Job, reason: str) -> None:
        """The job's source failed."""
        self._engine.fail_source(cast(CoreJob, job), reason)

    def restore(self, job: Job) -> None:
        """The source is back."""
        self._engine.restore_source(cast(CoreJob, job))

    def exhaust(self, job: Job, reason: str) -> None:
        """Nothing more can come."""
        self._engine.exhaust(cast(CoreJob, job), reason)
