"""The end of the fronts, on a real loop; the fronts are stand-ins that exit when the test says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from aemd.loop.loop import Loop
from aemd.peer import farewell
from aemd.peer.farewell import Farewell

PATIENCE = 10


class Front:
    """As much of a front as a farewell needs."""

    def __init__(self, *called: bool) -> None:
        self.connections = {number: SimpleNamespace(called=each) for number, each in enumerate(called)}
        self.told = 0

    def say_farewell(self) -> None:
        self.told += 1


class Bench:
    def __init__(self) -> None:
        self.loop = Loop()
        self.fronts: list[Any] = []
        self.done = 0
        self.farewell = Farewell(self.loop, lambda: self.fronts)

    def begin(self) -> None:
        self.farewell.begin(self.over)

    def over(self) -> None:
        self.done += 1

    def until(self, condition: Callable[[], object]) -> None:
        start = time.monotonic_ns()
        while not condition():
            assert time.monotonic_ns() - start < PATIENCE * 10**9
            self.loop.turn(100_000_000)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.farewell.close()
    bench.loop.close()


def test_without_fronts_it_is_over_at_once(bench: Bench) -> None:
    bench.begin()
    assert bench.done == 1


def test_fronts_whose_connections_have_all_called_are_told_at_once(bench: Bench) -> None:
    bench.fronts = [Front(True, True), Front()]
    bench.begin()
    assert ([front.told for front in bench.fronts], bench.done) == ([1, 1], 0)
    bench.fronts.pop()
    bench.farewell.front_gone()
    assert bench.done == 0
    bench.fronts.pop()
    bench.farewell.front_gone()
    assert bench.done == 1


def test_connection_that_has_just_been_accepted_may_call_first(bench: Bench) -> None:
    front = Front(True, False)
    bench.fronts = [front]
    bench.begin()
    bench.begin()  # a turn later
    assert front.told == 0
    front.connections[1].called = True
    bench.begin()
    assert front.told == 1


def test_connection_that_stays_idle_holds_nobody_for_long(bench: Bench) -> None:
    front = Front(False)
    bench.fronts = [front]
    bench.begin()
    assert front.told == 0
    bench.until(lambda: front.told)


def test_front_that_does_not_exit_is_not_waited_for(bench: Bench) -> None:
    bench.fronts = [Front(True)]
    bench.begin()
    bench.until(lambda: bench.done)
    assert bench.done == 1
    bench.fronts.clear()
    bench.farewell.front_gone()
    assert bench.done == 1


def test_closed_farewell_tells_nobody(bench: Bench) -> None:
    bench.fronts = [Front(True)]
    bench.begin()
    bench.farewell.close()
    bench.fronts.clear()
    bench.farewell.front_gone()
    bench.loop.turn(farewell.FINISH_NS)
    assert bench.done == 0
