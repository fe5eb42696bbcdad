"""The deputy's own loop: requests in, children out, answers back.

One thread, one poll(2): the control socket, and a pidfd for each child. A child answers on a socket pair of
its own and can say nothing about another's request. It is read when the child has exited, or when its time is
over and it is killed: SIGKILL ends a process that waits for FUSE or NFS, but one that sleeps
uninterruptibly stays, therefore the request is answered first and the child reported when it is really gone.

End of file on the control socket means that the core is gone: the children are killed, and that is the end.
Signals that end services are ignored, as in the fronts' zygote: the core decides when it is over.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
from dataclasses import dataclass, replace
from typing import NoReturn

from aemd.deputy import task
from aemd.deputy.caller import name_process
from aemd.deputy.protocol import (
    ANSWER_BYTES_MAX,
    DESCRIPTORS_MAX,
    REQUEST_BYTES_MAX,
    Answer,
    Fault,
    Request,
    State,
    pack_answer,
    parse_answer,
    parse_request,
)

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


@dataclass(slots=True, eq=False)
class _Child:
    number: int
    pid: int
    pidfd: int
    answers: socket.socket
    due: float
    told: bool = False


def main(seconds: float, control_fd: int) -> None:
    """Serve the core until it is gone. A child has so many seconds."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)
    os.chdir("/")
    name_process("aemd-deputy")
    gc.disable()  # a child lives for a moment, and the deputy makes no cycles
    _Server(socket.socket(fileno=control_fd), seconds).serve()
    os._exit(0)


class _Server:
    def __init__(self, control: socket.socket, seconds: float) -> None:
        self._control = control
        self._control.setblocking(True)
        self._seconds = seconds
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, _Child] = {}  # by pidfd; in the order in which their time is over

    def serve(self) -> None:
        while True:
            for fd, _ in self._poll.poll(self._wait_ms()):
                if fd in self._children:
                    self._reap(fd)
                elif not self._request():
                    self._kill_all()
                    return
            self._end_late()

    def _wait_ms(self) -> float | None:
        due = next((child.due for child in self._children.values() if not child.told), None)
        return None if due is None else max(due - time.monotonic(), 0) * 1000 + 1

    def _request(self) -> bool:
        """Deal with the next request; False if there is none, for ever."""
        try:
            message, fds, _, _ = socket.recv_fds(self._control, REQUEST_BYTES_MAX, DESCRIPTORS_MAX)
        except OSError:
            return False
        if not message:
            return False
        request = parse_request(message)
        try:
            self._fork(request, fds)
        except OSError as error:
            self._tell(Answer(request.number, error.errno or 0, "fork"), [])
        for fd in fds:
            os.close(fd)
        return True

    def _fork(self, request: Request, fds: list[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
                if not pid:
                    _be_child(request, fds, theirs)
                pidfd = os.pidfd_open(pid)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._children[pidfd] = _Child(request.number, pid, pidfd, ours, time.monotonic() + self._seconds)
        self._poll.register(pidfd, select.POLLIN)

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        _, status = os.waitpid(child.pid, 0)
        os.close(pidfd)
        if child.told:
            self._tell(Answer(child.number, reaped=True), [])
        else:
            answer, fds = _answer(child) or _unanswered(child, status)
            self._tell(replace(answer, number=child.number), fds)
        child.answers.close()

    def _end_late(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.told:
                continue
            if child.due > now:
                return
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            answer, fds = _answer(child) or (Answer(child.number, Fault.TIMEOUT), [])
            child.told = True
            self._tell(replace(answer, number=child.number, state=answer.state & ~State.DONE), fds)

    def _tell(self, answer: Answer, fds: list[int]) -> None:
        with contextlib.suppress(OSError):  # the core is gone; the next poll says so
            socket.send_fds(self._control, [pack_answer(answer)], fds)
        for fd in fds:
            os.close(fd)

    def _kill_all(self) -> None:
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)


def _answer(child: _Child) -> tuple[Answer, list[int]] | None:
    """What a child has said, if it has."""
    try:
        message, fds, _, _ = socket.recv_fds(child.answers, ANSWER_BYTES_MAX, DESCRIPTORS_MAX)
    except OSError:
        return None
    return (parse_answer(message), fds) if message else None


def _unanswered(child: _Child, status: int) -> tuple[Answer, list[int]]:
    """A signal ended it, and it may be its user who sent that; or the fault is ours, which is logged."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return Answer(child.number, Fault.KILLED, f"signal {-code}"), []
    with contextlib.suppress(OSError):
        os.write(2, b"aemd-deputy: a child failed, status %d\n" % code)
    return Answer(child.number, Fault.KILLED, f"status {code}"), []


def _be_child(request: Request, fds: list[int], answers: socket.socket) -> NoReturn:
    """Do the task and exit; nothing of the deputy's is left open."""
    status = 1
    try:
        os.dup2(0, 1)  # /dev/null
        os.dup2(0, 2)
        keep = sorted([*fds, answers.fileno()])
        for low, high in zip([2, *keep], [*keep, 1 << 30], strict=True):
            os.closerange(low + 1, high)
        answer, found = task.perform(request, fds)
        socket.send_fds(answers, [pack_answer(answer)], found)
        status = 0
    except BaseException:  # a fault of ours; the deputy says KILLED
        status = 2
    finally:
        os._exit(status)
