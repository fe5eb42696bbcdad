"""What a registration may say: a job's options, and its module's parameters as values of the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from aem.v1 import job_pb2

__all__ = ["Acknowledgement", "Options", "Overflow", "Param", "Scalar"]

Scalar: TypeAlias = "str | int | float | bool | bytes"
Param: TypeAlias = "Scalar | Sequence[Scalar]"


class Overflow(Enum):
    """What happens when a job's queue is full. Every loss becomes a Gap."""

    DROP_OLDEST = "drop-oldest"
    DROP_NEWEST = "drop-newest"
    LATEST = "latest"
    PAUSE_SOURCE = "pause-source"


class Acknowledgement(Enum):
    """How the client says that it has dealt with events.

    CUMULATIVE: one frame covers everything up to a number. EXPLICIT: each event is answered; modules whose
    handlers reply need it. NONE: forgotten when sent, at most once.
    """

    CUMULATIVE = "cumulative"
    EXPLICIT = "explicit"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Options:
    """How a job behaves, whatever its module. What is left out is the daemon's default.

    `one_shot`: the job ends when its first event has been handled. `priority`: 0 to 7, 7 first; 3 if not
    said. `queue_depth`, `queue_bytes`: how many events may wait or be in flight. `ack_timeout_ns`: deliver
    again what was not answered for so long. `attempts_max`: park an event after so many deliveries.
    `lease_ns`: how long the job waits for its client after a lost connection. `credit_events` and
    `credit_bytes`: how much the daemon may send ahead of the handlers; what waits here is bounded by it.

    >>> Options(one_shot=True, priority=7).message().priority
    7
    """

    one_shot: bool = False
    priority: int | None = None
    queue_depth: int = 0
    queue_bytes: int = 0
    overflow: Overflow | None = None
    acknowledgement: Acknowledgement | None = None
    ack_timeout_ns: int = 0
    attempts_max: int = 0
    lease_ns: int = 0
    credit_events: int = 4_096
    credit_bytes: int = 512 * 1024

    def message(self) -> job_pb2.Options:
        """The options as they go over the wire; raises ValueError for a number that cannot."""
        return job_pb2.Options(
            one_shot=self.one_shot,
            priority=self.priority,
            queue_depth=self.queue_depth,
            queue_bytes=self.queue_bytes,
            overflow=_OVERFLOW[self.overflow],
            acknowledgement=_ACKNOWLEDGEMENT[self.acknowledgement],
            ack_timeout_ns=self.ack_timeout_ns,
            attempts_max=self.attempts_max,
            lease_ns=self.lease_ns,
        )


_OVERFLOW = {
    None: job_pb2.OVERFLOW_UNSPECIFIED,
    Overflow.DROP_OLDEST: job_pb2.OVERFLOW_DROP_OLDEST,
    Overflow.DROP_NEWEST: job_pb2.OVERFLOW_DROP_NEWEST,
    Overflow.LATEST: job_pb2.OVERFLOW_LATEST,
    Overflow.PAUSE_SOURCE: job_pb2.OVERFLOW_PAUSE_SOURCE,
}
_ACKNOWLEDGEMENT = {
    None: job_pb2.ACKNOWLEDGEMENT_UNSPECIFIED,
    Acknowledgement.CUMULATIVE: job_pb2.ACKNOWLEDGEMENT_CUMULATIVE,
    Acknowledgement.EXPLICIT: job_pb2.ACKNOWLEDGEMENT_EXPLICIT,
    Acknowledgement.NONE: job_pb2.ACKNOWLEDGEMENT_NONE,
}


def values_of(params: Mapping[str, Param]) -> dict[str, job_pb2.Value]:
    """Parameters as the wire has them; raises TypeError, naming the parameter, for any other type."""
    return {name: _value(name, value) for name, value in params.items()}


def _value(name: str, value: Param) -> job_pb2.Value:
    if isinstance(value, str | bool | int | float | bytes):
        return _scalar(name, value)
    if isinstance(value, Sequence):
        items = [_scalar(name, item) for item in value]
        return job_pb2.Value(list=job_pb2.ValueList(values=items))
    raise TypeError(
        f"parameter {name}: {type(value).__name__} is neither text, number, truth, bytes nor list"
    )


def _scalar(name: str, value: Scalar) -> job_pb2.Value:
    match value:
        case bool():
            return job_pb2.Value(truth=value)
        case int():
            if not -(1 << 63) <= value < 1 << 63:
                raise TypeError(f"parameter {name}: {value} has more than 64 bits; give it as text")
            return job_pb2.Value(integer=value)
        case float():
            return job_pb2.Value(number=value)
        case str():
            return job_pb2.Value(text=value)
        case bytes():
            return job_pb2.Value(data=value)
        case _:
            raise TypeError(f"parameter {name}: a list holds text, numbers, truths or bytes")
