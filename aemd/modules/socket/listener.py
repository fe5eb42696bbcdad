"""A job that listens: its connections, and when it accepts and reads.

Accepting stops while the job is stopped or paused, while it has as many connections as it may, and while
descriptors are short; the kernel's backlog keeps who comes meanwhile. Connections that go make room again;
for descriptors that others free the listener looks every STALL_RETRY_NS.

A job whose queue is full is not read from that very event on, not only from the end of the turn: a lost
piece of a stream would spoil the rest. Connections are left as they are; only one that becomes ready
meanwhile is parked, out of the epoll set, so that pausing costs what happens, not what exists.

"closed" events of a job that is stopped or full are kept until it goes on, so that each connection has its
one "closed" whatever happens; there are never more of them than there were connections.

A daemon that ends in order leaves the connections that the service manager keeps to the next one, which goes
on with them (memento.py); the others are closed, and told as closed by the next.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from select import EPOLLIN

from aemd.core.errors import AemError, Code, invalid
from aemd.core.limits import MS
from aemd.modules.contract import Address, Host, Job
from aemd.modules.left import Left
from aemd.modules.socket.connection import Connection
from aemd.modules.socket.discard import Discard
from aemd.modules.socket.event import Clock, address, address_message, credentials_message
from aemd.modules.socket.memento import ConnectionMemento, ListenerMemento
from aemd.modules.socket.settings import Settings
from aemd.modules.socket.shared import Shared, restarted
from aemd.sources.bound import Bound
from aemd.sources.reactor import Reactor, Timer, TimerQueue
from aemd.sources.socket import (
    ACCEPT_AGAIN,
    NUMBERS,
    SHORTAGE,
    RawAddress,
    accept,
    leave,
    peer_credentials,
    pending_bytes,
    readable,
)
from aemd.v1 import socket_pb2

ACCEPTS_PER_TURN = 64
STALL_RETRY_NS = 100 * MS
SOMAXCONN = 4_096  # net.core.somaxconn, its default: the longest backlog


@dataclass(slots=True, eq=False)
class Sync:
    """Who waits for what the kernel had queued: how many bytes each connection must have received."""

    done: Callable[[], None]
    waiting: dict[Connection, int]


class Listener:
    """See above. `reads`: connections are to be read."""

    def __init__(self, shared: Shared, job: Job, settings: Settings, bound: Bound) -> None:
        self.host: Host = shared.host
        self.reactor: Reactor = shared.host.reactor
        self.monotonic: TimerQueue = shared.monotonic
        self.clock: Clock = shared.clock
        self.job = job
        self.settings = settings
        self.bound = bound
        self.room_bytes = shared.host.limits.room_bytes
        self.messages = bound.socket.type == socket.SOCK_SEQPACKET
        self.discarded = shared.view
        self.view = shared.view if settings.framing != "raw" else shared.view[: settings.data_max_bytes]
        self.read_flags = int(socket.MSG_TRUNC) if self.messages else 0
        self.connections: dict[bytes, Connection] = {}
        self.discards: set[Discard] = set()
        self.syncs: list[Sync] = []
        self.parked: set[Connection] = set()  # to be looked at when reading goes on
        self.reads = False
        self._armed = False
        self._full = False  # the job's queue
        self._shut = False  # by operation pause
        self._stalled = ""  # why accepting has stopped
        self._retry: Timer | None = None
        self._watched = False
        self._held: list[tuple[bytes, bytes]] = []
        self._accepted = 0
        self._failed = False
        self._later: list[Callable[[], None]] = []  # syncs that wait for the job to be resumed
        self._going_on: Collection[int] = ()  # numbers of the connections that the next daemon has
        self._unproven = False  # nobody knows what became of connections
        self.left = False  # the address is the next daemon's

    # -- the job

    def start(self) -> None:
        """Listen, accept and read. Raises AemError ADDRESS_IN_USE."""
        if self.bound.held is None:  # else its needs have seen to it
            self.bound.listen(self.settings.backlog)
        self._armed = True
        if self._unproven:
            self._unproven = False
            restarted(self.host, self.job)
        payload = socket_pb2.SocketEvent(local=address_message(self._local()))
        self.host.fire(self.job, self.clock.event("listening", b"", payload))
        self._set_reads()

    def stop(self) -> None:
        """Accept and read no more. The kernel still listens, up to the backlog."""
        self._armed = False
        self._set_reads()
        self._end_syncs()

    def pause(self) -> None:
        """The job's queue is full."""
        self._full = True
        self._set_reads()

    def resume(self) -> None:
        """The job's queue has room."""
        self._full = False
        self._set_reads()

    def _set_reads(self) -> None:
        reads = self._armed and not self._full
        if reads == self.reads:
            return
        self.reads = reads
        if not reads:
            self._watch()
            return
        held, self._held = self._held, []
        for key, event in held:
            self._fire_held(key, event)
        if not self.reads:
            return  # they have filled the queue
        parked, self.parked = self.parked, set()
        for connection in parked:
            connection.go_on()
        self._watch()
        later, self._later = self._later, []
        for done in later:
            self.sync(done)

    def close(self) -> None:
        """Close everything and fire nothing."""
        self._armed = False
        self.reads = False
        self._watch()
        self._cancel_retry()
        descriptors = 1 + (self.bound.held is not None) + len(self.connections) + len(self.discards)
        for connection in self.connections.values():
            if connection.number in self._going_on:
                connection.leave()
            else:
                connection.drop()
        for discard in self.discards:
            discard.drop()
        self.connections.clear()
        self.parked.clear()
        self.discards.clear()
        self._held.clear()
        self._end_syncs()
        self.host.refund(self.job, descriptors)

    def busy(self) -> bool:
        """Whether a connection has output that its peer has not read yet."""
        return any(connection.sends for connection in self.connections.values())

    def details(self) -> dict[str, str]:
        """For people."""
        found = {
            "address": str(self._local()),
            "connections": str(len(self.connections)),
            "accepted": str(self._accepted),
        }
        if self._stalled:
            found["stalled"] = self._stalled
        return found

    def _local(self) -> Address:
        return address(self.settings.address.family, self.bound.socket.getsockname())

    # -- events

    def fire(self, key: bytes, event: bytes) -> None:
        """An event of a connection."""
        self.host.fire(self.job, event, key=key)
        self.may_read()

    def fire_many(self, key: bytes, events: list[bytes]) -> None:
        """Several."""
        self.host.fire_many(self.job, events, key=key)
        self.may_read()

    def may_read(self) -> bool:
        """Whether there is room for what one more read gives; else nothing is read until resume()."""
        if self.host.may_read(self.job):
            return True
        self.pause()
        return False

    def _fire_held(self, key: bytes, event: bytes) -> None:
        if self.reads:
            self.fire(key, event)
        else:
            self._held.append((key, event))

    def fire_closed(self, key: bytes, event: bytes) -> None:
        """The last event of a connection: it is forgotten."""
        connection = self.connections.pop(key)
        self._fire_held(key, event)
        if self.syncs:
            for sync in self.syncs:
                sync.waiting.pop(connection, None)
            self.check_syncs()

    # -- the next daemon

    def descriptors(self) -> dict[int, int]:
        """Those of its connections, by number."""
        return {connection.number: connection.sock.fileno() for connection in self.connections.values()}

    def anchor(self) -> ListenerMemento:
        """Its port alone."""
        return ListenerMemento(self._local().port, connections=[], cut=[], held=[])

    def leave(self, *, listener: bool, connections: Collection[int]) -> None:
        """The next daemon has these connections, and, if `listener`, the address: only memento() and close()
        follow.
        """
        self.left, self._going_on = listener, connections
        self.stop()

    def memento(self) -> ListenerMemento:
        """What there is to go on with, and what is to be told."""
        there = self.connections.values()
        return ListenerMemento(
            port=self._local().port,
            connections=[each.memento() for each in there if each.number in self._going_on],
            cut=[
                (each.number, each.bytes_in, each.bytes_out)
                for each in there
                if each.number not in self._going_on
            ],
            held=self._held,
            accepted=self._accepted,
            shut=self._shut,
        )

    def take_up(self, was: ListenerMemento | None, left: Left | None) -> None:
        """Go on with the connections that are there, inert; start() tells of those that have ended. `was` is
        None if nobody knows what there was.
        """
        if was is None:
            self._unproven = True
            return
        self._accepted, self._shut = was.accepted, was.shut
        self._held += was.held
        for each in was.connections:
            if not self._take_up_one(each, left):
                self._hold_cut(each.number, each.bytes_in, each.bytes_out)
        for cut in was.cut:
            self._hold_cut(*cut)

    def _take_up_one(self, was: ConnectionMemento, left: Left | None) -> bool:
        if left is None or was.number not in left.connections:
            return False
        try:
            self.host.charge(self.job, 1)
        except AemError:
            return False
        sock = socket.socket(fileno=left.connections.pop(was.number))
        sock.setblocking(False)
        connection = Connection(self, sock, was.number)
        try:
            connection.take_up(was)
        except (ValueError, BufferError):
            connection.drop()
            self.host.refund(self.job, 1)
            return False
        self.connections[connection.key] = connection
        return True

    def _hold_cut(self, number: int, bytes_in: int, bytes_out: int) -> None:
        payload = socket_pb2.SocketEvent(
            connection=number, reason="restart", bytes_in=bytes_in, bytes_out=bytes_out
        )
        key = number.to_bytes(8, "big")
        self._held.append((key, self.clock.event("closed", key, payload)))

    # -- accepting

    def _watch(self) -> None:
        wanted = self.reads and not self._shut and not self._stalled
        if wanted == self._watched:
            return
        if not wanted:
            leave(self.reactor, self.bound.socket)
        else:
            try:
                self.reactor.add(self.bound.socket.fileno(), EPOLLIN, self._ready)
            except OSError as error:
                self._stall(f"epoll_ctl: {error.strerror}")
                return
        self._watched = wanted

    def _ready(self, _events: int) -> None:
        self._accept(ACCEPTS_PER_TURN)

    def _accept(self, count: int) -> None:
        for _ in range(count):
            if len(self.connections) + len(self.discards) >= self.settings.connections_max:
                self._stall(f"connections_max={self.settings.connections_max} is reached", retry=False)
                return
            try:
                self.host.charge(self.job, 1)
            except AemError as error:
                self._stall(error.message)
                return
            try:
                sock, raw = accept(self.bound.socket)
            except BlockingIOError:
                self.host.refund(self.job, 1)
                return
            except OSError as error:
                self.host.refund(self.job, 1)
                if error.errno in ACCEPT_AGAIN:
                    continue
                self._stall(f"accept4: {error.strerror}")
                if error.errno not in SHORTAGE:
                    self._failed = True
                    self.host.fail(self.job, self._stalled)
                return
            if self._failed:
                self._failed = False
                self.host.restore(self.job)
            self._admit(sock, raw)
            if not self.reads:
                return

    def _admit(self, sock: socket.socket, raw: RawAddress) -> None:
        connection = Connection(self, sock, next(NUMBERS))
        self.connections[connection.key] = connection
        self._accepted += 1
        family = self.settings.address.family
        unix = sock.family == socket.AF_UNIX
        payload = socket_pb2.SocketEvent(
            connection=connection.number,
            local=address_message(address(family, sock.getsockname())),
            peer=address_message(address(family, raw)),
            credentials=credentials_message(peer_credentials(sock), self.job.owner) if unix else None,
            room_bytes=self.room_bytes,
        )
        self.fire(connection.key, self.clock.event("accepted", connection.key, payload))
        connection.watch()

    def _stall(self, why: str, *, retry: bool = True) -> None:
        self._stalled = why
        self._watch()
        if retry and self._retry is None:
            due_ns = self.reactor.mono_ns() + STALL_RETRY_NS
            self._retry = self.monotonic.call_at(due_ns, self._try_again)

    def _try_again(self, _now_ns: int) -> None:
        self._retry = None
        self._stalled = ""
        self._watch()

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def release(self) -> None:
        """A descriptor of this job has been closed."""
        self.host.refund(self.job, 1)
        if self._stalled:
            self._cancel_retry()
            self._try_again(0)

    # -- operations

    def operate(self, key: bytes, name: str, data: bytes) -> None:
        """See Module."""
        if not key:
            self._operate_self(name)
            return
        connection = self.connections.get(key)
        if connection is None:
            raise _unknown(key)
        if name == "write":
            connection.write(data)
        elif name == "write-close":
            connection.write_close(data)
        else:
            _OPERATIONS[name](connection)

    def _operate_self(self, name: str) -> None:
        if name not in ("pause", "resume"):
            raise invalid(
                "key", f"{name} needs the key of a connection; without one there are pause and resume"
            )
        self._shut = name == "pause"
        self._watch()

    # -- sync

    def sync(self, done: Callable[[], None]) -> None:
        """See Module. What waits behind operation pause is not waited for; a stopped job has nothing."""
        if not self._armed:
            done()
            return
        if not self.reads:
            self._later.append(done)
            return
        if self._watched:
            self._accept(min(self.settings.backlog, SOMAXCONN) + 1)
        sync = Sync(done, {})
        connections = {c.sock.fileno(): c for c in self.connections.values() if c.readable}
        for connection in connections.values():
            if connection.waits:
                sync.waiting[connection] = connection.bytes_in
        for fd in readable([connection.sock for connection in connections.values()]):
            connection = connections[fd]
            size = pending_bytes(connection.sock)
            if size:
                sync.waiting[connection] = connection.bytes_in + size
            else:  # the end, an error or an empty message: one read has it
                connection.ready(EPOLLIN)
        if not self.reads:  # the queue has become full over this: once more when it has room
            self._later.append(done)
            return
        self.syncs.append(sync)
        self.check_syncs()

    def check_syncs(self) -> None:
        """Tell those for whom everything has been fired."""
        for sync in tuple(self.syncs):
            for connection, target in tuple(sync.waiting.items()):
                received = connection.bytes_in >= target and not connection.waits
                if received or not connection.readable:
                    del sync.waiting[connection]
            if not sync.waiting:
                self.syncs.remove(sync)
                sync.done()

    def _end_syncs(self) -> None:
        waiting = [sync.done for sync in self.syncs] + self._later
        self.syncs.clear()
        self._later.clear()
        for done in waiting:
            done()


_OPERATIONS: dict[str, Callable[[Connection], None]] = {
    "shutdown": Connection.shutdown,
    "close": Connection.close,
    "abort": Connection.abort,
    "pause": Connection.pause,
    "resume": Connection.resume,
}


def _unknown(key: bytes) -> AemError:
    if len(key) != 8:
        return invalid("key", f"{key.hex()} is not a connection's key, which has 8 bytes")
    number = int.from_bytes(key, "big")
    return AemError(
        Code.FAILED_PRECONDITION,
        "CONNECTION_CLOSED",
        f"connection {number}: this job has no open connection with that number",
        connection=number,
    )
