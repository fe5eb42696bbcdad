"""The office as the core sees it: starts processes beside the core, with rights that the core has not.

A unit of its own, aemd-deputy.service or aemd-runner.service, which the service manager starts for who
connects to its socket; so what is sent at once waits there until it has come up. The connection is made when
the first process is asked for, and again after it was lost; the processes of the office before are gone then,
and those who need them ask again.
"""

from __future__ import annotations

import select
import socket
import time
from functools import partial

import structlog

from aemd.deputy import starting
from aemd.deputy.starting import Kind, Message
from aemd.peer.beside import Beside, Died, Program, make_control
from aemd.sources.reactor import Reactor

MESSAGES = 64  # read in one turn


class Office:
    """A Starter that is elsewhere. `path`: of its socket."""

    def __init__(self, reactor: Reactor, path: str) -> None:
        self._reactor = reactor
        self._path = path
        self._connection: socket.socket | None = None
        self._living: dict[int, _Remote] = {}
        self._last = 0

    def start(self, program: Program, died: Died) -> Beside:
        """As Starter has it."""
        ours, theirs = make_control()
        number = self._last = self._last + 1
        message = Message(Kind.START, number, program.which, program.first, program.second)
        with theirs:
            try:
                self._start(message, theirs)
            except OSError:
                ours.close()
                raise
        self._living[number] = _Remote(self, number, ours, died)
        return self._living[number]

    def _start(self, message: Message, control: socket.socket) -> None:
        if self._connection is not None:
            try:
                socket.send_fds(self._connection, [starting.pack(message)], [control.fileno()])
            except OSError:
                self._lost()
            else:
                return
        socket.send_fds(self._connect(), [starting.pack(message)], [control.fileno()])

    def kill(self, number: int) -> None:
        """Have it kill one of them."""
        self._send(Message(Kind.END, number))

    def wait(self, number: int, seconds: float) -> None:
        """Wait for the end of one of them, so long at most; nobody is told of it."""
        until = time.monotonic() + seconds
        poll = select.poll()
        while number in self._living and self._connection is not None:
            self._living[number].forget()
            left = until - time.monotonic()
            poll.register(self._connection, select.POLLIN)
            if left <= 0 or not poll.poll(left * 1000):
                break
            self._readable(0)
        self._living.pop(number, None)

    def close(self) -> None:
        """Let it end."""
        if self._connection is not None:
            self._reactor.remove(self._connection.fileno())
            self._connection.close()
            self._connection = None

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise OSError(error.errno, error.strerror, self._path) from None
        self._reactor.add(connection.fileno(), select.EPOLLIN, self._readable)
        self._connection = connection
        return connection

    def _send(self, message: Message) -> None:
        if self._connection is not None:
            try:
                self._connection.send(starting.pack(message))
            except OSError:
                self._lost()

    def _readable(self, _events: int) -> None:
        for _ in range(MESSAGES):
            if self._connection is None:
                return
            try:
                message = starting.parse(self._connection.recv(starting.MESSAGE_BYTES))
            except BlockingIOError:
                return
            except (OSError, starting.StartingError):
                self._lost()
                return
            self._take(message)

    def _take(self, message: Message) -> None:
        if message.kind is Kind.STARTED and message.number in self._living:
            self._living[message.number].pid = message.first
        elif message.kind is Kind.ENDED and message.number in self._living:
            self._living.pop(message.number).died(message.first)

    def _lost(self) -> None:
        structlog.get_logger().error("office lost", socket=self._path)
        self.close()
        living, self._living = list(self._living.values()), {}
        for each in living:
            self._reactor.defer(partial(each.died, -1))


class _Remote:
    def __init__(self, office: Office, number: int, control: socket.socket, died: Died) -> None:
        self.control = control
        self.pid = 0
        self._office = office
        self._number = number
        self._died: Died | None = died

    def kill(self) -> None:
        self._office.kill(self._number)

    def end(self, seconds: float) -> None:
        self._office.wait(self._number, seconds)
        self._office.kill(self._number)

    def forget(self) -> None:
        """Nobody wants to know of its end."""
        self._died = None

    def died(self, status: int) -> None:
        """It has ended."""
        died, self._died = self._died, None
        if died is not None:
            died(status)
