"""The ways in which a verb that waits for events comes to its end from outside.

SIGINT, SIGTERM, the time limit, and standard output that nobody reads any more (`| head -1`) all raise
`Halted` in the main thread: at once while it waits for the next event, and otherwise before it waits
again, so that no line is cut in two. A second signal does not wait for anything.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from aemd.cli.failure import Exit

T = TypeVar("T")

_REASONS = {
    signal.SIGINT: Exit.INTERRUPTED,
    signal.SIGTERM: Exit.TERMINATED,
    signal.SIGALRM: Exit.TIMEOUT,
    signal.SIGPIPE: Exit.BROKEN_PIPE,
}


class Halted(BaseException):
    """The verb is to end now; `reason` is the exit code for it. Not an Exception, so that nothing that
    handles failures takes it for one.
    """

    def __init__(self, reason: Exit) -> None:
        super().__init__(reason)
        self.reason = reason


class Halt:
    """Turns the signals into `Halted`. Only for the main thread."""

    def __init__(self) -> None:
        self.reason: Exit | None = None
        self._waiting = False
        self._shielded = False

    @contextmanager
    def armed(self, timeout_ns: int | None = None, *, stdout: bool = False) -> Iterator[Halt]:
        """Handle the signals within, and the time limit, counted from now.

        `stdout`: end also when nobody reads standard output any more. Not for verbs that write to pipes of
        their own: SIGPIPE does not say which pipe it was.
        """
        numbers = [number for number in _REASONS if stdout or number != signal.SIGPIPE]
        before = {number: signal.signal(number, self._signalled) for number in numbers}
        if stdout:
            _watch_stdout()
        if timeout_ns is not None:
            # A timer of 0 would be none at all.
            signal.setitimer(signal.ITIMER_REAL, max(timeout_ns, 1_000) / 1e9)
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, what: Callable[[], T]) -> T:
        """Run `what`, which waits; Halted if a signal came before or comes during it."""
        self._waiting = True
        try:
            if self.reason is not None:
                raise Halted(self.reason)
            return what()
        finally:
            self._waiting = False

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Nothing is raised within, also by a second signal; what came is raised at the end, where wait()
        would raise it. For a step that must not be left half done.
        """
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._waiting and self.reason is not None:
            raise Halted(self.reason)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        again = self.reason is not None
        if not again:
            self.reason = _REASONS[signal.Signals(number)]
        if (self._waiting or again) and not self._shielded:
            self._waiting = False
            raise Halted(self.reason or Exit.INTERRUPTED)


def _watch_stdout(descriptor: int = 1) -> None:
    """Raise SIGPIPE once nobody reads standard output any more.

    A write would only find out when the next event comes, which may be never. poll(2): POLLERR is
    reported for the write end of a pipe whose read end is closed, whatever was asked for.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return

    def run() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)
        if poll.poll():
            os.kill(os.getpid(), signal.SIGPIPE)

    threading.Thread(target=run, name="stdout", daemon=True).start()
