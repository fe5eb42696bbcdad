"""TimerQueue over the kernel's own timerfd, on the real loop."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from aemd.loop.loop import Loop
from aemd.sources.timerfd import CALLS_PER_TURN, CLOCKS, TimerFd

MS = 1_000_000
SECOND = 1_000 * MS


def turn_until(loop: Loop, condition, limit_ns: int = 10 * SECOND) -> None:
    end_ns = time.monotonic_ns() + limit_ns
    while not condition():
        assert time.monotonic_ns() < end_ns, "it did not happen in time"
        loop.turn(100 * MS)


@pytest.mark.parametrize("clock", CLOCKS)
def test_call_comes_at_its_time_and_not_before(loop, clock):
    queue = loop.clock(clock)
    due_ns = queue.now_ns() + 20 * MS
    called = []
    queue.call_at(due_ns, called.append)
    turn_until(loop, lambda: called)
    assert called[0] >= due_ns


@pytest.mark.parametrize("clock", CLOCKS)
def test_past_due_time_is_called_at_once(loop, clock):
    called = []
    loop.clock(clock).call_at(0, called.append)
    turn_until(loop, lambda: called)


def test_one_descriptor_serves_all_timers_of_a_clock(loop):
    before = len(os.listdir("/proc/self/fd"))
    queue = loop.clock("monotonic")
    for number in range(10_000):
        queue.call_at(queue.now_ns() + SECOND * (1_000 + number), lambda _: None)
    loop.turn(0)
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_kernel_holds_the_earliest_time_and_nothing_when_empty(loop):
    """The oracle is the kernel's own view: /proc/self/fdinfo of the timerfd."""
    queue = loop.clock("monotonic")
    now_ns = queue.now_ns()
    far = queue.call_at(now_ns + 3_000 * SECOND, lambda _: None)
    near = queue.call_at(now_ns + 1_000 * SECOND, lambda _: None)
    loop.turn(0)
    assert 990 < armed_seconds(queue) <= 1_000
    near.cancel()
    loop.turn(0)
    assert 2_990 < armed_seconds(queue) <= 3_000
    far.cancel()
    loop.turn(0)
    assert armed_seconds(queue) == 0


def armed_seconds(queue) -> float:
    with open(f"/proc/self/fdinfo/{queue._timer.fd}") as file:
        fields = dict(line.split(":", 1) for line in file)
    seconds, nanoseconds = fields["it_value"].strip(" ()\n").split(",")
    return int(seconds) + int(nanoseconds) / 1e9


def test_realtime_asks_to_hear_of_clock_sets_and_monotonic_cannot(loop):
    for clock, cancel_on_set in (("realtime", True), ("monotonic", False)):
        queue = loop.clock(clock)
        queue.call_at(queue.now_ns() + 1_000 * SECOND, lambda _: None)
        loop.turn(0)
        with open(f"/proc/self/fdinfo/{queue._timer.fd}") as file:
            fields = dict(line.split(":", 1) for line in file)
        assert bool(int(fields["settime flags"], 8) & 2) is cancel_on_set


def test_hundred_thousand_due_at_once_all_come_and_descriptors_have_their_turn(loop):
    queue = loop.clock("monotonic")
    due_ns = queue.now_ns()
    called = []
    for _ in range(100_000):
        queue.call_at(due_ns, called.append)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    seen = []
    loop.add(reader, 1, lambda _: seen.append(len(called)))
    turn_until(loop, lambda: len(called) == 100_000, 30 * SECOND)
    between = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert max(between) <= CALLS_PER_TURN
    loop.remove(reader)
    os.close(reader)
    os.close(writer)


def test_set_clock_is_told_once_and_timers_go_on():
    """Setting this machine's clock is no business of a test: the one read that would fail with ECANCELED
    is made up, everything around it is the kernel's."""

    class Tampered(TimerFd):
        canceled = False

        def read(self) -> bool:
            if self.canceled:
                self.canceled = False
                return True
            return super().read()

    opened = []

    def open_timer(clock: int) -> TimerFd:
        opened.append(Tampered(clock))
        return opened[-1]

    loop = Loop(open_timer=open_timer)
    queue = loop.clock("realtime")
    told, called = [], []
    queue.on_set(told.append)
    queue.call_at(queue.now_ns() + 5 * MS, called.append)
    opened[0].canceled = True
    turn_until(loop, lambda: called)
    queue.call_at(queue.now_ns() + 5 * MS, called.append)
    turn_until(loop, lambda: len(called) == 2)
    assert len(told) == 1
    loop.close()
