"""`make bench-floods`: how long one user's events take while another one floods the daemon.

Each row is one attack of tests/robustness/flooder.py, made by an unprivileged program as fast as it can. The
first two rows are what to compare with: nothing else running, and a program beside it that only burns a
processor, which anybody may do without a daemon. Needs root, to have users.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aem

from benchmarks import pubsub
from benchmarks.peers import Aemd
from benchmarks.quick import table

FLOODER = Path(__file__).parents[1] / "tests" / "robustness" / "flooder.py"
FIRST_UID = 60_000  # a user for each, because offences are remembered
ROUNDS = 2
NOTHING_EVERY = 4
CONNECTS = 5  # tries to connect, for floods of connections fill the backlog now and then
EVENTS = 700
GAP_S = 0.001
BURN = "import os; os.setuid({uid}); print('begun', flush=True)\nwhile True: pass"
NOTHING, BUSY = "nothing", "a busy loop"
ATTACKS = (
    "connect_and_close",
    "connections_and_nothing",
    "half_handshake",
    "garbage",
    "huge_headers",
    "hpack_bomb",
    "continuations",
    "pings",
    "settings",
    "window_updates",
    "empty_data",
    "rapid_reset",
    "streams",
    "half_messages",
    "never_reads",
)


@contextmanager
def beside(command: list[str]) -> Iterator[None]:
    """A program that has begun, and is ended; in a session of its own, as another user's would be."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def measure(address: str, core: int) -> tuple[pubsub.Figures, float]:
    """One run of user events from one program of root to another; and the core's share of a processor."""
    for _ in range(CONNECTS):
        begin, used = time.monotonic(), cpu_seconds(core)
        try:
            figures = pubsub.measure("aemd", address, events=EVENTS, batch=1, gap_s=GAP_S)
        except (RuntimeError, subprocess.CalledProcessError):
            print("  a program could not connect: the backlog was full", flush=True)
            continue
        return figures, (cpu_seconds(core) - used) / (time.monotonic() - begin)
    raise RuntimeError("nobody can connect")


def cpu_seconds(pid: int) -> float:
    """What a process has used; proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def attack(name: str, address: str, uid: int) -> list[str]:
    """The command of a flooder."""
    if name == BUSY:
        return [sys.executable, "-c", BURN.format(uid=uid)]
    return [sys.executable, str(FLOODER), name, address.removeprefix("unix:"), str(uid)]


def main() -> int:
    """Measure and print."""
    if os.geteuid() != 0:
        print("needs root: the flooder is another user")
        return 1
    begin = time.monotonic()
    print(f"{os.cpu_count()} processors; user events at one a millisecond, root to root; medians of {ROUNDS}")
    measured: dict[str, list[tuple[pubsub.Figures, float]]] = {NOTHING: []}
    uids = itertools.count(FIRST_UID)
    with tempfile.TemporaryDirectory(prefix="aemd-bench-") as folder:
        os.chmod(folder, 0o755)
        with Aemd.server(Path(folder)) as address, aem.Client(address) as client:
            core = client.status().pid
            for _ in range(ROUNDS):
                for number, name in enumerate((BUSY, *ATTACKS)):
                    if number % NOTHING_EVERY == 0:  # in between: the machine may have other work
                        measured[NOTHING].append(measure(address, core))
                    with beside(attack(name, address, next(uids))):
                        measured.setdefault(name, []).append(measure(address, core))
    show(measured)
    print(f"\n{time.monotonic() - begin:.0f} s. Trust ratios, not digits.")
    return 0


def show(measured: dict[str, list[tuple[pubsub.Figures, float]]]) -> None:
    """The table."""
    p50 = {name: statistics.median(f.p50_us for f, _ in runs) for name, runs in measured.items()}
    p99 = {name: statistics.median(f.p99_us for f, _ in runs) for name, runs in measured.items()}
    core = {name: statistics.median(share for _, share in runs) for name, runs in measured.items()}
    rows = [
        [name, f"{p50[name]:,.0f}", f"{p99[name]:,.0f}", f"{p50[name] / p50[NOTHING]:.1f}",
         f"{p99[name] / p99[NOTHING]:.1f}", f"{p50[name] / p50[BUSY]:.1f}", f"{p99[name] / p99[BUSY]:.1f}",
         f"{core[name]:.0%}"] for name in measured
    ]  # fmt: skip
    head = ["beside it", "p50 µs", "p99 µs", "p50 / nothing", "p99", "p50 / busy loop", "p99", "core's CPU"]
    table("Latency of another user's events during a flood", head, rows)


if __name__ == "__main__":
    sys.exit(main())
