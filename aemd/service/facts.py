"""What the core's process has of the machine, as proc(5) tells it of itself."""

from __future__ import annotations

import os

PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def descriptors_open() -> int:
    """How many descriptors there are."""
    return len(os.listdir("/proc/self/fd")) - 1  # the listing has one itself


def resident_bytes() -> int:
    """Statm of proc_pid_statm(5): its second field is the resident set in pages."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * PAGE_BYTES
