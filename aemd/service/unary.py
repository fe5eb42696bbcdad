"""Unary calls: from a method's path to a function, and its answer back.

A call reaches the core as OPEN, one DATA, END. The functions stand in `jobs.py`, `modules.py` and
`admin.py`; each takes the caller and the decoded request, and returns the response or raises AemError.
Nothing here waits: an answer exists when the function returns, or it is `Later`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from aemd.core.errors import AemError, Code, invalid
from aemd.core.principal import Principal
from aemd.peer.stream import Stream
from aemd.service import errors, log

_Request = TypeVar("_Request", bound=Message)
PAGE_SIZE = 100
PAGE_SIZE_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Method:
    """One unary method: what its request is, and who answers it."""

    request: type[Message]
    answer: Callable[[Principal, Any], Message | Later]


class Later:
    """An answer that does not exist yet: given once, and passed on once somebody waits for it."""

    __slots__ = ("_result", "_waiter")

    def __init__(self) -> None:
        self._result: Message | AemError | None = None
        self._waiter: Callable[[Message | AemError], None] | None = None

    def give(self, result: Message | AemError) -> None:
        """Here it is."""
        self._result = result
        if self._waiter is not None:
            self._waiter(result)

    def then(self, waiter: Callable[[Message | AemError], None]) -> None:
        """Pass it on to `waiter`."""
        self._waiter = waiter
        if self._result is not None:
            waiter(self._result)


class Service(Protocol):
    """A gRPC service."""

    def methods(self) -> Mapping[str, Method]:
        """Its methods by path, `/aem.v1.JobService/GetJob`."""


def method(request: type[_Request], answer: Callable[[Principal, _Request], Message | Later]) -> Method:
    """Tie a function to the class of its request."""
    return Method(request, answer)


class UnaryCall:
    """One unary call: a StreamHandler that answers when the client has said everything.

    `run(size_bytes, work)` does the work of a request of that size now or later.
    """

    def __init__(
        self, stream: Stream, called: Method, *, run: Callable[[int, Callable[[], None]], None]
    ) -> None:
        self._stream = stream
        self._method = called
        self._run = run
        self._message: bytes | None = None
        self._ended = False

    def data(self, message: bytes) -> None:
        """Take the request."""
        self._stream.consumed(len(message))
        if self._message is not None:
            self._refuse(AemError(Code.INVALID_ARGUMENT, "MALFORMED", "a unary call has one request"))
            return
        self._message = message

    def half_closed(self) -> None:
        """Answer it."""
        self._run(len(self._message or b""), self._reply)

    def _reply(self) -> None:
        if self._ended:
            return
        try:
            response = self._answer()
        except AemError as error:
            self._refuse(error)
            return
        except Exception:
            log.get().exception("unary call failed", **{log.METHOD: self._stream.method})
            self._refuse(errors.internal())
            return
        if isinstance(response, Later):
            response.then(self._send)
        else:
            self._send(response)

    def _send(self, response: Message | AemError) -> None:
        if isinstance(response, AemError):
            self._refuse(response)
        elif not self._ended:
            self._ended = True
            self._stream.send(response.SerializeToString())
            self._stream.end(Code.OK)

    def closed(self, reason: str) -> None:
        """The client went away; there is nobody to answer."""
        self._ended = True
        log.get().debug("unary call lost", **{log.METHOD: self._stream.method, log.REASON: reason})

    def writable(self) -> None:
        """Nothing waits for room: there is one answer, and it has left."""

    def _answer(self) -> Message | Later:
        request = self._method.request()
        try:
            request.ParseFromString(self._message or b"")
        except DecodeError:
            raise AemError(
                Code.INVALID_ARGUMENT, "MALFORMED", f"the request is no {request.DESCRIPTOR.full_name}"
            ) from None
        return self._method.answer(self._stream.principal, request)

    def _refuse(self, error: AemError) -> None:
        if self._ended:
            return
        self._ended = True
        status = errors.status_of(error)
        self._stream.end(error.code, status.message, status.SerializeToString())


class Unimplemented:
    """A call of a method that does not exist: refused at once, whatever comes behind."""

    def __init__(self, stream: Stream) -> None:
        error = AemError(
            Code.UNIMPLEMENTED,
            "NO_SUCH_METHOD",
            f"{stream.method}: there is no such method",
            method=stream.method,
        )
        status = errors.status_of(error)
        self._stream = stream
        stream.end(error.code, status.message, status.SerializeToString())

    def data(self, message: bytes) -> None:
        """Drop it."""
        self._stream.consumed(len(message))

    def half_closed(self) -> None:
        """It is answered already."""

    def closed(self, reason: str) -> None:
        """It is answered already."""

    def writable(self) -> None:
        """It is answered already."""


def resource_id(collection: str, name: str) -> str:
    """The id in a resource name, `jobs/17` -> `17`."""
    prefix, slash, rest = name.partition("/")
    if prefix != collection or not slash or not rest or "/" in rest:
        raise invalid("name", f"{name!r} is no name of the form {collection}/ID")
    return rest


def resource_number(collection: str, name: str) -> int:
    """The id in a resource name whose ids are numbers."""
    text = resource_id(collection, name)
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise invalid("name", f"{name!r}: an id in {collection} is a number")
    return int(text)


def page_size(asked: int) -> int:
    """How many a page holds: AIP-158."""
    if asked < 0:
        raise invalid("page_size", f"{asked} is negative")
    return min(asked or PAGE_SIZE, PAGE_SIZE_MAX)


def page_start(token: str) -> str:
    """The key behind which a page begins, of a token that `page_token` made; "" for the first page."""
    try:
        return base64.b64decode(token.encode("ascii"), b"-_", validate=True).decode()
    except ValueError:
        raise invalid("page_token", f"{token[:64]!r} is not from a response of this method") from None


def page_token(last: str) -> str:
    """A token for the page behind `last`: opaque, and no secret, for whoever shows it sees only his own."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def page_number(token: str) -> int:
    """`page_start` for lists that are ordered by number."""
    text = page_start(token)
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise invalid("page_token", f"{token[:64]!r} is not from a response of this method")
    return int(text)
