"""How a job behaves, whatever its module: the client's Options, checked and with the defaults filled in.

Equal options are one object, so that a million equal jobs hold them once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from aemd.core.errors import invalid
from aemd.core.limits import PRIORITIES, PRIORITY_DEFAULT, Limits
from aemd.core.traits import Traits
from aemd.v1 import job_pb2

DROP_OLDEST = job_pb2.OVERFLOW_DROP_OLDEST
DROP_NEWEST = job_pb2.OVERFLOW_DROP_NEWEST
LATEST = job_pb2.OVERFLOW_LATEST
PAUSE_SOURCE = job_pb2.OVERFLOW_PAUSE_SOURCE
CUMULATIVE = job_pb2.ACKNOWLEDGEMENT_CUMULATIVE
EXPLICIT = job_pb2.ACKNOWLEDGEMENT_EXPLICIT
NONE = job_pb2.ACKNOWLEDGEMENT_NONE

CACHE_MAX = 4_096  # option sets remembered; a real program has a handful


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a job. `coalesce` is the module's, kept here because it is needed with the rest."""

    one_shot: bool
    priority: int
    queue_depth: int
    queue_bytes: int
    overflow: job_pb2.Overflow.ValueType
    acknowledgement: job_pb2.Acknowledgement.ValueType
    ack_timeout_ns: int
    attempts_max: int
    lease_ns: int
    coalesce: bool

    def to_pb(self) -> job_pb2.Options:
        """As the wire says it, defaults filled in."""
        return job_pb2.Options(
            one_shot=self.one_shot,
            priority=self.priority,
            queue_depth=self.queue_depth,
            queue_bytes=self.queue_bytes,
            overflow=self.overflow,
            acknowledgement=self.acknowledgement,
            ack_timeout_ns=self.ack_timeout_ns,
            attempts_max=self.attempts_max,
            lease_ns=self.lease_ns,
        )


class OptionsParser:
    """Parses Options against the limits of one daemon, each distinct set once."""

    __slots__ = ("_limits", "_parsed")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parsed: dict[tuple[bytes, Traits], Options] = {}

    def parse(self, options: job_pb2.Options, traits: Traits) -> Options:
        """The options of a job of module `traits`; raises AemError with the field, its value and limit.

        Fields that this daemon does not know are taken out of `options`: they may be as long as a message,
        and the key that they would become part of is kept.
        """
        options.DiscardUnknownFields()
        key = (options.SerializeToString(deterministic=True), traits)
        parsed = self._parsed.get(key)
        if parsed is None:
            parsed = parse_options(options, traits, self._limits)
            self._remember(key, parsed)
        return parsed

    def forget(self) -> None:
        """The limits have changed: what was parsed before has the defaults of then."""
        self._parsed.clear()

    def with_priority(self, options: Options, priority: int, traits: Traits) -> Options:
        """The same options with another priority; AemError if there is no such priority."""
        changed = replace(options, priority=_priority(priority, "priority"))
        key = (changed.to_pb().SerializeToString(deterministic=True), traits)
        known = self._parsed.get(key)
        if known == changed:
            return known
        self._remember(key, changed)
        return changed

    def _remember(self, key: tuple[bytes, Traits], parsed: Options) -> None:
        if len(self._parsed) >= CACHE_MAX:
            self._parsed.clear()
        self._parsed[key] = parsed


def parse_options(options: job_pb2.Options, traits: Traits, limits: Limits) -> Options:
    """Check `options` and fill in the defaults; zero always means the default. Raises AemError."""
    acknowledgement = _acknowledgement(options, traits)
    return Options(
        one_shot=options.one_shot,
        priority=_priority(options.priority, "options.priority")
        if options.HasField("priority")
        else PRIORITY_DEFAULT,
        queue_depth=_bounded("queue_depth", options.queue_depth, limits.queue_depth, limits.queue_depth_max),
        queue_bytes=_bounded("queue_bytes", options.queue_bytes, limits.queue_bytes, limits.queue_bytes_max),
        overflow=_overflow(options, traits),
        acknowledgement=acknowledgement,
        ack_timeout_ns=_ack_timeout(options, acknowledgement, limits),
        attempts_max=options.attempts_max,
        lease_ns=_bounded("lease_ns", options.lease_ns, limits.lease_ns, limits.lease_max_ns),
        coalesce=traits.coalesce,
    )


def _bounded(name: str, value: int, default: int, maximum: int) -> int:
    if not 0 <= value <= maximum:
        raise invalid(f"options.{name}", f"is {value}, must be 1 to {maximum}", value=value, limit=maximum)
    return value or default


def _priority(value: int, field: str) -> int:
    if not 0 <= value < PRIORITIES:
        raise invalid(field, f"is {value}, must be 0 to {PRIORITIES - 1}", value=value, limit=PRIORITIES - 1)
    return value


def _overflow(options: job_pb2.Options, traits: Traits) -> job_pb2.Overflow.ValueType:
    overflow = options.overflow
    if overflow == job_pb2.OVERFLOW_UNSPECIFIED:
        return PAUSE_SOURCE if traits.pausable and traits.pause_by_default else DROP_OLDEST
    if overflow not in job_pb2.Overflow.values():
        raise invalid("options.overflow", f"is {overflow}, which is no overflow policy", value=overflow)
    if overflow == PAUSE_SOURCE and not traits.pausable:
        raise invalid(
            "options.overflow",
            f"OVERFLOW_PAUSE_SOURCE is not possible with module {traits.name}, whose sources are shared; "
            "take DROP_OLDEST, DROP_NEWEST or LATEST",
            value="OVERFLOW_PAUSE_SOURCE",
        )
    return overflow


def _acknowledgement(options: job_pb2.Options, traits: Traits) -> job_pb2.Acknowledgement.ValueType:
    acknowledgement = options.acknowledgement
    if acknowledgement == job_pb2.ACKNOWLEDGEMENT_UNSPECIFIED:
        return EXPLICIT if traits.replies else CUMULATIVE
    if acknowledgement not in job_pb2.Acknowledgement.values():
        raise invalid(
            "options.acknowledgement",
            f"is {acknowledgement}, which is no way to acknowledge",
            value=acknowledgement,
        )
    if traits.replies and acknowledgement != EXPLICIT:
        raise invalid(
            "options.acknowledgement",
            f"must be ACKNOWLEDGEMENT_EXPLICIT with module {traits.name}, whose handlers reply",
            value=job_pb2.Acknowledgement.Name(acknowledgement),
        )
    return acknowledgement


def _ack_timeout(
    options: job_pb2.Options, acknowledgement: job_pb2.Acknowledgement.ValueType, limits: Limits
) -> int:
    timeout_ns = options.ack_timeout_ns
    least_ns = limits.ack_timeout_min_ns
    if timeout_ns and timeout_ns < least_ns:
        raise invalid(
            "options.ack_timeout_ns",
            f"is {timeout_ns}, must be 0 or at least {least_ns}",
            value=timeout_ns,
            limit=least_ns,
        )
    if timeout_ns and acknowledgement == NONE:
        raise invalid(
            "options.ack_timeout_ns",
            "has no meaning with ACKNOWLEDGEMENT_NONE; leave it 0",
            value=timeout_ns,
        )
    return timeout_ns
