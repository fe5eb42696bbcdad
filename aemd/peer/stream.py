"""The core's end of one RPC, and what the service gives for it.

Flow control is by window (`aemd/link.py`): `room` says how many bytes the front takes now, and falls below
zero by at most one message. "Sent" means that the front will have it, never that the client has.
"""

from __future__ import annotations

from typing import Protocol

from aemd import link
from aemd.core.principal import Principal
from aemd.link import Kind

MESSAGE_BYTES_MAX = 2_048  # grpc refuses trailers above about 8 KiB altogether; the reason must get through
STATUS_BYTES_MAX = 4_096


class StreamHandler(Protocol):
    """What becomes of one RPC; the service makes one for each."""

    def data(self, message: bytes) -> None:
        """The client sent a message. Call `consumed(len(message))` when more may come in its place."""

    def half_closed(self) -> None:
        """The client sends no more; it still reads."""

    def closed(self, reason: str) -> None:
        """The RPC is over without end(): cancelled, connection gone, front gone. Nothing is called after."""

    def writable(self) -> None:
        """`room` has grown."""


class Sender(Protocol):
    """Where the frames of a stream go; a front."""

    def send(self, frame: bytes) -> None:
        """Queue a frame on the link; flushed at the end of the turn."""

    def forget(self, stream: Stream) -> None:
        """The stream is over on this side."""


class Stream:
    """One RPC of one client."""

    __slots__ = (
        "_consumed",
        "_sender",
        "connection",
        "ended",
        "method",
        "number",
        "outstanding",
        "principal",
        "room",
    )

    def __init__(
        self, sender: Sender, *, principal: Principal, connection: int, number: int, method: str
    ) -> None:
        self._sender = sender
        self._consumed = 0
        self.principal = principal
        self.connection = connection
        self.number = number
        self.method = method
        self.room = link.WINDOW_BYTES
        self.outstanding = 0  # bytes that came and were not given back
        self.ended = False

    def send(self, message: bytes) -> None:
        """Queue a message for the client. After the end it goes nowhere."""
        if self.ended:
            return
        self.room -= len(message)
        self._sender.send(link.pack(Kind.DATA, self.connection, self.number, message))

    def consumed(self, size_bytes: int) -> None:
        """Of what data() brought, so many bytes are dealt with: the client may send as many again."""
        if self.ended:
            return
        self._consumed += size_bytes
        if self._consumed >= link.WINDOW_STEP_BYTES:
            self.outstanding -= self._consumed
            self._sender.send(link.pack_window(self.connection, self.number, self._consumed))
            self._consumed = 0

    def end(self, code: int, message: str = "", status: bytes = b"") -> None:
        """End the RPC; what was sent before still arrives. The handler is not called any more.

        `code` is a google.rpc.Code, `status` an encoded google.rpc.Status for `grpc-status-details-bin`;
        what is too long for trailers is cut (the message) or left out (the status).
        """
        if self.ended:
            return
        self.ended = True
        if len(message) > MESSAGE_BYTES_MAX:
            message = message[: MESSAGE_BYTES_MAX - 3] + "..."
        if len(status) > STATUS_BYTES_MAX:
            status = b""
        payload = link.pack_status(code, message, status)
        self._sender.send(link.pack(Kind.END, self.connection, self.number, payload))
        self._sender.forget(self)
