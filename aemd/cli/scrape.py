"""An HTTP server for scrapers: GET /metrics, and nothing else.

It runs in a client's process with the client's rights, so whoever can connect to it is told what the client
may know. Each request is answered by a thread of its own, REQUESTS_MAX at a time, and has SECONDS_MAX: a
scraper that hangs costs one of these places for that long, and the daemon nothing.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, ThreadingMixIn
from typing import Any

REQUESTS_MAX = 16  # at a time; more wait in the backlog
SECONDS_MAX = 10.0  # for a request and its answer; Prometheus gives up after as many
BACKLOG = 64
PATH_BYTES_MAX = 107  # sun_path of unix(7), without its NUL

Answer = Callable[[str], tuple[int, bytes, str]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen: an IP address and port, or, where `path` is given, a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_place(text: str) -> Place:
    """`unix:PATH` or ADDRESS:PORT, an IPv6 address in brackets. ValueError says what is wrong."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or len(os.fsencode(path)) > PATH_BYTES_MAX:
            raise ValueError(f"unix: takes an absolute path of at most {PATH_BYTES_MAX} bytes")
        return Place(path=path)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("is neither ADDRESS:PORT, for example 127.0.0.1:9464, nor unix:PATH")
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        raise ValueError(f"{host!r} is not an IP address; names are not looked up") from None
    return Place(host, int(port))


def listen(place: Place) -> socket.socket:
    """A socket that listens there; a Unix one for one's own user only. OSError as of bind(2)."""
    if not place.path:
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        return socket.create_server((place.host, place.port), family=family, backlog=BACKLOG)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        _remove_stale(place.path)
        listener.bind(place.path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _remove_stale(path: str) -> None:
    """A socket that nobody listens on any more; anything else stays, and bind(2) refuses."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


class Scraped(ThreadingMixIn, BaseServer):
    """The server. `answer(accept)` gives status, body and content type; one thread calls it at a time."""

    daemon_threads = True
    request_queue_size = BACKLOG

    def __init__(self, listener: socket.socket, answer: Answer) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self.socket = listener
        self._answer = answer
        self._one = threading.Lock()
        self._places = threading.BoundedSemaphore(REQUESTS_MAX)

    def fileno(self) -> int:
        """For select."""
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection, once there is a place for it."""
        self._places.acquire()
        try:
            return self.socket.accept()
        except BaseException:
            self._places.release()
            raise

    def shutdown_request(self, request: Any) -> None:
        """A request is over."""
        try:
            request.close()
        finally:
            self._places.release()

    def server_close(self) -> None:
        """Listen no more."""
        self.socket.close()

    def answer(self, accept: str) -> tuple[int, bytes, str]:
        """Ask for the metrics."""
        with self._one:
            return self._answer(accept)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away, or took too long: its own affair."""


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request."""

    timeout = SECONDS_MAX
    server: Scraped

    def do_GET(self) -> None:
        """Answer."""
        if self.path.partition("?")[0] not in ("/metrics", "/"):
            self._reply(HTTPStatus.NOT_FOUND, b"there is only /metrics\n", "text/plain")
            return
        self._reply(*self.server.answer(self.headers.get("Accept", "")))

    do_HEAD = do_GET  # noqa: N815 - likewise

    def _reply(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - http.server calls it so
        """Nothing: scrapes are no news."""
