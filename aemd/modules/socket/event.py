"""The events of module socket, encoded.

"data" is the event that comes by the hundred thousand, so its bytes are put together by hand: five constant
pieces, three numbers and the data, joined once. The tests hold it equal to what protobuf gives. The times are
those of the loop's turn, and encoded once per turn. All other events go through protobuf.
"""

from __future__ import annotations

from aemd.core.principal import Principal
from aemd.modules.contract import Address, encode
from aemd.sources.pidnamespace import callers_pid
from aemd.sources.reactor import Reactor
from aemd.sources.socket import Credentials, RawAddress, parse_name
from aemd.v1 import event_pb2, socket_pb2

_TYPE_DATA = b"\x0a\x04data"  # Event.type
_REAL_TIME = b"\x10"  # Event.real_time_ns
_MONO_TIME = b"\x18"  # Event.mono_time_ns
_KEY = b"\x22"  # Event.key
_SOCKET = b"\x8a\x01"  # Event.socket: field 17, length-delimited
_CONNECTION = b"\x08"  # SocketEvent.connection
_DATA = b"\x2a"  # SocketEvent.data
_SHORT = tuple(bytes((number,)) for number in range(128))


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 0x80:
        return _SHORT[number]
    pieces = bytearray()
    while number >= 0x80:
        pieces.append(number & 0x7F | 0x80)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)


class Clock:
    """The times of this turn, as numbers and as the bytes of Event's fields."""

    __slots__ = ("_mono_ns", "_reactor", "_real_ns", "_times")

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._mono_ns = -1
        self._real_ns = -1
        self._times = b""

    def times(self) -> bytes:
        """The fields real_time_ns and mono_time_ns."""
        mono_ns = self._reactor.mono_ns()
        if mono_ns != self._mono_ns:
            self._mono_ns = mono_ns
            self._real_ns = self._reactor.real_ns()
            self._times = _field(_REAL_TIME, self._real_ns) + _field(_MONO_TIME, mono_ns)
        return self._times

    def event(self, kind: str, key: bytes, payload: socket_pb2.SocketEvent) -> bytes:
        """Any event."""
        self.times()
        return encode(
            event_pb2.Event(
                type=kind,
                real_time_ns=self._real_ns,
                mono_time_ns=self._mono_ns,
                key=key,
                socket=payload,
            )
        )


def _field(tag: bytes, number: int) -> bytes:
    return tag + varint(number) if number else b""


def key_field(key: bytes) -> bytes:
    """Event.key, to be kept with what has the key."""
    return _KEY + varint(len(key)) + key if key else b""


def connection_field(number: int) -> bytes:
    """SocketEvent.connection, likewise."""
    return _CONNECTION + varint(number)


def encode_data(times: bytes, key: bytes, before: bytes, data: bytes | memoryview) -> bytes:
    """An event "data". `key`: the field of Event; `before`: the fields of SocketEvent up to 4, encoded."""
    size = len(data)
    if not size:
        return b"".join((_TYPE_DATA, times, key, _SOCKET, varint(len(before)), before))
    length = varint(size)
    total = varint(len(before) + 1 + len(length) + size)
    return b"".join((_TYPE_DATA, times, key, _SOCKET, total, before, _DATA, length, data))


def address(family: str, raw: RawAddress) -> Address:
    """A kernel's address as the contract has it."""
    return Address(family, *parse_name(raw))


def address_message(found: Address) -> socket_pb2.SocketAddress:
    """An address for a client. A Unix socket without a name has no more than its family."""
    unnamed = not found.path and not found.host
    return socket_pb2.SocketAddress(
        family=found.family,
        host=found.host,
        port=found.port,
        path=found.path,
        display=f"{found.family}:" if unnamed else str(found),
    )


def credentials_message(found: Credentials | None, owner: Principal) -> socket_pb2.PeerCredentials | None:
    """A peer's credentials for the owner of the job; a pid that is none in his namespace is 0."""
    if found is None:
        return None
    pid = callers_pid(owner, found.pid)
    return socket_pb2.PeerCredentials(pid=pid, uid=found.uid, gid=found.gid)
