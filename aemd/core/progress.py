"""How far bindings are, told to a client that asked for it, at most so often.

A binding is *stale* when it may be further than the client was last told: its session was woken for it, as
it is whenever something fired or was dealt with. As long as a session has stale bindings there is a time at
which they are told; so a job that does nothing costs nothing, and of one that comes to rest the last word is
told. A binding with events that wait (for credit, say) stays stale: they become more without a wake.

What is told here is left out while the client does not read: it would only wait, and be old when it is read.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from aemd.core import encoding
from aemd.core.job import JobState

if TYPE_CHECKING:
    from aemd.core.binding import Binding
    from aemd.core.session import Session

BINDINGS_PER_TURN = 1_024  # of a session that are told at a time: 3 ms; the others next time


class Progress:
    """What one session was told, and what it is to be told."""

    __slots__ = ("every_ns", "stale")

    def __init__(self, every_ns: int) -> None:
        self.every_ns = every_ns
        self.stale: dict[Binding, None] = {}

    def note(self, session: Session, binding: Binding) -> None:
        """`binding` may be further. With the first such the session is looked at, and a time set."""
        stale = self.stale
        if not stale:
            session.mark_ready()
        stale[binding] = None

    def tell(self, session: Session) -> None:
        """It is time."""
        if session.control:
            return
        for binding in list(islice(self.stale, BINDINGS_PER_TURN)):
            del self.stale[binding]
            if binding.job.state is JobState.GONE:
                continue
            tell(binding)
            if binding.queue:
                self.stale[binding] = None


def tell(binding: Binding) -> None:
    """Tell how far `binding` is, unless the client knows it."""
    stats = binding.stats
    if stats is None:
        return
    job = binding.job
    head, acked = job.binding.head, binding.acked
    shown = (head, acked, stats.lost)
    if shown == stats.shown:
        return
    stats.shown = shown
    # Who reads an older epoch of a durable job has at least the rest of that one still before him.
    behind = 0 if binding.epoch == job.epoch else binding.head
    frame = encoding.progress_frame(
        binding.id,
        head=(job.epoch, head),
        acked=(binding.epoch, acked),
        lag=head + behind - acked,
        lost=stats.lost,
    )
    binding.session.add_control(frame)
