"""One event from one program to another: how long it takes, and how many go through.

`measure` runs publisher and subscriber as processes of their own (this file, as a program).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

from benchmarks.peers import PEERS, STAMP, Receive, payload

LATENCY_EVENTS = 2_000
LATENCY_GAP_S = 0.001
LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run gave: latency in µs, throughput in events a second."""

    p50_us: float
    p99_us: float
    rate: float


def collect(events: int, subscribe: Callable[[Receive], None]) -> None:
    """Let `subscribe` receive `events` payloads, and print what was seen, as JSON."""
    latencies: list[int] = []
    first = 0

    def receive(data: bytes) -> bool:
        nonlocal first
        now = time.monotonic_ns()
        first = first or now
        latencies.append(now - STAMP.unpack_from(data)[0])
        return len(latencies) < events

    subscribe(receive)
    span_s = (time.monotonic_ns() - first) / 1e9
    percentiles = quantiles(latencies, n=100)
    print(
        json.dumps(
            {"p50_us": percentiles[49] / 1e3, "p99_us": percentiles[98] / 1e3, "rate": events / span_s}
        )
    )


def publish(peer: str, address: str, events: int, batch: int, gap_s: float) -> None:
    """Send `events` payloads, `batch` together, one batch every `gap_s` seconds."""
    with PEERS[peer].publisher(address) as send:
        due = time.monotonic()
        for _ in range(0, events, batch):
            send([payload() for _ in range(batch)])
            due += gap_s
            if gap_s and (wait := due - time.monotonic()) > 0:
                time.sleep(wait)


def measure(peer: str, address: str, *, events: int, batch: int, gap_s: float) -> Figures:
    """Run one publisher and one subscriber to their end."""
    base = [sys.executable, "-m", "benchmarks.pubsub"]
    subscriber = subprocess.Popen(
        [*base, "subscribe", peer, address, str(events)], stdout=subprocess.PIPE, text=True
    )
    assert subscriber.stdout is not None
    try:
        if subscriber.stdout.readline() != "ready\n":
            raise RuntimeError(f"{peer}: the subscriber did not start")
        arguments = [*base, "publish", peer, address, str(events), str(batch), str(gap_s)]
        subprocess.run(arguments, check=True, timeout=LIMIT_S)
        output, _ = subscriber.communicate(timeout=LIMIT_S)
    finally:
        subscriber.kill()
        subscriber.wait()
    return Figures(**json.loads(output))


if __name__ == "__main__":
    role, name, where, count, *rest = sys.argv[1:]
    if role == "subscribe":
        collect(
            int(count),
            lambda receive: PEERS[name].subscribe(where, receive, lambda: print("ready", flush=True)),
        )
    else:
        publish(name, where, int(count), int(rest[0]), float(rest[1]))
