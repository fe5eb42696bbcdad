"""The protocol of sd_notify(3), read from a socket of our own as a manager reads it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aemd.service.notify import Notifier, take_descriptors, take_notifier


class Manager:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(10)

    def hear(self) -> tuple[list[str], list[int]]:
        message, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
        return message.decode().split("\n"), fds


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    monkeypatch.chdir(tmp_path)  # pytest's paths are longer than a socket's may be
    manager = Manager("./notify" if request.param == "path" else f"@aemd-test-{os.getpid()}")
    yield manager
    manager.socket.close()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier(manager.address)
    yield notifier
    notifier.close()


def test_what_is_said_arrives_as_lines(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("serves\n many")
    assert manager.hear() == (["READY=1", "STATUS=serves many"], [])
    notifier.reloading(1_234_567_890)
    assert manager.hear() == (["RELOADING=1", "MONOTONIC_USEC=1234567"], [])
    notifier.stopping()
    assert manager.hear() == (["STOPPING=1"], [])
    notifier.alive()
    assert manager.hear() == (["WATCHDOG=1"], [])
    notifier.busy(30)
    assert manager.hear() == (["EXTEND_TIMEOUT_USEC=30000000"], [])
    notifier.forget("state")
    assert manager.hear() == (["FDSTOREREMOVE=1", "FDNAME=state"], [])


def test_stored_descriptors_travel_with_their_name(manager: Manager, notifier: Notifier) -> None:
    reader, writer = os.pipe()
    notifier.store("pipe", [reader], poll=False)
    os.close(reader)
    lines, (kept,) = manager.hear()
    assert lines == ["FDSTORE=1", "FDNAME=pipe", "FDPOLL=0"]
    os.write(writer, b"kept")
    assert os.read(kept, 4) == b"kept"
    os.close(kept)
    os.close(writer)


def test_barrier_ends_when_the_manager_closes_its_descriptor(manager: Manager, notifier: Notifier) -> None:
    assert not notifier.barrier(0)
    lines, fds = manager.hear()
    assert (lines, len(fds)) == (["BARRIER=1"], 1)
    child = os.fork()
    if child == 0:
        _, fds = manager.hear()
        os._exit(0)  # which closes it
    os.close(fds[0])
    assert notifier.barrier(10)
    os.waitpid(child, 0)


def test_sign_of_life_does_not_wait_for_a_manager_that_does_not_read(
    manager: Manager, notifier: Notifier
) -> None:
    probe = select.poll()
    assert notifier._socket is not None
    for _ in range(10_000):
        if not notifier._say("X=1", wait_seconds=0):
            break
    probe.register(notifier._socket, select.POLLOUT)
    notifier.alive()  # full, and comes back
    assert manager.hear()[0] == ["X=1"]


def test_without_a_manager_nothing_is_said() -> None:
    notifier = take_notifier({})
    assert not notifier
    notifier.ready("nobody hears this")
    assert not notifier.barrier(10)
    assert Notifier("", watchdog_ns=5).watchdog_ns == 0


def test_manager_that_is_gone_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notifier = Notifier("./nobody")
    notifier.ready()
    assert not notifier.barrier(0)
    notifier.close()
    notifier.ready()


def test_environment_is_taken_away_from_children(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": f"@x{manager.address[1:]}", "WATCHDOG_USEC": "3000000", "PATH": "/bin"}
    notifier = take_notifier(environment)
    assert notifier.watchdog_ns == 3_000_000_000
    assert environment == {"PATH": "/bin"}
    notifier.close()


@pytest.mark.parametrize(
    ("variables", "period_ns"),
    [
        ({"WATCHDOG_USEC": "5"}, 5_000),
        ({"WATCHDOG_USEC": "5", "WATCHDOG_PID": str(os.getpid())}, 5_000),
        ({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "-5"}, 0),
        ({}, 0),
    ],
)
def test_watchdog_is_for_the_process_that_is_meant(variables: dict[str, str], period_ns: int) -> None:
    notifier = take_notifier({"NOTIFY_SOCKET": "@x", **variables})
    assert notifier.watchdog_ns == period_ns
    notifier.close()


def test_socket_of_another_family_is_no_manager() -> None:
    assert not take_notifier({"NOTIFY_SOCKET": "vsock:2:1"})


def test_descriptors_meant_for_another_process_are_left_alone() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert take_descriptors(environment) == []
    assert environment == {}
    assert take_descriptors({}) == []


@pytest.mark.parametrize(
    ("count", "names"), [("", ""), ("-1", ""), ("many", ""), ("99999999", ""), ("2", "one"), ("1", "a:b")]
)
def test_environment_that_contradicts_itself_is_refused(count: str, names: str) -> None:
    with pytest.raises(ValueError, match="LISTEN_FD"):
        take_descriptors({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": names})


PASSED_ON = """
import os
from aemd.service.notify import take_descriptors
os.environ["LISTEN_PID"] = str(os.getpid())
(first, fd), (second, other) = take_descriptors(os.environ)
assert (first, second, fd, other) == ("listener", "state", 3, 4), (first, second, fd, other)
assert not os.get_inheritable(3) and not os.get_inheritable(4)
assert not any(name.startswith("LISTEN") for name in os.environ)
"""


def test_descriptors_come_by_name_and_are_not_inherited() -> None:
    environment = {**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "listener:state"}
    started = subprocess.run(
        ["sh", "-c", 'exec "$@" 3</dev/null 4</dev/null', "sh", sys.executable, "-c", PASSED_ON],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert started.returncode == 0, started.stderr
