"""What proc(5) tells of a process only to who might trace it: this process looks, or has somebody look.

A daemon that is root, or serves its own user only, reads it. One that is neither has a looker, which is
installed here once, when the daemon is put together: modules and sources ask and do not know which. What
cannot be read is not in the answer, and whoever asks takes that as the worse case. Where the looker itself is
lost, AemError UNAVAILABLE says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aemd.deputy import looking
from aemd.deputy.looking import What


class Looker(Protocol):
    """Who looks for this process."""

    def look(self, pid: int, what: What) -> Mapping[What, bytes]:
        """What can be read of that."""

    def open_pid_namespace(self, pid: int) -> int:
        """A descriptor of the pid namespace that a process is in. OSError."""


_lookers: list[Looker] = []


def install(looker: Looker | None) -> None:
    """Have `looker` look from now on; None: this process itself."""
    _lookers[:] = [] if looker is None else [looker]


def look(pid: int, what: What) -> Mapping[What, bytes]:
    """What can be read of that."""
    return _lookers[0].look(pid, what) if _lookers else looking.look(pid, what)


def namespace(pid: int, what: What) -> int:
    """The inode number of a namespace of a process; 0 if it cannot be read."""
    return int(look(pid, what).get(what, b"0"))


def open_pid_namespace(pid: int) -> int:
    """A descriptor of the pid namespace that a process is in. OSError."""
    return _lookers[0].open_pid_namespace(pid) if _lookers else looking.open_pid_namespace(pid)
