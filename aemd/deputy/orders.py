"""What core and runner say to each other: messages of a SEQPACKET pair.

Pure: bytes in, values out; JSON, a kind and the fields of a value. The core orders a run, or the end of one.
The runner says when it has begun, and how it has ended; a run that could not be begun has only ended. The
order for a run is longer than a message may be, so it comes in a file beside an empty one (ORDERED), with
another one that is the run's standard input.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

MESSAGE_BYTES_MAX: Final = 4_096
ORDERED: Final = b"-"
DESCRIPTORS_MAX: Final = 2
_ERRORS: Final = "surrogateescape"


@dataclass(frozen=True, slots=True)
class Start:
    """Run `command` as that user, for at most `timeout_ms`. `place`: the name of its control group; `name`:
    what its output is called. `capable`: the daemon's own rights to override permissions are left to it.
    """

    number: int
    uid: int
    gid: int
    groups: list[int]
    capable: bool
    command: list[str]
    environment: dict[str, str]
    directory: str
    timeout_ms: int
    place: str
    name: str


@dataclass(frozen=True, slots=True)
class End:
    """End a run: SIGTERM, and SIGKILL after `grace_ms`, or at once if that is 0."""

    number: int
    grace_ms: int


@dataclass(frozen=True, slots=True)
class Begun:
    """A run has a process."""

    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing is left of a run. `status`: as waitpid(2) gives it. `error`: an errno; it was never executed,
    because `call` said so. `late`: its time was over. `told`: it was ended by order.
    """

    number: int
    status: int = 0
    error: int = 0
    call: str = ""
    late: bool = False
    told: bool = False


Message = Start | End | Begun | Ended
_KINDS: Final = {kind.__name__: kind for kind in (Start, End, Begun, Ended)}
_Message = TypeVar("_Message", bound=Message)


class OrderError(Exception):
    """The other end does not speak the protocol."""


def pack(message: Message) -> bytes:
    """A value as one message."""
    text = json.dumps([type(message).__name__, asdict(message)], ensure_ascii=False)
    return text.encode("utf-8", _ERRORS)


def parse(data: bytes) -> Message:
    """The value of a message; OrderError if it is none."""
    try:
        kind, fields = json.loads(data.decode("utf-8", _ERRORS))
        return _KINDS[kind](**fields)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise OrderError(f"a message of {len(data)} bytes: {error}") from None
