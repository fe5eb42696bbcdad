"""How often the kernel was asked, and what came of it: one count for each kind of source.

They are of the process, like the kernel objects that they are about: a source adds to them where it makes the
system call, and nobody else does. Who reads them is in `service/`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Of one kind of source, since the process began."""

    reads: int = 0  # system calls that read
    events: int = 0  # what they brought: expirations, exits, connections, datagrams, pieces of a stream
    failures: int = 0  # that failed, other than for want of anything to read


COUNTS: dict[str, Counts] = {}


def counts(source: str) -> Counts:
    """The counts of a kind of source, by the name that metrics give it."""
    return COUNTS.setdefault(source, Counts())
