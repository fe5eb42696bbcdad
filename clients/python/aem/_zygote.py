"""The process that handler processes are forked from.

A process must not fork once grpc runs in it: its threads are not there in the child, its locks and sockets
are. So before the first channel is made the client forks a zygote, which does nothing but fork handler
processes on request, reap them, and say how they ended. It has everything that the program had loaded by
then, so a handler process starts in about a millisecond and shares its memory.

    program  -- SEQPACKET: Spawn(number) + descriptor -->  zygote
             <-- Ended(number, pid, wait status) --------
    program  == STREAM, u32 length + pickle, both ways ==  handler process

A handler process answers requests until its socket ends. It never outlives the program by more than the
event that it is handling, and the zygote ends with the program: it watches the program's pidfd, because the
end of a socket is not seen while some other child of the program holds a copy. Nothing comes over these
sockets but from the program itself, so pickle is safe here.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import pickle
import random
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from aem._binding import Binding, Entry, Window
from aem._handling import event_of, outcome_of, outcome_of_exception
from aem._registration import Registration
from aem.job import BaseJob
from aem.options import Options
from aem.v1 import event_pb2

LENGTH = struct.Struct("<I")
CONTROL_BYTES = 4096
LINGER_SECONDS = 1.0  # what still runs when the program has gone may end within this and be reaped


class Spawn(NamedTuple):
    """Fork a handler process; its end of the socket comes along."""

    number: int


class Ended(NamedTuple):
    """A handler process has ended; `status` as waitpid() has it."""

    number: int
    pid: int
    status: int


class Task(NamedTuple):
    """An event for a handler: `handler` is a number from before the fork, or a pickle."""

    handler: int | bytes
    module: str
    label: str
    job: int
    epoch: int
    first: int
    last: int
    attempts: int
    data: bytes


class Done(NamedTuple):
    """How a handler ended: at most one of reply, nack and error is set."""

    pid: int
    reply: tuple[str, bytes] | None = None
    nack: tuple[int, bool, str] | None = None  # delay_ns, park, reason
    error: str | None = None
    traceback: str = ""


def pack(message: Task | Done) -> bytes:
    """A message as it goes over a handler process' socket."""
    body = pickle.dumps(message)
    return LENGTH.pack(len(body)) + body


def unpack(buffer: bytearray) -> Any | None:
    """Take the first message out of `buffer`; None if it is not complete."""
    if len(buffer) < LENGTH.size:
        return None
    end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    message = pickle.loads(buffer[LENGTH.size : end])  # noqa: S301 - from our own other half
    del buffer[:end]
    return message


