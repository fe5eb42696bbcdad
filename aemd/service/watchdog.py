"""Signs of life that mean something: the daemon calls itself as a client would.

A process that turns its loop may still be of no use: the zygote may be gone for good, a front may hang, the
listener may have been taken out of the loop. So a sign of life is given only after a call has gone the way of
every client: a connection, to the front of the daemon's own user, gRPC, the link, the service, and back. What
it leaves out is accept(2), or whoever fills the backlog could have the daemon ended; that the listener is
still in the loop is asked instead.

A call that is not answered means, more likely than anything else, that the front hangs: it is ended, its
clients reconnect, no job is lost, and the next call meets a new one. Only if that helps nothing do the signs
of life stop, and the service manager ends the daemon. All of it fits into the time that the manager waits:

    period / 4      between two calls
    period / 4      until an answer is late,
    period / 8      and some more: if the core itself was held up, the front had no chance to answer
    the rest        for the next call, through a new front

The first answer of all is what READY=1 waits for; there the manager's own limit on starting is the limit, as
a machine that boots may take long. Without a service manager there is no call and no timer.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Protocol

from aemd.core.limits import MS
from aemd.peer.call import Call, CallError
from aemd.service import log
from aemd.service.notify import Notifier
from aemd.sources.reactor import Reactor, Timer
from aemd.v1 import module_pb2

METHOD = "/aem.v1.ModuleService/ListModules"
REQUEST = module_pb2.ListModulesRequest(page_size=1).SerializeToString()
RETRY_NS = 250 * MS  # after a call that failed at once: a front that has just died is not forked again sooner
READ_BYTES = 64 * 1024


class Line(Protocol):
    """What the daemon calls itself over."""

    def connect_self(self) -> socket.socket:
        """A new connection of the daemon to itself."""

    def replace_own_front(self, reason: str) -> None:
        """End the front that the last of them went to."""


class Watchdog:
    """Calls the daemon, and tells the service manager when it answers."""

    def __init__(
        self, reactor: Reactor, notifier: Notifier, line: Line, *, listening: Callable[[], bool]
    ) -> None:
        """`listening`: whether new clients can still come in."""
        self._reactor = reactor
        self._clock = reactor.clock("monotonic")
        self._notifier = notifier
        self._line = line
        self._listening = listening
        self._first: Callable[[], None] | None = None
        self._timer: Timer | None = None
        self._socket: socket.socket | None = None
        self._call = Call(METHOD, REQUEST)
        self._watched = self._late = self._told = False

    def start(self, first: Callable[[], None]) -> None:
        """Call from now on; `first()` once the first call was answered."""
        if self._notifier:
            self._first = first
            self._begin()

    def close(self) -> None:
        """Call no more."""
        self._first = None
        self._hang_up()
        self._wait(0, None)

    def _begin(self) -> None:
        self._hang_up()
        self._late = False
        self._call = Call(METHOD, REQUEST)
        try:
            self._socket = self._line.connect_self()
            self._socket.send(self._call.request)
        except OSError:  # no descriptors, or refused at once
            self._hang_up()
            self._wait(RETRY_NS, self._begin)
            return
        self._reactor.add(self._socket.fileno(), select.EPOLLIN, self._readable)
        self._watched = True
        if self._first is None:
            self._wait(self._notifier.watchdog_ns // 4, self._overdue)

    def _readable(self, _events: int) -> None:
        assert self._socket is not None
        try:
            answered = self._call.feed(self._socket.recv(READ_BYTES))
        except BlockingIOError:
            return
        except (CallError, OSError):
            self._hang_up()
            self._wait(RETRY_NS, self._begin)
            return
        if answered:
            self._hang_up()
            self._answered()

    def _answered(self) -> None:
        first, self._first = self._first, None
        if first is not None:
            first()
        if not self._notifier.watchdog_ns:
            self._wait(0, None)
            return
        if self._listening():
            self._notifier.alive()
        elif not self._told:
            self._told = True
            log.get().error("new clients are not taken any more")
        self._wait(self._notifier.watchdog_ns // 4, self._begin)

    def _overdue(self) -> None:
        self._readable(0)  # it may have come in this very turn
        if self._socket is None:
            return
        if not self._late:
            self._late = True
            self._wait(self._notifier.watchdog_ns // 8, self._overdue)
            return
        self._hang_up()
        self._line.replace_own_front("it does not answer")
        self._begin()

    def _hang_up(self) -> None:
        if self._socket is None:
            return
        if self._watched:
            self._reactor.remove(self._socket.fileno())
            self._watched = False
        self._socket.close()
        self._socket = None

    def _wait(self, delay_ns: int, then: Callable[[], None] | None) -> None:
        """Call `then` after that time, and nothing that was to be called before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if then is None:
            return

        def due(_now_ns: int) -> None:
            self._timer = None
            then()

        self._timer = self._clock.call_at(self._clock.now_ns() + delay_ns, due)
