"""The deputy as the core sees it: started when the first path is asked for, and again when it dies.

A question waits for its turn (`turns.py`), goes over as one message with the descriptors that it needs, and
is answered by one message; nothing here waits for that. What is bound by an answer that nobody wants any
more is removed again. A question that the deputy died over is asked once more: what its child had done by
then it did as the caller, and asking again finds it (a socket without a holder is replaced), but a datagram
is not sent twice.

Which of the sockets without connections are ours and only do not listen yet is known here: a child that
meets one says which file it is, and is sent again if nobody holds it. Then no other of that user's
questions runs, so that none can have bound it a moment ago.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from aemd.core.accounts import Accounts, Charge
from aemd.core.errors import AemError
from aemd.core.limits import MS, SECOND
from aemd.core.principal import Owner, Principal
from aemd.deputy import protocol, starting
from aemd.deputy.protocol import Answer, Fault, Flag, Kind, Request, State
from aemd.modules.need import (
    AdoptPath,
    BindPath,
    BoundPath,
    Errand,
    Given,
    ListenPath,
    OpenedPath,
    OpenPath,
    SendPath,
)
from aemd.peer import refusals
from aemd.peer.beside import Beside, OwnStarter, Program, Starter
from aemd.peer.turns import Turns
from aemd.sources.reactor import Reactor, Timer

PLACES = 64  # children at once, of all users
QUEUE_NS = 30 * SECOND  # how long a question may wait for its turn
TRIES = 2
RESTART_MIN_NS = 100 * MS  # then twice as long each time, while it answers nothing
RESTART_MAX_NS = 10 * SECOND
MESSAGES = 64  # read in one turn
END_SECONDS = 2.0  # for names that are to be removed when the daemon ends

Answered = Callable[["Given | AemError"], None]


@dataclass(frozen=True, slots=True)
class _RemovePath:
    """The name of a socket that is closed."""

    path: bytes
    directory: int
    identity: tuple[int, int]


@dataclass(slots=True, eq=False)
class Asked:
    """A question on its way. `cancel()`: the answer is not wanted any more."""

    principal: Principal
    need: Errand | _RemovePath
    limit: int
    answered: Answered | None
    user: tuple[int, bool] = (0, False)
    database: bool = False  # for a user, not for a process
    capable: bool = False
    at_home: bool = False
    alone: bool = False
    replace: tuple[int, int] | None = None
    tries: int = 0
    number: int = 0
    timer: Timer | None = field(default=None, repr=False)
    charge: Charge | None = None  # of its child

    @property
    def wanted(self) -> bool:
        """Somebody waits for the answer, or it is to be done whoever does."""
        return self.answered is not None or isinstance(self.need, _RemovePath)

    def cancel(self) -> None:
        """Nobody waits for it any more; what it opens is given back."""
        self.answered = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Deputy:
    """Has things done as the caller."""

    def __init__(
        self,
        reactor: Reactor,
        accounts: Accounts,
        *,
        pidfd_of: Callable[[Principal], int],
        limit_ns: int,
        command: Sequence[str] = (),
        starter: Starter | None = None,
    ) -> None:
        """`pidfd_of`: of a caller's process, -1 if it has exited; `limit_ns`: how long each child may take.
        `command` is given the number of its control descriptor as the last argument. `starter`: who starts
        it, if not this process.
        """
        self._reactor = reactor
        self._pidfd_of = pidfd_of
        self._accounts = accounts
        self._limit_ns = limit_ns
        self._starter = starter or OwnStarter(reactor)
        self._program = Program(
            command or (sys.executable, "-P", "-m", "aemd.deputy", f"{limit_ns / SECOND:g}"),
            starting.Program.DEPUTY,
            limit_ns // MS,
        )
        self._process: Beside | None = None
        self._control: socket.socket | None = None
        self._restart_ns = RESTART_MIN_NS
        self._timer: Timer | None = None
        self._turns: Turns[Asked] = Turns(PLACES)
        self._running: dict[int, Asked] = {}
        self._lingering: dict[int, Asked] = {}  # answered, and their children not yet gone
        self._unsent: Asked | None = None  # the control socket had no room for it
        self._bound: set[tuple[int, int]] = set()
        self._last = 0
        self._closing = False

    # For the service.

    @property
    def pid(self) -> int:
        """Its pid; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def descriptors(self) -> int:
        """How many it holds that no job pays for."""
        return 2 if self._process is not None else 0

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._running or self._lingering or self._unsent or len(self._turns))

    def ask(self, principal: Principal, need: Errand, answered: Answered, *, at_home: bool = False) -> Asked:
        """Have it done; `answered` is told later, in another turn, what came out or why not.

        A principal without a process (pid 0) is one of the machine's users, below the machine's own root.
        `at_home`: one with a process must live there too.
        """
        user = (principal.uid, principal.administrator)
        asked = Asked(principal, need, self._limit(principal), answered, user=user)
        asked.capable = principal.administrator
        asked.at_home = at_home
        self._wait(asked)
        return asked

    def ask_for_user(self, principal: Principal, need: OpenPath, answered: Answered) -> Asked:
        """What a process of the user would get that has nothing but what passwd(5) and group(5) say, below
        the daemon's own root. Only its uid counts, and its gid if that is not protocol.NOBODY_SAYS.
        """
        asked = Asked(principal, need, self._limit(principal), answered, user=(principal.uid, False))
        asked.database = True
        self._wait(asked)
        return asked

    def remove_left(self, uid: int, gid: int, bound: BoundPath) -> None:
        """Close a socket that nobody goes on with, and remove its name as its user, who may have no process
        any more.
        """
        nobody = Principal(Owner(uid), gid, groups=(), pid=0, start_time_ticks=0, administrator=False)
        bound.remove = lambda bound: self._remove(nobody, bound, capable=False, database=True)
        bound.close()

    def close(self) -> None:
        """Answer nothing more, let the names of closed sockets go, and end it."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for asked in (*self._running.values(), *self._turns):
            if not isinstance(asked.need, _RemovePath):
                asked.cancel()
        self._finish()
        process = self._process
        self._forget()
        if process is not None:
            process.end(END_SECONDS)

    def _finish(self) -> None:
        """Wait for what is to be removed, for a bounded time."""
        until = time.monotonic() + END_SECONDS
        self._run()
        poll = select.poll()
        while self._control is not None and self.busy:
            left = until - time.monotonic()
            if left <= 0:
                return
            events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
            poll.register(self._control, events)
            poll.poll(left * 1000)
            if self._unsent is not None:
                self._writable()
            self._readable(0)
            self._run()

    # Questions.

    def _limit(self, principal: Principal) -> int:
        """How many children may run for it at once."""
        return self._accounts.allowance(principal).quota.children

    def _wait(self, asked: Asked) -> None:
        if self._closing and not isinstance(asked.need, _RemovePath):
            asked.cancel()
            return
        clock = self._reactor.clock("monotonic")
        if asked.answered is not None:
            asked.timer = clock.call_at(clock.now_ns() + QUEUE_NS, lambda _now_ns: self._too_late(asked))
        self._turns.add(asked)
        self._reactor.defer(self._run)

    def _run(self) -> None:
        """Ask as many as may be asked."""
        if self._timer is not None or (self._process is not None and self._control is None):
            return  # it is about to be started again
        while self._unsent is None:
            asked = self._turns.next()
            if asked is None:
                return
            if self._process is None and not self._start():
                self._ended(asked)
                self._turns.add(asked, first=True)
                return
            if self._charged(asked):
                self._send(asked)

    def _ended(self, asked: Asked) -> None:
        """Its child is gone, or was never made."""
        self._turns.done(asked)
        if asked.charge is not None:
            asked.charge.refund()
            asked.charge = None

    def _charged(self, asked: Asked) -> bool:
        """Charge its child to its user. What only gives back goes in any case."""
        if isinstance(asked.need, _RemovePath) or asked.charge is not None:
            return True
        try:
            asked.charge = self._accounts.charge(asked.principal, "children")
        except AemError as error:
            self._ended(asked)
            self._reactor.defer(partial(_deliver, asked, error))
            return False
        return True

    def _send(self, asked: Asked) -> None:
        assert self._control is not None
        self._last += 1
        asked.number = self._last
        request, descriptors = self._request(asked)
        if descriptors is None:
            self._ended(asked)
            self._tell(asked, Answer(asked.number, Fault.GONE), [])
            return
        try:
            socket.send_fds(self._control, [protocol.pack_request(request)], descriptors)
        except BlockingIOError:
            self._unsent = asked
            self._reactor.modify(self._control.fileno(), select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError as error:
            if error.errno in refusals.TOO_LONG:
                self._ended(asked)
                self._tell(asked, Answer(asked.number, error.errno or 0, "sendmsg"), [])
                return
            self._kill()
        if asked.timer is not None:
            asked.timer.cancel()
            asked.timer = None
        self._running[asked.number] = asked

    def _request(self, asked: Asked) -> tuple[Request, list[int] | None]:
        """The message, and the descriptors beside it; None if the caller is gone."""
        principal, need = asked.principal, asked.need
        flags = Flag.CAPABLE if asked.capable else Flag(0)
        kind, path, descriptors, facts = _facts(need)
        pid = 0
        if asked.database:
            flags |= Flag.DATABASE
        elif principal.pid and not isinstance(need, _RemovePath):
            flags |= Flag.HOME if asked.at_home else Flag(0)
            pidfd = self._pidfd_of(principal)
            if pidfd < 0:
                descriptors = None
            elif descriptors is not None:
                pid, descriptors = principal.pid, [pidfd, *descriptors]
        if asked.replace is not None and asked.replace not in self._bound:  # by whom it waited for
            flags |= Flag.REPLACE
            facts["device"], facts["inode"] = asked.replace
        groups = () if asked.database else principal.groups
        request = Request(
            kind,
            asked.number,
            principal.uid,
            principal.gid,
            groups,
            pid=pid,
            flags=flags,
            path=path,
            data=need.data if isinstance(need, SendPath) else b"",
            **facts,
        )
        return request, descriptors

    def _too_late(self, asked: Asked) -> None:
        asked.timer = None
        answered, asked.answered = asked.answered, None
        if answered is not None:
            answered(refusals.busy(asked.principal, asked.limit))

    # Answers.

    def _answer(self, answer: Answer, fds: list[int]) -> None:
        if answer.reaped:
            asked = self._lingering.pop(answer.number, None)
            if asked is not None:
                self._ended(asked)
            return
        asked = self._running.pop(answer.number, None)
        if asked is None:
            _close_all(fds)
            return
        self._restart_ns = RESTART_MIN_NS
        if State.DONE & answer.state:
            self._ended(asked)
        else:
            self._lingering[answer.number] = asked
        if State.STALE & answer.state and (answer.device, answer.inode) not in self._bound and asked.wanted:
            identity = (answer.device, answer.inode)
            if not asked.alone or asked.replace != identity:
                asked.alone, asked.replace = True, identity
                self._turns.add(asked, first=True)
                return
        if isinstance(asked.need, AdoptPath) and answer.error and asked.wanted:
            asked.need = asked.need.bind  # its path leads elsewhere by now, or the caller may not go there
            self._turns.add(asked, first=True)
            return
        self._tell(asked, answer, fds)

    def _tell(self, asked: Asked, answer: Answer, fds: list[int]) -> None:
        """Make of an answer what the module knows, and hand it over."""
        if isinstance(asked.need, _RemovePath):
            os.close(asked.need.directory)
            self._bound.discard(asked.need.identity)
            return
        given: Given | AemError
        if answer.error:
            _close_all(fds)
            given = refusals.refusal(asked.principal, asked.need, answer, self._limit_ns)
        else:
            given = self._given(asked, answer, fds)
        if self._closing:
            _deliver(asked, given)
        else:  # later, so that a fault of who is told is his alone
            self._reactor.defer(partial(_deliver, asked, given))

    def _given(self, asked: Asked, answer: Answer, fds: list[int]) -> Given:
        need, identity = asked.need, (answer.device, answer.inode)
        principal, capable = asked.principal, bool(State.CAPABLE & answer.state)

        def remove(bound: BoundPath) -> None:
            self._remove(principal, bound, capable=capable)

        if isinstance(need, BindPath):
            self._bound.add(identity)
            sock, listens = socket.socket(fileno=fds[0]), need.backlog is not None
            return BoundPath(sock, need.place, fds[1], identity, listens, remove)
        if isinstance(need, AdoptPath) and asked.wanted:  # else it stays where it is
            identity = need.left.identity
            self._bound.add(identity)
            listener, directory = need.left.take()
            sock = socket.socket(fileno=listener)
            sock.setblocking(False)
            return BoundPath(sock, need.bind.place, directory, identity, True, remove, adopted=True)
        if isinstance(need, OpenPath):
            return OpenedPath(fds[0], identity)
        return None

    def _remove(
        self, principal: Principal, bound: BoundPath, *, capable: bool, database: bool = False
    ) -> None:
        need = _RemovePath(bound.place.path, bound.directory, bound.identity)
        asked = Asked(principal, need, self._limit(principal), None)
        asked.user = (principal.uid, principal.administrator)
        asked.capable = capable
        asked.database = database
        self._wait(asked)

    # The process.

    def _start(self) -> bool:
        try:
            process = self._starter.start(self._program, self._died)
        except OSError as error:
            structlog.get_logger().error("deputy cannot be started", error=str(error))
            self._start_later()
            return False
        self._process, self._control = process, process.control
        self._reactor.add(self._control.fileno(), select.EPOLLIN, self._ready)
        return True

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._writable()
        self._readable(events)
        self._run()

    def _writable(self) -> None:
        asked, self._unsent = self._unsent, None
        if self._control is not None:
            self._reactor.modify(self._control.fileno(), select.EPOLLIN)
        if asked is not None:
            self._send(asked)

    def _readable(self, _events: int) -> None:
        for _ in range(MESSAGES):
            if self._control is None:
                return
            try:
                message, fds, _, _ = socket.recv_fds(
                    self._control,
                    protocol.ANSWER_BYTES_MAX,
                    protocol.DESCRIPTORS_MAX,
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return
            except OSError:
                message, fds = b"", []
            try:
                answer = protocol.parse_answer(message)
            except protocol.ProtocolError:
                _close_all(fds)
                self._kill()
                return
            self._answer(answer, fds)

    def _kill(self) -> None:
        """Its end of the control socket is gone or broken."""
        self._forget_control()
        if self._process is not None:
            self._process.kill()

    def _died(self, status: int) -> None:
        self._readable(0)  # what it still said
        structlog.get_logger().error("deputy died", pid=self.pid, status=status)
        self._forget()
        asked_of_it, self._running = list(self._running.values()), {}
        lingering, self._lingering = list(self._lingering.values()), {}
        unsent, self._unsent = self._unsent, None
        for asked in lingering:
            self._ended(asked)
        for asked in [*asked_of_it, *([unsent] if unsent is not None else [])]:
            self._ended(asked)
            asked.tries += 1
            if asked.tries < TRIES and asked.wanted and not isinstance(asked.need, SendPath):
                self._turns.add(asked, first=True)
            else:
                self._tell(asked, Answer(asked.number, Fault.KILLED), [])
        self._start_later()

    def _start_later(self) -> None:
        if self._closing:
            return
        clock = self._reactor.clock("monotonic")
        self._timer = clock.call_at(clock.now_ns() + self._restart_ns, self._again)
        self._restart_ns = min(2 * self._restart_ns, RESTART_MAX_NS)

    def _again(self, _now_ns: int) -> None:
        self._timer = None
        self._run()

    def _forget_control(self) -> None:
        if self._control is not None:
            self._reactor.remove(self._control.fileno())
            self._control.close()
            self._control = None

    def _forget(self) -> None:
        self._forget_control()
        self._process = None


def _deliver(asked: Asked, given: Given | AemError) -> None:
    answered = asked.answered
    asked.cancel()
    if answered is not None:
        answered(given)
    elif given is not None and not isinstance(given, AemError):
        given.close()


def _facts(need: Errand | _RemovePath) -> tuple[Kind, bytes, list[int] | None, dict[str, int]]:
    """Kind, path, descriptors and the other fields of a request; no descriptors: it is closed already."""
    match need:
        case BindPath():
            facts = {"type": need.type, "mode": -1 if need.mode is None else need.mode}
            facts["backlog"] = -1 if need.backlog is None else need.backlog
            return Kind.BIND, need.place.path, [], facts
        case ListenPath():
            bound = need.bound
            facts = {"backlog": -1 if need.backlog is None else need.backlog}
            facts["device"], facts["inode"] = bound.identity
            fd = bound.socket.fileno()
            return Kind.LISTEN, bound.place.path, [fd] if fd >= 0 else None, facts
        case AdoptPath():
            facts = {"backlog": -1}
            facts["device"], facts["inode"] = need.left.identity
            fd = need.left.listener
            return Kind.LISTEN, need.bind.place.path, [fd] if fd >= 0 else None, facts
        case OpenPath():
            return Kind.OPEN, need.path, [], {"access": int(need.access)}
        case SendPath():
            fd = need.socket.fileno()
            return Kind.SEND, need.path, [fd] if fd >= 0 else None, {}
        case _RemovePath():
            device, inode = need.identity
            return Kind.REMOVE, need.path, [need.directory], {"device": device, "inode": inode}


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
