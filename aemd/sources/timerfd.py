"""Time from the kernel: timerfd_create(2), one descriptor per clock over a heap.

A timerfd is a descriptor that becomes readable when its clock reaches a time; read(2) gives the number of
expirations as eight bytes, in the machine's byte order. It could hold an interval too; it is not used
here, since one descriptor serves all timers of a clock: it is armed, with an absolute time, for the
earliest of them. A thousand timers then cost one descriptor, and one wake-up where they are due together.

Which clock (clock_gettime(2)):

  monotonic  never set; NTP changes its rate a little. Stands still while the machine is suspended: a
             timer of an hour takes an hour of running.
  boottime   the same, but counts suspend: what fell due meanwhile is due at resume.
  realtime   the wall clock. It can be set, forwards and backwards, by root and by NTP; a smeared leap
             second is a change of rate, a stepped one is a set.

Setting the wall clock. An absolute timer on CLOCK_REALTIME follows the clock: if it is set past the time
of expiry, the timer expires now; if it is set back, the timer expires when the clock gets there again.
What has to be computed anew (the next Monday, 9:00) must hear of it, and TFD_TIMER_CANCEL_ON_SET says it:
after a discontinuous change read(2) fails once with ECANCELED. So may timerfd_settime(2); it has set the
timer all the same. It takes an absolute timer, so a queue that only wants to hear of sets arms one for the
end of time. Resume after suspend is reported in the same way, because the wall clock jumps then. The error
does not say by how much the clock was set, nor how often since the last read.

What is lost: nothing. Expirations are not queued by the kernel but counted, and here each timer has its own
due time, so a loop that comes late finds everything that was due in the heap, in order. A process that is
stopped or a machine that is busy makes them late, never fewer.

Precision: a timerfd uses high-resolution timers and is not subject to the timer slack of prctl(2). What
is late is the scheduler and this loop: some 0.1 ms when idle, and while a thousand others are due
together the time that their callbacks take.

`os.timerfd_create` came with Python 3.13; until that is the oldest one supported these are ctypes calls.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import os
import time
from collections.abc import Callable
from select import EPOLLIN

from aemd.sources.counts import counts
from aemd.sources.reactor import Reactor

CLOCKS = {"monotonic": time.CLOCK_MONOTONIC, "boottime": time.CLOCK_BOOTTIME, "realtime": time.CLOCK_REALTIME}
CALLS_PER_TURN = 256  # then descriptors get their turn: some 2 ms of timer callbacks at 8 us each
GARBAGE_MIN = 64  # cancelled timers that are not worth rebuilding a heap for
END_OF_TIME_NS = (1 << 63) - 1  # KTIME_MAX

# <linux/timerfd.h>; the other flags are those of open(2).
TFD_TIMER_ABSTIME = 1
TFD_TIMER_CANCEL_ON_SET = 2
TFD_CLOEXEC = os.O_CLOEXEC
TFD_NONBLOCK = os.O_NONBLOCK

_SECOND = 1_000_000_000
_COUNTS = counts("timerfd")
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class TimerFd:
    """One timerfd, non-blocking, set to absolute times."""

    def __init__(self, clock: int) -> None:
        fd = _libc.timerfd_create(clock, TFD_NONBLOCK | TFD_CLOEXEC)
        if fd < 0:
            raise _error("timerfd_create")
        self.fd: int = fd
        self._flags = TFD_TIMER_ABSTIME
        if clock == time.CLOCK_REALTIME:
            self._flags |= TFD_TIMER_CANCEL_ON_SET
        self._spec = _Itimerspec()
        self._spec_address = ctypes.byref(self._spec)

    def set(self, due_ns: int) -> bool:
        """Expire at `due_ns`, at once if that is past; 0 disarms. True: the clock was set meanwhile."""
        value = self._spec.value
        value.sec, value.nsec = divmod(due_ns, _SECOND)
        if _libc.timerfd_settime(self.fd, self._flags, self._spec_address, None) == 0:
            return False
        if ctypes.get_errno() == errno.ECANCELED:
            return True
        raise _error("timerfd_settime")

    def read(self) -> bool:
        """Take what there is, so that the descriptor is no longer readable. True: the clock was set."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return False  # set anew since it was reported
        except OSError as error:
            if error.errno == errno.ECANCELED:
                return True
            raise
        return False

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class TimerCall:
    """A call that is due at a time; what `TimerQueue.call_at` gives."""

    __slots__ = ("_callback", "_queue")

    def __init__(self, queue: TimerQueue, callback: Callable[[int], None]) -> None:
        self._queue = queue
        self._callback: Callable[[int], None] | None = callback

    def cancel(self) -> None:
        """Do not call. Cancelling twice, or after the call, changes nothing."""
        if self._callback is not None:
            self._callback = None
            self._queue._cancelled_one(self)

    def _take(self) -> Callable[[int], None] | None:
        callback, self._callback = self._callback, None
        return callback


