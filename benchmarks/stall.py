"""`make bench-stall`: what one client among a hundred that does not read costs the others.

A hundred clients listen to one channel, on which an event is raised now and then; one of them is stopped with
SIGSTOP for every other round, and everything on the way to it is filled before the round begins. So there are
the same processes, connections and daemon in all rounds. Latency is from before the event is raised until its
handler runs, over the ninety-nine. This file is the listeners, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

import aem

from benchmarks.floods import cpu_seconds
from benchmarks.peers import STAMP, Aemd, payload
from benchmarks.quick import table

PROGRAMS, EACH = 3, 33  # that go on reading; one more program has the client that is stopped
ROUNDS = 10
EVENTS = 60  # of a round
GAP_S = 0.05
FILL_EVENTS, FILL_BYTES = 512, 16 * 1024  # 8 MiB: more than stream, connection and queue take
REST_S = 1.0  # for what waits to be caught up with
READS, STALLS = "all read", "one does not read"


async def listen(address: str, count: int) -> None:
    """So many clients; for each line of input the latencies since the one before, as JSON."""
    latencies: list[int] = []

    def hear(event: aem.UserEvent) -> None:
        latencies.append(time.monotonic_ns() - STAMP.unpack_from(event.data)[0])

    clients = [aem.AsyncClient(address) for _ in range(count)]
    for client in clients:
        await client.register("user", hear, channel="bench")
    if count == 1:
        await clients[0].register("user", lambda _: None, channel="fill", on_gap=lambda _: None)
    running = [asyncio.create_task(client.run()) for client in clients]
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    print("ready", flush=True)
    while await lines.readline():
        print(json.dumps(latencies), flush=True)
        latencies.clear()
    for client, task in zip(clients, running, strict=True):
        client.stop()
        await task
        await client.close()


class Listeners:
    """A program of them."""

    def __init__(self, address: str, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stall", address, str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def latencies(self) -> list[int]:
        """Those since the last time, ns."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: list[int] = json.loads(self.line())
        return found

    def end(self) -> None:
        """Be ended, stopped or not."""
        self.process.kill()
        self.process.communicate()


def play(client: aem.Client, readers: list[Listeners]) -> tuple[float, float]:
    """One round: p50 and p99 of those who read, µs."""
    for _ in range(EVENTS):
        client.raise_event("bench", payload())
        time.sleep(GAP_S)
    found = [latency for each in readers for latency in each.latencies()]
    missing = EVENTS * PROGRAMS * EACH - len(found)
    if missing:
        raise RuntimeError(f"{missing} events had not arrived {GAP_S} s after the last was raised")
    percentiles = quantiles(found, n=100)
    return percentiles[49] / 1e3, percentiles[98] / 1e3


def main() -> int:
    """Measure and print."""
    print(f"{os.cpu_count()} processors; {PROGRAMS * EACH} clients and one, an event for all every {GAP_S} s")
    measured: dict[str, list[tuple[float, float, float]]] = {READS: [], STALLS: []}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aemd-bench-"))
        address = stack.enter_context(Aemd.server(Path(folder)))
        client = stack.enter_context(aem.Client(address))
        core = client.status().pid
        programs = [Listeners(address, count) for count in (*[EACH] * PROGRAMS, 1)]
        for each in programs:
            stack.callback(each.end)
            if each.line() != "ready\n":
                raise RuntimeError("a program of listeners did not start")
        *readers, one = programs
        play(client, readers)  # everything has been used once
        for _ in range(ROUNDS):
            for name in (READS, STALLS):
                if name == STALLS:
                    one.process.send_signal(signal.SIGSTOP)
                    for _ in range(FILL_EVENTS):
                        client.raise_event("fill", bytes(FILL_BYTES))
                used = cpu_seconds(core)
                p50, p99 = play(client, readers)
                measured[name].append((p50, p99, (cpu_seconds(core) - used) * 1e3 / EVENTS))
                one.process.send_signal(signal.SIGCONT)
                time.sleep(REST_S)
    show(measured)
    return 0


def show(measured: dict[str, list[tuple[float, float, float]]]) -> None:
    """The table."""
    medians = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)]
        for name, runs in measured.items()
    }
    rows = [
        [name, f"{p50:,.0f}", f"{p99:,.0f}", f"{p50 / medians[READS][0]:.2f}",
         f"{p99 / medians[READS][1]:.2f}", f"{cpu:.1f}"] for name, (p50, p99, cpu) in medians.items()
    ]  # fmt: skip
    head = ["of a hundred clients", "p50 µs", "p99 µs", "p50 / all read", "p99", "core's ms an event"]
    table(f"Latency of the others; medians of {ROUNDS} rounds. Trust ratios, not digits.", head, rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(listen(sys.argv[1], int(sys.argv[2])))
    else:
        sys.exit(main())
