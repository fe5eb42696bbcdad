"""What can go wrong, as exceptions; and what a handler may raise or return to answer an event.

`AemError` is everything that the daemon refuses: `code` is the canonical code, `reason` the stable word for
programs, the message is for a person. `ConnectionLost` is its own class, because a program treats it
differently: nothing was refused, there is nobody there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

import grpc

from aem.history import Cursor
from aem.v1 import status_pb2

__all__ = ["AemError", "Code", "ConnectionLost", "OutOfRange", "Park", "Reply", "Retry"]

ERROR_INFO = "/google.rpc.ErrorInfo"
DETAILS_KEY = "grpc-status-details-bin"


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
    """The daemon refused a request.

    >>> error = AemError(Code.NOT_FOUND, "NOT_FOUND", "jobs/7: not found")
    >>> error.code.name, error.reason, str(error)
    ('NOT_FOUND', 'NOT_FOUND', 'jobs/7: not found')
    """

    def __init__(
        self, code: Code, reason: str, message: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[type[AemError], tuple[Code, str, str, dict[str, str]]]:
        return (type(self), (self.code, self.reason, self.message, self.metadata))


class ConnectionLost(AemError):  # noqa: N818 - the name says what happened
    """There is no daemon, or the connection to it broke before the answer came."""


class OutOfRange(AemError):  # noqa: N818 - the name says what happened
    """A position that a durable job's history does not have: it was trimmed, or never was.

    `oldest`: where what is kept begins; bind with start_from=error.oldest to read all of it. `head`: its end.

    >>> facts = {"oldest": "1:90", "head": "1:100"}
    >>> error = OutOfRange(Code.OUT_OF_RANGE, "CURSOR_EXPIRED", "nothing behind 1:7", facts)
    >>> error.oldest, str(error.head)
    (Cursor(epoch=1, seq=90), '1:100')
    """

    @property
    def oldest(self) -> Cursor:
        """Behind this position something is kept."""
        return Cursor.parse(self.metadata["oldest"])

    @property
    def head(self) -> Cursor:
        """Behind this position there is nothing yet."""
        return Cursor.parse(self.metadata["head"])


class Reply:
    """What a handler wants done with the connection that its event came from.

    `operation` is one of the module's operations (`aemctl show-module socket` lists them), `data` its bytes.
    Returning plain bytes is the same as `Reply("write", data)`.

    >>> Reply("write-close", b"bye")
    Reply('write-close', b'bye')
    """

    __slots__ = ("data", "operation")

    def __init__(self, operation: str, data: bytes | str = b"") -> None:
        self.operation = operation
        self.data = data.encode() if isinstance(data, str) else bytes(data)

    def __repr__(self) -> str:
        return f"Reply({self.operation!r}, {self.data!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and (self.operation, self.data) == (other.operation, other.data)

    def __hash__(self) -> int:
        return hash((self.operation, self.data))


class Retry(Exception):  # noqa: N818 - an instruction, not an error
    """Raised by a handler: deliver this event again, after `delay` seconds."""

    def __init__(self, delay: float = 0.0, reason: str = "") -> None:
        super().__init__(delay, reason)
        self.delay = delay
        self.reason = reason


class Park(Exception):  # noqa: N818 - an instruction, not an error
    """Raised by a handler: put this event aside, never deliver it again."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def from_status(status: status_pb2.Status) -> AemError:
    """The exception for a Status that is not OK."""
    info = status_pb2.ErrorInfo()
    for detail in status.details:
        if detail.type_url.endswith(ERROR_INFO):
            info.ParseFromString(detail.value)  # declared with the numbers of google.rpc.ErrorInfo
            break
    return _make(status.code, info.reason, status.message, info.metadata)


def from_rpc(error: grpc.RpcError) -> AemError:
    """The exception for a failed call or stream of grpc."""
    code = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)() or grpc.StatusCode.UNKNOWN
    number: int = code.value[0]
    trailers: Iterable[tuple[str, str | bytes]] = getattr(error, "trailing_metadata", tuple)() or ()
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status()
            status.ParseFromString(value)
            if status.code == number:
                return from_status(status)
    return _make(number, "", getattr(error, "details", str)() or code.name, {})


def _make(code: int, reason: str, message: str, metadata: Mapping[str, str]) -> AemError:
    known = Code(code) if code in Code._value2member_map_ else Code.UNKNOWN
    kind = ConnectionLost if known is Code.UNAVAILABLE else AemError
    if known is Code.OUT_OF_RANGE and metadata.keys() >= {"oldest", "head"}:
        kind = OutOfRange
    return kind(known, reason or known.name, message or known.name, metadata)
