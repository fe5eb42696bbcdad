"""The last moments of a connection's descriptor; why they are needed stands in `sources/socket.py`."""

from __future__ import annotations

import socket
from select import EPOLLIN
from typing import TYPE_CHECKING

from aemd.sources.socket import DISCARD_NS, leave

if TYPE_CHECKING:
    from aemd.modules.socket.listener import Listener

DISCARD_READS = 16  # reads of one turn


class Discard:
    """A closed connection whose peer may still be sending: reads and throws away, for a short time."""

    __slots__ = ("_listener", "_sock", "_timer")

    def __init__(self, listener: Listener, sock: socket.socket) -> None:
        self._listener = listener
        self._sock = sock
        listener.discards.add(self)
        self._timer = listener.monotonic.call_at(listener.reactor.mono_ns() + DISCARD_NS, self._late)
        listener.reactor.add(sock.fileno(), EPOLLIN, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            for _ in range(DISCARD_READS):
                if not self._sock.recv_into(self._listener.discarded):
                    break
            else:
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # reset: the peer is gone, which is all that was waited for
        self._done()

    def _late(self, _now_ns: int) -> None:
        self._done()

    def _done(self) -> None:
        self.drop()
        self._listener.discards.discard(self)
        self._listener.release()

    def drop(self) -> None:
        """Close now."""
        self._timer.cancel()
        leave(self._listener.reactor, self._sock)
        self._sock.close()
