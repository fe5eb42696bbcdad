"""A job that receives datagrams, and answers those who sent them.

The key of an event is its sender, so that a reply needs no table here: 8 bytes of a keyed BLAKE2b (RFC
7693) over the address, then the address. The hash is what makes it a *reply*: only the daemon can make a
key, and it makes them for senders only. Without it a client could have the daemon, with the daemon's
rights, write to any Unix socket of the machine. A sender without a name has the empty key and cannot be
answered.

Nothing waits for output: what the kernel does not take now is refused, and the sender decides. There is no
EPOLLOUT for "this peer's queue has room". A sender whose name is a path is another matter: `reply.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from hashlib import blake2b
from select import EPOLLIN

from aemd.core.errors import AemError, Code, invalid
from aemd.modules.contract import Address, Host, Job
from aemd.modules.socket.event import (
    address,
    address_message,
    credentials_message,
    encode_data,
    key_field,
)
from aemd.modules.socket.memento import DatagramsMemento
from aemd.modules.socket.reply import Replies
from aemd.modules.socket.settings import Settings
from aemd.modules.socket.shared import Shared, restarted
from aemd.sources.bound import Bound
from aemd.sources.socket import (
    ACCEPT_AGAIN,
    SHORTAGE,
    Credentials,
    RawAddress,
    drops,
    leave,
    receive_message,
)
from aemd.v1 import session_pb2, socket_pb2

DATAGRAMS_PER_TURN = 64
SENDERS_MAX = 1_024  # senders whose key and address are kept encoded; then the table begins anew
DATAGRAM_COST_MIN = 256  # what the smallest datagram takes of the receive buffer, and less than it does
MAC_BYTES = 8
_INET = struct.Struct("!4sH")
_INET6 = struct.Struct("!16sHI")


class Keys:
    """Addresses as keys that nobody else can make."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret

    def encode(self, raw: RawAddress) -> bytes:
        """The key of a sender; empty if it has no name."""
        if isinstance(raw, str):
            data = os.fsencode(raw)
        elif isinstance(raw, bytes):
            data = raw
        elif len(raw) == 4:
            data = _INET6.pack(socket.inet_pton(socket.AF_INET6, raw[0].partition("%")[0]), raw[1], raw[3])
        else:
            data = _INET.pack(socket.inet_aton(raw[0]), raw[1])
        return self._hash(data) + data if data else b""

    def decode(self, key: bytes, family: socket.AddressFamily | int) -> RawAddress:
        """The sender that a key was made for. Raises AemError."""
        data = key[MAC_BYTES:]
        if not key:
            raise AemError(
                Code.FAILED_PRECONDITION, "NO_ADDRESS", "the sender has no name, so nothing can be sent to it"
            )
        if self._hash(data) != key[:MAC_BYTES]:
            raise invalid("key", "not the key of a datagram that this daemon has received")
        if family == socket.AF_UNIX:
            return data
        if family == socket.AF_INET6 and len(data) == _INET6.size:
            host, port, scope = _INET6.unpack(data)
            return socket.inet_ntop(socket.AF_INET6, host), port, 0, scope
        if family == socket.AF_INET and len(data) == _INET.size:
            host, port = _INET.unpack(data)
            return socket.inet_ntoa(host), port
        raise invalid("key", "the key is one of another kind of socket")

    def _hash(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=MAC_BYTES, key=self.secret).digest()


