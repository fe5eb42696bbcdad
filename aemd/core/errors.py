"""The one exception that an API caller can meet.

Anything else that is raised is a bug or a broken machine: it is caught only where a session or a source
ends because of it. Which wire code a reason becomes stands in `service/errors.py`, nowhere else.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Canonical codes; google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class AemError(Exception):
    """What an API caller can meet.

    `code` is the canonical code, `reason` the stable UPPER_SNAKE_CASE word for programs, the message
    says what was wrong, the value, the limit and the way out. `details` are facts by name; these names
    have a meaning for the wire: `field` (BadRequest), `subject`, `limit`, `used`, `key` (QuotaFailure;
    `key` is the configuration key that raises it), `retry_ns` (RetryInfo), `feature`
    (PreconditionFailure), `help` (a URL or a manual page).
    """

    def __init__(self, code: Code, reason: str, message: str, **details: object) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = {name: str(value) for name, value in details.items()}


def invalid(field: str, message: str, **details: object) -> AemError:
    """A field of a request has a wrong value."""
    return AemError(Code.INVALID_ARGUMENT, "INVALID_FIELD", f"{field}: {message}", field=field, **details)


def not_found(what: str) -> AemError:
    """There is no such thing, or it is somebody else's: the same answer for both."""
    return AemError(Code.NOT_FOUND, "NOT_FOUND", f"{what}: not found")


def exhausted(subject: str, *, limit: int, used: int, key: str, what: str, way_out: str = "") -> AemError:
    """A quota or limit is used up; `key` names what raises it."""
    message = f"{what}: {subject} has {used} of {limit}; raise {key} or free some"
    return AemError(
        Code.RESOURCE_EXHAUSTED,
        "LIMIT_REACHED",
        f"{message}; {way_out}" if way_out else message,
        subject=subject,
        limit=limit,
        used=used,
        key=key,
    )


def over_quota(
    resource: str, *, uid: int | None, used: int, limit: int, more: int, key: str = ""
) -> AemError:
    """A user has all that it may have of `resource`; `uid` None: the daemon has.

    `key`: what makes a pool larger, where the pool is short and not the user's own quota.
    """
    subject = "the daemon" if uid is None else f"uid {uid}"
    way_out = f"raise {key}" if key else _way_out(resource)
    return AemError(
        Code.RESOURCE_EXHAUSTED,
        "LIMIT_REACHED",
        f"{more} more {resource}: {subject} has {used} of {limit}; free some, or {way_out}",
        subject=subject,
        limit=limit,
        used=used,
        key=key or f"quota.{resource}",
    )


def over_rate(resource: str, *, uid: int, rate: int, more: int, wait_ns: int) -> AemError:
    """A user does something more often than it may; `wait_ns` 0: so much at once is never possible."""
    when = f"try again in {wait_ns / 1e9:.3g} s" if wait_ns else "less of it at once"
    error = AemError(
        Code.RESOURCE_EXHAUSTED,
        "LIMIT_REACHED",
        f"{more} more {resource}: uid {uid} may have {rate} a second; {when}, or {_way_out(resource)}",
        subject=f"uid {uid}",
        limit=rate,
        key=f"quota.{resource}",
    )
    if wait_ns:
        error.details["retry_ns"] = str(wait_ns)
    return error


def _way_out(resource: str) -> str:
    return f"raise {resource} in a [[quota]] of the policy (/etc/aemd/policy.d/*.toml)"
