"""The zygote: it has imported what a front needs, opened nothing, started no thread; so it can fork.

gRPC must not be forked once it runs (its threads are gone in the child, its locks are not), but its code
can. A fork of this process serves in a few milliseconds and shares most of its memory with the others.

One thread, one poll(2): the control socket, and a pidfd for each front, which is reaped and reported when
it ends. End of file on the control socket means that the core is gone. Signals that end services are
ignored, here and in the fronts: under systemd or on a terminal they reach the whole group, and it is the
core that decides when the others end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback

from aemd.front import server
from aemd.front.sandbox import Lodger, become, find_lodger, name_process
from aemd.front.server import Bounds
from aemd.link import CONTROL, Control

REAP_SECONDS = 1.5  # they take at most about one
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def main(folder: bytes, bounds: Bounds, control_fd: int) -> None:
    """Serve the core until it is gone; in the children, be a front. Does not return.

    A front that cannot have a network namespace of its own makes the folder FOLDER + its number; without
    FOLDER it does not serve.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever the core has blocked
    name_process("aemd-zygote")
    lodger = find_lodger()
    gc.collect()
    gc.freeze()  # a collection in a front would touch, and so copy, every page
    control = socket.socket(fileno=control_fd)
    born = _Zygote(control, lodger).serve()
    if born is None:
        os._exit(0)
    _be_front(born, folder=folder, bounds=bounds, lodger=lodger)


def _be_front(born: _Born, *, folder: bytes, bounds: Bounds, lodger: Lodger | None) -> None:
    status = 1
    try:
        name_process("aemd-front")
        server.run(
            born.link,
            born.descriptors,
            folder=folder and folder + b"%d" % born.number,
            bounds=bounds,
            lodger=lodger,
        )
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # No clean-up of the interpreter: gRPC's threads are still there.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


class _Born:
    """What a child begins with."""

    def __init__(self, number: int, link: socket.socket, descriptors: socket.socket) -> None:
        self.number = number
        self.link = link
        self.descriptors = descriptors


class _Zygote:
    def __init__(self, control: socket.socket, lodger: Lodger | None) -> None:
        self._control = control
        self._control.setblocking(True)
        self._lodger = lodger
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._fronts: dict[int, tuple[int, int]] = {}  # pidfd -> pid, number

    def serve(self) -> _Born | None:
        """Fork and reap. Returns in each child what it begins with, and None when the core is gone."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._fronts:
                    self._reap(fd)
                    continue
                try:
                    message, fds, _, _ = socket.recv_fds(self._control, CONTROL.size, 2)
                except ConnectionResetError:  # it ended without having read what we said
                    message = b""
                if not message:
                    self._reap_all()
                    return None
                kind, number, _ = CONTROL.unpack(message)
                if kind == Control.FORK and len(fds) == 2:
                    born = self._fork(number, fds)
                    if born is not None:
                        return born
                elif kind == Control.KILL and len(fds) == 1:
                    self._kill(fds[0])

    def _reap_all(self) -> None:
        """The core is gone, so the fronts are about to end; who else would reap them may not be there."""
        self._poll.unregister(self._control)
        until = time.monotonic() + REAP_SECONDS
        while self._fronts and time.monotonic() < until:
            for fd, _ in self._poll.poll((until - time.monotonic()) * 1000):
                self._reap(fd)

    def _fork(self, number: int, fds: list[int]) -> _Born | None:
        try:
            pid = os.fork()
        except OSError:
            self._say(Control.EXITED, number, -1)
            pid = -1
        if pid == 0:
            self._control.detach()
            keep = sorted(fds)
            os.closerange(3, keep[0])
            os.closerange(keep[0] + 1, keep[1])
            os.closerange(keep[1] + 1, 1 << 30)
            return _Born(number, socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1]))
        for fd in fds:
            os.close(fd)
        if pid > 0:
            pidfd = os.pidfd_open(pid)
            self._fronts[pidfd] = pid, number
            self._poll.register(pidfd, select.POLLIN)
            self._say(Control.FORKED, number, pid, pidfd)
        return None

    def _kill(self, front: int) -> None:
        """Kill a front as its own user, so that whoever is meant, nobody but such a one can be killed."""
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                if self._lodger is not None:
                    become(self._lodger)
                signal.pidfd_send_signal(front, signal.SIGKILL)
            os._exit(0)
        os.close(front)
        os.waitpid(pid, 0)

    def _reap(self, pidfd: int) -> None:
        pid, number = self._fronts.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._say(Control.EXITED, number, status)

    def _say(self, kind: Control, number: int, value: int, *fds: int) -> None:
        with contextlib.suppress(OSError):  # the core is gone; the next poll says so
            socket.send_fds(self._control, [CONTROL.pack(kind, number, value)], fds)
