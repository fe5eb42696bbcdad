"""Every limit of the daemon in one place: value, unit, reason.

What a limit is compared with in other systems stands behind it. Configuration can change those that are
fields of `Limits`; the rest are properties of the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

MS = 1_000_000
SECOND = 1_000 * MS

# Protocol.
VERSION_MIN = 1
VERSION_MAX = 1
PRIORITIES = 8
PRIORITY_DEFAULT = 3
BATCH_EVENTS_MAX = 1_024  # under load this many events travel together
BATCH_BYTES_MAX = 128 * 1024  # or this many bytes; above it grpc gains nothing
WINDOW_BYTES = 256 * 1024  # per stream and direction on the link between core and front
LABEL_BYTES_MAX = 256


@dataclass(slots=True)
class Limits:
    """What one daemon grants. Counts are per the thing named; bytes and nanoseconds say so.

    There is one object for the daemon's life, and whoever needs it holds it. It is changed in one place only,
    when the configuration is read again (`change`).
    """

    message_bytes: int = 1024 * 1024  # one gRPC message; grpc's own default is 4 MiB
    payload_bytes: int = 256 * 1024  # one event's data; NATS has 1 MiB
    raise_payloads: int = 1_024  # in one Raise: each fires every listener in the same turn
    raise_fires: int = 262_144  # payloads times listeners of one Raise, about 0.1 s of everybody's time
    turn_ns: int = 20 * MS  # of frames of one user's sessions in one turn; the rest waits for the next
    bundle_frames: int = 16_384  # of one message; they are decoded together, 20 ms
    params_max: int = 64  # parameters of one job
    params_bytes: int = 64 * 1024  # all of them together

    jobs_per_session: int = 262_144  # of a user: core/quota.py

    session_events: int = 4_096  # credit of a session that asks for none
    session_bytes: int = 256 * 1024
    binding_events: int = 256  # credit of a binding that asks for none
    binding_bytes: int = 128 * 1024
    credit_max: int = 1 << 40  # credit saturates here

    queue_depth: int = 1_024
    queue_depth_max: int = 65_536
    queue_bytes: int = 1024 * 1024
    queue_bytes_max: int = 64 * 1024 * 1024
    queue_pool_bytes: int = 512 * 1024 * 1024  # of all queues of all users; most of the core's memory
    parked_max: int = 100  # parked entries kept per job for the list
    control_bytes: int = 16 * 1024 * 1024  # answers that wait for one session; then it is ended. A Sync has
    # one of 25 bytes for every job
    unanswered: int = 1_024  # requests whose answers wait; then the stream is not read

    frames_per_second: int = 100_000  # sustained, per session, bundled frames counted one by one
    frames_burst: int = 200_000

    lease_ns: int = 30 * SECOND
    lease_max_ns: int = 600 * SECOND
    shutdown_ns: int = 5 * SECOND  # how long a shutdown waits for the handler that runs
    shutdown_max_ns: int = 600 * SECOND
    hello_ns: int = 10 * SECOND  # a stream must begin with Hello within this
    progress_min_ns: int = 100 * MS  # between two words on how far a binding is; people look no faster
    ack_timeout_min_ns: int = 1 * MS
    settle_ns: int = 500 * MS  # from SIGTERM on, for clients to deal with what they have; it comes again else
    drain_ns: int = 3 * SECOND  # SIGTERM to the end of the last session; exit within 5 s

    room_bytes: int = 256 * 1024  # upward credit of a connection
    event_data_bytes: int = 64 * 1024  # one read of a socket
    deputy_ns: int = 5 * SECOND  # one look at the file system as the caller; then its process is killed
    descriptors_reserve: int = 256  # kept back for the daemon itself
    front_bytes: int = (
        512 * 1024 * 1024
    )  # memory of one front, resident; then it is replaced. The connections
    # that one user may have take 320 MiB
    fronts: int = 16  # front processes for uids of their own; the rest share one

    def change(self, other: Limits) -> list[str]:
        """Take the values of `other`; returns the names of those that only a restart changes."""
        late = []
        for each in fields(self):
            wanted = getattr(other, each.name)
            if wanted == getattr(self, each.name):
                continue
            if each.name in AT_START:
                late.append(each.name)
            else:
                setattr(self, each.name, wanted)
        return late


# Read once, when the daemon starts: buffers are made of that size, processes are started with it.
AT_START = frozenset({"message_bytes", "front_bytes", "event_data_bytes", "descriptors_reserve", "turn_ns"})

RANGE = (1, 1 << 40)  # of every limit that is not named here
RANGES: Mapping[str, tuple[int, int]] = {
    "message_bytes": (64 * 1024, 64 * 1024 * 1024),
    "payload_bytes": (1, 16 * 1024 * 1024),
    "event_data_bytes": (512, 1024 * 1024),
    "turn_ns": (1 * MS, SECOND),
    "params_max": (1, 1_024),
    "parked_max": (0, 100_000),
    "lease_ns": (0, 86_400 * SECOND),
    "lease_max_ns": (0, 86_400 * SECOND),
    "shutdown_ns": (1 * MS, 3_600 * SECOND),
    "shutdown_max_ns": (1 * MS, 3_600 * SECOND),
    "hello_ns": (100 * MS, 3_600 * SECOND),
    "drain_ns": (1 * MS, 60 * SECOND),
    "descriptors_reserve": (64, 65_536),
    "fronts": (1, 1_024),
    "front_bytes": (64 * 1024 * 1024, 1 << 40),
}
ORDER = (  # the second bounds the first
    ("queue_depth", "queue_depth_max"),
    ("queue_bytes", "queue_bytes_max"),
    ("lease_ns", "lease_max_ns"),
    ("shutdown_ns", "shutdown_max_ns"),
    ("payload_bytes", "message_bytes"),
)