class Datagrams:
    """See above."""

    def __init__(self, shared: Shared, job: Job, settings: Settings, bound: Bound) -> None:
        self.host: Host = shared.host
        self.job = job
        self.settings = settings
        self.bound = bound
        self._shared = shared
        self._view = shared.view[: settings.data_max_bytes]
        self._keys = Keys(shared.secret)
        self._senders: dict[RawAddress, tuple[bytes, bytes, bytes]] = {}
        self._armed = False
        self._full = False
        self._paused = settings.paused
        self._watched = False
        self._received = 0
        self._lost = 0
        self._drops = drops(bound.socket)
        self._local_message = address_message(self._local())
        self._replies = Replies(self.host, job, bound)
        self._syncs: list[tuple[Callable[[], None], int]] = []
        self._unproven = False  # nobody knows what has come since the daemon before
        self.left = False  # the socket is the next daemon's

    # -- the job

    def start(self) -> None:
        """Receive."""
        self._armed = True
        if self._unproven:
            self._unproven = False
            restarted(self.host, self.job)
        payload = socket_pb2.SocketEvent(local=self._local_message)
        self.host.fire(self.job, self._shared.clock.event("listening", b"", payload))
        self._watch()

    def stop(self) -> None:
        """Receive no more. The kernel keeps what comes, as far as it has room."""
        self._armed = False
        self._watch()
        self._end_syncs()

    def pause(self) -> None:
        """The job's queue is full."""
        self._full = True
        self._watch()

    def resume(self) -> None:
        """The job's queue has room."""
        self._full = False
        self._watch()

    def close(self) -> None:
        """Receive no more, ever."""
        self._armed = False
        self._watch()
        self._end_syncs()
        self._replies.close()
        self.host.refund(self.job, 1 + (self.bound.held is not None))

    def busy(self) -> bool:
        """Whether an answer is under way; most are taken at once or not at all."""
        return self._replies.waits

    def details(self) -> dict[str, str]:
        """For people."""
        return {"address": str(self._local()), "received": str(self._received), "lost": str(self._lost)}

    # -- the next daemon

    def leave(self, *, listener: bool) -> None:
        """The next daemon has the socket, if `listener`: only memento() and close() follow."""
        self.left = listener
        self.stop()

    def memento(self) -> DatagramsMemento:
        """Answers that wait, how far the kernel's count was, and what makes keys known again."""
        return DatagramsMemento(
            port=self.bound.port,
            secret=self._keys.secret,
            drops=self._drops,
            received=self._received,
            lost=self._lost,
            paused=self._paused,
            waiting=self._replies.waiting(),
        )

    def take_up(self, was: DatagramsMemento | None) -> None:
        """Go on, inert. `was` is None if nobody knows where it was."""
        self._unproven = was is None or not self.bound.adopted
        if was is None:
            return
        self._keys = Keys(was.secret)
        self._received, self._lost, self._paused = was.received, was.lost, was.paused
        if self.bound.adopted:
            self._drops = was.drops
        for path, data in was.waiting:
            with contextlib.suppress(AemError):  # as many as may wait
                self._replies.send(path, data)

    def _local(self) -> Address:
        return address(self.settings.address.family, self.bound.socket.getsockname())

    def _watch(self) -> None:
        wanted = self._armed and not self._full and not self._paused
        if wanted == self._watched:
            return
        self._watched = wanted
        reactor = self.host.reactor
        if wanted:
            reactor.add(self.bound.socket.fileno(), EPOLLIN, self._ready)
        else:
            leave(reactor, self.bound.socket)

    # -- input

    def _ready(self, _events: int) -> None:
        sock, view = self.bound.socket, self._view
        credentials = sock.family == socket.AF_UNIX
        empty = False
        for _ in range(min(DATAGRAMS_PER_TURN, self.host.spare(self.job))):
            try:
                size, raw, who = receive_message(sock, view, credentials=credentials)
            except BlockingIOError:
                empty = True
                break
            except OSError as error:
                if (
                    error.errno in ACCEPT_AGAIN
                    or error.errno in SHORTAGE
                    or error.errno == errno.ECONNREFUSED
                ):
                    continue  # an error of something sent before, ip(7)
                self._armed = False
                self._watch()
                self.host.fail(self.job, f"recvmsg: {error.strerror}")
                return
            self._received += 1
            self._fire(size, raw, who)
        self._count_drops()
        if not self.host.may_read(self.job):
            self.pause()
        if self._syncs:
            self._check_syncs(empty=empty)

    def _fire(self, size: int, raw: RawAddress, who: Credentials | None) -> None:
        sender = self._senders.get(raw)
        if sender is None:
            if len(self._senders) >= SENDERS_MAX:
                self._senders.clear()
            key = self._keys.encode(raw)
            before = socket_pb2.SocketEvent(
                local=self._local_message,
                peer=address_message(address(self.settings.address.family, raw)),
            ).SerializeToString()
            sender = self._senders[raw] = (key, key_field(key), before)
        key, field, before = sender
        if who is None and size <= len(self._view):
            event = encode_data(self._shared.clock.times(), field, before, self._view[:size])
        else:
            payload = socket_pb2.SocketEvent.FromString(before)
            payload.data = bytes(self._view[:size])
            payload.truncated = size > len(self._view)
            found = credentials_message(who, self.job.owner)
            if found is not None:
                payload.credentials.CopyFrom(found)
            event = self._shared.clock.event("data", key, payload)
        self.host.fire(self.job, event, key=key)

    def _count_drops(self) -> None:
        count = drops(self.bound.socket)
        if count == self._drops:
            return
        lost = (count - self._drops) & 0xFFFFFFFF
        self._drops = count
        self._lost += lost
        self.host.gap(
            self.job,
            stage=session_pb2.STAGE_KERNEL,
            cause=session_pb2.CAUSE_OVERFLOW,
            count=lost,
            scope=str(self._local()),
        )

    # -- operations

    def operate(self, key: bytes, name: str, data: bytes) -> None:
        """See Module."""
        if name in ("pause", "resume"):
            self._paused = name == "pause"
            self._watch()
        elif name == "write":
            self._send(self._keys.decode(key, self.bound.socket.family), data)
        else:
            raise AemError(
                Code.FAILED_PRECONDITION,
                "NO_CONNECTION",
                f"{name}: {self.settings.address.family} has no connections, only write, pause and resume",
            )

    def _send(self, raw: RawAddress, data: bytes) -> None:
        if isinstance(raw, bytes) and not raw.startswith(b"\0"):
            self._replies.send(raw, data)
            return
        try:
            self.bound.socket.sendto(data, socket.MSG_NOSIGNAL, raw)
        except OSError as error:
            raise _refused(error, address(self.settings.address.family, raw), len(data)) from error

    # -- sync

    def sync(self, done: Callable[[], None]) -> None:
        """See Module. The kernel does not say how many datagrams wait: it is done when it has none, or when
        more have come than its buffer could hold.
        """
        if not self._armed or self._paused:
            done()
            return
        most = self.bound.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // DATAGRAM_COST_MIN
        self._syncs.append((done, self._received + most))
        if self._watched:
            self._ready(EPOLLIN)

    def _check_syncs(self, *, empty: bool) -> None:
        waiting, self._syncs = self._syncs, []
        for done, target in waiting:
            if empty or self._received >= target:
                done()
            else:
                self._syncs.append((done, target))

    def _end_syncs(self) -> None:
        waiting, self._syncs = self._syncs, []
        for done, _ in waiting:
            done()


def _refused(error: OSError, peer: Address, size: int) -> AemError:
    number = error.errno or 0
    facts = {"peer": str(peer), "errno": errno.errorcode.get(number, str(number))}
    if number == errno.EAGAIN:
        message = f"{peer}: the peer's queue is full; send again later"
        return AemError(Code.RESOURCE_EXHAUSTED, "PEER_BUSY", message, **facts)
    if number == errno.EMSGSIZE:
        return invalid("data", f"{size} bytes are too long for one datagram to {peer}", **facts)
    message = f"{peer}: sendto: {os.strerror(number)}"
    return AemError(Code.FAILED_PRECONDITION, "PEER_UNREACHABLE", message, **facts)
