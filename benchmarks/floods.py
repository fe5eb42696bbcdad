"""`make bench-floods`: how long one user's events take while another one floods the daemon.

Each row is one attack of tests/robustness/flooder.py, made by an unprivileged program as fast as it can. The
first two rows are what to compare with: nothing else running, and a program beside it that only burns a
processor, which anybody may do without a daemon. Needs root, to have users.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import pubsub
from benchmarks.peers import Aemd
from benchmarks.quick import table

FLOODER = Path(__file__).parents[1] / "tests" / "robustness" / "flooder.py"
FIRST_UID = 60_000  # a user for each, because offences are remembered
EVENTS = 1_500
GAP_S = 0.001
BURN = "import os; os.setuid({uid}); print('begun', flush=True)\nwhile True: pass"
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


def measure(address: str) -> pubsub.Figures:
    """One run of user events from one program of root to another."""
    return pubsub.measure("aemd", address, events=EVENTS, batch=1, gap_s=GAP_S)


def main() -> int:
    """Measure and print."""
    if os.geteuid() != 0:
        print("needs root: the flooder is another user")
        return 1
    begin = time.monotonic()
    print(f"{os.cpu_count()} processors; user events at one a millisecond, root to root")
    with tempfile.TemporaryDirectory(prefix="aemd-bench-") as folder:
        os.chmod(folder, 0o755)
        with Aemd.server(Path(folder)) as address:
            measured = {"nothing": measure(address)}
            with beside([sys.executable, "-c", BURN.format(uid=FIRST_UID)]):
                measured["a busy loop"] = measure(address)
            for number, attack in enumerate(ATTACKS, 1):
                uid = str(FIRST_UID + number)
                with beside([sys.executable, str(FLOODER), attack, address.removeprefix("unix:"), uid]):
                    measured[attack] = measure(address)
    base, busy = measured["nothing"], measured["a busy loop"]
    rows = [
        [
            name,
            f"{figures.p50_us:,.0f}",
            f"{figures.p99_us:,.0f}",
            f"{figures.p50_us / base.p50_us:.1f}",
            f"{figures.p99_us / base.p99_us:.1f}",
            f"{figures.p50_us / busy.p50_us:.1f}",
            f"{figures.p99_us / busy.p99_us:.1f}",
        ]
        for name, figures in measured.items()
    ]
    head = ["beside it", "p50 µs", "p99 µs", "p50 / nothing", "p99 / nothing", "p50 / busy", "p99 / busy"]
    table("Latency of another user's events during a flood", head, rows)
    print(f"\n{time.monotonic() - begin:.0f} s. Trust ratios, not digits.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
