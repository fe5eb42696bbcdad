"""How the core has a process that works beside it: with a control socket, and with nothing else of its own.

The core starts it, or has the office start it where it has no right to (`office.py`). Who needs a process is
told of its end in either case, and does not know which.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aemd.deputy import starting
from aemd.sources.reactor import Reactor

BUFFER_BYTES = 1024 * 1024  # of the control socket: the longest request fits
ENVIRONMENT = ("PATH", "LANG", "LC_", "LD_LIBRARY_PATH", "PYTHON", "GRPC_")  # beginnings of names

Died = Callable[[int], None]  # with the exit status as subprocess has it; -1 if nobody knows


@dataclass(frozen=True, slots=True)
class Program:
    """What is to be started: by the core itself `command`, which is given the number of its control
    descriptor as the last argument; by the office what the rest says.
    """

    command: Sequence[str]
    which: starting.Program
    first: int = 0
    second: int = 0


class Beside(Protocol):
    """One such process."""

    control: socket.socket  # our end, SEQPACKET, not blocking; of who asked for the process

    @property
    def pid(self) -> int:
        """Its pid; 0 while that is not known."""

    def kill(self) -> None:
        """Kill it; `died` is called."""

    def end(self, seconds: float) -> None:
        """Wait for its end, then kill it. `died` is not called any more."""


class Starter(Protocol):
    """Starts processes."""

    def start(self, program: Program, died: Died) -> Beside:
        """Start it. `died` is told, in another turn, once it has ended. OSError if it cannot be started."""


class OwnStarter:
    """The core itself."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor

    def start(self, program: Program, died: Died) -> Beside:
        """As Starter has it."""
        ours, theirs = make_control()
        with theirs:
            try:
                process = subprocess.Popen(
                    [*program.command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    env=_environment(),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # a terminal's SIGINT is for the core, which ends the others
                )
            except BaseException:
                ours.close()
                raise
        return _Child(self._reactor, process, ours, died)


class _Child:
    def __init__(
        self, reactor: Reactor, process: subprocess.Popen[bytes], control: socket.socket, died: Died
    ) -> None:
        self.control = control
        self.pid = process.pid
        self._reactor = reactor
        self._process = process
        self._died = died
        self._pidfd = os.pidfd_open(process.pid)
        reactor.add(self._pidfd, select.EPOLLIN, self._ended)

    def kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self, seconds: float) -> None:
        self._forget()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self, _events: int) -> None:
        status = self._process.poll()
        if status is not None:
            self._forget()
            self._died(status)

    def _forget(self) -> None:
        if self._pidfd >= 0:
            self._reactor.remove(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def make_control() -> tuple[socket.socket, socket.socket]:
    """The two ends of a control socket."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    for end in ends:
        _widen(end)
    return ends


def _widen(sock: socket.socket) -> None:
    """Room for the longest message; SO_SNDBUFFORCE of socket(7) needs CAP_NET_ADMIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, 32, BUFFER_BYTES)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


def _environment() -> dict[str, str]:
    """What an interpreter and gRPC may need; the rest is not for those who may be taken over.

    gRPC says something for each thing that it does not like, so clients could fill our log with it.
    """
    return {"GRPC_VERBOSITY": "NONE"} | {
        name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)
    }
