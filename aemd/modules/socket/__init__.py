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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from aemd.core.errors import AemError, Code, invalid
from aemd.core.principal import Principal
from aemd.core.right import Act
from aemd.modules.contract import Address, Delivery, Description, Host, Job
from aemd.modules.need import Access, BindPath, BoundPath, ListenPath, Need, OpenPath
from aemd.modules.socket.datagram import Datagrams
from aemd.modules.socket.event import Clock
from aemd.modules.socket.listener import Listener
from aemd.modules.socket.settings import PARAMETERS, Settings, has_path, settings
from aemd.modules.socket.shared import Shared
from aemd.sources.bound import Binder, Bound, resolve

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
            "idle-timeout, frame-too-long or restart (it ended with the daemon before); error_number, "
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
        """The path of a Unix socket: bound, and whether it is still the caller's to listen on."""
        if not has_path(job.values["listen"]):
            return ()
        if not opening:
            found = _of(job)
            assert isinstance(found.bound.held, BoundPath)
            return (ListenPath(found.bound.held, found.settings.listens),)
        asked = settings(job.values, self._host.limits)
        kind = resolve(asked.address)[1]
        self._host.right(job.owner, _act(asked.address), job.ruling)
        self._host.charge(job, PATH_DESCRIPTORS, sources=1)
        return (BindPath(asked.address, kind, asked.mode, asked.listens if starting else None),)

    def open(self, job: Job) -> None:
        """Bind. Everything that can be wrong with an address is an error of here, or of its needs."""
        found = settings(job.values, self._host.limits)
        if has_path(found.address):
            (held,) = self._host.given(job)
            assert isinstance(held, BoundPath)
            job.data = self._new(job, found, Bound(held.socket, found.address, held=held))
            return
        self._host.right(job.owner, _act(found.address), job.ruling)
        self._host.charge(job, 1, sources=1)
        bound: Bound | None = None
        try:
            address = _as_before(found.address, job)
            left = job.resumed.descriptor if job.resumed is not None else None
            if left is not None:
                bound = self._binder.adopt(address, left, owner=job.owner.owner, reuse_port=found.reuse_port)
            if bound is None:
                bound = self._binder.bind(address, owner=job.owner.owner, reuse_port=found.reuse_port)
            job.data = self._new(job, found, bound)
        except BaseException:
            if bound is not None:
                self._binder.close(bound)
            self._host.refund(job, 1, sources=1)
            raise

    def _new(self, job: Job, found: Settings, bound: Bound) -> Listener | Datagrams:
        if found.datagrams:
            return Datagrams(self._shared, job, found, bound)
        return Listener(self._shared, job, found, bound)

    def start(self, job: Job) -> None:
        """Listen and read."""
        _of(job).start()

    def stop(self, job: Job) -> None:
        """Accept and read nothing."""
        _of(job).stop()

    def close(self, job: Job) -> None:
        """Close the connections and the address."""
        found = _of(job)
        found.close()
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

    def memento(self, job: Job) -> bytes | None:
        """The port and the connections; datagrams that come while nobody listens are lost."""
        found = _of(job)
        return found.memento() if isinstance(found, Listener) else None

    def anchor(self, job: Job) -> bytes | None:
        """The port that the kernel chose."""
        found = _of(job)
        return found.anchor() if isinstance(found, Listener) else None

    def lasting(self, job: Job) -> int | None:
        """The listener, unless its name is in a folder of the caller's."""
        found = _of(job)
        if not isinstance(found, Listener) or found.bound.held is not None or not found.bound.listens:
            return None
        return found.bound.socket.fileno()

    def details(self, job: Job) -> dict[str, str]:
        """Address, connections, counts."""
        return _of(job).details()

    def shutdown(self) -> None:
        """Nothing is left: every job gave its own back."""


def _act(address: Address) -> Act:
    port = address.port if address.family in ("tcp", "udp") else None
    return Act(what=f"listen on {address}", port=port, network=not has_path(address))


def _as_before(address: Address, job: Job) -> Address:
    """The address, with the port that the kernel chose the first time."""
    memento = job.resumed.memento if job.resumed is not None else None
    if not memento or address.port or address.family != "tcp":
        return address
    return replace(address, port=int.from_bytes(memento[:2], "big"))


def _of(job: Job) -> Listener | Datagrams:
    found = job.data
    if not isinstance(found, Listener | Datagrams):
        raise TypeError(f"job {job.id} is not open")
    return found
