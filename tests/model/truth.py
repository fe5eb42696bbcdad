"""What really happened in a run, and what was delivered of it, held against each other.

For each job: what was delivered plus what gaps report is what happened, in order; nothing is there twice or
was never done; what was acknowledged does not come as new. A request whose answer was lost may be done or
not; a gap of unknown size, which only a restart leaves, may hold anything.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.model.client import DURABLE, PERIOD_NS

Line = dict[str, Any]
PENDING, DONE, UNKNOWN, REFUSED = "pending", "done", "unknown", "refused"
STAGES = frozenset({"kernel", "source", "job", "session"})


@dataclass
class Visit:
    """A guest of the echo, as the guest saw it."""

    sent: str = ""
    read: str = ""
    whole: bool = False  # it said all, read all of it, and saw the end


@dataclass
class Life:
    """One process of the client. Numbers from `first` on were raised while it was registered, those below
    `earliest` before it was there; of those between nobody knows.
    """

    earliest: int
    first: int = 0
    ledger: list[Line] = field(default_factory=list)
    settled: Line | None = None

    def of(self, job: str) -> list[Line]:
        """What it was told of a job."""
        return [line for line in self.ledger if line.get("job") == job and "type" in line]


@dataclass
class Truth:
    """What was done to the daemon, by number, name or address."""

    raised: list[str] = field(default_factory=list)  # what became of each number
    datagrams: int = 0
    fates: dict[str, tuple[int, int]] = field(default_factory=dict)  # job: exit status, signal
    visits: dict[str, Visit] = field(default_factory=dict)  # by the guest's address


class Verdict:
    """`faults`: all that is wrong; `gaps`: how many there were at each stage."""

    def __init__(self, truth: Truth, lives: list[Life], history: list[Line]) -> None:
        self.faults: list[str] = []
        self.gaps: dict[str, int] = dict.fromkeys(STAGES, 0)
        self._truth = truth
        for number, life in enumerate(lives):
            self._where = f"life {number}"
            self._life(life)
        self._where = "history"
        self._durable(lives, history)

    def _say(self, job: str, fault: str) -> None:
        self.faults.append(f"{self._where}, {job}: {fault}")

    def _life(self, life: Life) -> None:
        for job in sorted({line["job"] for line in life.ledger if "type" in line}):
            lines = life.of(job)
            for line in lines:
                if line["type"] == "gap":
                    self.gaps[line["stage"]] += 1
            if job != DURABLE:
                self._tiled(job, lines)
            if job.startswith("process"):
                self._process(job, lines)
        self._timer(life)
        for job in ("user", "once"):
            self._numbers(job, life)
        self._connections(life.of("socket"))
        self._datagrams(life)
        self._watched(life)

    # -- numbers of entries

    def _tiled(self, job: str, lines: list[Line]) -> None:
        """Without hole or overlap; a gap of a restart may begin a job anew."""
        at, anew = (1, 0), True
        for line in lines:
            here = (line["epoch"], line["first"])
            if here != (at[0], at[1] + 1) and not (anew and line["first"] == 1):
                self._say(job, f"{here} follows {at}")
            at, anew = (line["epoch"], line["last"]), is_restart(line)

    # -- user events

    def _numbers(self, job: str, life: Life) -> None:
        newest, stretch = -1, Stretch()
        sure, maybe = life.first, life.earliest
        for line in life.of(job):
            if line["type"] == "gap":
                stretch.add(line)
                continue
            number = line["number"]
            self._possible(job, number, newest)
            self._missing(job, range(sure, number), range(maybe, number), stretch)
            newest, stretch = number, Stretch()
            sure = maybe = number + 1
        if life.settled is not None:
            end = len(self._truth.raised)
            self._missing(job, range(sure, end), range(maybe, end), stretch)

    def _possible(self, job: str, number: int, newest: int) -> None:
        if number <= newest:
            self._say(job, f"number {number} after {newest}")
        if not 0 <= number < len(self._truth.raised) or self._truth.raised[number] == REFUSED:
            self._say(job, f"number {number} was never raised")

    def _missing(self, job: str, sure: range, maybe: range, stretch: Stretch) -> None:
        fates = self._truth.raised
        least = sum(fates[number] == DONE for number in sure)
        most = sum(fates[number] != REFUSED for number in maybe)
        if not stretch.unknown and not least <= stretch.count <= most:
            self._say(job, f"{least} to {most} of {maybe} are missing, and gaps say {stretch.count}")

    # -- the timer

    def _timer(self, life: Life) -> None:
        before: Line | None = None
        for line in life.of("timer"):
            if line["type"] == "gap":
                before = None
                continue
            if before is not None:
                periods = line["last"] - line["first"] + 1
                if line["scheduled_ns"] - before["scheduled_ns"] != periods * PERIOD_NS:
                    self._say("timer", f"{line} follows {before}")
            before = line
        settled = life.settled
        if settled is not None and (
            before is None or before["scheduled_ns"] + PERIOD_NS <= settled["before_ns"]
        ):
            self._say(
                "timer", f"was due before {settled['before_ns']}, and the last that is told is {before}"
            )

    # -- processes

    def _process(self, job: str, lines: list[Line]) -> None:
        ends = [line for line in lines if line["type"] != "gap"]
        if len(ends) > 1:
            self._say(job, "ended twice")
        for line in ends:
            fate = self._truth.fates.get(job)
            if fate is None:
                self._say(job, "has not ended")
            elif line["known"] and (line["status"], line["signal"]) != fate:
                self._say(job, f"{line}, and it was {fate}")

    def _watched(self, life: Life) -> None:
        """Of every process that ended it is told, or there is a gap."""
        if life.settled is None:
            return
        for line in life.ledger:
            if (
                line.get("note") == "watched"
                and line["job"] in self._truth.fates
                and not life.of(line["job"])
            ):
                self._say(line["job"], "nothing was told of its end")

    # -- connections

    def _connections(self, lines: list[Line]) -> None:
        """Every byte that was delivered was sent, in order; what a guest read had been delivered."""
        heard: dict[str, str] = {}
        peers: dict[str, str] = {}
        for line in lines:
            key = line.get("key", "")
            match line["type"]:
                case "accepted":
                    peers[key] = line["peer"]
                    heard[line["peer"]] = ""
                    if line["peer"] not in self._truth.visits:
                        self._say("socket", f"{line['peer']} was never there")
                case "data" if key in peers:
                    heard[peers[key]] += line["data"]
                case "data":
                    self._say("socket", f"data of {key}, which was never accepted")
        for peer, data in heard.items():
            visit = self._truth.visits.get(peer, Visit())
            if not visit.sent.startswith(data) or not data.startswith(visit.read):
                self._say("socket", f"{peer} sent {visit.sent!r}, read {visit.read!r}; delivered: {data!r}")
            if visit.whole and data != visit.sent:
                self._say("socket", f"{peer} said {visit.sent!r}; delivered: {data!r}")

    # -- datagrams

    def _datagrams(self, life: Life) -> None:
        """Where drops were is not known, how many there were is: it is counted to the end."""
        first, newest, there, stretch = None, -1, 0, Stretch()
        for line in life.of("udp"):
            if line["type"] == "gap":
                stretch.add(line)
                if stretch.unknown:
                    first, there, stretch = None, 0, Stretch()
            elif line["type"] == "data":
                if not newest < line["number"] < self._truth.datagrams:
                    self._say("udp", f"datagram {line['number']} after {newest}")
                newest, there = line["number"], there + 1
                first = newest if first is None else first
        if life.settled is not None and first is not None:
            sent = self._truth.datagrams - first
            if there + stretch.count != sent:
                self._say("udp", f"{sent} since {first}, {there} delivered, gaps say {stretch.count}")

    # -- the durable job

    def _durable(self, lives: list[Life], history: list[Line]) -> None:
        """The history from the oldest on, as one who follows reads it, and what the lives were told of it."""
        at, newest, stretch = (1, 0), -1, Stretch()
        for line in history:
            here = (line["epoch"], line["first"])
            opens = line["epoch"] > at[0] and line["first"] == 1 and is_restart(line)
            if here != (at[0], at[1] + 1) and not opens:
                self._say(DURABLE, f"{here} follows {at}")
            at = (line["epoch"], line["last"])
            if line["type"] == "gap":
                stretch.add(line)
                continue
            number = line["number"]
            self._possible(DURABLE, number, newest)
            between = range(newest + 1, number)
            self._missing(DURABLE, between, between, stretch)
            newest, stretch = number, Stretch()
        rest = range(newest + 1, len(self._truth.raised))
        self._missing(DURABLE, rest, rest, stretch)
        self._answered(lives, history)

    def _answered(self, lives: list[Life], history: list[Line]) -> None:
        kept = {(line["epoch"], line["last"]): line["type"] for line in history}
        lost_from = {line["epoch"]: line["first"] for line in history if is_restart(line)}
        ends: dict[int, int] = defaultdict(int)
        for line in history:
            ends[line["epoch"]] = line["last"]
        told: dict[tuple[int, int], Line] = {}
        newest = (1, 0)
        for number, life in enumerate(lives):
            self._where = f"life {number}"
            begun = False
            for line in life.of(DURABLE):
                here = (line["epoch"], line["last"])
                if not begun and here > newest and not follows(newest, line, ends):
                    self._say(DURABLE, f"{line} is the first, and {newest} was the last of the life before")
                begun = True
                before = told.get(here)
                if before is not None and line["attempts"] <= 1 and line["type"] != "gap":
                    self._say(DURABLE, f"{here} was told before, and comes as new")
                if before is not None and before.get("number") != line.get("number"):
                    self._say(DURABLE, f"{here} was {before}, and is {line}")
                if here not in kept and here[1] <= ends[here[0]] and line["type"] != "gap":
                    self._say(DURABLE, f"{line} does not stand in the history")
                if here not in kept and line["type"] != "gap" and not any(e > here[0] for e in lost_from):
                    self._say(DURABLE, f"{line} is not kept, and nothing says so")
                told[here] = line
                newest = max(newest, here)
        if lives[-1].settled is not None:
            untold = [here for here, kind in kept.items() if kind != "gap" and here not in told]
            if untold:
                self._say(DURABLE, f"{untold} were never told to who answers")


@dataclass
class Stretch:
    """The gaps between two events."""

    count: int = 0
    unknown: bool = False

    def add(self, gap: Line) -> None:
        """One more."""
        self.count += gap["count"]
        self.unknown |= gap["count"] == 0


def follows(newest: tuple[int, int], line: Line, ends: dict[int, int]) -> bool:
    """Whether nothing of the history lies between."""
    epoch, last = newest
    if line["epoch"] == epoch:
        return bool(line["first"] <= last + 1)
    return (
        last >= ends[epoch]
        and all(not ends[e] for e in range(epoch + 1, line["epoch"]))
        and line["first"] == 1
    )


def is_restart(line: Line) -> bool:
    """A gap of unknown size, after a daemon that was killed."""
    return line["type"] == "gap" and line["cause"] == "restart"


def lines_of(text: str) -> Iterator[Line]:
    """The lines of a ledger that are whole."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
