"""The runner as the core sees it: started for the first run of a command, and again when it is gone.

Every run that is started is told of its end, once, in another turn: how it went, or, if the runner is gone
with it, that nobody knows. Nothing here waits.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from aemd.deputy import orders, starting
from aemd.deputy.orders import Begun, End, Ended, Start
from aemd.peer.beside import Beside, OwnStarter, Program, Starter
from aemd.sources.reactor import Reactor

MESSAGES = 64  # read in one turn
END_SECONDS = 2.0
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told of a run. `ended`: with None if the runner is gone, and the run with it."""

    begun: Callable[[int], None]
    ended: Callable[[Ended | None], None]


class Runner:
    """Runs commands."""

    def __init__(
        self, reactor: Reactor, *, command: Sequence[str] = (), starter: Starter | None = None
    ) -> None:
        """`command` is given the number of its control descriptor as the last argument. `starter`: who starts
        it, if not this process.
        """
        self._reactor = reactor
        self._starter = starter or OwnStarter(reactor)
        self._program = Program(
            command or (sys.executable, "-P", "-m", "aemd.deputy.runner"), starting.Program.RUNNER
        )
        self._process: Beside | None = None
        self._control: socket.socket | None = None
        self._runs: dict[int, Watch] = {}
        self._pids: dict[int, int] = {}
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._last = 0

    @property
    def pid(self) -> int:
        """Its pid; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def descriptors(self) -> int:
        """How many it holds."""
        return 2 if self._process is not None else 0

    def next_number(self) -> int:
        """The number for a run to come."""
        self._last += 1
        return self._last

    def start(self, order: Start, stdin: bytes, watch: Watch) -> None:
        """Run a command with that on its standard input. OSError if it cannot be: then nobody is told."""
        if self._control is None:
            self._begin()
        files = [_file("order", orders.pack(order))]
        try:
            files.append(_file("events", stdin))
        except OSError:
            os.close(files[0])
            raise
        self._runs[order.number] = watch
        self._send(orders.ORDERED, files)

    def end(self, number: int, grace_ms: int) -> None:
        """End a run: SIGTERM, and SIGKILL after the grace; 0: SIGKILL. Its end is told as ever."""
        if number in self._runs:
            self._send(orders.pack(End(number, grace_ms)), [])

    def close(self) -> None:
        """End it, and at once what still runs; nobody is told any more."""
        self._runs.clear()
        self._pids.clear()
        process = self._process
        self._forget()
        if process is not None:
            process.end(END_SECONDS)

    # The process.

    def _begin(self) -> None:
        if self._process is not None:
            raise OSError("it has just died")
        self._process = self._starter.start(self._program, self._died)
        self._control = self._process.control
        self._reactor.add(self._control.fileno(), select.EPOLLIN, self._ready)

    def _send(self, message: bytes, files: list[int]) -> None:
        self._unsent.append((message, files))
        self._write()

    def _write(self) -> None:
        control = self._control
        while self._unsent and control is not None:
            message, files = self._unsent[0]
            try:
                socket.send_fds(control, [message], files)
            except BlockingIOError:
                self._reactor.modify(control.fileno(), select.EPOLLIN | select.EPOLLOUT)
                return
            except OSError:
                self._kill()
                return
            self._unsent.popleft()
            _close_all(files)

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT and self._control is not None:
            self._reactor.modify(self._control.fileno(), select.EPOLLIN)
            self._write()
        self._read()

    def _read(self) -> None:
        for _ in range(MESSAGES):
            if self._control is None:
                return
            try:
                message = self._control.recv(orders.MESSAGE_BYTES_MAX)
                self._told(orders.parse(message))
            except BlockingIOError:
                return
            except (OSError, orders.OrderError):
                self._kill()
                return

    def _told(self, message: orders.Message) -> None:
        match message:
            case Begun(number, pid) if number in self._runs:
                self._pids[number] = pid
                self._reactor.defer(partial(self._runs[number].begun, pid))
            case Ended(number) if number in self._runs:
                self._pids.pop(number, None)
                self._reactor.defer(partial(self._runs.pop(number).ended, message))

    def _kill(self) -> None:
        """Its end of the control socket is gone or broken."""
        self._forget_control()
        if self._process is not None:
            self._process.kill()

    def _died(self, status: int) -> None:
        self._read()  # what it still said
        structlog.get_logger().error("runner died", pid=self.pid, status=status)
        self._forget()
        for pid in self._pids.values():  # their programs die with it; this is for what those have started
            with suppress(ProcessLookupError, PermissionError):  # of who is not root control groups take care
                os.killpg(pid, signal.SIGKILL)
        self._pids.clear()
        runs, self._runs = list(self._runs.values()), {}
        for watch in runs:
            self._reactor.defer(partial(watch.ended, None))

    def _forget_control(self) -> None:
        if self._control is not None:
            self._reactor.remove(self._control.fileno())
            self._control.close()
            self._control = None
        for _, files in self._unsent:
            _close_all(files)
        self._unsent.clear()

    def _forget(self) -> None:
        self._forget_control()
        self._process = None


def _file(name: str, content: bytes) -> int:
    """A file in memory that nobody can change, at its beginning."""
    fd = os.memfd_create(f"aemd-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
