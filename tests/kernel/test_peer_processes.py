"""Processes at the other end: one pidfd each, and their exit told once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from aemd.core.principal import Owner, Principal
from aemd.loop.loop import Loop
from aemd.peer.principal import read_start_time
from aemd.peer.processes import Process, Processes

TURN_NS = 10_000_000_000


class Home:
    """Processes over a real loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.exits: list[Process] = []
        self.freed = 0
        self.processes = Processes(self.loop, self.exits.append, self._freed)

    def _freed(self) -> None:
        self.freed += 1


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.processes.close()
    home.loop.close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def principal(process: subprocess.Popen[bytes], *, start: bool = True) -> Principal:
    ticks = read_start_time(process.pid) if start else 0
    return Principal(Owner(os.geteuid()), 0, (), process.pid, ticks, administrator=False)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_many_connections_of_a_process_cost_one_descriptor(
    home: Home, sleeper: subprocess.Popen[bytes]
) -> None:
    before = descriptors()
    held = [home.processes.hold(principal(sleeper), os.pidfd_open(sleeper.pid)) for _ in range(100)]
    assert len(set(held)) == len(home.processes) == 1
    assert home.processes.of_uid(principal(sleeper).uid) == 1
    assert home.processes.holds(principal(sleeper))
    assert descriptors() == before + 1
    for process in held:
        home.processes.release(process)
    assert len(home.processes) == home.processes.of_uid(principal(sleeper).uid) == 0
    assert not home.processes.holds(principal(sleeper))
    assert descriptors() == before
    assert home.freed == 1


def test_exit_is_told_once_however_many_hold(home: Home, sleeper: subprocess.Popen[bytes]) -> None:
    process = home.processes.hold(principal(sleeper), os.pidfd_open(sleeper.pid))
    assert home.processes.hold_again(principal(sleeper)) is process
    sleeper.kill()
    home.loop.turn(TURN_NS)
    assert home.exits == [process]
    assert home.processes.hold_again(principal(sleeper)) is None
    home.processes.release(process)
    home.processes.release(process)
    home.loop.turn(0)
    assert home.exits == [process]
    assert home.freed == 1


def test_hold_of_a_session_outlives_the_connection(home: Home, sleeper: subprocess.Popen[bytes]) -> None:
    process = home.processes.hold(principal(sleeper), os.pidfd_open(sleeper.pid))
    home.processes.hold_again(principal(sleeper))
    home.processes.release(process)
    sleeper.kill()
    home.loop.turn(TURN_NS)
    assert home.exits == [process]


def test_pid_that_came_round_before_its_exit_was_seen(home: Home, sleeper: subprocess.Popen[bytes]) -> None:
    """Where start times cannot be read only the pidfd tells two processes of one pid apart."""
    with subprocess.Popen(["true"]) as short:
        first = home.processes.hold(principal(short, start=False), os.pidfd_open(short.pid))
    reborn = principal(short, start=False)
    second = home.processes.hold(reborn, os.pidfd_open(sleeper.pid))
    assert home.exits == [first]
    assert second is not first
    sleeper.kill()
    home.loop.turn(TURN_NS)
    assert home.exits == [first, second]
