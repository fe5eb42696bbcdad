"""The timer module over clocks that the test sets as it likes."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from aemd.core.errors import AemError
from aemd.core.history import Resumed
from aemd.core.limits import Limits
from aemd.modules.params import parse_values
from aemd.modules.timer import Timer
from aemd.modules.timer.timer import RESETS_PER_TURN
from aemd.v1 import event_pb2, job_pb2, timer_pb2

SECOND = 1_000_000_000
HOUR = 3_600 * SECOND


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * SECOND


@dataclass(eq=False)
class FakeCall:
    due_ns: int
    callback: Callable[[int], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeQueue:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now_ns: int) -> None:
        self.time_ns = now_ns
        self.heap: list[tuple[int, int, FakeCall]] = []
        self.listeners: list[Callable[[int], None]] = []
        self.created = 0

    def now_ns(self) -> int:
        return self.time_ns

    def call_at(self, due_ns: int, callback: Callable[[int], None]) -> FakeCall:
        self.created += 1
        call = FakeCall(due_ns, callback)
        heapq.heappush(self.heap, (due_ns, self.created, call))
        return call

    def on_set(self, callback: Callable[[int], None]) -> Callable[[], None]:
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def live(self) -> list[int]:
        return sorted(due_ns for due_ns, _, call in self.heap if not call.cancelled)

    def run(self, *, calls_max: int = 1_000_000) -> None:
        """Call what is due."""
        for _ in range(calls_max):
            if not self.heap or self.heap[0][0] > self.time_ns:
                return
            call = heapq.heappop(self.heap)[2]
            if not call.cancelled:
                call.callback(self.time_ns)


class FakeReactor:
    def __init__(self) -> None:
        self.clocks = {
            "monotonic": FakeQueue(1_000 * SECOND),
            "boottime": FakeQueue(2_000 * SECOND),
            "realtime": FakeQueue(at("2026-03-02T12:00+00:00")),
        }

    def clock(self, name: str) -> FakeQueue:
        return self.clocks[name]

    def mono_ns(self) -> int:
        return self.clocks["monotonic"].time_ns

    def real_ns(self) -> int:
        return self.clocks["realtime"].time_ns


@dataclass(eq=False)
class FakeJob:
    values: dict[str, object]
    id: int = 1
    owner: object = None
    label: str = ""
    data: object = None
    resumed: Resumed | None = None
    ruling: object = None


@dataclass
class FakeHost:
    reactor: FakeReactor = field(default_factory=FakeReactor)
    fired: list[tuple[event_pb2.Event, int]] = field(default_factory=list)
    exhausted: list[FakeJob] = field(default_factory=list)

    def fire(self, job: FakeJob, event: bytes, *, key: bytes = b"", count: int = 1) -> None:
        self.fired.append((event_pb2.Event.FromString(event), count))

    def exhaust(self, job: FakeJob, reason: str) -> None:
        self.exhausted.append(job)


class Bench:
    def __init__(self) -> None:
        self.host = FakeHost()
        self.timer = Timer(self.host)  # type: ignore[arg-type]

    def open(self, **params: str) -> FakeJob:
        """A job with these parameters, as a person types them."""
        given = {name: job_pb2.Value(text=text) for name, text in params.items()}
        job = FakeJob(parse_values(self.timer.description.parameters, given, Limits()))
        self.timer.open(job)
        return job

    def start(self, **params: str) -> FakeJob:
        job = self.open(**params)
        self.timer.start(job)
        return job

    def queue(self, clock: str) -> FakeQueue:
        return self.host.reactor.clocks[clock]

    def pass_time(self, span_ns: int) -> None:
        """All clocks go on together, and what is due is called."""
        for queue in self.host.reactor.clocks.values():
            queue.time_ns += span_ns
        for queue in self.host.reactor.clocks.values():
            queue.run()

    def set_clock(self, moved_ns: int) -> None:
        """CLOCK_REALTIME is set; the queue tells it, as after a read that failed with ECANCELED."""
        queue = self.queue("realtime")
        queue.time_ns += moved_ns
        for listener in list(queue.listeners):
            listener(queue.time_ns)
        queue.run()

    @property
    def counts(self) -> list[int]:
        return [count for _, count in self.host.fired]

    @property
    def last(self) -> timer_pb2.TimerEvent:
        return self.host.fired[-1][0].timer


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_event_says_everything(bench):
    bench.start(every="10s", cookie="0xffffffffffffffff")
    bench.pass_time(12 * SECOND)
    event, count = bench.host.fired[0]
    assert count == 1
    assert event.type == "expired"
    assert event.real_time_ns == bench.queue("realtime").time_ns
    assert event.mono_time_ns == 1_012 * SECOND
    assert event.timer == timer_pb2.TimerEvent(
        clock=timer_pb2.CLOCK_MONOTONIC,
        scheduled_ns=1_010 * SECOND,
        lateness_ns=2 * SECOND,
        cookie=(1 << 64) - 1,
        next_ns=1_020 * SECOND,
    )


def test_negative_cookie_is_echoed_as_twos_complement(bench):
    bench.start(after="1s", cookie="-1")
    bench.pass_time(SECOND)
    assert bench.last.cookie == (1 << 64) - 1


def test_after_fires_once_and_the_job_ends(bench):
    job = bench.start(after="10s")
    bench.pass_time(10 * SECOND)
    bench.pass_time(100 * SECOND)
    assert bench.counts == [1]
    assert bench.last.next_ns == 0
    assert bench.host.exhausted == [job]


def test_after_and_every_fire_first_then_periodically(bench):
    bench.start(after="1s", every="10s")
    for _ in range(12):
        bench.pass_time(SECOND)
    assert bench.counts == [1, 1]
    assert bench.last.scheduled_ns == 1_011 * SECOND


def test_missed_expirations_come_as_one_event_with_their_count(bench):
    bench.start(every="10s")
    bench.pass_time(35 * SECOND)
    assert bench.counts == [3]
    assert bench.last.scheduled_ns == 1_030 * SECOND
    assert bench.last.lateness_ns == 5 * SECOND
    bench.pass_time(5 * SECOND)
    assert bench.counts == [3, 1]
    assert bench.last.lateness_ns == 0


def test_missed_calendar_expirations_are_all_counted(bench):
    bench.start(calendar="*:*:* UTC")
    bench.pass_time(1_000 * SECOND)
    assert sum(bench.counts) == 1_000
    assert bench.last.scheduled_ns == bench.queue("realtime").time_ns


@pytest.mark.parametrize("clock", ["monotonic", "boottime", "realtime"])
def test_spans_run_on_the_clock_that_was_asked_for(bench, clock):
    bench.start(every="10s", clock=clock)
    assert bench.queue(clock).live() == [bench.queue(clock).time_ns + 10 * SECOND]
    bench.pass_time(10 * SECOND)
    assert bench.last.clock == timer_pb2.Clock.Value(f"CLOCK_{clock.upper()}")


def test_point_in_the_past_fires_at_once_with_its_lateness(bench):
    job = bench.start(at="2026-03-02T11:00:00Z")
    bench.pass_time(0)
    assert bench.last.lateness_ns == HOUR
    assert bench.host.exhausted == [job]


def test_stop_disarms_and_start_arms_anew(bench):
    job = bench.start(every="10s")
    bench.pass_time(9 * SECOND)
    bench.timer.stop(job)
    bench.pass_time(60 * SECOND)
    assert bench.counts == []
    bench.timer.start(job)
    bench.pass_time(9 * SECOND)
    assert bench.counts == []
    bench.pass_time(SECOND)
    assert bench.counts == [1]


def test_close_leaves_nothing_behind(bench):
    for params in ({"every": "10s"}, {"calendar": "hourly"}, {"at": "@1900000000"}):
        job = bench.start(**params)
        bench.timer.close(job)
        assert job.data is None
    bench.timer.close(bench.open(every="10s"))
    assert all(not queue.live() for queue in bench.host.reactor.clocks.values())
    assert bench.queue("realtime").listeners == []
    bench.timer.shutdown()


def test_accuracy_lets_timers_share_a_wake_up(bench):
    for number in range(100):
        bench.start(after=f"{1_000 + number}ms", accuracy="500ms")
    assert len(set(bench.queue("monotonic").live())) <= 2
    bench.pass_time(1_600_000_000)
    assert len(bench.counts) == 100
    assert all(event.timer.lateness_ns <= 600_000_000 for event, _ in bench.host.fired)


def test_sync_fires_what_is_due_and_answers(bench):
    job = bench.start(every="10s")
    done = []
    bench.timer.sync(job, lambda: done.append(len(bench.host.fired)))
    bench.queue("monotonic").time_ns += 20 * SECOND
    bench.timer.sync(job, lambda: done.append(len(bench.host.fired)))
    assert done == [0, 1]
    assert bench.counts == [2]
    bench.pass_time(0)
    assert bench.counts == [2]
    bench.timer.stop(job)
    bench.timer.sync(job, lambda: done.append(len(bench.host.fired)))
    assert done == [0, 1, 1]


def test_details_are_for_people(bench):
    assert bench.timer.details(bench.start(every="10s")) == {"clock": "monotonic", "next": "in 10.000 s"}
    assert bench.timer.details(bench.open(every="10s"))["next"] == "not armed"
    assert bench.timer.details(bench.start(calendar="09:00", timezone="Europe/Berlin")) == {
        "clock": "realtime",
        "calendar": "09:00",
        "timezone": "Europe/Berlin",
        "next": "2026-03-03T09:00:00+01:00",
    }


def test_operations_are_refused(bench):
    with pytest.raises(AemError, match="no operations"):
        bench.timer.operate(bench.start(every="10s"), b"", "write", b"")


# -- CLOCK_REALTIME is set


def test_clock_set_across_calendar_times_fires_once(bench):
    bench.start(calendar="hourly UTC")
    bench.set_clock(10 * HOUR + 60 * SECOND)
    assert bench.counts == [1]
    assert bench.last.clock_was_set
    assert bench.last.scheduled_ns == at("2026-03-02T13:00+00:00")
    assert bench.last.next_ns == at("2026-03-02T23:00+00:00")
    bench.pass_time(HOUR)
    assert bench.counts == [1, 1]
    assert not bench.last.clock_was_set


def test_clock_set_back_makes_calendar_times_come_again(bench):
    bench.start(calendar="hourly UTC")
    bench.pass_time(HOUR)
    bench.set_clock(-5 * HOUR)
    assert bench.queue("realtime").live() == [at("2026-03-02T09:00+00:00")]
    bench.pass_time(HOUR)
    assert bench.counts == [1, 1]
    assert bench.last.clock_was_set


def test_clock_set_past_a_point_fires_it_and_before_it_does_not(bench):
    bench.start(at="2026-03-02T13:00:00Z")
    bench.set_clock(-HOUR)
    bench.pass_time(HOUR)
    assert bench.counts == []
    bench.set_clock(2 * HOUR)
    assert bench.counts == [1]
    assert bench.last.clock_was_set


@pytest.mark.parametrize("moved_ns", [1_000 * HOUR, -1_000 * HOUR])
def test_spans_on_realtime_are_not_changed_by_setting_it(bench, moved_ns):
    bench.start(every="10s", clock="realtime")
    bench.pass_time(4 * SECOND)
    bench.set_clock(moved_ns)
    bench.pass_time(5 * SECOND)
    assert bench.counts == []
    bench.pass_time(SECOND)
    assert bench.counts == [1]
    assert bench.last.clock_was_set
    assert bench.last.lateness_ns == 0


def test_clock_set_does_not_concern_other_clocks(bench):
    bench.start(every="10s")
    assert bench.queue("realtime").listeners == []
    bench.set_clock(HOUR)
    bench.pass_time(10 * SECOND)
    assert not bench.last.clock_was_set


def test_stopped_job_and_job_started_after_the_set_are_not_concerned(bench):
    stopped = bench.start(calendar="hourly UTC")
    bench.start(calendar="daily UTC")
    bench.timer.stop(stopped)
    bench.set_clock(2 * HOUR)
    assert bench.counts == []
    bench.timer.start(stopped)
    bench.pass_time(HOUR)
    assert bench.counts == [1]
    assert not bench.last.clock_was_set


def test_many_jobs_are_computed_anew_some_each_turn(bench):
    jobs = [bench.start(calendar="hourly UTC") for _ in range(3 * RESETS_PER_TURN)]
    queue = bench.queue("realtime")
    queue.time_ns -= 24 * HOUR
    for listener in list(queue.listeners):
        listener(queue.time_ns)
    anew = [job for job in jobs if job.data.due_ns < queue.time_ns + 2 * HOUR]
    assert len(anew) == RESETS_PER_TURN
    queue.run()
    assert all(job.data.due_ns == at("2026-03-01T13:00+00:00") for job in jobs)


def test_clock_set_again_while_jobs_are_computed_anew(bench):
    jobs = [bench.start(calendar="hourly UTC") for _ in range(3 * RESETS_PER_TURN)]
    queue = bench.queue("realtime")
    for _ in range(2):
        queue.time_ns -= 24 * HOUR
        for listener in list(queue.listeners):
            listener(queue.time_ns)
    queue.run()
    assert all(job.data.due_ns == at("2026-02-28T13:00+00:00") for job in jobs)
    assert bench.counts == []


def test_job_that_expires_before_its_turn_has_come_is_computed_first(bench):
    for _ in range(3 * RESETS_PER_TURN):
        bench.start(calendar="hourly UTC")
    bench.set_clock(10 * HOUR)
    assert bench.counts == [1] * (3 * RESETS_PER_TURN)
    assert all(event.timer.clock_was_set for event, _ in bench.host.fired)


# -- parameters


@pytest.mark.parametrize(
    ("params", "field", "message"),
    [
        ({}, "params", "every=200ms"),
        ({"every": "99us"}, "params.every", "at least 100000 ns"),
        ({"every": "0"}, "params.every", "at least"),
        ({"every": "200y"}, "params.every", "at most"),
        ({"after": "-1s"}, "params.after", "time span"),
        ({"every": "1s", "at": "@1900000000"}, "params.at", "cannot stand beside every="),
        ({"after": "1s", "calendar": "daily"}, "params.calendar", "register two jobs"),
        ({"at": "@1900000000", "calendar": "daily"}, "params.calendar", "beside at="),
        ({"at": "tomorrow"}, "params.at", "not a point in time"),
        ({"every": "1s", "timezone": "UTC"}, "params.timezone", "leave it out"),
        ({"calendar": "daily", "timezone": "Nowhere"}, "params.timezone", "no time zone"),
        ({"calendar": "daily", "clock": "monotonic"}, "params.clock", "wall clock"),
        ({"at": "@1900000000", "clock": "boottime"}, "params.clock", "wall clock"),
        ({"every": "1s", "clock": "sundial"}, "params.clock", "monotonic, boottime, realtime"),
        ({"every": "1s", "accuracy": "2s"}, "params.accuracy", "at most one period"),
        ({"after": "1s", "accuracy": "25h"}, "params.accuracy", "at most"),
        ({"every": "1s", "cookie": "0x10000000000000000"}, "params.cookie", "at most"),
        ({"calendar": "25:00"}, "params.calendar", "bad hour"),
        ({"calendar": "2020-01-01"}, "params.calendar", "never expires"),
        ({"calendar": "x" * 300}, "params.calendar", "at most 256"),
        ({"every": "1s", "interval": "1s"}, "params.interval", "no such parameter"),
    ],
)
def test_wrong_parameters_are_refused_with_field_and_way_out(bench, params, field, message):
    with pytest.raises(AemError) as raised:
        bench.open(**params)
    assert raised.value.details["field"] == field
    assert message in raised.value.message


def test_examples_of_the_description_are_valid(bench):
    for parameter in bench.timer.description.parameters:
        assert parameter.example
    for params in ({"calendar": "*/5 * * * *"}, {"after": "5s", "every": "1min", "accuracy": "1s"}):
        bench.open(**params)


def test_calendar_that_ended_since_it_was_opened_ends_the_job(bench):
    job = bench.open(calendar="2026-03-02 12:30 UTC")
    bench.pass_time(HOUR)
    bench.timer.start(job)
    assert bench.host.exhausted == [job]
    assert bench.counts == []


def restarted(bench: Bench, away_ns: int, **params: str) -> tuple[Bench, FakeJob]:
    """Another daemon starts the same job, `away_ns` after this one ended; other clocks may begin anew."""
    before = bench.host.fired
    later = Bench()
    later.queue("realtime").time_ns = bench.queue("realtime").time_ns + away_ns
    newest = before[-1][0].SerializeToString() if before else b""
    job = later.open(**params)
    job.resumed = Resumed(at("2026-03-02T12:00+00:00"), newest)
    later.timer.start(job)
    later.pass_time(0)
    return later, job


@pytest.mark.parametrize("clock", ["monotonic", "boottime", "realtime"])
def test_what_came_due_while_no_daemon_was_there_fires_once_with_its_count(bench, clock):
    bench.start(every="10s", clock=clock)
    bench.pass_time(12 * SECOND)
    later, _ = restarted(bench, 43 * SECOND, every="10s", clock=clock)
    assert later.counts == [4]  # 20, 30, 40 and 50 s after the start
    assert later.last.lateness_ns == 5 * SECOND
    later.pass_time(5 * SECOND)
    assert later.counts == [4, 1]  # the rhythm is kept


def test_a_timer_that_had_not_fired_goes_on_from_its_start(bench):
    bench.start(after="1h")
    bench.pass_time(600 * SECOND)
    later, job = restarted(bench, 1_200 * SECOND, after="1h")
    assert later.counts == []
    later.pass_time(1_800 * SECOND)
    assert later.counts == [1]
    assert later.host.exhausted == [job]


def test_mornings_that_were_missed_are_told(bench):
    bench.start(calendar="*-*-* 06:00:00", timezone="UTC")
    later, _ = restarted(bench, 3 * 86_400 * SECOND, calendar="*-*-* 06:00:00", timezone="UTC")
    assert later.counts == [3]
    later.pass_time(18 * 3_600 * SECOND)
    assert later.counts == [3, 1]


def test_a_restart_in_between_misses_nothing_and_invents_nothing(bench):
    bench.start(every="10s")
    bench.pass_time(10 * SECOND)
    later, _ = restarted(bench, 2 * SECOND, every="10s")
    assert later.counts == []
    later.pass_time(8 * SECOND)
    assert later.counts == [1]
    assert later.last.lateness_ns == 0