class TimerQueue:
    """Calls on one kernel clock: `sources.reactor.TimerQueue`.

    `on_fault(callback, exception)` hears of a callback that failed; the others are called all the same.
    The timerfd is opened with the first timer. It is set at the end of a turn, once, if the earliest due
    time is another than before; however many timers came and went. `open_timer` is there for tests:
    nobody may set the machine's clock to see what happens.
    """

    def __init__(
        self,
        reactor: Reactor,
        clock: str,
        *,
        on_fault: Callable[[Callable[..., object], Exception], None],
        open_timer: Callable[[int], TimerFd] = TimerFd,
    ) -> None:
        self._reactor = reactor
        self._clock = CLOCKS[clock]
        self._on_fault = on_fault
        self._open_timer = open_timer
        self._timer: TimerFd | None = None
        # The order of creation decides between equal times, and keeps heapq from comparing calls.
        self._heap: list[tuple[int, int, TimerCall]] = []
        self._created = 0
        self._garbage = 0
        self._armed_ns: int | None = 0  # what the timerfd is set to; 0: nothing; None: unknown
        self._settling = False
        self._listeners: dict[int, Callable[[int], None]] = {}

    def now_ns(self) -> int:
        """The clock's time, read now, in nanoseconds."""
        return time.clock_gettime_ns(self._clock)

    def __len__(self) -> int:
        """How many timers wait."""
        return len(self._heap) - self._garbage

    def call_at(self, due_ns: int, callback: Callable[[int], None]) -> TimerCall:
        """Call `callback(now_ns)` at `due_ns` of this clock, or soon if that is past."""
        if self._timer is None:
            self._open()
        call = TimerCall(self, callback)
        self._created += 1
        heap = self._heap
        heapq.heappush(heap, (due_ns, self._created, call))
        if heap[0][2] is call:
            self._settle_later()
        return call

    def on_set(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(now_ns)` when the clock was set (CLOCK_REALTIME only); returns what ends that."""
        if self._timer is None:
            self._open()
        self._created += 1
        key = self._created
        self._listeners[key] = callback
        self._settle_later()

        def end() -> None:
            self._listeners.pop(key, None)
            self._settle_later()

        return end

    def close(self) -> None:
        """Forget all timers and close the timerfd."""
        for _due_ns, _order, call in self._heap:
            call._take()
        self._heap.clear()
        self._listeners.clear()
        self._garbage = 0
        if self._timer is not None:
            self._reactor.remove(self._timer.fd)
            self._timer.close()
            self._timer = None

    def _open(self) -> None:
        timer = self._open_timer(self._clock)
        try:
            self._reactor.add(timer.fd, EPOLLIN, self._readable)
        except BaseException:
            timer.close()
            raise
        self._timer = timer
        self._armed_ns = 0

    def _readable(self, _events: int) -> None:
        if self._timer is None:
            return
        was_set = self._timer.read()
        _COUNTS.reads += 1
        self._armed_ns = None if was_set else 0
        self._settle_later()
        if was_set:
            self._tell_set()
        self._call_due()

    def _call_due(self) -> None:
        heap, now_ns = self._heap, self.now_ns()
        for _ in range(CALLS_PER_TURN):
            if not heap or heap[0][0] > now_ns:
                return
            callback = heapq.heappop(heap)[2]._take()
            if callback is None:
                self._garbage -= 1
            else:
                _COUNTS.events += 1
                self._guarded(callback, now_ns)

    def _tell_set(self) -> None:
        now_ns = self.now_ns()
        for callback in list(self._listeners.values()):
            self._guarded(callback, now_ns)

    def _guarded(self, callback: Callable[[int], None], now_ns: int) -> None:
        try:
            callback(now_ns)
        except Exception as error:
            self._on_fault(callback, error)

    def _cancelled_one(self, call: TimerCall) -> None:
        """A live call of the heap was cancelled: drop it now if it is the earliest, else some time."""
        self._garbage += 1
        heap = self._heap
        if heap and heap[0][2] is call:
            self._settle_later()
        if self._garbage > GARBAGE_MIN and self._garbage * 2 > len(heap):
            # In place: _call_due may be looking at this list.
            heap[:] = [entry for entry in heap if entry[2]._callback is not None]
            heapq.heapify(heap)
            self._garbage = 0
            self._settle_later()

    def _settle_later(self) -> None:
        if not self._settling:
            self._settling = True
            self._reactor.defer(self._settle)

    def _settle(self) -> None:
        """Arm the timerfd for the earliest timer, if it is not yet."""
        self._settling = False
        if self._timer is None:
            return
        heap = self._heap
        while heap and heap[0][2]._callback is None:
            heapq.heappop(heap)
            self._garbage -= 1
        due_ns = END_OF_TIME_NS if self._listeners else 0
        if heap:
            due_ns = min(max(heap[0][0], 1), END_OF_TIME_NS)  # 0 would disarm it
        if due_ns != self._armed_ns:
            self._armed_ns = due_ns
            if self._timer.set(due_ns):
                self._tell_set()


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
