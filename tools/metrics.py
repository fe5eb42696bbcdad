"""Writes docs/metrics.md from the catalogue of metrics.

Usage: metrics.py [--check]; --check writes nothing and fails if the file would change.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aemd.core.histogram import BOUNDS_NS  # noqa: E402
from aemd.service.catalogue import COUNTER, GAUGE, METRICS, Audience, Metric  # noqa: E402

TARGET = ROOT / "docs" / "metrics.md"

HEAD = """# Metrics

Made by `tools/metrics.py` from `aemd/service/catalogue.py`; do not edit.

`aemctl metrics` prints them, `aemctl export-metrics --listen 127.0.0.1:9464` serves them to a scraper, and
`AdminService.GetMetrics` gives them to programs. Counters have `_total` behind their names in the first two.
They begin at 0 with the daemon and never go back, whatever has ended since.

Losses have four stages, with the same names everywhere; labels, JSON and the SDK write them in small letters:
KERNEL (the kernel's own queue overflowed), SOURCE (a source failed), JOB (a job's queue was full), SESSION (a
stream was lost, and nothing is acknowledged).

Latencies begin with the turn of the daemon's loop in which the kernel's event was read, which is the event's
`mono_time_ns`. "Handed to the front" is when the core has put it on its way to the client; when it came only
the acknowledgement says. An event that waits for credit, or a level for the handler of the one before it, has
that time in both. The buckets of a histogram are powers of two, from {low} to {high}.
"""


def table(metrics: list[Metric]) -> str:
    """Metrics as a table."""
    lines = ["| metric | kind | labels | what it tells |", "| --- | --- | --- | --- |"]
    for metric in metrics:
        kind = "counter" if metric.kind == COUNTER else "gauge" if metric.kind == GAUGE else "histogram"
        labels = ", ".join(metric.labels)
        lines.append(f"| `{metric.name}` | {kind} | {labels} | {metric.help} |")
    return "\n".join(lines)


def text() -> str:
    """The whole of docs/metrics.md."""
    low, high = f"{BOUNDS_NS[0] // 1_000} µs", f"{BOUNDS_NS[-1] / 1e9:.0f} s"
    parts = [HEAD.format(low=low, high=high)]
    titles = {
        Audience.CALLER: "Jobs, sessions, quotas",
        Audience.JOB: "Single jobs",
        Audience.ADMINISTRATOR: "The daemon",
    }
    for audience, title in titles.items():
        told = [metric for metric in METRICS if metric.audience is audience]
        parts.append(f"## {title}\n\nTold to {audience.value}.\n\n{table(told)}\n")
    return "\n".join(parts)


def main() -> int:
    """Write or compare docs/metrics.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        TARGET.write_text(text())
        return 0
    if TARGET.exists() and TARGET.read_text() == text():
        return 0
    print(f"{TARGET.relative_to(ROOT)} is not what the catalogue says; run tools/metrics.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
