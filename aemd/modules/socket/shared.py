"""What all jobs of the module have in common."""

from __future__ import annotations

from dataclasses import dataclass

from aemd.modules.contract import Host
from aemd.modules.socket.event import Clock
from aemd.sources.reactor import TimerQueue


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
