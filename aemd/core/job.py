"""A job: a registration, and where it is in its life.

The life is the table below; `docs/states.md` is drawn from it. DRAINING is what the wire calls CLOSING too:
nothing more will fire (a one-shot job has fired, or its source can give nothing more), but what was fired is
still delivered. In CLOSING, after a shutdown, only the handlers that run are waited for.

Jobs are small, because there may be two million of them: slots, shared options and traits, and nothing for
a job that never fired.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING

from aemd.core.errors import AemError, Code
from aemd.v1 import job_pb2

if TYPE_CHECKING:
    from aemd.core.binding import Binding
    from aemd.core.durable import Durable
    from aemd.core.history import Resumed
    from aemd.core.options import Options
    from aemd.core.policy import Ruling
    from aemd.core.principal import Principal
    from aemd.core.session import Session
    from aemd.core.stats import JobStats
    from aemd.core.traits import Traits


class JobState(IntEnum):
    """Where a job is in its life; 1 to 5 are the numbers of State in job.proto."""

    REGISTERED = 1
    ARMED = 2
    DEGRADED = 3
    CLOSING = 4
    GONE = 5
    DRAINING = 6

    @property
    def wire(self) -> job_pb2.State.ValueType:
        """The state as clients know it."""
        return job_pb2.STATE_CLOSING if self is JobState.DRAINING else _WIRE[self]


_WIRE: dict[int, job_pb2.State.ValueType] = {
    1: job_pb2.STATE_REGISTERED,
    2: job_pb2.STATE_ARMED,
    3: job_pb2.STATE_DEGRADED,
    4: job_pb2.STATE_CLOSING,
    5: job_pb2.STATE_GONE,
}


class JobEvent(IntEnum):
    """What can happen to a job."""

    START = 1
    START_FAILED = 2  # its module refused to start it
    STOP = 3
    SOURCE_FAILED = 4
    SOURCE_BACK = 5
    SPENT = 6  # a one-shot job fired, or nothing more can come
    SHUTDOWN = 7
    END = 8  # nothing is waited for any more


class Action(IntEnum):
    """What a step asks of the module."""

    NONE = 0
    ARM = 1
    DISARM = 2
    RELEASE = 3


_S, _E, _A = JobState, JobEvent, Action

TABLE: dict[tuple[JobState, JobEvent], tuple[JobState, Action]] = {
    (_S.REGISTERED, _E.START): (_S.ARMED, _A.ARM),
    (_S.REGISTERED, _E.STOP): (_S.REGISTERED, _A.NONE),
    (_S.REGISTERED, _E.SOURCE_FAILED): (_S.REGISTERED, _A.NONE),
    (_S.REGISTERED, _E.SOURCE_BACK): (_S.REGISTERED, _A.NONE),
    (_S.REGISTERED, _E.SPENT): (_S.DRAINING, _A.NONE),
    (_S.REGISTERED, _E.SHUTDOWN): (_S.CLOSING, _A.NONE),
    (_S.REGISTERED, _E.END): (_S.GONE, _A.RELEASE),
    (_S.ARMED, _E.START): (_S.ARMED, _A.NONE),
    (_S.ARMED, _E.START_FAILED): (_S.REGISTERED, _A.NONE),
    (_S.ARMED, _E.STOP): (_S.REGISTERED, _A.DISARM),
    (_S.ARMED, _E.SOURCE_FAILED): (_S.DEGRADED, _A.NONE),
    (_S.ARMED, _E.SOURCE_BACK): (_S.ARMED, _A.NONE),
    (_S.ARMED, _E.SPENT): (_S.DRAINING, _A.DISARM),
    (_S.ARMED, _E.SHUTDOWN): (_S.CLOSING, _A.DISARM),
    (_S.ARMED, _E.END): (_S.GONE, _A.RELEASE),
    (_S.DEGRADED, _E.START): (_S.DEGRADED, _A.NONE),
    (_S.DEGRADED, _E.START_FAILED): (_S.REGISTERED, _A.NONE),
    (_S.DEGRADED, _E.STOP): (_S.REGISTERED, _A.DISARM),
    (_S.DEGRADED, _E.SOURCE_FAILED): (_S.DEGRADED, _A.NONE),
    (_S.DEGRADED, _E.SOURCE_BACK): (_S.ARMED, _A.NONE),
    (_S.DEGRADED, _E.SPENT): (_S.DRAINING, _A.DISARM),
    (_S.DEGRADED, _E.SHUTDOWN): (_S.CLOSING, _A.DISARM),
    (_S.DEGRADED, _E.END): (_S.GONE, _A.RELEASE),
    (_S.DRAINING, _E.STOP): (_S.DRAINING, _A.NONE),
    (_S.DRAINING, _E.START_FAILED): (_S.DRAINING, _A.NONE),
    (_S.DRAINING, _E.SOURCE_FAILED): (_S.DRAINING, _A.NONE),
    (_S.DRAINING, _E.SOURCE_BACK): (_S.DRAINING, _A.NONE),
    (_S.DRAINING, _E.SPENT): (_S.DRAINING, _A.NONE),
    (_S.DRAINING, _E.SHUTDOWN): (_S.CLOSING, _A.NONE),
    (_S.DRAINING, _E.END): (_S.GONE, _A.RELEASE),
    (_S.CLOSING, _E.STOP): (_S.CLOSING, _A.NONE),
    (_S.CLOSING, _E.START_FAILED): (_S.CLOSING, _A.NONE),
    (_S.CLOSING, _E.SOURCE_FAILED): (_S.CLOSING, _A.NONE),
    (_S.CLOSING, _E.SOURCE_BACK): (_S.CLOSING, _A.NONE),
    (_S.CLOSING, _E.SPENT): (_S.CLOSING, _A.NONE),
    (_S.CLOSING, _E.SHUTDOWN): (_S.CLOSING, _A.NONE),
    (_S.CLOSING, _E.END): (_S.GONE, _A.RELEASE),
}


class Job:
    """A registration.

    `values` are the parsed parameters, `params` what the client gave (opaque here), `data` is the module's
    own slot. `ruling`: the rule of policy that it was registered under, None for everybody's own rights.
    `state` changes by `turn` only. `resumed`: where it was when the daemon before this one ended, until its
    module has started it again.
    """

    __slots__ = (
        "__weakref__",
        "binding",
        "create_time_ns",
        "data",
        "durable",
        "epoch",
        "gap_told",
        "id",
        "label",
        "last_fire_ns",
        "options",
        "owner",
        "params",
        "reason",
        "resumed",
        "ruling",
        "state",
        "traits",
        "values",
    )

    binding: Binding

    def __init__(
        self,
        job_id: int,
        owner: Principal,
        *,
        traits: Traits,
        values: Mapping[str, object],
        params: object,
        options: Options,
        label: str,
        create_time_ns: int,
    ) -> None:
        self.id = job_id
        self.owner = owner
        self.traits = traits
        self.values = values
        self.params = params
        self.options = options
        self.label = label
        self.create_time_ns = create_time_ns
        self.state = JobState.REGISTERED
        self.reason = ""
        self.data: object = None
        self.durable: Durable | None = None
        self.resumed: Resumed | None = None
        self.ruling: Ruling | None = None
        self.epoch = 1
        self.last_fire_ns = 0
        self.gap_told = False  # since its source failed

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.traits.name} {self.state.name}>"

    @property
    def session(self) -> Session:
        """The session that holds it."""
        return self.binding.session

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Those who are sent its events: the one, or, of a durable job, any number."""
        return (self.binding,) if self.durable is None else tuple(self.durable.readers)

    @property
    def in_flight(self) -> bool:
        """Whether somebody has something of it that is not dealt with."""
        return any(binding.unacked for binding in self.bindings)

    @property
    def stats(self) -> JobStats:
        """What has happened so far."""
        return self.binding.job_stats()

    def turn(self, event: JobEvent) -> Action:
        """Take the step that the table has for `event`; the caller does what it asks for.

        AemError FAILED_PRECONDITION if there is none: the job is about to end.
        """
        step = TABLE.get((self.state, event))
        if step is None:
            raise AemError(
                Code.FAILED_PRECONDITION,
                "JOB_ENDING",
                f"jobs/{self.id}: {event.name.lower()} is not possible, the job is "
                f"{self.state.name.lower()}; register a new one",
                state=self.state.name,
            )
        self.state = step[0]
        return step[1]
