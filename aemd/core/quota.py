"""What one user may have, by name: value, unit, reason.

A user is a uid, whatever namespaces its processes are in. Each field is a resource, and its name is the key
under which `[[quota]]` of the policy sets it and under which a refusal names it. Rates end in `_per_second`;
they may be exceeded for a moment, by what a second and a half would bring.

Where many users share a pool (descriptors, bytes of queues), none of them gets more than half of what the
others have left, whatever stands here, so that a newcomer always finds something; dbus-broker divides its
pools in the same spirit (util/user.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from aemd.core.principal import Principal

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Quota:
    """What one user may have at once, or in a second."""

    sessions: int = 2_048
    connections: int = 8_192
    jobs: int = 2_200_000  # AEM showed two million
    channels: int = 65_536  # names of module user that somebody listens to
    sources: int = 65_536  # live kernel objects: listeners, pidfds
    descriptors: int = 16_384  # of the daemon's table, which RLIMIT_NOFILE bounds
    queue_bytes: int = 512 * MIB  # events that wait or are in flight, of all jobs together
    history_bytes: int = 256 * MIB  # events kept after their delivery
    children: int = 16  # processes that the daemon runs for the user at the same time
    events_per_second: int = 1_000_000  # stimuli of all jobs together; the loop does no more either
    registrations_per_second: int = 200_000
    connections_per_second: int = 500  # taken, each costs the core 0.15 ms; turned away, a twentieth of that
    frames_per_second: int = 200_000  # of all sessions together
    bytes_per_second: int = 512 * MIB  # that the daemon reads from clients


RESOURCES = tuple(field.name for field in fields(Quota))


class Quotas(Protocol):
    """Who may have how much; what policy says may change while the daemon runs, so it is asked again."""

    def quota(self, principal: Principal) -> tuple[Quota, Mapping[str, str]]:
        """What `principal` may have, and by resource the name of the quota that says so; a resource that is
        not in it has its default.
        """


class DefaultQuotas:
    """Everybody has the same."""

    __slots__ = ("_answer",)

    def __init__(self, quota: Quota | None = None) -> None:
        self._answer: tuple[Quota, Mapping[str, str]] = (quota or Quota(), {})

    def quota(self, principal: Principal) -> tuple[Quota, Mapping[str, str]]:  # noqa: ARG002
        """The defaults."""
        return self._answer
