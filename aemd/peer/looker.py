"""The looker as the core sees it: asked, and waited for, as reading proc(5) would be.

A question costs two switches between processes. It is waited for, because what depends on it is decided at
once and in the order of events, as if the core read it itself; and the looker does nothing but answer. The
wait has an end all the same: a looker that has not answered by then is replaced, and when that does not help
nobody is asked for a while, so that a broken deputy does not stop the loop. Nothing is guessed meanwhile: who
cannot be looked at is refused, with UNAVAILABLE.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from collections.abc import Mapping

import structlog

from aemd.core.errors import AemError, Code
from aemd.deputy import looking, starting
from aemd.deputy.looking import What
from aemd.peer.beside import Beside, Program, Starter

WAIT_SECONDS = 2.0  # an office that has to be started first takes a fifth of one
AGAIN_SECONDS = 1.0
TRIES = 2  # one may have just died
PROGRAM = Program((sys.executable, "-P", "-m", "aemd.deputy.looker"), starting.Program.LOOKER)


class RemoteLooker:
    """Looks through another process."""

    def __init__(self, starter: Starter, program: Program = PROGRAM) -> None:
        self._starter = starter
        self._program = program
        self._process: Beside | None = None
        self._not_before = 0.0

    def look(self, pid: int, what: What) -> Mapping[What, bytes]:
        """As sources.looks.Looker has it."""
        found, fds = self._ask(pid, what)
        _close_all(fds)
        return found

    def open_pid_namespace(self, pid: int) -> int:
        """As sources.looks.Looker has it."""
        _, fds = self._ask(pid, What.PID_NAMESPACE)
        if len(fds) != 1:
            _close_all(fds)
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), f"/proc/{pid}/ns/pid")
        return fds[0]

    def close(self) -> None:
        """Ask no more."""
        process, self._process = self._process, None
        if process is not None:
            process.control.close()
            process.end(WAIT_SECONDS)

    def _ask(self, pid: int, what: What) -> tuple[Mapping[What, bytes], list[int]]:
        for _ in range(TRIES):
            if time.monotonic() < self._not_before:
                break
            try:
                return self._answer(self._start(), pid, what)
            except (OSError, looking.LookingError) as error:
                self._lose(error)
        else:
            self._not_before = time.monotonic() + AGAIN_SECONDS
        raise AemError(
            Code.UNAVAILABLE, "DEPUTY_LOST", "the deputy is being started again; try again in a moment"
        )

    def _answer(self, control: socket.socket, pid: int, what: What) -> tuple[Mapping[What, bytes], list[int]]:
        control.send(looking.pack_question(pid, what))
        poll = select.poll()
        poll.register(control, select.POLLIN)
        if not poll.poll(WAIT_SECONDS * 1000):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        data, fds, _, _ = socket.recv_fds(control, looking.ANSWER_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        try:
            about, found = looking.parse_answer(data)
            if about != pid:
                raise looking.LookingError(f"an answer about {about}, not {pid}")
        except looking.LookingError:
            _close_all(fds)
            raise
        return found, fds

    def _start(self) -> socket.socket:
        if self._process is None:
            self._process = self._starter.start(self._program, _ended)
        return self._process.control

    def _lose(self, error: Exception) -> None:
        structlog.get_logger().error("looker lost", error=str(error))
        process, self._process = self._process, None
        if process is not None:
            process.control.close()
            process.kill()


def _ended(_status: int) -> None:
    """The next question finds that out."""


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
