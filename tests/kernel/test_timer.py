"""The timer module on the real loop and the kernel's clocks."""

from __future__ import annotations

import time

import pytest

from aemd.loop.loop import Loop
from aemd.modules.timer import Timer
from aemd.sources.timerfd import TimerFd
from aemd.v1 import timer_pb2

MS = 1_000_000
SECOND = 1_000 * MS


@pytest.fixture
def timer(host) -> Timer:
    return Timer(host)


def start(host, timer, **values: object):
    job = host.job(values)
    timer.open(job)
    timer.start(job)
    return job


@pytest.mark.parametrize("clock", ["monotonic", "boottime", "realtime"])
def test_periodic_timer_fires_in_its_rhythm_with_data(host, timer, clock):
    started_ns = host.reactor.clock(clock).now_ns()
    start(host, timer, every=20 * MS, clock=clock, cookie=42)
    host.wait_until(lambda: sum(fired.count for fired in host.fired) >= 5)
    last = host.fired[-1].event.timer
    assert last.cookie == 42
    assert last.clock == timer_pb2.Clock.Value(f"CLOCK_{clock.upper()}")
    first_ns = host.fired[0].event.timer.scheduled_ns
    first_ns -= (host.fired[0].count - 1) * 20 * MS
    assert first_ns >= started_ns + 20 * MS
    total = sum(fired.count for fired in host.fired)
    if clock != "realtime":  # somebody might set that one just now
        assert last.scheduled_ns == first_ns + (total - 1) * 20 * MS
        assert last.next_ns == last.scheduled_ns + 20 * MS
    assert all(fired.event.timer.lateness_ns >= 0 for fired in host.fired)


def test_hundred_microseconds_are_possible_and_none_is_lost(host, timer):
    start(host, timer, every=100_000)
    host.wait_until(lambda: sum(fired.count for fired in host.fired) >= 1_000)
    first, last = host.fired[0], host.fired[-1]
    counted = sum(fired.count for fired in host.fired) - first.count
    assert last.event.timer.scheduled_ns - first.event.timer.scheduled_ns == counted * 100_000


def test_timer_after_a_time_ends_the_job(host, timer):
    job = start(host, timer, after=5 * MS)
    host.wait_until(lambda: host.exhausted)
    assert [fired.count for fired in host.fired] == [1]
    assert host.exhausted[0][0] is job


def test_timer_at_a_time_fires_then(host, timer):
    at_ns = time.time_ns() + 50 * MS
    start(host, timer, at=at_ns)
    event = host.wait_for()[0].event
    assert event.timer.scheduled_ns == at_ns
    assert event.real_time_ns >= at_ns


def test_calendar_fires_on_the_second(host, timer):
    start(host, timer, calendar="*:*:*", timezone="UTC")
    event = host.wait_for()[0].event
    assert event.timer.scheduled_ns % SECOND == 0
    assert event.timer.next_ns == event.timer.scheduled_ns + SECOND


def test_busy_loop_makes_one_event_of_what_was_missed(host, timer):
    start(host, timer, every=MS)
    ends_ns = time.monotonic_ns() + 30 * MS
    host.reactor.turn(0)
    while time.monotonic_ns() < ends_ns:
        pass
    host.fired.clear()
    fired = host.wait_for()[0]
    assert fired.count >= 29


def test_no_wake_up_without_expiration(host, timer):
    """One timer due, many others far away, stopped or closed: one wake-up."""
    for number in range(1_000):
        start(host, timer, every=(3_600 + number) * SECOND)
        timer.stop(start(host, timer, every=MS))
        timer.close(start(host, timer, every=MS))
    host.reactor.turn(0)
    before = host.reactor.wakeups
    start(host, timer, after=100 * MS)
    host.wait_for()
    assert host.reactor.wakeups == before + 1


def test_hundred_thousand_timers_at_once(host, timer):
    jobs = [start(host, timer, after=200 * MS) for _ in range(100_000)]
    host.wait_until(lambda: len(host.fired) == len(jobs), within_ns=50 * SECOND)
    assert len(host.exhausted) == len(jobs)
    assert len(host.reactor.clock("monotonic")) == 0


def test_set_clock_is_noticed_by_jobs_of_the_wall_clock(host):
    """The read that fails with ECANCELED is made up, since no test sets this machine's clock. So the
    clock has moved by nothing, and what can be seen is the flag; how schedules change is in tests/unit."""
    opened: list[Canceled] = []

    class Canceled(TimerFd):
        canceled = False

        def read(self) -> bool:
            told, self.canceled = self.canceled, False
            return super().read() or told

    def open_timer(clock: int) -> TimerFd:
        opened.append(Canceled(clock))
        return opened[-1]

    loop = Loop(open_timer=open_timer)
    host = type(host)(loop)
    timer = Timer(host)
    start(host, timer, calendar="*:*:*", timezone="UTC")
    opened[0].canceled = True
    fired = host.wait_for(2)
    assert [entry.event.timer.clock_was_set for entry in fired] == [True, False]
    assert [entry.count for entry in fired] == [1, 1]
    loop.close()
