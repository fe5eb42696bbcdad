"""The one map from what goes wrong to what stands on the wire.

An `AemError` becomes a canonical code, its message, and the bytes of a google.rpc.Status: ErrorInfo first,
then what its details ask for by their names (`core/errors.py`). The same bytes serve the Result frame of a
Session and, as grpc-status-details-bin, the trailers of a unary call.

Everything else that is raised is a bug or a broken machine. It becomes INTERNAL with a fixed text: what it
says may name another user's file, so it goes to the log and not to the client.
"""

from __future__ import annotations

from typing import Protocol

from google.protobuf import any_pb2
from google.rpc import error_details_pb2

from aemd.core.errors import AemError, Code
from aemd.v1 import session_pb2, status_pb2

DOMAIN = "aemd"
MESSAGE_BYTES_MAX = 1_024  # it travels up to three times in the trailers, and peers cap those at 8 KiB


class _Detail(Protocol):
    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Encode it."""


def internal() -> AemError:
    """What a client is told of a fault that is not its own."""
    return AemError(Code.INTERNAL, "INTERNAL", "the daemon met a fault; its log says more")


def status_of(error: AemError) -> status_pb2.Status:
    """The Status of `error`, its details in the order in which the API promises them."""
    message = _cut(error.message)
    return status_pb2.Status(code=int(error.code), message=message, details=_details(error, message))


def _cut(message: str) -> str:
    """As much of it as there is room for: bytes count, not characters."""
    encoded = message.encode("utf-8", "replace")
    if len(encoded) <= MESSAGE_BYTES_MAX:
        return message
    return encoded[: MESSAGE_BYTES_MAX - len("…".encode())].decode("utf-8", "ignore") + "…"


def result(request_id: int, error: AemError | None = None) -> bytes:
    """An encoded ServerFrame that answers `request_id`: with success, or with `error`."""
    frame = session_pb2.ServerFrame(request_id=request_id)
    status = frame.result.status
    if error is None:
        status.SetInParent()
    else:
        status.CopyFrom(status_of(error))
    return frame.SerializeToString()


def _details(error: AemError, message: str) -> list[any_pb2.Any]:
    facts = error.details
    packed = [
        _pack(
            "ErrorInfo",
            error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts),
        )
    ]
    if "field" in facts:
        violation = error_details_pb2.BadRequest.FieldViolation(field=facts["field"], description=message)
        packed.append(_pack("BadRequest", error_details_pb2.BadRequest(field_violations=[violation])))
    if error.code is Code.RESOURCE_EXHAUSTED:
        quota = error_details_pb2.QuotaFailure.Violation(
            subject=facts.get("subject", ""), description=message
        )
        packed.append(_pack("QuotaFailure", error_details_pb2.QuotaFailure(violations=[quota])))
    if "retry_ns" in facts:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(facts["retry_ns"]))
        packed.append(_pack("RetryInfo", retry))
    if "feature" in facts:
        lack = error_details_pb2.PreconditionFailure.Violation(
            type="KERNEL_FEATURE", subject=facts["feature"], description=message
        )
        packed.append(_pack("PreconditionFailure", error_details_pb2.PreconditionFailure(violations=[lack])))
    if "help" in facts:
        link = error_details_pb2.Help.Link(description=error.reason, url=facts["help"])
        packed.append(_pack("Help", error_details_pb2.Help(links=[link])))
    return packed


def _pack(name: str, detail: _Detail) -> any_pb2.Any:
    return any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{name}", value=detail.SerializeToString())
