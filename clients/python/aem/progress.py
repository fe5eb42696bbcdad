"""How far a job is, as the daemon told it last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aem.v1 import session_pb2

__all__ = ["Progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job's handlers are in its history.

    Stimuli are numbered from 1 in each `epoch`: `head` is the newest, up to `acked` all are dealt with, `lag`
    is how many lie between, and `lost` how many were reported in Gaps so far. The daemon tells it about once
    a second while it changes.
    """

    epoch: int = 0
    head: int = 0
    acked: int = 0
    lag: int = 0
    lost: int = 0

    @classmethod
    def of(cls, frame: session_pb2.Progress) -> Progress:
        """What a frame says."""
        return cls(frame.head.epoch, frame.head.seq, frame.acked.seq, frame.lag, frame.lost)
