"""What all jobs of the module have in common."""

from __future__ import annotations

from dataclasses import dataclass

from aemd.modules.contract import Host, Job
from aemd.modules.socket.event import Clock
from aemd.sources.reactor import TimerQueue
from aemd.v1 import session_pb2


@dataclass(frozen=True, slots=True)
class Shared:
    """`view`: the one buffer that everything is read into; what is kept of it is copied at once.

    `secret`: authenticates the keys of datagram peers.
    """

    host: Host
    monotonic: TimerQueue
    clock: Clock
    view: memoryview
    secret: bytes


def restarted(host: Host, job: Job) -> None:
    """Tell that nobody knows what happened since the daemon before this one."""
    host.gap(
        job,
        stage=session_pb2.STAGE_SOURCE,
        cause=session_pb2.CAUSE_RESTART,
        count=0,
        remedy=session_pb2.REMEDY_RESCAN,
    )
