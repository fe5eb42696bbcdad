"""Event module `timer`: any number of timers over one timerfd per clock.

A job is a schedule (`schedule.py`) and one entry in the reactor's queue of its clock. Starting it arms
it anew: spans count from the start, a calendar from now. Stopping it forgets the phase. Expirations
that were missed, because the daemon or the machine was busy, suspended or stopped, come as one event with
their count; the schedule keeps its rhythm.

A clock that is set is a matter of the jobs on CLOCK_REALTIME. The queue tells it once; then the jobs whose
time depends on it are computed anew, some each turn, since a hundred thousand calendars would stop
everything else for seconds. One that expires before its turn has come is computed first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import cast

from aemd.core.errors import invalid
from aemd.core.history import Resumed
from aemd.modules.contract import Basic, Host, Job, encode
from aemd.modules.timer.parameters import CLOCKS, DESCRIPTION, parse_schedule
from aemd.modules.timer.schedule import Dates, Passed, Schedule, Span, aligned
from aemd.sources.reactor import Timer as Call
from aemd.sources.reactor import TimerQueue
from aemd.v1 import event_pb2, timer_pb2

US = 1_000
SECOND = 1_000_000 * US
RESETS_PER_TURN = 64  # jobs computed anew after the clock was set: 5 ms a turn if all calendars differ
COOKIE_MASK = (1 << 64) - 1


class Ticker:
    """One job's timer."""

    __slots__ = (
        "_call",
        "_offset_ns",
        "_sets",
        "_was_due_ns",
        "accuracy_ns",
        "clock",
        "cookie",
        "due_ns",
        "job",
        "queue",
        "schedule",
        "timer",
        "wake_ns",
        "was_set",
    )

    def __init__(
        self, timer: Timer, job: Job, *, schedule: Schedule, clock: str, accuracy_ns: int, cookie: int
    ) -> None:
        self.timer = timer
        self.job = job
        self.schedule = schedule
        self.clock = clock
        self.queue = timer.queue(clock)
        self.accuracy_ns = accuracy_ns
        self.cookie = cookie
        self.due_ns: int | None = None  # None: not armed
        self._was_due_ns: int | None = None
        self.wake_ns = 0
        self.was_set = False
        self._call: Call | None = None
        self._sets = 0  # sets of the clock that due_ns knows of
        self._offset_ns = 0  # realtime minus boottime that due_ns was computed with

    def start(self) -> None:
        """Arm it from now; what can never expire is exhausted."""
        timer, now_ns = self.timer, self.queue.now_ns()
        self._sets = timer.sets
        self.was_set = False
        if self.clock == "realtime":
            self._offset_ns = timer.offset_ns()
            timer.follow(self)
        resumed = self.job.resumed
        self._arm(self.schedule.begin(now_ns) if resumed is None else self._resume(resumed, now_ns))
        if self.due_ns is None:
            timer.host.exhaust(self.job, "never expires" if resumed is None else "has expired")

    def _resume(self, resumed: Resumed, now_ns: int) -> int | None:
        """When it is due after a restart, as if the daemon had been there all the time: what has come due
        meanwhile is due in the past, and so fires at once, with its count. After a daemon that was killed the
        machine may have been down, too; only CLOCK_REALTIME goes on then, and the others are told by it.
        """
        if resumed.memento is not None:  # of the same boot, so its clock is the same
            return int(resumed.memento) if resumed.memento else None
        shift_ns = now_ns - self.timer.host.reactor.real_ns()  # from CLOCK_REALTIME to this clock
        if not resumed.newest:
            return self.schedule.begin(resumed.start_ns + shift_ns)
        event = event_pb2.Event.FromString(resumed.newest)
        last_ns = event.real_time_ns - event.timer.lateness_ns + shift_ns
        return self.schedule.following(last_ns)

    def stop(self) -> None:
        """Disarm it."""
        self._was_due_ns = self.due_ns
        self._arm(None)

    def expire(self, now_ns: int) -> None:
        """The time has come: `now_ns` of its clock."""
        if self._sets != self.timer.sets and self.clock == "realtime":
            self.reset(now_ns)
        elif self.due_ns is not None:
            self._fire(self.schedule.passed(self.due_ns, now_ns), now_ns)

    def reset(self, now_ns: int) -> None:
        """CLOCK_REALTIME was set: compute the due time anew; what the set has passed expires once."""
        if self.due_ns is None or self._sets == self.timer.sets:
            return
        self._sets = self.timer.sets
        self.was_set = True
        offset_ns = self.timer.offset_ns()
        found = self.schedule.reset(self.due_ns, now_ns, offset_ns - self._offset_ns)
        self._offset_ns = offset_ns
        if isinstance(found, Passed):
            self._fire(found, now_ns)
        elif found != self.due_ns:
            self._arm(found)

    def memento(self) -> bytes:
        """When it is due, by its clock, or was when it was stopped; empty: never."""
        due_ns = self._was_due_ns if self.due_ns is None else self.due_ns
        return b"" if due_ns is None else b"%d" % due_ns

    def is_due(self, now_ns: int) -> bool:
        """Whether it is armed and its wake-up is not in the future."""
        return self.due_ns is not None and self.wake_ns <= now_ns

    def _arm(self, due_ns: int | None) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self.due_ns = due_ns
        if due_ns is not None:
            self.wake_ns = aligned(due_ns, self.accuracy_ns)
            self._call = self.queue.call_at(self.wake_ns, self.expire)
        elif self.clock == "realtime":
            self.timer.forget(self)

    def _fire(self, passed: Passed, now_ns: int) -> None:
        host = self.timer.host
        latest_ns, count, next_ns = passed
        self._arm(next_ns)
        event = event_pb2.Event(
            type="expired",
            real_time_ns=host.reactor.real_ns(),
            mono_time_ns=host.reactor.mono_ns(),
            timer=timer_pb2.TimerEvent(
                clock=CLOCKS[self.clock],
                scheduled_ns=latest_ns,
                lateness_ns=max(now_ns - latest_ns, 0),
                cookie=self.cookie,
                clock_was_set=self.was_set,
                next_ns=next_ns or 0,
            ),
        )
        self.was_set = False
        host.fire(self.job, encode(event), count=count)
        if next_ns is None:
            host.exhaust(self.job, "has expired")


