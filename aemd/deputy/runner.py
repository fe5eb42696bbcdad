"""`python -m aemd.deputy.runner CONTROL`: runs the commands of jobs, started by the core and by nobody else.

One thread, one poll(2): the control socket, and for each run its pidfd and the pipe of its output. Nothing
here waits for anything that a command can hold.

A run is over when its program has ended, in whatever way. What that has left behind is ended too: by the
run's control group where there is one (`subtree.py`), else by its process group, whose number nobody else can
have as long as the program is not waited for. Only then the core is told.

A run whose time is over, or that the core no longer wants, gets SIGTERM, and SIGKILL after a grace. End of
file on the control socket means that the core is gone: everything is killed at once. Signals that end
services are ignored, as in the deputy.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass

from aemd.deputy import caller, orders, run, subtree
from aemd.deputy.orders import Begun, End, Ended, Start
from aemd.deputy.output import Lines

GRACE_MS = 5_000  # between SIGTERM and SIGKILL of a run whose time is over; as `aemctl on`
LOOK_MS = 10  # what is killed is gone in less
LEAVE_SECONDS = 5.0  # after which what does not die is left to the next run, and to systemd
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


@dataclass(slots=True, eq=False)
class _Run:
    order: Start
    pid: int
    pidfd: int
    lines: Lines | None
    says: int
    due: float | None  # when something is to be done about it; None: it is only waited for
    late: bool = False
    told: bool = False
    terminated: bool = False
    ended: Ended | None = None  # waits for what it has left behind


def main(control_fd: int) -> None:
    """Serve the core until it is gone."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir("/")
    caller.name_process("aemd-runner")
    gc.disable()
    Runner(socket.socket(fileno=control_fd)).serve()
    os._exit(0)


def own_subtree() -> subtree.Subtree | None:
    """The control group of this process, if systemd gave it to it."""
    root = caller.machine_root()
    if root is not None:
        os.close(root)
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            return subtree.find("/proc/1/root" if root is not None else "", file.read())
    except OSError:
        return None


