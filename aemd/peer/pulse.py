"""Notices that a front hangs: it is asked whether it lives, and has to answer.

A front that hangs may look well for long. What the core sends it goes into its socket's buffer, and its
clients wait. Only one that has clients is asked, so one that has none costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from aemd.core.limits import SECOND
from aemd.sources.reactor import Reactor, Timer

BEAT_NS = 5 * SECOND
MISSED_MAX = 2  # beats; a core that was held up itself finds the answer before the second


class Pulse:
    """Of one front. `wanted`: whether it is to be asked at all."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        wanted: Callable[[], bool],
        ask: Callable[[], None],
        silent: Callable[[], None],
    ) -> None:
        self._clock = reactor.clock("monotonic")
        self._wanted = wanted
        self._ask = ask
        self._silent = silent
        self._timer: Timer | None = None
        self._missed = 0
        self.asked = False

    def begin(self) -> None:
        """It may be wanted from now on."""
        if self._timer is None:
            self._timer = self._clock.call_at(self._clock.now_ns() + BEAT_NS, self._beat)

    def answered(self) -> None:
        """It lives."""
        self.asked = False
        self._missed = 0

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self, _now_ns: int) -> None:
        self._timer = None
        if self.asked:
            self._missed += 1
            if self._missed >= MISSED_MAX:
                self._silent()
                return
        elif not self._wanted():
            return
        else:
            self.asked = True
            self._ask()
        self.begin()
