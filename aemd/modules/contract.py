"""The contract between the daemon and an event module.

A module is a class with a `Description` and a handful of methods; the daemon makes one object of it, hands
it a `Host`, and from then on calls it only from the core's one thread. Life of a job, as the module sees it:

    needs(job)             what must be done as the caller before open(), and before a later start()
    open(job)              check the parameters, acquire what is needed, keep it in job.data; inert
    start(job)             fire from now on
    stop(job)              do not fire; start may follow
    operate(job, ...)      a handler's reply, or an Op
    pause(job)/resume(job) the job's queue is full / has room again (OVERFLOW_PAUSE_SOURCE only)
    close(job)             give everything back; never called twice, also called when armed

`needs`, `open`, `start` and `operate` may raise AemError; the job or the request is refused with it and
nothing else happens. After `open` raised, `close` is not called, so `open` must give back what it had
taken.

A module opens no path itself (`need.py`): it states its needs, and finds in open() what was given for them,
host.given(). In between other work goes on; a need that is refused refuses the job, and nothing is called.
What may become forbidden while the job runs is asked again when it counts: host.ask(), and needs() before a
start.

Fire with the event already encoded (`encode`): once, whoever receives it. To fire from inside open() is not
allowed; from start() it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from aemd.core.accounts import Charge
from aemd.core.errors import AemError, Code
from aemd.core.history import Resumed
from aemd.core.limits import Limits
from aemd.core.policy import Ruling
from aemd.core.principal import Principal
from aemd.core.right import Act
from aemd.modules.left import Left
from aemd.modules.need import Errand, Given, Need, OpenPath
from aemd.sources.bound import Bound
from aemd.sources.reactor import Reactor
from aemd.v1 import event_pb2, session_pb2
from aemd.v1 import module_pb2 as pb

Kind = pb.ParameterKind


@dataclass(frozen=True, slots=True)
class Address:
    """A socket address. `family`: tcp, udp, unix, unix-dgram, unix-seqpacket; `path` with a leading NUL is
    an abstract name.
    """

    family: str
    host: str = ""
    port: int = 0
    path: bytes = b""

    def __str__(self) -> str:
        if self.path:
            shown = self.path.decode("utf-8", "backslashreplace")
            return f"{self.family}:{'@' + shown[1:] if shown.startswith(chr(0)) else shown}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.family}:{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; see ParameterKind in module.proto for the texts that each kind takes.

    `minimum` and `maximum` bound a number, or the length in bytes of text and bytes.
    """

    name: str
    kind: pb.ParameterKind.ValueType
    description: str
    required: bool = False
    default: str = ""
    choices: tuple[str, ...] = ()
    repeated: bool = False
    minimum: int | None = None
    maximum: int | None = None
    example: str = ""


class Delivery(Enum):
    """How events meet a handler that is still busy."""

    QUEUE = "queue"
    COALESCE = "coalesce"


@dataclass(frozen=True, slots=True)
class Description:
    """What a module is. `replies`: its handlers answer, so acknowledgement is explicit by default.
    `pausable`: its sources belong to one job each, so OVERFLOW_PAUSE_SOURCE is allowed, and the default
    where `pause_by_default`.
    """

    name: str
    summary: str
    description: str
    delivery: Delivery
    parameters: tuple[Parameter, ...]
    events: Mapping[str, str]
    operations: Mapping[str, tuple[str, bool]] = field(default_factory=dict)  # name -> (text, takes data)
    keyed: bool = False
    replies: bool = False
    pausable: bool = False
    pause_by_default: bool = False
    payload_message: str = ""
    examples: tuple[str, ...] = ()


class Job(Protocol):
    """A job, as far as a module may know it: `core.job.Job` is one.

    `data` is the module's own slot. `values` are the parsed parameters, defaults filled in; a parameter
    without value and default is absent. `ruling` is what policy said to its registration, for Host.right.
    `resumed`: in open() and start() of a job that a daemon before this one had, where it was; what came due
    meanwhile is for start() to fire, once, with its count.
    """

    id: int
    owner: Principal
    values: Mapping[str, object]
    label: str
    data: object
    resumed: Resumed | None
    ruling: Ruling | None


