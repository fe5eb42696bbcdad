"""Handler processes, from the program's side: who is idle, who has which event, who has died.

One thread owns all of it; others hand it events through a queue. A capsule has `pool` processes made
beforehand, and one that dies is replaced; a forked handler gets a process for each event, at most `pool` at
once. A process that dies over an event fails that event, and the message says how it died.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from aem import _channel
from aem._binding import SUCCESS, Entry, Outcome
from aem._registration import Registration
from aem._zygote import CONTROL_BYTES, Done, Ended, Spawn, Task, fork_zygote, pack, unpack
from aem.errors import Reply
from aem.v1 import session_pb2

log = logging.getLogger("aem")

POOL = 4  # processes of a capsule that does not say
FORKS = 16  # handlers that run at once for a forked job that does not say
DEATHS_MAX = 16  # processes of a capsule that died in a row without ever having had an event; then one is
# made only when there is an event for it
READ_BYTES = 1 << 18
END_SECONDS = 3.0

TOO_LATE = (
    "run='fork' and run='capsule' need a process to fork handlers from, and that can only be made before the"
    " first connection to the daemon: decorate such handlers before anything connects, or call"
    " prepare_fork() first; handlers that come after it must be importable"
)
Finish = Callable[[Entry, Outcome], None]


class Worker:
    """A handler process. `entry` is the event that it has, `answered` whether it ever answered one."""

    __slots__ = ("answered", "buffer", "entry", "finish", "group", "link", "number", "unsent")

    def __init__(self, number: int, group: Group, link: socket.socket) -> None:
        self.number = number
        self.group = group
        self.link = link
        self.buffer = bytearray()
        self.unsent = b""
        self.entry: Entry | None = None
        self.finish: Finish
        self.answered = False


class Group:
    """The processes of one registration."""

    __slots__ = ("deaths", "handler", "idle", "limit", "registration", "reuse", "waiting", "workers")

    def __init__(self, registration: Registration, handler: int | bytes) -> None:
        self.registration = registration
        self.handler = handler
        self.reuse = registration.run == "capsule"
        self.limit = registration.pool or (POOL if self.reuse else FORKS)
        self.waiting: deque[tuple[Entry, Finish]] = deque()
        self.idle: list[Worker] = []
        self.workers: set[Worker] = set()
        self.deaths = 0


class Workers:
    """All handler processes of a client."""

    def __init__(self, registrations: list[Registration]) -> None:
        if _channel.channel_exists():
            raise RuntimeError(TOO_LATE)
        handlers = [registration.handler for registration in registrations]
        self._numbers = {id(handler): number for number, handler in enumerate(handlers)}
        self._handlers = handlers  # kept, so that no id comes twice
        found = {number: handler for number, handler in enumerate(handlers) if handler is not None}
        self._zygote, self._control = fork_zygote(found)
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, self._commanded)
        self._selector.register(self._control, selectors.EVENT_READ, self._reported)
        self._groups: dict[Registration, Group] = {}
        self._workers: dict[int, Worker] = {}
        self._next = 1
        self._broken = False
        self._closing = False
        self._busy = 0
        self._calm = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="aem-handlers", daemon=True)
        self._thread.start()

    # -- from any thread

    def adopt(self, registration: Registration) -> None:
        """Serve a registration; raises ValueError for a handler that came too late to be sent there."""
        handler: int | bytes | None = self._numbers.get(id(registration.handler))
        if handler is None:
            try:
                handler = pickle.dumps(registration.handler)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ValueError(f"{TOO_LATE}: {error}") from None
        group = Group(registration, handler)
        self._command(lambda: self._open(group))

    def submit(self, entry: Entry, finish: Finish) -> None:
        """Have `entry` handled; `finish` is called in this object's thread."""
        with self._calm:
            self._busy += 1
        self._command(lambda: self._assign(entry, finish))

    def settle(self, seconds: float) -> None:
        """Wait until nothing is being handled, at most so long."""
        with self._calm:
            self._calm.wait_for(lambda: self._busy == 0, seconds)

    def close(self) -> None:
        """Let idle processes go and end the zygote. A handler that still runs is left to finish."""
        self._command(self._close)
        self._thread.join(END_SECONDS)
        pidfd = os.pidfd_open(self._zygote)
        try:
            if not select.select([pidfd], [], [], END_SECONDS)[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(self._zygote, 0)
        except ChildProcessError:
            return  # the program reaps all its children itself
        finally:
            os.close(pidfd)

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        os.eventfd_write(self._wake, 1)

    # -- in the thread

    def _run(self) -> None:
        while not self._closing:
            for key, events in self._selector.select():
                try:
                    key.data(key, events)
                except Exception:
                    log.exception("handler processes")
        self._selector.close()
        os.close(self._wake)

    def _commanded(self, *_: Any) -> None:
        os.eventfd_read(self._wake)
        while True:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            command()

    def _open(self, group: Group) -> None:
        self._groups[group.registration] = group
        if group.reuse:
            self._refill(group)

    def _refill(self, group: Group) -> None:
        while len(group.workers) < group.limit and not self._broken and not self._closing:
            group.idle.append(self._spawn(group))

    def _spawn(self, group: Group) -> Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        worker = Worker(self._next, group, ours)
        self._next += 1
        try:
            socket.send_fds(self._control, [pickle.dumps(Spawn(worker.number))], [theirs.fileno()])
        except OSError:
            self._broken = True
        theirs.close()
        self._workers[worker.number] = worker
        group.workers.add(worker)
        self._selector.register(ours, selectors.EVENT_READ, lambda _, events: self._ready(worker, events))
        return worker

    def _assign(self, entry: Entry, finish: Finish) -> None:
        group = self._groups[entry.binding.registration]
        group.waiting.append((entry, finish))
        self._advance(group)

    def _advance(self, group: Group) -> None:
        if self._broken:
            while group.waiting:
                entry, finish = group.waiting.popleft()
                self._finish(
                    entry, finish, Outcome(error="the process that handlers are forked from has ended")
                )
            return
        while group.waiting:
            if group.idle:
                worker = group.idle.pop()
            elif len(group.workers) < group.limit:
                worker = self._spawn(group)
            else:
                return
            self._give(worker, *group.waiting.popleft())

    def _give(self, worker: Worker, entry: Entry, finish: Finish) -> None:
        registration = worker.group.registration
        worker.entry, worker.finish = entry, finish
        worker.unsent = pack(
            Task(
                handler=worker.group.handler,
                module=registration.module,
                label=registration.label,
                job=registration.id,
                epoch=entry.epoch,
                first=entry.first,
                last=entry.last,
                attempts=entry.attempts,
                data=entry.data,
            )
        )
        self._send(worker)

    def _send(self, worker: Worker) -> None:
        try:
            sent = worker.link.send(worker.unsent)
            worker.unsent = worker.unsent[sent:]
        except BlockingIOError:
            pass
        except OSError:
            worker.unsent = b""  # it has died: that is told apart
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0)
        key = self._selector.get_key(worker.link)
        if key.events != wanted:
            self._selector.modify(worker.link, wanted, key.data)

    def _ready(self, worker: Worker, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send(worker)
        if events & selectors.EVENT_READ and not self._read(worker):
            self._unplug(worker)  # how it ended comes from the zygote

    def _read(self, worker: Worker) -> bool:
        """Take what a process has answered; False at the end of its socket."""
        while True:
            try:
                piece = worker.link.recv(READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not piece:
                return False
            worker.buffer += piece
            done = unpack(worker.buffer)
            if done is not None:
                self._answered(worker, done)
                if not worker.group.reuse:
                    return False

    def _answered(self, worker: Worker, done: Done) -> None:
        group, entry = worker.group, worker.entry
        worker.entry = None
        worker.answered = True
        group.deaths = 0
        if group.reuse:
            group.idle.append(worker)
        if entry is not None:
            self._finish(entry, worker.finish, _outcome(group.registration, done))
        self._advance(group)

    def _unplug(self, worker: Worker) -> None:
        if worker.link.fileno() >= 0:
            self._selector.unregister(worker.link)
            _hang_up(worker.link)

    def _reported(self, *_: Any) -> None:
        try:
            message = self._control.recv(CONTROL_BYTES)
        except OSError:
            message = b""
        if message:
            self._ended(pickle.loads(message))  # noqa: S301 - from our own other half
            return
        self._selector.unregister(self._control)
        self._broken = True
        if not self._closing:
            log.error("the process that handlers are forked from has ended")
        for worker in list(self._workers.values()):
            self._bury(worker, "the process that handlers are forked from has ended")

    def _ended(self, ended: Ended) -> None:
        worker = self._workers.get(ended.number)
        if worker is None:
            return
        if worker.link.fileno() >= 0:
            self._read(worker)  # it may have answered before it died
        self._bury(worker, f"the handler process {ended.pid} {_ending(ended.status)} before it answered")

    def _bury(self, worker: Worker, reason: str) -> None:
        group, entry = worker.group, worker.entry
        del self._workers[worker.number]
        group.workers.discard(worker)
        if worker in group.idle:
            group.idle.remove(worker)
        self._unplug(worker)
        if entry is not None:
            log.error("%s", reason)
            self._finish(entry, worker.finish, Outcome(error=reason))
        if group.reuse and not self._closing:
            group.deaths += entry is None and not worker.answered
            if group.deaths < DEATHS_MAX:
                self._refill(group)
        self._advance(group)

    def _finish(self, entry: Entry, finish: Finish, outcome: Outcome) -> None:
        finish(entry, outcome)
        with self._calm:
            self._busy -= 1
            if self._busy == 0:
                self._calm.notify_all()

    def _close(self) -> None:
        self._closing = True
        for worker in list(self._workers.values()):
            self._unplug(worker)
        if not self._broken:
            self._selector.unregister(self._control)
        _hang_up(self._control)


def _hang_up(link: socket.socket) -> None:
    """Close a socket for good: other children of the program may hold copies of it."""
    try:
        link.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other end was faster
    link.close()


def _outcome(registration: Registration, done: Done) -> Outcome:
    if done.error is not None:
        log.error(
            "the handler %s of job %d (%s) failed in process %d\n%s",
            registration.label,
            registration.id,
            registration.module,
            done.pid,
            done.traceback or done.error,
        )
        return Outcome(error=done.error)
    if done.nack is not None:
        delay_ns, park, reason = done.nack
        return Outcome(nack=session_pb2.Nack(delay_ns=delay_ns, park=park, reason=reason))
    if done.reply is not None:
        return Outcome(reply=Reply(*done.reply))
    return SUCCESS


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"was killed by {name}"
    return f"exited with status {os.WEXITSTATUS(status)}"
