"""The memory of this front: looked at as bytes go through it, and said when it is too much.

gRPC has no bound that could be set from here: it keeps half messages of every stream (a megabyte each), calls
that it has refused for their headers (half a megabyte each, for a few kilobytes sent), answers that nobody
reads. Counting all that would mean to know its insides. So the front asks the kernel for the most that it
has had, each time that some bytes have gone through it; getrusage(2) needs no file, and a front that has
nothing to do does not look. When it is too much the core is told, and replaces this front: its clients
connect again, their jobs and events are kept. RLIMIT_DATA (sandbox.py) stands behind it, for a front that
says nothing.
"""

from __future__ import annotations

import resource
from collections.abc import Callable

LOOK_BYTES = 256 * 1024  # gRPC has been seen to take a hundred times as much for what a client sent
KIB = 1024


class Memory:
    """What this process has; `full` is called once, when it is more than it may have."""

    def __init__(self, bytes_max: int) -> None:
        self.full: Callable[[], None] = _nothing
        self._bytes_max = bytes_max
        self._moved = 0

    def moved(self, size_bytes: int) -> None:
        """So many bytes have come, from clients or for them."""
        self._moved += size_bytes
        if self._moved >= LOOK_BYTES:
            self._moved = 0
            if resident_bytes_peak() > self._bytes_max:
                full, self.full = self.full, _nothing
                full()


def resident_bytes_peak() -> int:
    """The largest resident set that this process has had; a fork begins with that of its parent."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _nothing() -> None:
    """It was said already, or nobody is there to be told."""
