"""The zygote as the core sees it: started once, asked to fork fronts, started again when it dies.

It is a process of its own because forking the core would give a front everything that the core has open and
in memory, and because importing grpc takes a third of a second that no client should wait for. Fronts that
live do not notice when it dies; those that it had not forked yet are lost with it, and asked for again by
the next connection.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence

import structlog

from aemd.core.limits import MS, SECOND
from aemd.link import CONTROL, Control
from aemd.peer.beside import Beside, OwnStarter, Program, Starter
from aemd.sources.reactor import Reactor, Timer
from aemd.sources.socket import leave

RESTART_MIN_NS = 100 * MS  # then twice as long each time, while it does not even fork
RESTART_MAX_NS = 10 * SECOND
MESSAGES = 64  # read in one turn
END_SECONDS = 2.0  # it has nothing to finish; then it is killed


class Zygote:
    """Forks fronts.

    `forked(number, pid, pidfd)` hands over the descriptor; `exited(number, status)`: the front
    is gone, status -1 if it never was.
    """

    def __init__(
        self,
        reactor: Reactor,
        program: Program,
        *,
        starter: Starter | None = None,
        forked: Callable[[int, int, int], None],
        exited: Callable[[int, int], None],
    ) -> None:
        """`starter`: who starts it, if not this process."""
        self._reactor = reactor
        self._program = program
        self._starter = starter or OwnStarter(reactor)
        self._forked = forked
        self._exited = exited
        self._process: Beside | None = None
        self._control: socket.socket | None = None
        self._restart_ns = RESTART_MIN_NS
        self._timer: Timer | None = None
        self._waiting: list[tuple[int, Sequence[socket.socket]]] = []
        self._kill_later: list[int] = []
        self._asked: set[int] = set()

    @property
    def pid(self) -> int:
        """Its pid; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it; it answers once it has imported what fronts need."""
        self._process = self._starter.start(self._program, self._died)
        self._control = self._process.control
        self._reactor.add(self._control.fileno(), select.EPOLLIN, self._readable)
        kill, self._kill_later = self._kill_later, []
        for pidfd in kill:
            self.kill(pidfd)
        waiting, self._waiting = self._waiting, []
        for number, ends in waiting:
            self.fork(number, ends)

    def fork(self, number: int, ends: Sequence[socket.socket]) -> None:
        """Ask for a front with these ends of its sockets, which are closed here once they are sent.

        Between the death of a zygote and the next one the wish waits. Should this zygote die over it, the
        other ends of the sockets tell.
        """
        if self._control is None:
            self._waiting.append((number, ends))
            return
        self._asked.add(number)
        try:
            message = CONTROL.pack(Control.FORK, number, 0)
            socket.send_fds(self._control, [message], [end.fileno() for end in ends])
        except OSError:
            self._kill()
        for end in ends:
            end.close()

    def kill(self, pidfd: int) -> None:
        """Have a front killed that this process has no right to kill. Takes over `pidfd`.

        The zygote that is there now need not be the one that has forked it.
        """
        if self._control is None:
            self._kill_later.append(pidfd)
            return
        try:
            socket.send_fds(self._control, [CONTROL.pack(Control.KILL, 0, 0)], [pidfd])
        except OSError:
            self._kill()
        os.close(pidfd)

    def close(self) -> None:
        """End it, and wait for that."""
        if self._timer is not None:
            self._timer.cancel()
        for _, ends in self._waiting:
            for end in ends:
                end.close()
        self._waiting.clear()
        for pidfd in self._kill_later:
            os.close(pidfd)
        self._kill_later.clear()
        process = self._process
        self._forget()
        if process is not None:
            process.end(END_SECONDS)

    def _readable(self, _events: int) -> None:
        for _ in range(MESSAGES):
            if self._control is None:
                return
            try:
                message, fds, _, _ = socket.recv_fds(self._control, CONTROL.size, 1)
            except BlockingIOError:
                return
            except OSError:
                message, fds = b"", []
            if len(message) != CONTROL.size:
                for fd in fds:
                    os.close(fd)
                self._kill()
                return
            self._message(*CONTROL.unpack(message), fds=fds)

    def _message(self, kind: int, number: int, value: int, *, fds: list[int]) -> None:
        self._asked.discard(number)
        if kind == Control.FORKED and fds:
            self._restart_ns = RESTART_MIN_NS
            self._forked(number, value, fds.pop())
        elif kind == Control.EXITED:
            self._exited(number, value)

    def _kill(self) -> None:
        """Its end of the control socket is gone or broken."""
        self._forget_control()
        if self._process is not None:
            self._process.kill()

    def _died(self, status: int) -> None:
        self._readable(0)  # what it still said
        structlog.get_logger().error("zygote of the fronts died", pid=self.pid, status=status)
        self._forget()
        asked, self._asked = self._asked, set()
        for number in asked:
            self._exited(number, -1)
        self._start_later()

    def _again(self, _now_ns: int) -> None:
        self._timer = None
        try:
            self.start()
        except OSError as error:
            structlog.get_logger().error("zygote of the fronts cannot be started", error=str(error))
            self._start_later()

    def _start_later(self) -> None:
        clock = self._reactor.clock("monotonic")
        self._timer = clock.call_at(clock.now_ns() + self._restart_ns, self._again)
        self._restart_ns = min(2 * self._restart_ns, RESTART_MAX_NS)

    def _forget_control(self) -> None:
        if self._control is not None:
            leave(self._reactor, self._control)
            self._control.close()
            self._control = None

    def _forget(self) -> None:
        self._forget_control()
        self._process = None
