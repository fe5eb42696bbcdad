"""What core and office say to each other: messages of a SEQPACKET socket, all of one size.

Pure: bytes in, values out. The core has a program started and says, as numbers, with what; beside that
message goes the program's end of a control socket. The office says that it has a process, and how that has
ended; one that could not be started has only ended.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_MESSAGE: Final = struct.Struct("<BBHIqq")
MESSAGE_BYTES: Final = _MESSAGE.size


class Kind(IntEnum):
    """What a message is about."""

    START = 1  # by the core, with a descriptor: `first` and `second` are the program's
    END = 2  # by the core: kill it
    STARTED = 3  # by the office: `first` is its pid
    ENDED = 4  # by the office: `first` is its exit status as subprocess has it


class Program(IntEnum):
    """What may be started."""

    NONE = 0
    DEPUTY = 1  # `first`: how long a child may take, in milliseconds
    FRONTS = 2  # `first`: bytes of a message; `second`: bytes of a front
    LOOKER = 3
    RUNNER = 4


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `number`: of the process, as the core counts."""

    kind: Kind
    number: int
    program: Program = Program.NONE
    first: int = 0
    second: int = 0


class StartingError(Exception):
    """The other end does not speak the protocol."""


def pack(message: Message) -> bytes:
    """A value as one message."""
    return _MESSAGE.pack(message.kind, message.program, 0, message.number, message.first, message.second)


def parse(data: bytes) -> Message:
    """The value of a message; StartingError if it is none."""
    if len(data) != MESSAGE_BYTES:
        raise StartingError(f"a message of {len(data)} bytes")
    kind, program, zero, number, first, second = _MESSAGE.unpack(data)
    if zero or kind not in iter(Kind) or program not in iter(Program):
        raise StartingError(f"a message of kind {kind}, about program {program}")
    return Message(Kind(kind), number, Program(program), first, second)