class Timer(Basic):
    """The module."""

    description = DESCRIPTION

    def __init__(self, host: Host) -> None:
        self.host = host
        self.sets = 0  # how often CLOCK_REALTIME was set while somebody cared
        self._realtime: dict[Ticker, None] = {}  # armed, in the order of starting
        self._unlisten: Callable[[], None] | None = None

    def open(self, job: Job) -> None:
        """Check the parameters; see `parameters.py`."""
        values = job.values
        schedule = parse_schedule(values, self.host.reactor.real_ns())
        accuracy_ns = cast(int, values.get("accuracy", 0))
        clock = "monotonic" if isinstance(schedule, Span) else "realtime"
        job.data = Ticker(
            self,
            job,
            schedule=schedule,
            clock=cast(str, values.get("clock", clock)),
            accuracy_ns=accuracy_ns,
            cookie=cast(int, values.get("cookie", 0)) & COOKIE_MASK,
        )

    def start(self, job: Job) -> None:
        """Arm the job anew."""
        _ticker(job).start()

    def stop(self, job: Job) -> None:
        """Disarm the job; its phase is forgotten."""
        _ticker(job).stop()

    def close(self, job: Job) -> None:
        """Disarm the job for good."""
        _ticker(job).stop()
        job.data = None

    def operate(self, job: Job, key: bytes, name: str, data: bytes) -> None:  # noqa: ARG002
        """There is nothing that a timer can be asked to do."""
        raise invalid("operation", f"{name}: timers have no operations; stop and start the job instead")

    def sync(self, job: Job, done: Callable[[], None]) -> None:
        """Fire what is due, then say so."""
        ticker = _ticker(job)
        now_ns = ticker.queue.now_ns()
        if ticker.is_due(now_ns):
            ticker.expire(now_ns)
        done()

    def details(self, job: Job) -> dict[str, str]:
        """Schedule, clock and the next expiration."""
        ticker = _ticker(job)
        details = {"clock": ticker.clock}
        zone = None
        if isinstance(ticker.schedule, Dates):
            zone = ticker.schedule.calendar.zone
            details["calendar"] = ticker.schedule.calendar.text
            details["timezone"] = str(zone)
        if ticker.due_ns is None:
            details["next"] = "not armed"
        elif ticker.clock == "realtime":
            seconds, rest_ns = divmod(ticker.due_ns, SECOND)
            moment = datetime.fromtimestamp(seconds, zone or UTC).replace(microsecond=rest_ns // US)
            details["next"] = moment.isoformat()
        else:
            left_ns = max(ticker.due_ns - ticker.queue.now_ns(), 0)
            details["next"] = f"in {left_ns / SECOND:.3f} s"
        return details

    def memento(self, job: Job) -> bytes | None:
        """When it is due."""
        return _ticker(job).memento()

    def shutdown(self) -> None:
        """Nothing is left: all jobs are closed, so nobody listens any more."""

    # -- for tickers

    def queue(self, clock: str) -> TimerQueue:
        """The reactor's queue of that clock."""
        return self.host.reactor.clock(clock)

    def offset_ns(self) -> int:
        """What CLOCK_REALTIME is ahead of CLOCK_BOOTTIME; only setting it changes that."""
        return self.queue("realtime").now_ns() - self.queue("boottime").now_ns()

    def follow(self, ticker: Ticker) -> None:
        """Tell `ticker` when CLOCK_REALTIME is set."""
        if self._unlisten is None:
            self._unlisten = self.queue("realtime").on_set(self._was_set)
        self._realtime[ticker] = None

    def forget(self, ticker: Ticker) -> None:
        """Tell it no longer."""
        self._realtime.pop(ticker, None)
        if not self._realtime and self._unlisten is not None:
            self._unlisten()
            self._unlisten = None

    def _was_set(self, now_ns: int) -> None:
        self.sets += 1
        self._reset_some(now_ns, iter(list(self._realtime)), self.sets)

    def _reset_some(self, now_ns: int, rest: Iterator[Ticker], sets: int) -> None:
        if sets != self.sets:
            return  # set again since: another round has begun
        for _ in range(RESETS_PER_TURN):
            ticker = next(rest, None)
            if ticker is None:
                return
            ticker.reset(now_ns)
        queue = self.queue("realtime")
        queue.call_at(queue.now_ns(), lambda now_ns: self._reset_some(now_ns, rest, sets))


def _ticker(job: Job) -> Ticker:
    return cast(Ticker, job.data)
