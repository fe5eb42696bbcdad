"""Everything between the public socket and the service: the listener, the connections, the fronts.

The way of a connection: accepted here, asked who it is, counted for its uid, numbered, handed to the front
of its user, and closed on this side. From then on the core knows it by its number alone, in the frames of
that front, until the front says that it is closed, or is gone. A connection costs the core no descriptor;
its process costs one, however many connections it has.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from aemd.core.accounts import Accounts, Charge
from aemd.core.errors import AemError
from aemd.core.limits import Limits
from aemd.core.principal import Owner, Principal
from aemd.core.quota import Quota
from aemd.deputy import starting
from aemd.link import OFFENCES, Cut
from aemd.peer import accept
from aemd.peer.beside import Program, Starter
from aemd.peer.farewell import Farewell
from aemd.peer.front import Connection, Front
from aemd.peer.fronts import Fronts
from aemd.peer.gate import Gate, Refusals
from aemd.peer.linkend import Traffic
from aemd.peer.principal import (
    UnidentifiedError,
    pidfd_alive,
    read_principal,
    read_self,
    read_start_time,
    read_uid,
)
from aemd.peer.processes import Process, Processes
from aemd.peer.stream import Stream, StreamHandler
from aemd.peer.zygote import Zygote
from aemd.sources.reactor import Reactor

FRONT_FOLDER = b".front-"  # behind the socket's path, for fronts without a network namespace of their own
FINISH_SECONDS = 1.0  # how long close() lets the fronts send on what they have
RESERVE_SHARE = 4  # of the daemon's reserve: when jobs have taken all that they may, clients still connect
PROCESSES_SHARE = 4  # of the descriptors that other users' processes leave, this part is for one user's
PROCESSES_MIN = 16  # of one user, however short descriptors are
TOO_FAST = "CONNECTIONS_PER_SECOND"  # causes of refusal, beside those of a front, link.Cut
TOO_MANY = "CONNECTIONS"
UNIDENTIFIED = "UNIDENTIFIED"  # the kernel does not say who it is
A_FRONT = "A_FRONT"  # it is one itself, so somebody has taken it over
NO_FRONT = "NO_FRONT"  # there was one just now that never served
FRONT_FULL = "FRONT_BYTES"
RATE = "connections_per_second"  # the resource


def front_command(limits: Limits, socket_path: bytes) -> list[str]:
    """What starts the zygote. -P: the working directory is not searched for modules."""
    folder = os.fsdecode(_front_folder(socket_path))
    bounds = str(limits.message_bytes), str(limits.front_bytes)
    return [sys.executable, "-P", "-m", "aemd.front", folder, *bounds]


def _zygote(command: Sequence[str], limits: Limits) -> Program:
    return Program(command, starting.Program.FRONTS, limits.message_bytes, limits.front_bytes)


def _front_folder(socket_path: bytes) -> bytes:
    """How the folders of fronts begin. Only who has the lock of the path makes or removes such."""
    return os.path.abspath(socket_path) + FRONT_FOLDER


class Peers:
    """The clients of one daemon, as streams with a principal.

    `open_stream` is called for every RPC and gives its handler (it may end the stream right away);
    `process_gone` once for a client process that exits while it has a connection or is held (hold_process),
    before its streams are closed.
    """

    def __init__(
        self,
        reactor: Reactor,
        limits: Limits,
        *,
        socket_path: bytes,
        public: bool,
        open_stream: Callable[[Stream], StreamHandler],
        process_gone: Callable[[Principal], None],
        accounts: Accounts | None = None,
        command: Sequence[str] = (),
        peer_pidfd: bool = True,
        given: socket.socket | None = None,
        before_sending: Callable[[], None] = lambda: None,
        starter: Starter | None = None,
        administrator: int | None = None,
    ) -> None:
        """`public`: anybody may connect (mode 0666), else the daemon's own user only. `accounts`: of
        those who pay for connections.

        `command` starts the zygote, if not this program's own does. `peer_pidfd`: as in Self.
        `given`: the listener, where it is there already. `before_sending`: called before answers leave.
        `starter`: of the zygote, if not this process. `administrator`: who is that, beside root; the daemon's
        own user if None.
        """
        self.open_stream = open_stream  # with those below what a Front asks of its owner
        self.before_sending = before_sending
        self._reactor = reactor
        self._limits = limits
        self._path = socket_path
        self._public = public
        self._given = given
        self._process_gone = process_gone
        self._own = read_self(peer_pidfd=peer_pidfd, administrator=administrator)
        self._place: accept.Place | None = None
        self._acceptor: accept.Acceptor | None = None
        self._farewell: Farewell | None = None
        self._connections: dict[int, Connection] = {}
        self._of_owner: Counter[Owner] = Counter()
        self._accounts = accounts or Accounts()
        self._last = self._to_self = 0
        self._gate = Gate(Quota().connections_per_second)
        self._refusals = Refusals()
        self._processes = Processes(reactor, self._exited, self._freed)
        self._zygote = Zygote(
            reactor,
            _zygote(command or front_command(limits, socket_path), limits),
            starter=starter,
            forked=lambda number, pid, pidfd: self._fronts.forked(number, pid, pidfd),
            exited=lambda number, status: self._fronts.exited(number, status),
        )
        self._fronts = Fronts(reactor, limits, self, self._zygote)

    # -- for the service

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    def connections_of(self, principal: Principal) -> int:
        """How many its owner has, which is less than its uid pays for where root of a container is called
        root; for the administrator how many there are.
        """
        return len(self._connections) if principal.administrator else self._of_owner[principal.owner]

    @property
    def accepted(self) -> int:
        """How many connections were taken and given to fronts, ever."""
        return self._last

    @property
    def laid_aside(self) -> int:
        """How often accepting stopped for want of descriptors."""
        return self._acceptor.laid_aside if self._acceptor is not None else 0

    def traffic(self) -> Traffic:
        """What went over the links to all fronts that there have been."""
        return self._fronts.traffic()

    @property
    def fronts(self) -> int:
        """How many there are now, those that are just starting included."""
        return len(self._fronts)

    @property
    def fronts_replaced(self) -> int:
        """How many have died, or were ended for what they said."""
        return self._fronts.replaced

    @property
    def descriptors(self) -> int:
        """How many it holds now: listener, lock and zygote, two or three a front, one a client process."""
        return 4 + 3 * len(self._fronts) + len(self._processes)

    @property
    def refusals(self) -> Mapping[str, int]:
        """How many connections were turned away or cut off since the start, by cause."""
        return self._refusals.counts

    @property
    def zygote_pid(self) -> int:
        """0 while it is started again."""
        return self._zygote.pid

    def front_pids(self) -> list[int]:
        """The fronts that have been forked."""
        return [front.pid for front in self._fronts if front.pid]

    def start(self) -> None:
        """Take the socket and serve. SocketTaken says who has it; OSError, whose filename says of what."""
        self._place = accept.take(self._path, public=self._public, given=self._given)
        self._remove_folders()
        try:
            self._zygote.start()
        except BaseException:
            self._place.give_back()
            self._place = None
            raise
        self._acceptor = accept.Acceptor(
            self._reactor,
            self._place.listener,
            reserve=self._limits.descriptors_reserve // RESERVE_SHARE,
            accepted=self._accepted,
        )

    @property
    def listener(self) -> int:
        """The descriptor of the public socket; -1 before start()."""
        return self._place.listener.fileno() if self._place is not None else -1

    def connect_self(self) -> socket.socket:
        """A new connection of the daemon to itself, on the way of its clients behind accept(2)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = self._last
        self._accepted(theirs)
        self._to_self = self._last if self._last > before else 0
        return ours

    def replace_own_front(self, reason: str) -> None:
        """End the front that serves the last of them; its clients find a new one."""
        connection = self._connections.get(self._to_self)
        if connection is not None:
            connection.front.lose(reason)

    def stop_accepting(self) -> None:
        """Take no new connections; health says NOT_SERVING. What is connected goes on."""
        if self._acceptor is None or self._place is None or self._farewell is not None:
            return
        self._acceptor.close()
        self._place.stop_listening()
        for front in self._fronts:
            front.drain()
        self._farewell = Farewell(self._reactor, lambda: self._fronts)

    def finish(self, done: Callable[[], None]) -> None:
        """After stop_accepting(): have what was accepted answered, then the fronts exit, then `done()`.

        To be called again every turn until that. It takes a second at most.
        """
        if self._farewell is None:
            done()
        else:
            self._farewell.begin(done)

    def close(self) -> None:
        """Send what is queued, end the fronts and the zygote, give the socket back; a second at most."""
        self.stop_accepting()
        if self._farewell is not None:
            self._farewell.close()
        fronts = list(self._fronts)
        for front in fronts:
            front.finish(FINISH_SECONDS / 4)
        _wait_for_exit([front.pidfd for front in fronts if front.pidfd >= 0])
        self._fronts.close()
        self._zygote.close()
        self._processes.close()
        self._remove_folders()
        if self._place is not None:
            self._place.give_back()
            self._place = None

    def hold_process(self, principal: Principal) -> Callable[[], None]:
        """Hear of the exit of a client's process also when it has no connection; returns what ends that.

        To be called while a connection of it is there. Is the process gone already, nothing is held.
        """
        process = self._processes.hold_again(principal)
        if process is None:
            return lambda: None
        return _once(lambda: self._processes.release(process))

    def pidfd_of(self, principal: Principal) -> int:
        """The pidfd of a client's process, still ours; -1 if it has exited or nobody holds it."""
        return self._processes.pidfd_of(principal)

    def hold_absent(self, principal: Principal) -> Callable[[], None] | None:
        """As hold_process, for a process that has no connection now; None if it has ended."""
        process = self._processes.hold_again(principal)
        if process is None:
            try:
                pidfd = os.pidfd_open(principal.pid)
            except OSError:
                return None
            if read_start_time(principal.pid) != principal.start_time_ticks or not pidfd_alive(pidfd):
                os.close(pidfd)
                return None
            process = self._processes.hold(principal, pidfd)
        return _once(lambda: self._processes.release(process))

    def close_connection(self, number: int, reason: str) -> None:
        """End a client's connection and its streams; their handlers are told `reason`."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.front.close_connection(connection, reason)

    def descriptor_freed(self) -> None:
        """Accepting stops while descriptors are short; this resumes it sooner."""
        if self._acceptor is not None:
            self._acceptor.descriptor_freed()

    # -- for a Front

    def connection_cut(self, connection: Connection, cut: Cut) -> None:
        """Say it, and remember what was no mere waiting too long."""
        uid, now_ns = connection.principal.uid, self._reactor.mono_ns()
        self._refusals.note(uid, cut.name, now_ns)
        if cut in OFFENCES:
            self._gate.offend(uid, now_ns)

    def front_full(self, front: Front) -> None:
        """Blame those who may have done it: the users of the front."""
        now_ns = self._reactor.mono_ns()
        for uid in {connection.principal.uid for connection in front.connections.values()}:
            self._refusals.note(uid, FRONT_FULL, now_ns)
            self._gate.offend(uid, now_ns)

    def connection_over(self, connection: Connection) -> None:
        """Refund it."""
        del self._connections[connection.number]
        connection.charge.refund()
        owner = connection.principal.owner
        self._of_owner[owner] -= 1
        if not self._of_owner[owner]:
            del self._of_owner[owner]
        connection.process.connections.discard(connection.number)
        self._processes.release(connection.process)
        if not connection.front.connections:
            self._fronts.unused(connection.front)

    def front_ready(self, front: Front) -> None:
        """Pass it on."""
        self._fronts.served(front)

    def front_lost(self, front: Front, reason: str) -> None:
        """Remove what it may have left, and pass it on."""
        shutil.rmtree(self._folder() + b"%d" % front.number, ignore_errors=True)
        if self._fronts.living(front):
            if front.leaving:
                self._fronts.left(front)
            else:
                self._fronts.lost(front, reason)
        if self._farewell is not None:
            self._farewell.front_gone()

    def kill_front(self, pidfd: int) -> None:
        """Have the zygote do it."""
        self._zygote.kill(pidfd)

    # -- new connections

    def _accepted(self, sock: socket.socket) -> object:
        uid, now_ns = read_uid(sock), self._reactor.mono_ns()
        admitted = self._gate.admit(uid, now_ns)
        if not admitted and uid not in (0, self._own.uid):
            return self._refuse(sock, uid, TOO_FAST)
        sock.setblocking(False)
        try:
            principal, pidfd = read_principal(sock, self._own)
        except (UnidentifiedError, OSError):
            return self._refuse(sock, uid, UNIDENTIFIED)
        is_front = self._fronts.live_in(principal.network_namespace)
        if is_front or not (admitted or principal.administrator):
            os.close(pidfd)
            return self._refuse(sock, uid, A_FRONT if is_front else TOO_FAST)
        rate = self._accounts.allowance(principal).quota.connections_per_second
        self._gate.set_rate(uid, rate)
        self._accounts.of(principal).bucket(RATE).owe(1, rate, now_ns)  # for who asks; the gate decides
        charge = self._charge(principal)
        if charge is None:
            os.close(pidfd)
            return self._refuse(sock, uid, TOO_MANY)
        front = self._fronts.choose(principal)
        if front is None:
            charge.refund()
            os.close(pidfd)
            return self._refuse(sock, uid, NO_FRONT)
        try:
            process = self._processes.hold(principal, pidfd)
        except OSError:
            charge.refund()
            sock.close()
            if not front.connections:
                self._fronts.unused(front)
            raise
        self._last += 1
        connection = Connection(
            number=self._last, principal=principal, charge=charge, process=process, front=front
        )
        self._connections[connection.number] = connection
        self._of_owner[principal.owner] += 1
        process.connections.add(connection.number)
        if not front.hand_over(connection, sock) and connection.number in self._connections:
            self.connection_over(connection)
        return None

    def _refuse(self, sock: socket.socket, uid: int, cause: str) -> object:
        sock.close()
        if cause == TOO_FAST:
            account = self._accounts.find(uid)
            if account is not None:
                account.refused[RATE] += 1
        self._refusals.note(uid, cause, self._reactor.mono_ns())
        return accept.TURNED_AWAY

    def _charge(self, principal: Principal) -> Charge | None:
        """One connection more; None if its user has enough of them, or of processes."""
        if self._has_too_many_processes(principal):
            return None
        try:
            return self._accounts.charge(principal, "connections")
        except AemError:
            return None  # a connection that is not taken has no way of being told why

    def _has_too_many_processes(self, principal: Principal) -> bool:
        """Each of them costs a descriptor here."""
        if principal.administrator or self._processes.holds(principal):
            return False
        there = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - self._limits.descriptors_reserve
        used = self._processes.of_uid(principal.uid)
        return used >= max((there - len(self._processes) + used) // PROCESSES_SHARE, PROCESSES_MIN)

    def _exited(self, process: Process) -> None:
        try:
            self._process_gone(process.principal)
        finally:
            for number in tuple(process.connections):
                self.close_connection(number, "client process gone")

    def _freed(self) -> None:
        self.descriptor_freed()

    # -- folders of fronts

    def _folder(self) -> bytes:
        return _front_folder(self._path)

    def _remove_folders(self) -> None:
        """Of fronts that were killed; the lock on the socket's path says that none of them is alive."""
        home, start = os.path.split(self._folder())
        with contextlib.suppress(OSError):
            for name in os.listdir(home):
                if name.startswith(start) and name[len(start) :].isdigit():
                    shutil.rmtree(os.path.join(home, name), ignore_errors=True)


def _wait_for_exit(pidfds: list[int]) -> None:
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    waiting, until = len(pidfds), time.monotonic() + FINISH_SECONDS
    while waiting:
        left = until - time.monotonic()
        gone = poll.poll(max(left, 0) * 1000)
        if not gone:
            return
        for pidfd, _ in gone:
            poll.unregister(pidfd)
            waiting -= 1


def _once(call: Callable[[], None]) -> Callable[[], None]:
    calls: Iterator[Callable[[], None]] = iter((call,))

    def first() -> None:
        next(calls, lambda: None)()

    return first