class Host(Protocol):
    """What the daemon does for a module."""

    reactor: Reactor
    limits: Limits

    def right(self, principal: Principal, act: Act, ruling: Ruling | None = None) -> None:
        """Return if allowed, else raise AemError. `ruling` is that of the job for which it is done; without
        it the principal has its own rights and no more.
        """

    def charge(self, job: Job, descriptors: int, *, sources: int = 0) -> None:
        """Reserve so many descriptors before they are opened, and `sources`, live kernel objects that feed
        jobs (a listener, a pidfd), before they are made; raises AemError if there are too few.
        """

    def given(self, job: Job) -> Sequence[Given]:
        """What came out of needs(job), in that order; the module's from now on, to be closed by it. In open()
        and start() only.
        """

    def ask(self, job: Job, need: Errand, answered: Callable[[Given | AemError], None]) -> None:
        """Have one thing more done as the owner of `job`, with the rights that he has now; `answered` is told
        in a later turn, unless the job has ended by then.
        """

    def refund(self, job: Job, descriptors: int, *, sources: int = 0) -> None:
        """Give back what charge() took. What a job still holds is refunded after close()."""

    def hold(self, job: Job, resource: str, count: int = 1) -> Charge:
        """Charge `count` of a quota's resource (core/quota.py) to the user of `job`; whatever needs it keeps
        the Charge and refunds it. Raises AemError if there is too little.
        """

    def left(self, job: Job) -> Left | None:
        """What the service manager has kept of `job` since the daemon before this one; open() closes what it
        does not use. In needs() and open() only.
        """

    def keep(self, job: Job, bound: Bound) -> None:
        """Have the service manager keep the address of `job`, with what waits there, for the next daemon, if
        it has room; until the job is closed.
        """

    def vacating(self, place: str) -> bool:
        """Whether a job that is closed had kept what occupied `place` (sources/bound.py), and the service
        manager may still have it open: nobody can bind it yet. Need Vacancy waits for that.
        """

    def fire(self, job: Job, event: bytes, *, key: bytes = b"", count: int = 1) -> None:
        """A stimulus hit `job`: `event` is what encode() gave, `count` how many stimuli it stands for.
        Ignored unless the job is armed.
        """

    def fire_many(self, job: Job, events: Sequence[bytes], *, key: bytes = b"") -> None:
        """Stimuli hit `job` one after the other: fire() for each of `events`, at the cost of few calls."""

    def may_read(self, job: Job) -> bool:
        """Whether `job` takes one event more for now, of limits.event_data_bytes at most. False comes only
        where pause(job) is due, and resume(job) will follow: a module that asks before it reads, and does not
        wait to be told, loses nothing.
        """

    def spare(self, job: Job, largest: int = 0) -> int:
        """As may_read(): how many events, of at most `largest` bytes if that is more."""

    def afford(self, principal: Principal, events: int) -> None:
        """Return if so many events may fire now for jobs of the user of `principal`, whose request that is,
        else raise AemError: a request that is refused as a whole loses nothing.
        """

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
        """Events of `job` were lost before they could fire; `count` 0 if nobody knows how many."""

    def room(self, job: Job, key: bytes, size: int) -> None:
        """The client may write `size` more bytes to `key`."""

    def fail(self, job: Job, reason: str) -> None:
        """The job's source failed: it is DEGRADED until restore()."""

    def restore(self, job: Job) -> None:
        """The source is back."""

    def exhaust(self, job: Job, reason: str) -> None:
        """Nothing more can come: the job ends once everything fired so far is dealt with."""


