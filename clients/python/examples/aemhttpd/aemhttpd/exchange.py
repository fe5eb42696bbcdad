"""HTTP/1.1 on one connection: bytes in, bytes out, no socket (RFC 9112; parsed by h11).

The caller feeds what it read to `receive()`, asks `output()` for what is to be written as long as it has
room, and closes the connection once `finished` is true. Pipelined requests wait until the response before
them is written, and only so many of them: a client that does not read costs little memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

import h11

from aemhttpd.files import Answer, Files, failure

REQUEST_BODY_BYTES_MAX = 16 * 1024 * 1024  # read and set aside; more ends the connection
HEAD_BYTES_MAX = 32 * 1024
PIECE_BYTES_MAX = 64 * 1024
PIPELINED_BYTES_MAX = 1024 * 1024  # of requests that wait their turn; more ends the connection


class Exchange:
    """One connection's requests and responses."""

    def __init__(self, files: Files, log: Callable[[str], None] | None = None) -> None:
        self._files = files
        self._log = log
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._request: h11.Request | None = None
        self._body_bytes = 0
        self._waiting_bytes = 0
        self._head = b""
        self._answer: Answer | None = None
        self.finished = False

    def receive(self, data: bytes) -> None:
        """Take what the client sent; b"" when it has ended its direction."""
        if self.finished:
            return
        try:
            self._http.receive_data(data)
        except RuntimeError:  # after its end, or after an error: nothing more counts
            return
        self._waiting_bytes += len(data)
        self._advance()
        if self._waiting_bytes > PIPELINED_BYTES_MAX and self._answer is not None:
            self.close()

    def output(self, room: int) -> bytes:
        """What to write next, at most about `room` bytes; b"" if nothing, now."""
        pieces = []
        while room > 0:
            piece = self._head
            if piece:
                self._head = b""
            else:
                piece = self._piece(room)
            self._advance()
            if not piece and not self._head:
                break
            pieces.append(piece)
            room -= len(piece)
        return b"".join(pieces)

    @property
    def drained(self) -> bool:
        """It is finished and everything was put out: the connection is to be closed."""
        return self.finished and not self._head

    def close(self) -> None:
        """Give back what a response in progress holds."""
        self.finished = True
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _advance(self) -> None:
        """Read requests until one is answered, or there is no more to read."""
        try:
            while self._answer is None and not self.finished and len(self._head) < PIECE_BYTES_MAX:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._waiting_bytes = 0
                    if self._http.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[])
                        self._head += self._http.send(go_on) or b""
                    return
                if event is h11.PAUSED:
                    self._http.start_next_cycle()
                elif isinstance(event, h11.Request):
                    self._request, self._body_bytes = event, 0
                elif isinstance(event, h11.Data):
                    self._body_bytes += len(event.data)
                    if self._body_bytes > REQUEST_BODY_BYTES_MAX:
                        raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
                elif isinstance(event, h11.EndOfMessage):
                    self._respond(self._dispatch())
                elif isinstance(event, h11.ConnectionClosed):
                    self.finished = True
        except h11.RemoteProtocolError as error:
            if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
                self.finished = True
                return
            self._respond(failure(HTTPStatus(error.error_status_hint), str(error), ("Connection", "close")))

    def _dispatch(self) -> Answer:
        request = self._request
        assert request is not None
        if request.method not in {b"GET", b"HEAD"}:
            detail = f"{request.method.decode('ascii', 'replace')} is not GET or HEAD"
            return failure(HTTPStatus.METHOD_NOT_ALLOWED, detail, ("Allow", "GET, HEAD"))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        return self._files.answer(request.target, headers)

    def _respond(self, answer: Answer) -> None:
        if self._log is not None and self._request is not None:
            line = f"{self._request.method.decode()} {self._request.target.decode('latin-1')}"
            self._log(f"{line} {answer.status.value} {answer.length}")
        answer.headers.append(("Date", formatdate(usegmt=True)))
        response = h11.Response(
            status_code=answer.status.value, reason=answer.status.phrase, headers=answer.headers
        )
        self._head += self._http.send(response) or b""
        if self._request is not None and self._request.method == b"HEAD":
            answer.body, answer.length = b"", 0
        self._answer = answer
        if answer.length == 0:
            self._end()

    def _piece(self, room: int) -> bytes:
        """The next piece of the body in progress."""
        answer = self._answer
        if answer is None:
            return b""
        size = min(room, answer.length, PIECE_BYTES_MAX)
        piece = answer.body[:size] if answer.fd < 0 else os.pread(answer.fd, size, answer.offset)
        if (
            not piece
        ):  # the file became shorter while it was sent: the length is promised, so only closing is honest
            self.close()
            return b""
        answer.offset += len(piece)
        answer.length -= len(piece)
        answer.body = answer.body[len(piece) :]
        data = self._http.send(h11.Data(data=piece)) or b""
        if answer.length == 0:
            self._end()
        return data

    def _end(self) -> None:
        """The response is complete: close, or go on with the next request."""
        assert self._answer is not None
        self._answer.close()
        self._answer = None
        self._request = None
        self._head += self._http.send(h11.EndOfMessage()) or b""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self.finished = True
            return
        self._http.start_next_cycle()