def fork_zygote(handlers: Mapping[int, Callable[..., Any]]) -> tuple[int, socket.socket]:
    """Fork the zygote; returns its process id and the control socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.pidfd_open(os.getpid())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else every handler process would write it again
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _serve(theirs, parent, handlers)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    os.close(parent)
    return pid, ours


def _quiet(*numbers: signal.Signals) -> None:
    """Take no notice of signals; not by SIG_IGN, which programs started by handlers would inherit."""
    for number in numbers:
        signal.signal(number, lambda *_: None)


def _serve(control: socket.socket, parent: int, handlers: Mapping[int, Callable[..., Any]]) -> NoReturn:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _quiet(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the program says when it is over
    gc.freeze()  # what is shared stays shared
    poller = select.epoll()
    for descriptor in (control.fileno(), parent):
        poller.register(descriptor, select.EPOLLIN)
    children: dict[int, tuple[int, int]] = {}  # pidfd -> number, pid
    leave_at: float | None = None
    while leave_at is None or (children and time.monotonic() < leave_at):
        timeout = None if leave_at is None else max(0.0, leave_at - time.monotonic())
        for descriptor, _ in poller.poll(timeout):
            if descriptor in children:
                number, pid = children.pop(descriptor)
                poller.unregister(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                _tell(control, Ended(number, pid, status))
            elif leave_at is None:
                order, sent = _receive(control) if descriptor == control.fileno() else (None, -1)
                if order is None:
                    leave_at = time.monotonic() + LINGER_SECONDS
                    poller.unregister(control.fileno())
                    poller.unregister(parent)
                    continue
                pid = os.fork()
                if pid == 0:
                    for inherited in (control.fileno(), parent, poller.fileno(), *children):
                        os.close(inherited)
                    _work(socket.socket(fileno=sent), handlers)
                os.close(sent)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = (order.number, pid)
                poller.register(pidfd, select.EPOLLIN)
    os._exit(0)


def _receive(control: socket.socket) -> tuple[Spawn | None, int]:
    try:
        message, descriptors, _, _ = socket.recv_fds(control, CONTROL_BYTES, 1)
    except OSError:
        return None, -1
    if not message:
        return None, -1
    return pickle.loads(message), descriptors[0]  # noqa: S301 - from our own other half


def _tell(control: socket.socket, ended: Ended) -> None:
    try:
        control.send(pickle.dumps(ended))
    except OSError:
        return  # the program is gone


class _Nowhere:
    """Where entries of a handler process' job would wait: they do not."""

    def put(self, entries: list[Entry]) -> None:
        """Nothing comes."""

    def waiting(self, binding: Binding) -> list[Entry]:  # noqa: ARG002
        """Nothing waits."""
        return []

    def drop(self, binding: Binding) -> list[Entry]:  # noqa: ARG002
        """Nothing waits."""
        return []

    def room(self, registration: Registration, key: bytes) -> None:
        """Nothing is written."""

    def ended(self) -> None:
        """Nothing came."""


def _work(link: socket.socket, handlers: Mapping[int, Callable[..., Any]]) -> NoReturn:
    """Life of a handler process: answer tasks until the socket ends."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        random.seed()
        buffer = bytearray()
        late: dict[bytes, Callable[..., Any]] = {}
        while True:
            task = unpack(buffer)
            if task is None:
                piece = link.recv(1 << 18)
                if not piece:
                    break
                buffer += piece
                continue
            done = _perform(task, handlers, late)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            link.sendall(pack(done))
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the program went while the handler ran
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _perform(
    task: Task, handlers: Mapping[int, Callable[..., Any]], late: dict[bytes, Callable[..., Any]]
) -> Done:
    pid = os.getpid()
    try:
        outcome = outcome_of(_call(task, handlers, late))
    except SystemExit as left:
        if left.code in (None, 0):
            return Done(pid)
        return Done(pid, error=f"the handler process exited with {left.code!r}")
    except BaseException as error:
        outcome = outcome_of_exception(error)
        if outcome.error is not None:
            return Done(pid, error=outcome.error, traceback=traceback.format_exc())
    if outcome.nack is not None:
        return Done(pid, nack=(outcome.nack.delay_ns, outcome.nack.park, outcome.nack.reason))
    if outcome.reply is not None:
        return Done(pid, reply=(outcome.reply.operation, outcome.reply.data))
    return Done(pid)


def _call(
    task: Task, handlers: Mapping[int, Callable[..., Any]], late: dict[bytes, Callable[..., Any]]
) -> Any:
    if isinstance(task.handler, int):
        handler = handlers[task.handler]
    else:
        if task.handler not in late:
            late[task.handler] = pickle.loads(task.handler)  # noqa: S301 - from our own other half
        handler = late[task.handler]
    registration = Registration(
        task.module, {}, options=Options(), label=task.label, armed=True, sink=_Nowhere()
    )
    registration.id = task.job
    registration.job = BaseJob(registration)
    binding = Binding(0, registration, epoch=task.epoch, acknowledgement=0, window=Window(1, 1))
    entry = Entry(binding, task.epoch, task.first, task.last, task.attempts, task.data)
    entry.message = event_pb2.Event.FromString(task.data)
    result = handler(event_of(entry))
    return asyncio.run(result) if inspect.iscoroutine(result) else result
