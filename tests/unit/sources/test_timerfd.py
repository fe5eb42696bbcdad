"""The timer queue over a clock and a timerfd that the test holds in its hands."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from aemd.sources.timerfd import CALLS_PER_TURN, END_OF_TIME_NS, GARBAGE_MIN, TimerFd, TimerQueue


class FakeReactor:
    """Keeps what it is given; the test decides when deferred work runs."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[int], None]] = {}
        self.deferred: list[Callable[[], None]] = []

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        self.callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        del self.callbacks[fd]

    def defer(self, callback: Callable[[], None]) -> None:
        self.deferred.append(callback)

    def settle(self) -> None:
        while self.deferred:
            self.deferred.pop(0)()


class FakeTimerFd(TimerFd):
    """A timerfd without a kernel: says what it was set to, and that the clock was set, when told so."""

    def __init__(self, clock: int) -> None:
        self.fd = 1_000 + clock
        self.sets: list[int] = []
        self.was_set_at_read = False
        self.was_set_at_set = False
        self.closed = False

    def set(self, due_ns: int) -> bool:
        self.sets.append(due_ns)
        told, self.was_set_at_set = self.was_set_at_set, False
        return told

    def read(self) -> bool:
        told, self.was_set_at_read = self.was_set_at_read, False
        return told

    def close(self) -> None:
        self.closed = True


class Bench:
    """A queue whose clock stands at `now_ns`."""

    def __init__(self, clock: str = "monotonic") -> None:
        self.reactor = FakeReactor()
        self.faults: list[tuple[object, Exception]] = []
        self.timers: list[FakeTimerFd] = []
        bench = self

        class Queue(TimerQueue):
            def now_ns(self) -> int:
                return bench.now_ns

        self.now_ns = 1_000
        self.queue = Queue(
            self.reactor,  # type: ignore[arg-type]
            clock,
            on_fault=lambda callback, error: self.faults.append((callback, error)),
            open_timer=self._open,
        )

    def _open(self, clock: int) -> FakeTimerFd:
        self.timers.append(FakeTimerFd(clock))
        return self.timers[-1]

    @property
    def timer(self) -> FakeTimerFd:
        return self.timers[-1]

    def expire(self, now_ns: int) -> None:
        """The kernel reports the descriptor at that time."""
        self.now_ns = now_ns
        self.reactor.callbacks[self.timer.fd](1)
        self.reactor.settle()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def ignore(_now_ns: int) -> None:
    pass


def test_timerfd_is_opened_with_the_first_timer(bench):
    assert bench.timers == []
    bench.queue.call_at(2_000, ignore)
    assert len(bench.timers) == 1


def test_armed_once_a_turn_for_the_earliest(bench):
    for due_ns in (5_000, 3_000, 4_000):
        bench.queue.call_at(due_ns, ignore)
    bench.reactor.settle()
    assert bench.timer.sets == [3_000]


def test_later_timer_does_not_arm_again(bench):
    bench.queue.call_at(3_000, ignore)
    bench.reactor.settle()
    bench.queue.call_at(4_000, ignore)
    bench.reactor.settle()
    assert bench.timer.sets == [3_000]
    assert bench.reactor.deferred == []


def test_calls_come_by_due_time_then_creation(bench):
    called = []
    for due_ns, name in ((3_000, "c"), (2_000, "a"), (3_000, "d"), (2_000, "b")):
        bench.queue.call_at(due_ns, lambda _, name=name: called.append(name))
    bench.expire(3_000)
    assert called == ["a", "b", "c", "d"]


def test_callback_is_told_the_time_and_what_is_not_due_waits(bench):
    called = []
    bench.queue.call_at(2_000, called.append)
    bench.queue.call_at(2_600, called.append)
    bench.reactor.settle()
    bench.expire(2_500)
    assert called == [2_500]
    assert bench.timer.sets == [2_000, 2_600]


def test_cancelled_earliest_is_disarmed_and_never_wakes_anybody(bench):
    first = bench.queue.call_at(2_000, ignore)
    bench.queue.call_at(3_000, ignore)
    bench.reactor.settle()
    first.cancel()
    first.cancel()
    bench.reactor.settle()
    assert bench.timer.sets == [2_000, 3_000]


def test_empty_queue_is_disarmed(bench):
    call = bench.queue.call_at(2_000, ignore)
    bench.reactor.settle()
    call.cancel()
    bench.reactor.settle()
    assert bench.timer.sets == [2_000, 0]
    assert len(bench.queue) == 0


def test_added_and_cancelled_within_a_turn_costs_no_system_call(bench):
    bench.queue.call_at(2_000, ignore).cancel()
    bench.reactor.settle()
    assert bench.timer.sets == []


def test_cancel_after_the_call_changes_nothing(bench):
    call = bench.queue.call_at(2_000, ignore)
    bench.expire(2_000)
    call.cancel()
    assert len(bench.queue) == 0


