"""The core's event loop: epoll(7), one thread, work in turns.

A turn is: sleep in epoll_wait until something is ready; call what belongs to each ready descriptor; run
what was deferred meanwhile; let the hooks put the results in order and flush them; sleep again.

Rules:

- Level-triggered. A callback may stop after a bounded amount of work and is called again next turn, so
  every ready descriptor gets the same number of calls: one a turn. The kernel puts what it has reported
  at the end of its list, so that this holds too when more are ready than one epoll_wait takes.
- Nothing wakes the loop up but an event. Timers are descriptors (`sources/timerfd.py`), there is no period
  and no polling; with nothing to do the process sleeps for ever.
- epoll reports descriptor numbers, and a batch may speak of one that an earlier callback of the same batch
  has closed, whose number may belong to something new by then. So each turn has a number: a watch that is
  younger than the batch gets nothing from it. If it is ready, the next turn says so.
- A descriptor must leave the set before it is closed. epoll watches open file descriptions, not numbers:
  one that was passed on or duplicated would be reported for ever, and could not be removed any more.
- A callback that raises has a fault: its descriptor is taken out, because level-triggered epoll would
  otherwise run into the same fault for ever, `on_fault` is told, and everybody else goes on.
  KeyboardInterrupt and SystemExit are no faults and end run().
- Time is read once a turn. Everything that happens in a turn happens at the same time.
- Signals come as descriptors too: the C handler writes the number to a socket pair (set_wakeup_fd) and the
  callback runs on the loop like any other. signalfd(2) would need the signal blocked, and a blocked signal
  is inherited by every program that the daemon starts.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from aemd.core.histogram import Histogram
from aemd.sources.timerfd import CLOCKS, TimerFd, TimerQueue

EVENTS_PER_TURN = 1_024  # more wait for the next turn; a list of this size is made per epoll_wait
ROUNDS_PER_TURN = 16  # of deferred work that defers more; then descriptors get their turn
_ALWAYS = select.EPOLLERR | select.EPOLLHUP  # reported whether asked for or not


@dataclass(frozen=True, slots=True)
class Fault:
    """A callback that raised. `fd` is the descriptor that was taken out of the loop, -1 where it was a
    timer, deferred work, a hook or a signal.
    """

    fd: int
    callback: Callable[..., object]
    exception: Exception


class _Watch:
    """A descriptor in the set."""

    __slots__ = ("callback", "events", "since_turn")

    def __init__(self, events: int, callback: Callable[[int], None], since_turn: int) -> None:
        self.events = events
        self.callback = callback
        self.since_turn = since_turn


class Loop:
    """`sources.reactor.Reactor` over epoll.

    `on_fault(fault)` hears of callbacks that failed. Without it there is nobody to tell, and the exception
    ends run(). `wakeups` counts how often epoll_wait slept and returned, `turns` all turns, `faults` the
    callbacks that failed; `took` is how long turns took, awake, and `longest_ns` the longest of them.
    """

    def __init__(
        self,
        *,
        on_fault: Callable[[Fault], None] | None = None,
        open_timer: Callable[[int], TimerFd] = TimerFd,
    ) -> None:
        self.on_fault = on_fault
        self.wakeups = 0
        self.turns = 0
        self.faults = 0
        self.took = Histogram()
        self.longest_ns = 0
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}
        self._deferred: list[Callable[[], None]] = []
        self._hooks: list[Callable[[], None]] = []
        self._wake_hooks: list[Callable[[], None]] = []
        self._clocks: dict[str, TimerQueue] = {}
        self._open_timer = open_timer
        self._signals: _Signals | None = None
        self._stopping = False
        self._mono_ns = self._real_ns = 0  # 0 outside of a turn

    # -- descriptors

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(epoll_events)` while `fd` is ready for `events`. OSError as of epoll_ctl(2)."""
        if fd in self._watches:
            raise FileExistsError(f"descriptor {fd} is in the loop already; was it closed and not removed?")
        self._epoll.register(fd, events)
        self._watches[fd] = _Watch(events, callback, self.turns)

    def modify(self, fd: int, events: int) -> None:
        """Change what is waited for; 0 leaves errors and hang-up."""
        watch = self._watches[fd]
        if watch.events != events:
            self._epoll.modify(fd, events)
            watch.events = events

    def remove(self, fd: int) -> None:
        """Forget `fd`, before it is closed. KeyError if it is not there."""
        del self._watches[fd]
        self._epoll.unregister(fd)

    def __contains__(self, fd: int) -> bool:
        """Whether `fd` is in the set."""
        return fd in self._watches

    # -- work

    def defer(self, callback: Callable[[], None]) -> None:
        """Call `callback()` once, before the loop sleeps again."""
        self._deferred.append(callback)

    def before_sleep(self, hook: Callable[[], None]) -> Callable[[], None]:
        """Call `hook()` at the end of every turn, after what was deferred, in the order of registration.

        Where a hook defers work, that work and all hooks run once more. Returns what ends it.
        """
        self._hooks.append(hook)
        return lambda: self._hooks.remove(hook)

    def after_wake(self, hook: Callable[[], None]) -> None:
        """Call `hook()` at the beginning of every turn: its time is known, nothing has happened yet."""
        self._wake_hooks.append(hook)

    def on_signal(self, number: signal.Signals, callback: Callable[[int], None]) -> None:
        """Call `callback(number)` on the loop for that signal; main thread only, until close()."""
        if self._signals is None:
            self._signals = _Signals(self)
        self._signals.handle(number, callback)

    # -- time

    def clock(self, name: str) -> TimerQueue:
        """The queue of clock "monotonic", "boottime" or "realtime"; KeyError for any other."""
        queue = self._clocks.get(name)
        if queue is None:
            queue = TimerQueue(self, name, on_fault=self._failed, open_timer=self._open_timer)
            self._clocks[name] = queue
        return queue

    def mono_ns(self) -> int:
        """CLOCK_MONOTONIC at the beginning of this turn; between turns the time now."""
        return self._mono_ns or time.monotonic_ns()

    def real_ns(self) -> int:
        """CLOCK_REALTIME at the beginning of this turn; between turns the time now."""
        return self._real_ns or time.time_ns()

    # -- running

    def run(self) -> None:
        """Turn until stop()."""
        self._stopping = False
        self._settle()
        while not self._stopping:
            self.turn()

    def stop(self) -> None:
        """End run() after this turn: what is deferred and the hooks still run."""
        self._stopping = True

    def turn(self, timeout_ns: int | None = None) -> None:
        """One turn; sleeps at most `timeout_ns`, None: until something happens."""
        timeout = None if timeout_ns is None else timeout_ns / 1e9
        if self._deferred:
            timeout = 0
        ready = self._epoll.poll(timeout, EVENTS_PER_TURN)
        self._mono_ns, self._real_ns = time.monotonic_ns(), time.time_ns()
        self.turns += 1
        if timeout != 0:
            self.wakeups += 1
        try:
            for hook in self._wake_hooks:
                try:
                    hook()
                except Exception as error:
                    self._failed(hook, error)
            self._dispatch(ready)
            self._settle()
        finally:
            took_ns = time.monotonic_ns() - self._mono_ns
            self._mono_ns = self._real_ns = 0
            self.took.add(took_ns)
            if took_ns > self.longest_ns:
                self.longest_ns = took_ns

    def close(self) -> None:
        """Give the loop's own descriptors back; those of others are theirs to close."""
        for name in CLOCKS:
            if name in self._clocks:
                self._clocks.pop(name).close()
        if self._signals is not None:
            self._signals.close()
            self._signals = None
        self._epoll.close()
        self._watches.clear()
        self._deferred.clear()
        self._hooks.clear()
        self._wake_hooks.clear()

    def _dispatch(self, ready: list[tuple[int, int]]) -> None:
        watches, turn = self._watches, self.turns
        for fd, events in ready:
            watch = watches.get(fd)
            if watch is None or watch.since_turn == turn:
                continue  # removed, or another descriptor by now
            events &= watch.events | _ALWAYS
            if not events:
                continue  # no longer wanted
            try:
                watch.callback(events)
            except Exception as error:
                if watches.get(fd) is watch:
                    with contextlib.suppress(OSError):  # it may have closed it before it failed
                        self.remove(fd)
                self._report(Fault(fd, watch.callback, error))

    def _settle(self) -> None:
        """Run what was deferred, then the hooks, until nothing is left or others have waited enough."""
        for _ in range(ROUNDS_PER_TURN):
            work, self._deferred = self._deferred, []
            for callback in work:
                try:
                    callback()
                except Exception as error:
                    self._failed(callback, error)
            for hook in tuple(self._hooks):
                try:
                    hook()
                except Exception as error:
                    self._failed(hook, error)
            if not self._deferred:
                return

    def _failed(self, callback: Callable[..., object], error: Exception) -> None:
        self._report(Fault(-1, callback, error))

    def _report(self, fault: Fault) -> None:
        self.faults += 1
        if self.on_fault is None:
            raise fault.exception
        self.on_fault(fault)


class _Signals:
    """Signals as calls on the loop, through the one wake-up descriptor that Python has."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._before: dict[int, Any] = {}  # the handlers as signal.getsignal() knows them
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # A full pair drops the number of a signal; it holds hundreds, and equal ones need no second call.
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        loop.add(self._reader.fileno(), select.EPOLLIN, self._readable)

    def handle(self, number: signal.Signals, callback: Callable[[int], None]) -> None:
        if number not in self._before:
            self._before[number] = signal.signal(number, _on_loop)
        self._callbacks[number] = callback

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._loop.remove(self._reader.fileno())
        self._reader.close()
        self._writer.close()

    def _readable(self, _events: int) -> None:
        for number in self._reader.recv(4096):
            callback = self._callbacks.get(number)
            if callback is None:
                continue  # somebody else's: every signal with a Python handler is written
            try:
                callback(number)
            except Exception as error:
                self._loop._failed(callback, error)


def _on_loop(_number: int, _frame: FrameType | None) -> None:
    """A Python handler must be there, or the C handler writes nothing."""
