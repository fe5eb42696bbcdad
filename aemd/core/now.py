"""The time, as the core is told it.

The core has no clock: whoever calls it says what time it is, read once per turn of the loop.
"""

from __future__ import annotations

from typing import NamedTuple


class Now(NamedTuple):
    """One moment on two clocks: CLOCK_MONOTONIC for deadlines, CLOCK_REALTIME for people. Nanoseconds."""

    mono_ns: int
    real_ns: int
