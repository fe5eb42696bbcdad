"""AEMhttpd with 100 active connections while the number of idle ones grows: the original's Figure 6.

The active ones are wrk's; the idle ones are held by this process and say nothing.
"""

from __future__ import annotations

import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ACTIVE = 100
SECONDS = 4
ENGINES = ("aemd", "asyncio", "select")
SELECT_MAX = 1024 - ACTIVE - 16  # FD_SETSIZE
missing = "" if shutil.which("wrk") else "wrk is not installed"


@dataclass(frozen=True, slots=True)
class Figures:
    """What wrk said: latency in µs, requests a second, and responses that were errors."""

    p50_us: float
    p99_us: float
    rate: float
    errors: int


@contextmanager
def serving(engine: str, folder: Path, address: str) -> Iterator[int]:
    """AEMhttpd on some port; gives the port."""
    (folder / "index.html").write_text("x" * 512)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    listen = ["--listen", f"tcp:127.0.0.1:{port}", "--root", str(folder), "--engine", engine]
    command = [sys.executable, "-m", "aemhttpd.main", *listen, "--address", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("aemhttpd: serving"):
            raise RuntimeError(f"aemhttpd --engine {engine} did not start")
        yield port
    finally:
        process.terminate()
        process.wait()


def hold(stack: ExitStack, port: int, count: int) -> None:
    """Open `count` connections that say nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for number in range(count):
        # a source address for every 20,000, so that local ports do not run out
        source = (f"127.0.0.{2 + number // 20_000}", 0)
        stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10, source_address=source))
    assert soft


def measure(port: int) -> Figures:
    """Run wrk once."""
    url = f"http://127.0.0.1:{port}/"
    command = ["wrk", "-t1", f"-c{ACTIVE}", f"-d{SECONDS}s", "--latency", url]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS + 30).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    errors = int(refused[1]) if refused else 0
    errors += sum(map(int, broken.groups())) if broken else 0
    assert rate is not None
    return Figures(_percentile(text, 50), _percentile(text, 99), float(rate[1]), errors)


def _percentile(text: str, which: int) -> float:
    found = re.search(rf"^\s+{which}%\s+([\d.]+)(us|ms|s)$", text, re.MULTILINE)
    if found is None:
        return float("nan")
    return float(found[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[found[2]]


def figure_6(engine: str, folder: Path, address: str, idle_counts: tuple[int, ...]) -> list[Figures | None]:
    """The figures of one engine for each number of idle connections; None: it cannot."""
    results: list[Figures | None] = []
    for idle in idle_counts:
        if engine == "select" and idle > SELECT_MAX:
            results.append(None)
            continue
        with serving(engine, folder, address) as port, ExitStack() as stack:
            hold(stack, port, idle)
            time.sleep(0.2)
            results.append(measure(port))
    return results
