"""What one daemon leaves to the next of a job of module socket: its connections, as far as they are.

A memento that cannot be read is another version's. Then nobody knows what was missed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

VERSION = 1


@dataclass(frozen=True, slots=True)
class ConnectionMemento:
    """A connection that goes on.

    `unread`: what was read and is no message yet, None where nothing cuts messages any more. `output`: what
    waits for the peer; of a stream it is one piece. `owed`: room that was not given back yet. `error`: what
    broke our direction. `ended`: the peer has ended its direction; `shut`: nothing more may be written;
    `ending`: the reason with which it closes once its output is out.
    """

    number: int
    bytes_in: int = 0
    bytes_out: int = 0
    unread: bytes | None = None
    output: list[bytes] = field(default_factory=list)
    owed: int = 0
    error: int = 0
    ended: bool = False
    shut: bool = False
    ending: str = ""
    paused: bool = False


@dataclass(frozen=True, slots=True)
class ListenerMemento:
    """`cut`: number, bytes in and out of connections that end with the daemon. `held`: keys and events of
    those that had ended before and were not told. `shut`: it is to accept nothing.
    """

    port: int
    connections: list[ConnectionMemento]
    cut: list[tuple[int, int, int]]
    held: list[tuple[bytes, bytes]]
    accepted: int = 0
    shut: bool = False
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class DatagramsMemento:
    """`secret`: of the keys that clients still have. `drops`: as counted. `waiting`: answers to paths."""

    port: int
    secret: bytes
    drops: int
    received: int
    lost: int
    paused: bool
    waiting: list[tuple[bytes, bytes]]
    version: int = VERSION


Memento = TypeVar("Memento", ListenerMemento, DatagramsMemento)


def pack(memento: ListenerMemento | DatagramsMemento) -> bytes:
    """As Module.memento gives it."""
    return msgspec.msgpack.encode(memento)


def unpack(data: bytes, kind: type[Memento]) -> Memento | None:
    """None: it is another version's."""
    try:
        found = msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError:
        return None
    return found if found.version == VERSION else None