class Module(Protocol):
    """An event module. Loaded by calling the entry point's object with the Host."""

    description: Description

    def acts(self, principal: Principal, values: Mapping[str, object]) -> Sequence[Act]:
        """What a job of `principal` with these values would do that right() has a say in. Nothing is
        acquired. AemError where open() would raise it for want of what the values name.
        """

    def opens(self, values: Mapping[str, object]) -> Sequence[OpenPath]:
        """The paths that a job with these values needs as its caller, so that somebody who only asks can be
        told; needs() is what a job really needs.
        """

    def needs(self, job: Job, *, opening: bool, starting: bool) -> Sequence[Need]:
        """What must be done as the caller before open(job), start(job), or both; nothing else is done then
        but what they would refuse refused, and what is to be opened charged. What this charged is given back
        by the daemon if open() is never called. Only asked where a module has it.
        """

    def open(self, job: Job) -> None:
        """Check job.values, acquire what is needed, set job.data. The job stays inert."""

    def start(self, job: Job) -> None:
        """Fire from now on."""

    def stop(self, job: Job) -> None:
        """Do not fire until start()."""

    def close(self, job: Job) -> None:
        """Give everything back."""

    def operate(self, job: Job, key: bytes, name: str, data: bytes) -> None:
        """Do what a handler wants: `name` is one of description.operations."""

    def pause(self, job: Job) -> None:
        """Read no more: the job's queue is full."""

    def resume(self, job: Job) -> None:
        """Read again."""

    def sync(self, job: Job, done: Callable[[], None]) -> None:
        """Call `done()` once everything that the kernel had queued for `job` before now has been fired."""

    def busy(self, job: Job) -> bool:
        """Whether what handlers have answered is still on its way. A daemon that ends in order waits for
        it, for a bounded time.
        """

    def details(self, job: Job) -> dict[str, str]:
        """The job for people: addresses, next expiration, connections."""

    def memento(self, job: Job) -> bytes | None:
        """The daemon ends, and another will begin: what that one's open() and start() need in job.resumed to
        go on without missing anything. None: they cannot, and the job gets a gap of unknown size. The job
        may have been stopped for the end. Only asked where a module has it.
        """

    def anchor(self, job: Job) -> bytes | None:
        """What stays true of the job as long as it is open: a memento of that alone. After a daemon that was
        killed the next one's open() finds it in job.resumed; what happened to the job meanwhile is in no
        memento then, and the job has got a gap. Only asked where a module has it.
        """

    def descriptors(self, job: Job) -> Mapping[int, int]:
        """What of the job, besides what Host.keep() was told, the service manager may keep for the next
        daemon: descriptors by numbers of the module's own. Asked, with leave(), at an orderly end, and only
        where a module has it.
        """

    def leave(self, job: Job, *, bound: bool, kept: Collection[int]) -> None:
        """The daemon ends, and so much of the job is kept for the next one. Do nothing with that any more but
        close it: memento() and close() follow.
        """

    def shutdown(self) -> None:
        """The module is unloaded, or the daemon ends; all its jobs are closed already."""


class Basic:
    """What a module need not write itself: no operations, no pausing, nothing to wait for or to clean up."""

    description: Description

    def acts(self, principal: Principal, values: Mapping[str, object]) -> Sequence[Act]:  # noqa: ARG002
        """Nothing that needs a right."""
        return ()

    def opens(self, values: Mapping[str, object]) -> Sequence[OpenPath]:  # noqa: ARG002
        """No paths."""
        return ()

    def needs(self, job: Job, *, opening: bool, starting: bool) -> Sequence[Need]:  # noqa: ARG002
        """Nothing."""
        return ()

    def operate(self, job: Job, key: bytes, name: str, data: bytes) -> None:  # noqa: ARG002
        """Refuse: the module describes no operations."""
        raise AemError(
            Code.INVALID_ARGUMENT,
            "OPERATION_UNKNOWN",
            f"module {self.description.name} takes no operations, and {name[:64]!r} is none of them",
        )

    def pause(self, job: Job) -> None:
        """Nothing to do: only what is pausable is paused."""

    def resume(self, job: Job) -> None:
        """Nothing to do."""

    def sync(self, job: Job, done: Callable[[], None]) -> None:  # noqa: ARG002
        """Nothing waits in the kernel."""
        done()

    def busy(self, job: Job) -> bool:  # noqa: ARG002
        """Nothing is on its way: what is answered is done."""
        return False

    def memento(self, job: Job) -> bytes | None:  # noqa: ARG002
        """What happens while no daemon is there is missed."""
        return None

    def shutdown(self) -> None:
        """Nothing outlives the jobs."""


def encode(event: event_pb2.Event) -> bytes:
    """The bytes of an event, as fire() takes them."""
    return event.SerializeToString()
