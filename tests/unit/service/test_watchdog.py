"""The daemon's calls to itself over a real loop; the front at the other end is the test."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from aemd.loop.loop import Loop
from aemd.service.notify import Notifier
from aemd.service.watchdog import Watchdog
from tests.unit.peer.test_call import ANSWER, HEADERS, frame

PERIOD_NS = 160_000_000
PATIENCE = 10  # seconds until what should happen counts as not happening


class Bench:
    """A watchdog, its manager, and the line that it calls over."""

    def __init__(self, period_ns: int = PERIOD_NS) -> None:
        address = f"@aemd-test-{os.getpid()}-{id(self)}"
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind("\0" + address[1:])
        self.manager.setblocking(False)
        self.loop = Loop()
        self.calls: list[socket.socket] = []
        self.replaced: list[str] = []
        self.first = 0
        self.listening = True
        self.notifier = Notifier(address, watchdog_ns=period_ns)
        self.watchdog = Watchdog(self.loop, self.notifier, self, listening=lambda: self.listening)

    def connect_self(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.calls.append(theirs)
        return ours

    def replace_own_front(self, reason: str) -> None:
        self.replaced.append(reason)

    def tried(self) -> None:
        self.first += 1

    def until(self, condition: Callable[[], object]) -> None:
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < limit
            self.loop.turn(100_000_000)

    def answer(self) -> None:
        """Answer the newest call."""
        assert self.calls[-1].recv(4096).startswith(b"PRI * HTTP/2.0")
        self.calls[-1].sendall(ANSWER)

    def signs(self) -> int:
        """How many signs of life have come since the last look."""
        count = 0
        while True:
            try:
                count += self.manager.recv(4096) == b"WATCHDOG=1"
            except BlockingIOError:
                return count

    def close(self) -> None:
        self.watchdog.close()
        self.notifier.close()
        self.manager.close()
        for sock in self.calls:
            sock.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_first_call_is_awaited_without_a_limit_and_told_once(bench: Bench) -> None:
    bench.watchdog.start(bench.tried)
    until = time.monotonic_ns() + PERIOD_NS
    while time.monotonic_ns() < until:
        bench.loop.turn(10_000_000)
    assert (len(bench.calls), bench.first, bench.replaced, bench.signs()) == (1, 0, [], 0)
    bench.answer()
    bench.until(lambda: bench.first)
    bench.until(lambda: len(bench.calls) == 2)
    bench.answer()
    bench.until(lambda: len(bench.calls) == 3)
    assert (bench.first, bench.signs()) == (1, 2)


@pytest.mark.parametrize("end", [b"", frame(HEADERS, 1)], ids=["closed", "refused"])
def test_call_that_failed_is_made_again_and_is_no_sign_of_life(bench: Bench, end: bytes) -> None:
    bench.watchdog.start(bench.tried)
    bench.calls[0].sendall(end) if end else bench.calls[0].close()
    bench.until(lambda: len(bench.calls) == 2)
    assert (bench.first, bench.signs()) == (0, 0)
    bench.answer()
    bench.until(lambda: bench.first)
    assert bench.signs() == 1


def test_front_that_does_not_answer_is_replaced_within_the_period(bench: Bench) -> None:
    bench.watchdog.start(bench.tried)
    bench.answer()
    bench.until(lambda: len(bench.calls) == 2)
    assert bench.signs() == 1
    bench.until(lambda: bench.replaced)
    assert bench.signs() == 0
    assert len(bench.calls) == 3
    bench.answer()
    bench.until(lambda: len(bench.calls) == 4)
    assert (bench.replaced, bench.signs()) == (["it does not answer"], 1)


def test_answer_that_waited_while_the_core_was_held_up_counts(bench: Bench) -> None:
    bench.watchdog.start(bench.tried)
    bench.answer()
    bench.until(lambda: len(bench.calls) == 2)
    bench.answer()
    until = time.monotonic_ns() + PERIOD_NS
    while time.monotonic_ns() < until:
        pass  # the loop does not turn
    bench.until(lambda: len(bench.calls) == 3)
    assert (bench.replaced, bench.signs()) == ([], 2)


def test_front_has_time_after_a_core_that_was_held_up(bench: Bench) -> None:
    bench.watchdog.start(bench.tried)
    bench.answer()
    bench.until(lambda: len(bench.calls) == 2)
    until = time.monotonic_ns() + PERIOD_NS
    while time.monotonic_ns() < until:
        pass  # and so nobody could have answered
    bench.loop.turn(0)
    assert bench.replaced == []
    bench.answer()
    bench.until(lambda: len(bench.calls) == 3)
    assert (bench.replaced, bench.signs()) == ([], 2)


def test_answer_that_comes_with_the_last_moment_counts(bench: Bench) -> None:
    bench.watchdog.start(bench.tried)
    bench.answer()
    bench.until(lambda: len(bench.calls) == 2)
    bench.until(lambda: bench.watchdog._late)
    until = time.monotonic_ns() + PERIOD_NS
    while time.monotonic_ns() < until:
        pass  # the time is over first, and then there is an answer, and the loop sees both at once
    bench.answer()
    bench.until(lambda: len(bench.calls) == 3)
    assert (bench.replaced, bench.signs()) == ([], 2)


def test_no_sign_of_life_while_new_clients_are_not_taken(bench: Bench) -> None:
    bench.watchdog.start(bench.tried)
    bench.listening = False
    bench.answer()
    bench.until(lambda: len(bench.calls) == 2)
    assert (bench.first, bench.signs()) == (1, 0)


def test_nobody_is_called_without_a_manager(bench: Bench) -> None:
    watchdog = Watchdog(bench.loop, Notifier(), bench, listening=lambda: True)
    watchdog.start(bench.tried)
    assert (bench.calls, bench.first) == ([], 0)


def test_manager_that_wants_no_signs_hears_of_the_start_alone() -> None:
    bench = Bench(period_ns=0)
    bench.watchdog.start(bench.tried)
    bench.answer()
    bench.until(lambda: bench.first)
    wakeups = bench.loop.wakeups
    bench.loop.turn(PERIOD_NS)
    assert (len(bench.calls), bench.signs(), bench.loop.wakeups) == (1, 0, wakeups + 1)  # our own time limit
    bench.close()


def test_closed_watchdog_calls_nobody(bench: Bench) -> None:
    bench.watchdog.start(bench.tried)
    bench.answer()
    bench.until(lambda: bench.first)
    bench.watchdog.close()
    bench.loop.turn(PERIOD_NS)
    assert len(bench.calls) == 1
