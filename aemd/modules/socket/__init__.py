"""Event module `socket`: the daemon listens, accepts, reads and writes; handlers see addresses and bytes.

A job is one listening address. For the stream families and unix-seqpacket each connection is a key of its
own, 8 bytes big-endian, and its life is told in events: accepted, data ..., end, closed. For the datagram
families the key is the sender. What handlers answer, and what is sent at any other time, are operations on
a key.

`settings.py` has the parameters, `event.py` the encoding, `listener.py`, `connection.py` and `discard.py` the
connections, `datagram.py` the rest; what the kernel does stands in `sources/socket.py`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from aemd.core.errors import AemError, Code, invalid
from aemd.core.principal import Principal
from aemd.core.right import Act
from aemd.modules.contract import Address, Delivery, Description, Host, Job
from aemd.modules.left import Left
from aemd.modules.need import Access, AdoptPath, BindPath, BoundPath, ListenPath, Need, OpenPath, Vacancy
from aemd.modules.socket.datagram import Datagrams
from aemd.modules.socket.event import Clock
from aemd.modules.socket.listener import Listener
from aemd.modules.socket.memento import DatagramsMemento, ListenerMemento, pack, unpack
from aemd.modules.socket.settings import PARAMETERS, Settings, has_path, settings
from aemd.modules.socket.shared import Shared
from aemd.sources.bound import Binder, Bound, fits, occupied, resolve

PATH_DESCRIPTORS = 2  # the socket, and the directory that its name is in

DESCRIPTION = Description(
    name="socket",
    summary="Connections and datagrams: listen, accept, read, write",
    description=(
        "Listens on an address and tells who connects and what they send. A handler answers with an "
        "operation; Op does the same at any time. At most room_bytes (event accepted) of a connection's "
        "output may wait; Room gives back what the kernel has taken. A peer that ends its direction (event "
        "end) still gets answers for end_timeout; answer end with close or write-close to be done sooner. "
        "Connections belong to the job and end with it. Ports below 1024 need the administrator. A path is "
        "bound as the caller: below its root directory, with its rights and umask; the file is its own, and "
        "goes with the job. What is connected stays so whatever becomes of the path. A job whose queue is "
        "full reads and accepts nothing until there is room."
    ),
    delivery=Delivery.QUEUE,
    parameters=PARAMETERS,
    events={
        "listening": "The job was started; local is the address, with the port that the kernel chose.",
        "accepted": "A connection: peer, for Unix sockets its credentials, and room_bytes.",
        "data": "Bytes, one message or one datagram; empty messages come too.",
        "end": "The peer has ended its direction; it may still read.",
        "closed": (
            "The last event of a connection. reason: eof, reset, closed (by an operation), error, "
            "idle-timeout, frame-too-long or restart (the daemon before could not leave it to this one); "
            "error_number, "
            "bytes_in, bytes_out."
        ),
    },
    operations={
        "write": ("Send data. A datagram's key answers its sender.", True),
        "write-close": ("Send data, if any, and close once everything written is out.", True),
        "shutdown": ("End the own direction once everything written is out; the peer may go on.", False),
        "close": ("Close; what is not yet out is lost.", False),
        "abort": ("Close with a reset.", False),
        "pause": ("Read no more from the connection; with an empty key: accept no more.", False),
        "resume": ("Read, or accept, again.", False),
    },
    keyed=True,
    replies=True,
    pausable=True,
    pause_by_default=True,
    payload_message="aem.v1.SocketEvent",
    examples=(
        "socket listen=tcp:127.0.0.1:8080",
        "socket listen=unix:@echo framing=line",
        "socket listen=unix:/run/user/1000/echo mode=0600",
        "socket listen=udp:[::1]:5353",
    ),
)


class Socket:
    """See Module."""

    description = DESCRIPTION

    def __init__(self, host: Host) -> None:
        self._host = host
        self._binder = Binder()
        self._shared = Shared(
            host=host,
            monotonic=host.reactor.clock("monotonic"),
            clock=Clock(host.reactor),
            view=memoryview(bytearray(host.limits.event_data_bytes)),
            secret=secrets.token_bytes(32),
        )

    def acts(self, principal: Principal, values: Mapping[str, object]) -> Sequence[Act]:  # noqa: ARG002
        """Listening on the address."""
        return (_act(settings(values, self._host.limits).address),)

    def opens(self, values: Mapping[str, object]) -> Sequence[OpenPath]:
        """The folder that the socket's name is to be in."""
        address = settings(values, self._host.limits).address
        if not has_path(address):
            return ()
        return (OpenPath(os.path.dirname(address.path), Access.PATH, "params.listen"),)

    def needs(self, job: Job, *, opening: bool, starting: bool) -> Sequence[Need]:
        """The path of a Unix socket: bound, and whether it is still the caller's to listen on. Of others,
        that nobody holds the address any more who has let go of it.
        """
        listen = job.values["listen"]
        if not has_path(listen):
            place = occupied(listen) if opening and isinstance(listen, Address) else ""
            return (Vacancy(place),) if self._host.vacating(place) else ()
        if not opening:
            found = _of(job)
            assert isinstance(found.bound.held, BoundPath)
            return (ListenPath(found.bound.held, found.settings.listens),)
        asked = settings(job.values, self._host.limits)
        kind = resolve(asked.address)[1]
        self._host.right(job.owner, _act(asked.address), job.ruling)
        self._host.charge(job, PATH_DESCRIPTORS, sources=1)
        bind = BindPath(asked.address, kind, asked.mode, asked.listens if starting else None)
        left = self._host.left(job)
        if left is None or not fits(asked.address, left.listener):
            return (bind,)
        return (AdoptPath(left, bind),)

    def open(self, job: Job) -> None:
        """Bind. Everything that can be wrong with an address is an error of here, or of its needs."""
        found = settings(job.values, self._host.limits)
        left = self._host.left(job)
        try:
            if has_path(found.address):
                (held,) = self._host.given(job)
                assert isinstance(held, BoundPath)
                bound = Bound(held.socket, found.address, held=held, adopted=held.adopted)
            else:
                bound = self._bound(job, found, left)
            job.data = self._new(job, found, bound, left)
        finally:
            if left is not None:
                left.close()
        self._keep(job)

    def _bound(self, job: Job, found: Settings, left: Left | None) -> Bound:
        self._host.right(job.owner, _act(found.address), job.ruling)
        self._host.charge(job, 1, sources=1)
        owner, bound = job.owner.owner, None
        try:
            if left is not None and left.listener >= 0:
                descriptor, _ = left.take()
                bound = self._binder.adopt(
                    found.address, descriptor, owner=owner, reuse_port=found.reuse_port
                )
            if bound is None:
                address = _as_before(found, job)
                bound = self._binder.bind(address, owner=owner, reuse_port=found.reuse_port)
        except BaseException:
            self._host.refund(job, 1, sources=1)
            raise
        return bound

    def _new(self, job: Job, found: Settings, bound: Bound, left: Left | None) -> Listener | Datagrams:
        was = job.resumed.memento if job.resumed is not None else None
        if found.datagrams:
            datagrams = Datagrams(self._shared, job, found, bound)
            if was is not None:
                datagrams.take_up(unpack(was, DatagramsMemento))
            return datagrams
        listener = Listener(self._shared, job, found, bound)
        if was is not None:
            listener.take_up(unpack(was, ListenerMemento), left)
        return listener

    def _keep(self, job: Job) -> None:
        """What comes to the address is not to be lost with the daemon."""
        found = _of(job)
        if isinstance(found, Datagrams) or found.bound.listens:
            self._host.keep(job, found.bound)

    def start(self, job: Job) -> None:
        """Listen and read."""
        _of(job).start()
        self._keep(job)

    def stop(self, job: Job) -> None:
        """Accept and read nothing."""
        _of(job).stop()

    def close(self, job: Job) -> None:
        """Close the connections and the address."""
        found = _of(job)
        found.close()
        if found.left:
            self._binder.leave(found.bound)
        else:
            self._binder.close(found.bound)
        job.data = None

    def operate(self, job: Job, key: bytes, name: str, data: bytes) -> None:
        """Do what a handler wants."""
        known = DESCRIPTION.operations.get(name)
        if known is None:
            raise AemError(
                Code.INVALID_ARGUMENT,
                "OPERATION_UNKNOWN",
                f"socket has no operation {name[:64]!r}; there are {', '.join(DESCRIPTION.operations)}",
            )
        if data and not known[1]:
            raise invalid("data", f"{name} takes no data")
        _of(job).operate(key, name, data)

    def pause(self, job: Job) -> None:
        """The job's queue is full."""
        _of(job).pause()

    def resume(self, job: Job) -> None:
        """The job's queue has room."""
        _of(job).resume()

    def sync(self, job: Job, done: Callable[[], None]) -> None:
        """Call `done` once everything that has come until now has been fired."""
        _of(job).sync(done)

    def busy(self, job: Job) -> bool:
        """Whether output waits for its peer to read."""
        return _of(job).busy()

    def descriptors(self, job: Job) -> Mapping[int, int]:
        """The connections."""
        found = _of(job)
        return found.descriptors() if isinstance(found, Listener) else {}

    def anchor(self, job: Job) -> bytes | None:
        """The port that the kernel chose."""
        found = _of(job)
        return pack(found.anchor()) if isinstance(found, Listener) else None

    def leave(self, job: Job, *, bound: bool, kept: Collection[int]) -> None:
        """The next daemon goes on with the address, and these connections."""
        found = _of(job)
        if isinstance(found, Listener):
            found.leave(listener=bound, connections=kept)
        else:
            found.leave(listener=bound)

    def memento(self, job: Job) -> bytes | None:
        """Where the connections are; of datagrams, how many were lost, and what makes them answerable."""
        return pack(_of(job).memento())

    def details(self, job: Job) -> dict[str, str]:
        """Address, connections, counts."""
        return _of(job).details()

    def shutdown(self) -> None:
        """Nothing is left: every job gave its own back."""


def _act(address: Address) -> Act:
    port = address.port if address.family in ("tcp", "udp") else None
    return Act(what=f"listen on {address}", port=port, network=not has_path(address))


def _as_before(found: Settings, job: Job) -> Address:
    """The address, with the port that the kernel chose the first time."""
    memento = job.resumed.memento if job.resumed is not None else None
    if memento is None or found.address.port or found.address.path:
        return found.address
    was: DatagramsMemento | ListenerMemento | None
    was = unpack(memento, DatagramsMemento) if found.datagrams else unpack(memento, ListenerMemento)
    return replace(found.address, port=was.port) if was is not None else found.address


def _of(job: Job) -> Listener | Datagrams:
    found = job.data
    if not isinstance(found, Listener | Datagrams):
        raise TypeError(f"job {job.id} is not open")
    return found
