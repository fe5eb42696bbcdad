"""What all users share of a resource: descriptors of the daemon's table, bytes of its memory.

Nobody gets more than half of what the others have left, so that whoever comes next finds something: a half,
a quarter, an eighth. A sixteenth is kept for the administrator, who may have all that there is.
"""

from __future__ import annotations

from collections.abc import Callable

RESERVE_SHARE = 16  # this part of a pool no user can take


class Pool:
    """How much there is of a resource, and how much of it is given out.

    `size` is asked each time. `key`: the configuration key that makes the pool larger.
    """

    __slots__ = ("key", "size", "used")

    def __init__(self, size: Callable[[], int], *, key: str) -> None:
        self.size = size
        self.key = key
        self.used = 0

    def share(self, used: int, *, administrator: bool) -> int:
        """How much somebody who has `used` of it may have in all, as things are now."""
        size = self.size()
        others = self.used - used
        if administrator:
            return max(size - others, 0)
        return max((size - size // RESERVE_SHARE - others) // 2, 0)
