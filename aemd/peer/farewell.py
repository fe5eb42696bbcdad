"""The orderly end of the fronts: what was accepted is answered, then they go.

When the daemon is told to end it accepts no more, and whoever connects waits for its successor. Those that it
had accepted a moment before have often not said what they want. So the end has two steps, each with a limit:

1. Until every connection has made a call, FRESH_NS after the last was accepted at most. Connections that
   stand idle cost that time and no more.
2. Each front is told to finish: gRPC says GOAWAY, which clients understand as "elsewhere, please" also for a
   call that is on its way and that nobody has looked at; calls that are running are answered, as the link is
   still there; then the front exits. FINISH_NS after that the daemon waits no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aemd.core.limits import MS
from aemd.peer.front import Front
from aemd.sources.reactor import Reactor, Timer

FRESH_NS = 300 * MS
FINISH_NS = 700 * MS


class Farewell:
    """Made when nobody is accepted any more."""

    def __init__(self, reactor: Reactor, fronts: Callable[[], Iterable[Front]]) -> None:
        """`fronts`: those that live."""
        self._clock = reactor.clock("monotonic")
        self._fronts = fronts
        self._fresh_until_ns = self._clock.now_ns() + FRESH_NS
        self._timer: Timer | None = None
        self._done: Callable[[], None] | None = None
        self._said = False

    def begin(self, done: Callable[[], None]) -> None:
        """Say good-bye as soon as that may be, and call `done` when all are gone. To be called every turn."""
        if self._said:
            return
        self._done = done
        if self._clock.now_ns() < self._fresh_until_ns and self._has_fresh():
            if self._timer is None:
                self._timer = self._clock.call_at(self._fresh_until_ns, lambda _now_ns: self._say())
            return
        self._say()

    def front_gone(self) -> None:
        """A front has ended, for whatever reason."""
        if self._said and not any(True for _ in self._fronts()):
            self._finished()

    def close(self) -> None:
        """Wait for nothing more."""
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _has_fresh(self) -> bool:
        return any(
            not connection.called for front in self._fronts() for connection in front.connections.values()
        )

    def _say(self) -> None:
        self._said = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_at(self._clock.now_ns() + FINISH_NS, lambda _now_ns: self._finished())
        for front in self._fronts():
            front.say_farewell()
        self.front_gone()

    def _finished(self) -> None:
        done = self._done
        self.close()
        if done is not None:
            done()
