"""The loop's turns, over real descriptors."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from aemd.loop.loop import EVENTS_PER_TURN, ROUNDS_PER_TURN, Fault, Loop

SECOND = 1_000_000_000


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    left.setblocking(False)
    with left, right:
        yield left, right


@pytest.fixture
def pipes() -> Iterator[Callable[[], tuple[int, int]]]:
    """Makes pipes with a byte in them, and closes what is left of them."""
    opened: list[int] = []

    def make() -> tuple[int, int]:
        reader, writer = os.pipe()
        os.write(writer, b"x")
        opened.extend((reader, writer))
        return reader, writer

    yield make
    for fd in opened:
        try:
            os.close(fd)
        except OSError:
            pass  # the test has closed it


def test_ready_descriptor_is_called_each_turn_until_it_is_read(loop, pair):
    calls = []
    loop.add(pair[0].fileno(), select.EPOLLIN, calls.append)
    pair[1].send(b"x")
    loop.turn()
    loop.turn()
    assert calls == [select.EPOLLIN] * 2
    pair[0].recv(1)
    loop.turn(0)
    assert len(calls) == 2


def test_modify_to_nothing_leaves_hang_up(loop, pair):
    calls = []
    fd = pair[0].fileno()
    loop.add(fd, select.EPOLLIN, calls.append)
    pair[1].send(b"x")
    loop.modify(fd, 0)
    loop.turn(0)
    assert calls == []
    pair[1].close()
    loop.turn()
    assert calls == [select.EPOLLHUP]


def test_add_of_known_descriptor_is_refused_and_the_first_stays(loop, pair):
    calls = []
    loop.add(pair[0].fileno(), select.EPOLLIN, calls.append)
    with pytest.raises(FileExistsError, match="closed and not removed"):
        loop.add(pair[0].fileno(), select.EPOLLIN, lambda _: None)
    pair[1].send(b"x")
    loop.turn()
    assert calls


def test_add_of_what_epoll_cannot_watch_is_an_error_and_leaves_nothing(loop):
    with open("/etc/passwd") as file:
        with pytest.raises(PermissionError):
            loop.add(file.fileno(), select.EPOLLIN, lambda _: None)
        assert file.fileno() not in loop


def test_remove_of_unknown_descriptor_is_an_error(loop, pair):
    with pytest.raises(KeyError):
        loop.remove(pair[0].fileno())


def test_removed_by_an_earlier_callback_of_the_batch_is_not_called(loop, pipes):
    readers = [pipes()[0] for _ in range(2)]
    called = []

    def first_come(fd: int) -> Callable[[int], None]:
        def call(_events: int) -> None:
            called.append(fd)
            for other in readers:
                loop.remove(other)

        return call

    for fd in readers:
        loop.add(fd, select.EPOLLIN, first_come(fd))
    loop.turn()
    assert len(called) == 1


def test_number_reused_within_the_batch_gets_no_stale_event(loop, pipes):
    """The old descriptor is readable, the new one of the same number is not."""
    first, second = pipes()[0], pipes()[0]
    stale, fresh = [], []
    reused = {}

    def replace(other: int) -> Callable[[int], None]:
        def call(_events: int) -> None:
            stale.append(other)
            loop.remove(other)
            os.close(other)
            reader, writer = os.pipe()
            assert reader == other  # the kernel gives the lowest free number
            reused[reader] = writer
            loop.add(reader, select.EPOLLIN, fresh.append)

        return call

    loop.add(first, select.EPOLLIN, replace(second))
    loop.add(second, select.EPOLLIN, replace(first))
    loop.turn()
    assert len(stale) == 1
    assert fresh == []
    (writer,) = reused.values()
    loop.remove({first: second, second: first}[stale[0]])
    os.write(writer, b"x")
    loop.turn()
    assert fresh == [select.EPOLLIN]
    os.close(writer)


def test_no_longer_wanted_within_the_batch_is_not_called(loop, pipes):
    readers = [pipes()[0] for _ in range(2)]
    called = []

    def first_come(fd: int) -> Callable[[int], None]:
        def call(_events: int) -> None:
            called.append(fd)
            for other in readers:
                loop.modify(other, 0)

        return call

    for fd in readers:
        loop.add(fd, select.EPOLLIN, first_come(fd))
    loop.turn()
    assert len(called) == 1


def test_busy_descriptor_does_not_starve_more_than_a_turn_takes(loop):
    """Every ready descriptor is called once before any is called twice, also beyond one epoll_wait."""
    eventfds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(EVENTS_PER_TURN + 100)]
    calls = dict.fromkeys(eventfds, 0)

    def count(fd: int) -> Callable[[int], None]:
        def call(_events: int) -> None:
            calls[fd] += 1

        return call

    for fd in eventfds:
        loop.add(fd, select.EPOLLIN, count(fd))
    loop.turn()
    loop.turn()
    assert min(calls.values()) == 1
    for fd in eventfds:
        loop.remove(fd)
        os.close(fd)


def test_deferred_work_and_hooks_run_before_sleep_in_order(loop):
    order = []
    loop.before_sleep(lambda: order.append("hook"))

    def first() -> None:
        order.append("first")
        loop.defer(lambda: order.append("second"))

    loop.defer(first)
    loop.turn()
    assert order == ["first", "hook", "second", "hook"]


def test_hook_that_defers_is_called_again(loop):
    order = []

    def hook() -> None:
        if not order:
            loop.defer(lambda: order.append("deferred"))

    loop.before_sleep(hook)
    loop.turn(0)
    assert order == ["deferred"]


def test_turn_begins_with_its_time_before_anything_happens(pair):
    faults: list[Fault] = []
    loop = Loop(on_fault=faults.append)
    order = []

    def fail() -> None:
        raise ValueError("no")

    loop.after_wake(fail)
    loop.after_wake(lambda: order.append(("wake", loop.mono_ns())))
    loop.add(pair[0].fileno(), select.EPOLLIN, lambda _: order.append(("event", loop.mono_ns())))
    pair[1].send(b"x")
    loop.turn()
    assert [what for what, _ in order] == ["wake", "event"]
    assert order[0][1] == order[1][1]
    assert [fault.callback for fault in faults] == [fail]
    loop.close()


def test_ended_hook_is_not_called(loop):
    called = []
    end = loop.before_sleep(lambda: called.append(1))
    end()
    loop.turn(0)
    assert called == []


def test_endless_deferred_work_does_not_starve_descriptors(loop, pair):
    called, rounds = [], []

    def again() -> None:
        rounds.append(1)
        loop.defer(again)

    loop.add(pair[0].fileno(), select.EPOLLIN, called.append)
    pair[1].send(b"x")
    loop.defer(again)
    loop.turn()
    loop.turn()
    assert len(called) == 2
    assert len(rounds) == 2 * ROUNDS_PER_TURN


def test_fault_takes_out_its_descriptor_and_nobody_else(pipes):
    faults: list[Fault] = []
    loop = Loop(on_fault=faults.append)
    broken, sound = pipes()[0], pipes()[0]
    calls = []

    def fail(_events: int) -> None:
        raise ValueError("no")

    loop.add(broken, select.EPOLLIN, fail)
    loop.add(sound, select.EPOLLIN, calls.append)
    loop.turn()
    loop.turn()
    assert len(calls) == 2
    assert [(fault.fd, fault.callback, str(fault.exception)) for fault in faults] == [(broken, fail, "no")]
    assert broken not in loop
    loop.close()


def test_fault_after_the_descriptor_was_closed_is_reported(pipes):
    faults: list[Fault] = []
    loop = Loop(on_fault=faults.append)
    broken = pipes()[0]

    def fail(_events: int) -> None:
        os.close(broken)
        raise ValueError("no")

    loop.add(broken, select.EPOLLIN, fail)
    loop.turn()
    assert [fault.fd for fault in faults] == [broken]
    assert broken not in loop
    loop.close()


def test_faults_of_deferred_work_hooks_and_timers_are_reported_and_others_go_on():
    faults: list[Fault] = []
    loop = Loop(on_fault=faults.append)
    done = []

    def fail(*_args: object) -> None:
        raise ValueError("no")

    end_hook = loop.before_sleep(fail)
    loop.before_sleep(lambda: done.append("hook"))
    loop.defer(fail)
    loop.defer(lambda: done.append("deferred"))
    loop.turn()
    assert done == ["deferred", "hook"]
    assert [fault.fd for fault in faults] == [-1, -1]
    end_hook()
    faults.clear()
    monotonic = loop.clock("monotonic")
    monotonic.call_at(1, fail)
    monotonic.call_at(2, lambda _: done.append("timer"))
    while "timer" not in done:
        loop.turn(5 * SECOND)
    assert [fault.callback for fault in faults] == [fail]
    loop.close()


def test_fault_without_hook_ends_run(loop):
    def fail() -> None:
        raise ValueError("no")

    loop.defer(fail)
    with pytest.raises(ValueError, match="no"):
        loop.run()


def test_time_stands_still_within_a_turn(loop):
    seen = []

    def look() -> None:
        started = time.monotonic_ns()
        while time.monotonic_ns() == started:
            pass
        seen.append((loop.mono_ns(), loop.real_ns()))

    loop.defer(look)
    loop.defer(look)
    loop.turn()
    assert seen[0] == seen[1]
    assert seen[0][0] < loop.mono_ns()


def test_stop_ends_run_after_deferred_work(loop):
    order = []
    loop.before_sleep(lambda: order.append("hook"))
    loop.defer(loop.stop)
    loop.run()
    assert order == ["hook"]


def test_loop_sleeps_while_nothing_happens(loop, pair):
    """Only the timer wakes it up; registered descriptors, disarmed clocks and signals do not."""
    loop.add(pair[0].fileno(), select.EPOLLIN, lambda _: None)
    loop.on_signal(signal.SIGUSR1, lambda _: None)
    loop.clock("boottime").call_at(loop.clock("boottime").now_ns() + 3600 * SECOND, lambda _: None)
    loop.clock("realtime").on_set(lambda _: None)
    loop.clock("monotonic").call_at(time.monotonic_ns() + SECOND // 4, lambda _: loop.stop())
    loop.run()
    assert loop.wakeups == 1


def test_signal_is_called_on_the_loop_and_wakes_it(loop):
    got = []

    def stop(number: int) -> None:
        got.append(number)
        loop.stop()

    loop.on_signal(signal.SIGTERM, stop)
    loop.on_signal(signal.SIGHUP, got.append)
    os.kill(os.getpid(), signal.SIGHUP)
    loop.turn(5 * SECOND)
    assert got == [signal.SIGHUP]
    os.kill(os.getpid(), signal.SIGTERM)
    loop.run()
    assert got == [signal.SIGHUP, signal.SIGTERM]


def test_close_restores_signal_handlers(loop):
    before = signal.getsignal(signal.SIGTERM)
    loop.on_signal(signal.SIGTERM, lambda _: None)
    loop.close()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_failing_signal_callback_is_a_fault_and_signals_go_on():
    faults: list[Fault] = []
    loop = Loop(on_fault=faults.append)
    got = []

    def fail(_number: int) -> None:
        raise ValueError("no")

    loop.on_signal(signal.SIGUSR1, fail)
    loop.on_signal(signal.SIGUSR2, got.append)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    loop.turn(5 * SECOND)
    assert [fault.callback for fault in faults] == [fail]
    assert got == [signal.SIGUSR2]
    loop.close()
