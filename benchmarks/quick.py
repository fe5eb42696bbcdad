"""`make bench-quick`: the first figures, in under three minutes.

User events through aemd beside Redis pub/sub and D-Bus, a kernel event through aemd beside an agent of one's
own on D-Bus, and AEMhttpd with idle connections beside the same server on asyncio and select(). Runs are
interleaved; the median of the rounds counts. What is missing on this machine is said.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import kernel, pubsub, web
from benchmarks.peers import PEERS, Aemd

ROUNDS = 3
BATCH = 64
IDLE = (0, 1_000, 10_000)
THROUGHPUT_EVENTS = {
    "aemd": 64_000,
    "redis": 64_000,
    "dbus": 16_000,
}  # fewer than a job's queue holds: no loss


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print an aligned table."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    print(f"\n{title}\n")
    for row in [head, ["-" * width for width in widths], *rows]:
        print("  " + "  ".join(cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in
                               enumerate(zip(row, widths, strict=True))))  # fmt: skip
    sys.stdout.flush()


def user_events(folder: Path) -> None:
    """One publisher, one subscriber."""
    with ExitStack() as stack:
        present = {name: peer for name, peer in PEERS.items() if not peer.missing}
        for peer in PEERS.values():
            if peer.missing:
                print(f"  left out: {peer.name}: {peer.missing}")
        addresses = {name: stack.enter_context(peer.server(folder)) for name, peer in present.items()}
        latency: dict[str, list[pubsub.Figures]] = {name: [] for name in present}
        rate: dict[str, list[pubsub.Figures]] = {name: [] for name in present}
        for _ in range(ROUNDS):
            for name, address in addresses.items():
                latency[name].append(
                    pubsub.measure(
                        name, address, events=pubsub.LATENCY_EVENTS, batch=1, gap_s=pubsub.LATENCY_GAP_S
                    )
                )
                rate[name].append(
                    pubsub.measure(name, address, events=THROUGHPUT_EVENTS[name], batch=BATCH, gap_s=0)
                )
    p50 = {name: statistics.median(f.p50_us for f in latency[name]) for name in present}
    p99 = {name: statistics.median(f.p99_us for f in latency[name]) for name in present}
    per_s = {name: statistics.median(f.rate for f in rate[name]) for name in present}
    rows = [
        [PEERS[name].name, f"{p50[name]:.0f}", f"{p99[name]:.0f}", f"{p50['aemd'] / p50[name]:.2f}",
         f"{per_s[name]:,.0f}", f"{per_s['aemd'] / per_s[name]:.1f}"] for name in present
    ]  # fmt: skip
    head = ["", "p50 µs", "p99 µs", "aemd / it", "events/s", "aemd / it"]
    table(
        f"User events, 64 bytes: latency at one a millisecond; throughput in batches of {BATCH}", head, rows
    )


def kernel_events(folder: Path) -> None:
    """From a datagram to a handler."""
    present = {name: way for name, way in kernel.WAYS.items() if not PEERS[way.peer].missing}
    with ExitStack() as stack:
        addresses = {
            peer: stack.enter_context(PEERS[peer].server(folder))
            for peer in {way.peer for way in present.values()}
        }
        runs: dict[str, list[pubsub.Figures]] = {name: [] for name in present}
        for _ in range(ROUNDS):
            for name, way in present.items():
                runs[name].append(kernel.measure(name, addresses[way.peer]))
    p50 = {name: statistics.median(figures.p50_us for figures in runs[name]) for name in present}
    p99 = {name: statistics.median(figures.p99_us for figures in runs[name]) for name in present}
    rows = [
        [way.name, f"{p50[name]:.0f}", f"{p99[name]:.0f}", f"{p50['aemd'] / p50[name]:.2f}"]
        for name, way in present.items()
    ]
    table(
        "From a datagram of 64 bytes to a handler in another program: latency at one a millisecond",
        ["", "p50 µs", "p99 µs", "aemd / it"],
        rows,
    )


def idle_connections(folder: Path) -> None:
    """Figure 6."""
    if web.missing:
        print(f"  left out: AEMhttpd: {web.missing}")
        return
    rows = []
    with Aemd.server(folder) as address:
        for engine in web.ENGINES:
            results = web.figure_6(engine, folder, address, IDLE)
            base = results[0]
            assert base is not None
            for idle, figures in zip(IDLE, results, strict=True):
                if figures is None:
                    rows.append([engine, f"{idle:,}", "cannot", "", "", "", ""])
                    continue
                rows.append([
                    engine, f"{idle:,}", f"{figures.p50_us:.0f}", f"{figures.p99_us:.0f}",
                    f"{figures.rate:,.0f}", f"{figures.p50_us / base.p50_us:.2f}", f"{figures.errors}",
                ])  # fmt: skip
    head = ["AEMhttpd on", "idle", "p50 µs", "p99 µs", "requests/s", "p50 / p50 at 0", "errors"]
    table(f"HTTP, {web.ACTIVE} active keep-alive connections (wrk), while idle ones grow", head, rows)


def main() -> int:
    """Measure and print."""
    begin = time.monotonic()
    print(f"Linux {platform.release()}, {os.cpu_count()} processors, CPython {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="aemd-bench-") as folder:
        user_events(Path(folder))
    with tempfile.TemporaryDirectory(prefix="aemd-bench-") as folder:
        kernel_events(Path(folder))
    with tempfile.TemporaryDirectory(prefix="aemd-bench-") as folder:
        idle_connections(Path(folder))
    print(f"\n{time.monotonic() - begin:.0f} s. Trust ratios, not digits.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
