"""Where the daemon is, and how channels to it are set up."""

from __future__ import annotations

import os
from collections.abc import Mapping

from aem.errors import AemError, ConnectionLost

SYSTEM_SOCKET = "/run/aemd/aemd.sock"
SESSION_METHOD = "/aem.v1.EventService/Session"

# A channel has connections of its own, so that lists never wait behind events. A silent session is pinged
# once a minute: that finds a daemon that hangs, and is well above the ten seconds that it tolerates. A lost
# daemon is looked for again at once, then every second: it is on this machine. What grpc calls the minimal
# backoff is how long an attempt may take: a machine under load, or a daemon that starts, needs its time.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def find_address(address: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The target for grpc: what is given, else AEMD_ADDRESS, else the user's socket, else the system's.

    >>> find_address("/tmp/aemd.sock")
    'unix:/tmp/aemd.sock'
    >>> find_address(None, {"AEMD_ADDRESS": "unix:/tmp/other.sock"})
    'unix:/tmp/other.sock'
    >>> find_address(None, {})
    'unix:/run/aemd/aemd.sock'
    """
    environ = os.environ if environ is None else environ
    chosen = address or environ.get("AEMD_ADDRESS", "")
    if not chosen:
        runtime = environ.get("XDG_RUNTIME_DIR", "")
        user = os.path.join(runtime, "aemd", "aemd.sock") if runtime else ""
        chosen = user if user and os.path.exists(user) else SYSTEM_SOCKET
    return f"unix:{chosen}" if chosen.startswith(("/", ".")) else chosen


def explain(error: AemError, target: str) -> AemError:
    """A lost connection with the address that was tried."""
    if isinstance(error, ConnectionLost) and target not in error.message:
        return ConnectionLost(
            error.code, error.reason, f"no daemon at {target}: {error.message}", error.metadata
        )
    if isinstance(error, ConnectionLost) and error.reason == error.code.name:
        return ConnectionLost(error.code, "CONNECTION_LOST", f"no daemon at {target}: {error.message}")
    return error


_channels = 0  # made in this process so far: once grpc runs, the process must not fork


def note_channel() -> None:
    """A channel is about to be made."""
    global _channels
    _channels += 1


def channel_exists() -> bool:
    """Whether the SDK has ever made a channel in this process."""
    return _channels > 0