class Runner:
    """Serves one core."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.setblocking(True)
        self._subtree = own_subtree()
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._runs: dict[int, _Run] = {}  # by number
        self._pidfds: dict[int, _Run] = {}
        self._pipes: dict[int, _Run] = {}

    def serve(self) -> None:
        """Until the core is gone."""
        if self._subtree is not None:
            self._subtree.sweep()
        while True:
            for fd, _ in self._poll.poll(self._wait_ms()):
                if fd in self._pidfds:
                    self._reap(self._pidfds[fd])
                elif fd in self._pipes:
                    self._pass_on(self._pipes[fd])
                elif fd == self._control.fileno() and not self._order():
                    self._kill_all()
                    return
            self._look()

    def _wait_ms(self) -> float | None:
        if any(each.ended is not None for each in self._runs.values()):
            return LOOK_MS
        due = min((each.due for each in self._runs.values() if each.due is not None), default=None)
        return None if due is None else max(due - time.monotonic(), 0) * 1000 + 1

    # Orders.

    def _order(self) -> bool:
        """Deal with the next order; False if there is none, for ever."""
        try:
            message, fds, _, _ = socket.recv_fds(
                self._control, orders.MESSAGE_BYTES_MAX, orders.DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return False
        if not message:
            return False
        try:
            order = orders.parse(_content(fds[0]) if fds else message)
            if isinstance(order, Start):
                self._begin(order, fds[1])
            elif isinstance(order, End):
                self._end(order)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _begin(self, order: Start, stdin: int) -> None:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                pipe, output = os.pipe2(os.O_CLOEXEC)
                ours.callback(os.close, pipe)
                theirs.callback(os.close, output)
                heard, says = os.pipe2(os.O_CLOEXEC)
                ours.callback(os.close, heard)
                theirs.callback(os.close, says)
                if self._subtree is not None:
                    self._subtree.make(order.place)
                own = os.getpid()
                pid = os.fork()
                if not pid:
                    _be_child(order, own, stdin=stdin, stdout=output, says=says, subtree=self._subtree)
                pidfd = os.pidfd_open(pid)
            except OSError as error:
                self._tell(Ended(order.number, error=error.errno or 0, call="fork"))
                return
            ours.pop_all()
        begun = _Run(
            order, pid, pidfd, Lines(order.name, pipe), heard, time.monotonic() + order.timeout_ms / 1000
        )
        self._runs[order.number] = self._pidfds[pidfd] = self._pipes[pipe] = begun
        self._poll.register(pidfd, select.POLLIN)
        self._poll.register(pipe, select.POLLIN)
        self._tell(Begun(order.number, pid))

    def _end(self, order: End) -> None:
        each = self._runs.get(order.number)
        if each is not None and each.ended is None:
            each.told = True
            self._terminate(each, order.grace_ms)

    def _terminate(self, each: _Run, grace_ms: int) -> None:
        due = time.monotonic() + grace_ms / 1000
        each.due = due if each.due is None or not each.terminated else min(each.due, due)
        if not each.terminated and grace_ms:
            each.terminated = True
            _signal(each, signal.SIGTERM)
        elif not grace_ms:
            self._kill(each)

    def _kill(self, each: _Run) -> None:
        """Everything of it, the program last: its number keeps the group's from being given out again."""
        each.due = None
        if self._subtree is not None:
            self._subtree.kill(each.order.place)
        _signal(each, signal.SIGKILL)

    # What becomes of runs.

    def _look(self) -> None:
        """End what is late, and tell of what is gone altogether."""
        now = time.monotonic()
        for each in list(self._runs.values()):
            late = each.due is not None and each.due <= now
            if each.ended is not None:
                if late or self._is_empty(each):
                    del self._runs[each.order.number]
                    self._tell(each.ended)
            elif late:
                if each.terminated:
                    self._kill(each)
                else:
                    each.late = True
                    self._terminate(each, GRACE_MS)

    def _is_empty(self, each: _Run) -> bool:
        """Whether what was killed has died."""
        if self._subtree is not None:
            return self._subtree.remove(each.order.place)
        try:
            os.killpg(each.pid, 0)
        except (ProcessLookupError, PermissionError):  # or the number is somebody else's by now
            return True
        return False

    def _reap(self, each: _Run) -> None:
        self._kill(each)
        _, status = os.waitpid(each.pid, 0)
        del self._pidfds[each.pidfd]
        self._poll.unregister(each.pidfd)
        os.close(each.pidfd)
        if each.lines is not None:
            self._close_lines(each, each.lines)
        error, call = _heard(each.says)
        each.ended = Ended(each.order.number, status, error, call, late=each.late, told=each.told)
        each.due = time.monotonic() + LEAVE_SECONDS

    def _pass_on(self, each: _Run) -> None:
        if each.lines is not None and not each.lines.read():
            self._close_lines(each, each.lines)

    def _close_lines(self, each: _Run, lines: Lines) -> None:
        each.lines = None
        del self._pipes[lines.pipe]
        self._poll.unregister(lines.pipe)
        lines.close()

    def _tell(self, message: orders.Message) -> None:
        with contextlib.suppress(OSError):  # the core is gone; the next poll says so
            self._control.send(orders.pack(message))

    def _kill_all(self) -> None:
        for each in self._pidfds.values():
            self._kill(each)
        until = time.monotonic() + 1.0
        while self._subtree is not None and self._runs and time.monotonic() < until:
            self._runs = {
                number: each
                for number, each in self._runs.items()
                if not self._subtree.remove(each.order.place)
            }
            time.sleep(LOOK_MS / 1000)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _signal(each: _Run, number: signal.Signals) -> None:
    """To its process group; to the program alone, if that has no group of its own yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(each.pid, number)
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(each.pidfd, number)


def _heard(pipe: int) -> tuple[int, str]:
    """Why it was never executed: (0, "") if it was."""
    data = os.read(pipe, select.PIPE_BUF)
    os.close(pipe)
    if not data:
        return 0, ""
    error, call = json.loads(data)
    return error, call


def _be_child(
    order: Start, runner: int, *, stdin: int, stdout: int, says: int, subtree: subtree.Subtree | None
) -> None:
    """Be the program, or say why not, and exit."""
    error, call = 5, "fork"  # EIO: a fault of ours
    try:
        run.execute(order, runner=runner, stdin=stdin, stdout=stdout, says=says, subtree=subtree)
    except run.NotExecutedError as failure:
        error, call = failure.error, failure.call
    finally:
        os.write(says, json.dumps([error, call]).encode())
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