def test_callback_may_cancel_one_that_is_due_too(bench):
    called = []
    bench.queue.call_at(2_000, lambda _: second.cancel())
    second = bench.queue.call_at(2_000, called.append)
    bench.expire(2_000)
    assert called == []
    assert len(bench.queue) == 0


def test_memory_of_cancelled_timers_is_bounded_by_the_live_ones(bench):
    keep = 100
    for number in range(keep):
        bench.queue.call_at(1_000_000 + number, ignore)
    for number in range(100_000):
        bench.queue.call_at(500_000 - number, ignore).cancel()
        assert len(bench.queue._heap) <= 2 * keep + GARBAGE_MIN + 2
    assert len(bench.queue) == keep
    bench.reactor.settle()
    assert bench.timer.sets[-1] == 1_000_000


def test_garbage_collected_while_calls_are_due_loses_none(bench):
    called = []
    later = [bench.queue.call_at(9_000, ignore) for _ in range(4 * GARBAGE_MIN)]

    def cancel_all(_now_ns: int) -> None:
        for call in later:
            call.cancel()

    bench.queue.call_at(2_000, cancel_all)
    bench.queue.call_at(2_001, called.append)
    bench.queue.call_at(2_002, called.append)
    bench.expire(3_000)
    assert called == [3_000, 3_000]
    assert len(bench.queue) == 0


def test_past_and_impossible_times_arm_for_at_once_and_for_never(bench):
    bench.queue.call_at(-5, ignore)
    bench.reactor.settle()
    assert bench.timer.sets == [1]
    bench.expire(2_000)
    bench.queue.call_at(1 << 80, ignore)
    bench.reactor.settle()
    assert bench.timer.sets[-1] == END_OF_TIME_NS


def test_many_due_at_once_leave_room_for_descriptors(bench):
    called = []
    for _ in range(2 * CALLS_PER_TURN + 1):
        bench.queue.call_at(2_000, called.append)
    bench.reactor.settle()
    sizes = []
    for _ in range(3):
        bench.expire(2_000)
        sizes.append(len(called))
    assert sizes == [CALLS_PER_TURN, 2 * CALLS_PER_TURN, 2 * CALLS_PER_TURN + 1]
    assert bench.timer.sets == [2_000, 2_000, 2_000]  # armed anew, so that it is reported again


def test_failing_callback_is_reported_and_the_others_are_called(bench):
    called = []

    def fail(_now_ns: int) -> None:
        raise ValueError("no")

    bench.queue.call_at(2_000, fail)
    bench.queue.call_at(2_000, called.append)
    bench.expire(2_000)
    assert called == [2_000]
    assert [(callback, str(error)) for callback, error in bench.faults] == [(fail, "no")]


def test_listener_alone_arms_for_the_end_of_time_until_it_ends():
    bench = Bench("realtime")
    end = bench.queue.on_set(ignore)
    bench.reactor.settle()
    assert bench.timer.sets == [END_OF_TIME_NS]
    end()
    end()
    bench.reactor.settle()
    assert bench.timer.sets == [END_OF_TIME_NS, 0]


def test_set_clock_seen_by_read_tells_listeners_before_calls():
    bench = Bench("realtime")
    order = []
    bench.queue.call_at(2_000, lambda _: order.append("call"))
    bench.queue.on_set(lambda now_ns: order.append(now_ns))
    bench.reactor.settle()
    bench.timer.was_set_at_read = True
    bench.expire(9_000)
    assert order == [9_000, "call"]


def test_set_clock_seen_by_settime_tells_listeners():
    bench = Bench("realtime")
    told = []
    bench.queue.on_set(told.append)
    bench.reactor.settle()
    bench.timer.was_set_at_set = True
    bench.queue.call_at(2_000, ignore)
    bench.reactor.settle()
    assert told == [1_000]


def test_failing_listener_is_reported_and_the_others_are_told():
    bench = Bench("realtime")
    told = []

    def fail(_now_ns: int) -> None:
        raise ValueError("no")

    bench.queue.on_set(fail)
    bench.queue.on_set(told.append)
    bench.reactor.settle()
    bench.timer.was_set_at_read = True
    bench.expire(2_000)
    assert told == [2_000]
    assert len(bench.faults) == 1


def test_close_forgets_everything_and_the_queue_can_be_used_again(bench):
    call = bench.queue.call_at(2_000, ignore)
    bench.queue.close()
    call.cancel()
    assert bench.timers[0].closed
    assert bench.reactor.callbacks == {}
    bench.reactor.settle()
    bench.queue.call_at(3_000, ignore)
    bench.reactor.settle()
    assert bench.timer.sets == [3_000]
    assert len(bench.queue) == 1


def test_timerfd_that_cannot_be_opened_names_the_system_call():
    with pytest.raises(OSError, match="timerfd_create") as raised:
        TimerFd(99)
    assert raised.value.errno


def test_timerfd_that_is_closed_names_the_system_call():
    timer = TimerFd(1)
    os.close(timer.fd)
    with pytest.raises(OSError, match="timerfd_settime"):
        timer.set(1)
