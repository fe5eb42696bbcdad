"""A front looks at its memory when bytes have gone through it, and says once that it is too much."""

import os
from pathlib import Path

from aemd.front.memory import LOOK_BYTES, Memory, resident_bytes_peak

MIB = 1 << 20


def watch(bytes_max):
    memory, said = Memory(bytes_max), []
    memory.full = lambda: said.append("full")
    return memory, said


def test_too_much_is_said_once_when_enough_has_moved():
    memory, said = watch(1)
    memory.moved(LOOK_BYTES - 1)
    assert said == []
    memory.moved(1)
    assert said == ["full"]
    memory.moved(LOOK_BYTES)
    assert said == ["full"]


def test_bound_is_on_what_was_resident():
    peak = resident_bytes_peak()
    memory, said = watch(peak + 64 * MIB)
    memory.moved(LOOK_BYTES)
    assert said == []
    now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    much = b"x" * (peak - now + 96 * MIB)
    memory.moved(LOOK_BYTES)
    assert said == ["full"]
    assert much
