"""What `aemctl top` shows: two samples of the daemon's counts, made into lines of text.

Nothing here knows of terminals or waits: samples go in, lines with a style come out, never wider or more than
there is room for. A rate is what was counted between two samples over the time between them; a job that is
new has the rate of what it has done so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from aemd.cli.output import align, width
from aemd.cli.text import safe, span_text
from aemd.service.feed import Row

if TYPE_CHECKING:
    from aem.v1 import admin_pb2

JOBS_MAX = 2_000  # that are looked at; the daemon makes them in two turns of its loop
SECOND = 1_000_000_000
STAGES = ("kernel", "source", "job", "session")
HELP = "q quit   sort: r l w x f j < >   + - interval   space pause   arrows scroll"


@dataclass(frozen=True, slots=True)
class Totals:
    """What is counted over all jobs that one may see."""

    fires: float = 0
    delivered: float = 0
    lost: Counter[str] = field(default_factory=Counter)  # by stage
    delivery: Counter[float] = field(default_factory=Counter)  # by upper bound, seconds
    acknowledgement: Counter[float] = field(default_factory=Counter)


def totals(answer: admin_pb2.GetMetricsResponse) -> Totals:
    """The totals of an answer."""
    by_name = {metric.name: metric for metric in answer.metrics}

    def total(name: str) -> float:
        return sum(sample.value for sample in by_name[name].samples) if name in by_name else 0

    def spread(name: str) -> Counter[float]:
        found: Counter[float] = Counter()
        for sample in by_name[name].samples if name in by_name else ():
            bounds = [*sample.distribution.bounds, float("inf")]
            found.update(dict(zip(bounds, sample.distribution.counts, strict=True)))
        return found

    lost: Counter[str] = Counter()
    if "aemd_lost" in by_name:
        place = list(by_name["aemd_lost"].labels).index("stage")
        for sample in by_name["aemd_lost"].samples:
            lost[sample.labels[place]] += int(sample.value)
    return Totals(
        fires=total("aemd_job_fires"),
        delivered=total("aemd_session_delivered"),
        lost=lost,
        delivery=spread("aemd_session_delivery_seconds"),
        acknowledgement=spread("aemd_session_acknowledgement_seconds"),
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at one moment; `error` where it did not answer, and nothing else is known."""

    mono_ns: int
    status: Row = field(default_factory=dict)
    jobs: Sequence[Row] = ()
    totals: Totals = field(default_factory=Totals)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, and how it is to look: bold, inverse, alarm or plain."""

    text: str
    style: str = "plain"


@dataclass(frozen=True, slots=True)
class Order:
    """A column that can be sorted by: its key on the keyboard, title, and value."""

    key: str
    title: str
    value: Callable[[Row], float]


ORDERS = (
    Order("j", "JOB", lambda row: -row["job"]),
    Order("r", "RATE", lambda row: row["rate"]),
    Order("l", "LAG", lambda row: row["lag"]),
    Order("w", "QUEUED", lambda row: row["queued"]),
    Order("x", "LOST", lambda row: row["lost"]),
    Order("f", "FAILED", lambda row: row["failed"]),
)
_TITLES = ("JOB", "MODULE", "STATE", "RATE", "LAG", "QUEUED", "LOST", "FAILED", "UID", "LABEL")
_RIGHT = (True, False, False, True, True, True, True, True, True, False)


class Board:
    """The last two samples, and how they are looked at."""

    def __init__(self, order: str = "r") -> None:
        self.now: Sample | None = None
        self.before: Sample | None = None
        self.order = next(index for index, one in enumerate(ORDERS) if one.key == order)
        self.first = 0  # row that is shown first

    def take(self, sample: Sample) -> None:
        """A new sample. One that failed leaves nothing to compare the next with."""
        self.before = self.now if self.now is not None and not self.now.error else None
        self.now = sample

    def sort(self, key: str) -> bool:
        """Sort by the column of a key, or with < and > by the one beside; False: there is no such key."""
        if key in "<>":
            self.order = (self.order + (1 if key == ">" else -1)) % len(ORDERS)
            return True
        for index, order in enumerate(ORDERS):
            if order.key == key:
                self.order, self.first = index, 0
                return True
        return False

    def rows(self) -> list[Row]:
        """The jobs with their rates, sorted: the largest first."""
        now = self.now
        if now is None:
            return []
        known = {job["id"]: job["stats"]["fires"] for job in self.before.jobs} if self.before else {}
        took_ns = now.mono_ns - self.before.mono_ns if self.before else 0
        rows = [_row(job, known.get(job["id"], 0), took_ns) for job in now.jobs]
        value = ORDERS[self.order].value
        return sorted(rows, key=lambda row: (-value(row), row["job"]))

    def summary(self) -> Row:
        """The totals, for programs."""
        now = self.now or Sample(0)
        status = now.status
        return {
            "version": status.get("version", ""),
            "jobs": status.get("jobs", 0),
            "sessions": status.get("sessions", 0),
            "fires_per_second": self._rate(lambda total: total.fires),
            "delivered_per_second": self._rate(lambda total: total.delivered),
            "lost": {stage: int(now.totals.lost[stage]) for stage in STAGES},
            "delivery_seconds": self._latencies(lambda total: total.delivery),
            "acknowledgement_seconds": self._latencies(lambda total: total.acknowledgement),
        }

    def lines(self, columns: int, rows: int, *, note: str = "") -> list[Line]:
        """The whole picture for a terminal of this size. `note` stands in the lowest line."""
        head = self._head()
        foot = Line(note or HELP, "inverse")
        room = max(rows - len(head) - 2, 0)
        table = self._table(room)
        table += [Line("")] * (room + 1 - len(table))
        shown = [*[*head, *table][: max(rows - 1, 0)], foot]
        return [Line(clip(line.text, columns), line.style) for line in shown]

    def scroll(self, by: int) -> None:
        """Show rows further down, or up."""
        most = max(len(self.now.jobs) - 1, 0) if self.now is not None else 0
        self.first = min(max(self.first + by, 0), most)

    def _head(self) -> list[Line]:
        now = self.now
        if now is None:
            return [Line("aemd: waiting for the first answer", "bold"), Line(""), Line("")]
        if now.error:
            return [Line("aemd: " + safe(now.error), "alarm"), Line(""), Line("")]
        status, told = now.status, self.summary()
        up_ns = max(status["time_ns"] - status["start_time_ns"], 0) // SECOND * SECOND
        seen = f"of {status['jobs']} " if status["jobs"] > len(now.jobs) else ""
        lost = ", ".join(f"{told['lost'][stage]} {stage}" for stage in STAGES if told["lost"][stage])
        first = (
            f"aemd {status['version']}, up {span_text(up_ns)}, {safe(status['address'])}, "
            f"{len(now.jobs)} {seen}jobs, {status['sessions']} sessions"
        )
        second = (
            f"events {number(told['fires_per_second'])}/s, "
            f"delivered {number(told['delivered_per_second'])}/s, lost {lost or 0}"
        )
        third = (
            f"delivery {_quantiles(told['delivery_seconds'])}, "
            f"acknowledged {_quantiles(told['acknowledgement_seconds'])}"
        )
        return [Line(first, "bold"), Line(second, "alarm" if self._loses() else "plain"), Line(third)]

    def _table(self, room: int) -> list[Line]:
        rows = self.rows()
        self.first = min(self.first, max(len(rows) - 1, 0))
        shown = rows[self.first : self.first + room]
        titles = [f"{title}*" if title == ORDERS[self.order].title else title for title in _TITLES]
        aligned = align([titles, *([*map(str, _cells(row))] for row in shown)], _RIGHT)
        lines = ["  ".join(cells) for cells in aligned]
        return [Line(lines[0], "inverse"), *map(Line, lines[1:])]

    def _loses(self) -> bool:
        if self.now is None or self.before is None:
            return False
        return self.now.totals.lost.total() > self.before.totals.lost.total()

    def _rate(self, count: Callable[[Totals], float]) -> float:
        if self.now is None or self.before is None:
            return 0.0
        took_ns = self.now.mono_ns - self.before.mono_ns
        return max(count(self.now.totals) - count(self.before.totals), 0) * SECOND / max(took_ns, 1)

    def _latencies(self, spread: Callable[[Totals], Counter[float]]) -> Row:
        """The p50 and p99 of what came between the samples: upper bounds of buckets; None: nothing came."""
        if self.now is None or self.before is None:
            return {"p50": None, "p99": None}
        counts = spread(self.now.totals) - spread(self.before.totals)
        return {"p50": quantile(counts, 0.5), "p99": quantile(counts, 0.99)}


def quantile(counts: Counter[float], share: float) -> float | None:
    """The upper bound of the bucket in which the quantile lies; None if there is nothing."""
    bounds = sorted(counts)
    wanted = counts.total() * share
    for bound, below in zip(bounds, accumulate(counts[bound] for bound in bounds), strict=True):
        if below and below >= wanted:
            return bound
    return None


def clip(text: str, columns: int) -> str:
    """As much of `text` as a line of so many cells takes."""
    if width(text) <= columns:
        return text
    kept, room = [], columns
    for character in text:
        room -= width(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept)


def number(value: float) -> str:
    """A rate for people: 0, 0.4, 12, 3400."""
    return f"{value:.1f}" if 0 < value < 10 else f"{value:.0f}"


def _quantiles(told: Row) -> str:
    parts = [f"{name} {_seconds(told[name])}" for name in ("p50", "p99") if told[name] is not None]
    return " ".join(parts) or "-"


def _seconds(value: float) -> str:
    return "more" if value == float("inf") else f"{span_text(round(value * SECOND))}"


def _row(job: Row, fires_before: int, took_ns: int) -> Row:
    stats = job["stats"]
    rate = max(stats["fires"] - fires_before, 0) * SECOND / took_ns if took_ns else 0.0
    return {
        "job": job["id"],
        "module": job["module"],
        "state": job["state"],
        "rate": rate,
        "lag": stats["lag"],
        "queued": stats["queued"],
        "lost": stats["lost"],
        "failed": stats["failed"],
        "uid": job["uid"],
        "label": job["label"],
    }


def _cells(row: Row) -> Iterable[Any]:
    return [
        number(value) if name == "rate" else safe(str(value)) if value != "" else "-"
        for name, value in row.items()
    ]
