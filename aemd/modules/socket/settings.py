"""The parameters of module socket: what they are called, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aemd.core.errors import invalid
from aemd.core.limits import Limits
from aemd.modules.contract import Address, Kind, Parameter
from aemd.sources.framing import PREFIX_BYTES, Framing, LengthFraming, LineFraming

FRAMING = ("raw", "line", "length")
STREAMS = ("tcp", "unix")
DATAGRAMS = ("udp", "unix-dgram")

PARAMETERS = (
    Parameter(
        "listen",
        Kind.PARAMETER_KIND_ADDRESS,
        "Where to listen. Port 0: the kernel chooses one, and event listening names it. [::] is IPv6 only, "
        "an empty host both. unix:@NAME is an abstract name.",
        required=True,
        example="tcp:127.0.0.1:8080",
    ),
    Parameter(
        "backlog",
        Kind.PARAMETER_KIND_INTEGER,
        "How many connections the kernel keeps until they are accepted; at most net.core.somaxconn.",
        default="1024",
        minimum=1,
        maximum=65_535,
    ),
    Parameter(
        "framing",
        Kind.PARAMETER_KIND_CHOICE,
        "What one event data holds: raw, whatever came; line, one line without its LF; length, one message "
        "behind a big-endian length. What is written goes out as it is.",
        default="raw",
        choices=FRAMING,
    ),
    Parameter(
        "message_max",
        Kind.PARAMETER_KIND_SIZE,
        "The longest line or message; a connection that sends a longer one is closed.",
        default="64KiB",
        minimum=1,
    ),
    Parameter(
        "length_bytes",
        Kind.PARAMETER_KIND_CHOICE,
        "With framing=length: how many bytes the length itself has.",
        default="4",
        choices=tuple(str(size) for size in PREFIX_BYTES),
    ),
    Parameter(
        "data_max",
        Kind.PARAMETER_KIND_SIZE,
        "The most that one event data brings; longer datagrams are cut and marked truncated.",
        default="64KiB",
        minimum=1,
    ),
    Parameter(
        "idle_timeout",
        Kind.PARAMETER_KIND_DURATION,
        "Close a connection on which nothing has been sent or received for so long. Not given: never.",
        minimum=1,
        example="5min",
    ),
    Parameter(
        "end_timeout",
        Kind.PARAMETER_KIND_DURATION,
        "How long a connection stays open for answers once its peer has ended its direction; each write "
        "begins it anew. 0: close as soon as everything written is out.",
        default="30s",
        minimum=0,
    ),
    Parameter(
        "connections_max",
        Kind.PARAMETER_KIND_INTEGER,
        "The most connections at once; more wait in the backlog.",
        default="65536",
        minimum=1,
    ),
    Parameter(
        "reuse_port",
        Kind.PARAMETER_KIND_TRUTH,
        "Share the port with other jobs of the same user; the kernel spreads connections over them.",
        default="no",
    ),
    Parameter(
        "mode",
        Kind.PARAMETER_KIND_TEXT,
        "Permission bits of a Unix socket's path, octal. Not given: as the umask of the program says that "
        "registers.",
        example="0660",
    ),
    Parameter(
        "paused",
        Kind.PARAMETER_KIND_TRUTH,
        "Connections begin paused: nothing is read before operation resume.",
        default="no",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """One job's parameters. `idle_timeout_ns` 0: none. `mode` None: as the umask says."""

    address: Address
    backlog: int = 1024
    framing: str = "raw"
    message_max_bytes: int = 65_536
    length_bytes: int = 4
    data_max_bytes: int = 65_536
    idle_timeout_ns: int = 0
    end_timeout_ns: int = 30_000_000_000
    connections_max: int = 65_536
    reuse_port: bool = False
    mode: int | None = None
    paused: bool = False

    @property
    def listens(self) -> int | None:
        """The backlog, where connections are made."""
        return None if self.datagrams else self.backlog

    @property
    def datagrams(self) -> bool:
        """There are no connections."""
        return self.address.family in DATAGRAMS

    def new_framing(self) -> Framing | None:
        """What cuts one connection's bytes into messages; None: nothing does."""
        if self.framing == "line":
            return LineFraming(self.message_max_bytes)
        if self.framing == "length":
            return LengthFraming(self.message_max_bytes, self.length_bytes)
        return None


def has_path(address: object) -> bool:
    """Whether it is a place in a file system."""
    return isinstance(address, Address) and bool(address.path) and not address.path.startswith(b"\0")


def settings(values: Mapping[str, object], limits: Limits) -> Settings:
    """The settings that a job's values mean together. Raises AemError INVALID_FIELD."""

    def number(name: str, default: int) -> int:
        value = values.get(name, default)
        return int(value) if isinstance(value, int | str) else default

    address = values["listen"]
    if not isinstance(address, Address):
        raise invalid("params.listen", f"{address!r} is not an address")
    found = Settings(
        address=address,
        backlog=number("backlog", 1024),
        framing=str(values.get("framing", "raw")),
        message_max_bytes=number("message_max", 65_536),
        length_bytes=number("length_bytes", 4),
        data_max_bytes=number("data_max", 65_536),
        idle_timeout_ns=number("idle_timeout", 0),
        end_timeout_ns=number("end_timeout", 30_000_000_000),
        connections_max=number("connections_max", 65_536),
        reuse_port=bool(values.get("reuse_port", False)),
        mode=_mode(values.get("mode")),
        paused=bool(values.get("paused", False)),
    )
    _check(found, limits)
    return found


def _mode(value: object) -> int | None:
    if value is None or value == "":
        return None
    try:
        mode = int(str(value), 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise invalid("params.mode", f"{value!r} is not an octal number from 0 to 777, such as 0660")
    return mode


def _check(found: Settings, limits: Limits) -> None:
    family = found.address.family
    if found.framing != "raw" and family not in STREAMS:
        raise invalid(
            "params.framing", f"{found.framing}: {family} has messages of its own; leave framing=raw"
        )
    if found.message_max_bytes > limits.payload_bytes:
        raise invalid(
            "params.message_max", f"{found.message_max_bytes} is more than {limits.payload_bytes} bytes"
        )
    if found.data_max_bytes > limits.event_data_bytes:
        raise invalid(
            "params.data_max", f"{found.data_max_bytes} is more than {limits.event_data_bytes} bytes"
        )
    if found.mode is not None and not has_path(found.address):
        raise invalid(
            "params.mode", f"{found.address} has no permissions; only the path of a Unix socket has"
        )
    if found.reuse_port and family not in ("tcp", "udp"):
        raise invalid("params.reuse_port", f"{family} has no ports")
