"""A crowd of clients, run inside the box: timers, user events and sockets, and nothing done for resuming.

    crowd.py ADDRESS CLIENTS NAME

Each client has a timer, listens to a channel on which a task beside it raises numbers, and echoes lines on a
TCP port to guests: one that comes and goes, and one that stays as long as it is let.

For each line on standard input one is printed, as soon as every client is connected and has seen a timer
expire since. When standard input ends nothing more is raised; what was raised is waited for, and one JSON
object is printed: what each client has seen.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import sys
from typing import Any

import aem

PERIOD_NS = 100_000_000
PAUSE_SECONDS = 0.05  # between two raises, or two guests
PATIENCE = 20


class Ledger:
    """Holds what came of one job against its numbers."""

    def __init__(self) -> None:
        self.events = 0
        self.stimuli = 0
        self.faults: list[str] = []  # numbers that are missing, or came twice
        self.gaps: list[dict[str, Any]] = []
        self._job = 0
        self._at = (0, 0)

    def note(self, event: Any) -> None:
        """An event or a gap, as the handler got it."""
        job = event.job.id
        if isinstance(event, aem.Gap):
            gap = {"cause": event.cause, "count": event.count, "stage": event.stage, "events": self.events}
            self.gaps.append(gap)
            if event.cause == "restart" and event.epoch == self._at[0] + 1:
                self._at = (event.epoch, 0)  # a daemon was killed
        else:
            self.events += 1
            self.stimuli += event.count
        if self._job not in (job, 0):
            self.faults.append(f"job {self._job} became {job} without a gap")
        epoch, last = self._at
        if self._job and (event.epoch != epoch or event.first != last + 1):
            self.faults.append(f"{event.epoch}:{event.first} after {epoch}:{last}")
        elif not self._job and event.first != 1:
            self.faults.append(f"begins with {event.epoch}:{event.first}")
        self._job, self._at = job, (event.epoch, event.seq)

    def report(self) -> dict[str, Any]:
        """For the test."""
        return {"events": self.events, "stimuli": self.stimuli, "faults": self.faults, "gaps": self.gaps}


class Member:
    """One client, its jobs and its guests."""

    def __init__(self, address: str, name: str) -> None:
        self.client = aem.AsyncClient(address, label=name)
        self.channel = name
        self.ledgers = {"timer": Ledger(), "user": Ledger(), "socket": Ledger()}
        self.jobs: list[aem.AsyncJob] = []
        self.ids: list[list[int]] = []
        self.expired: list[tuple[int, int]] = []  # (events before it, when it was to expire)
        self.raised = 0
        self.seen: list[int] = []
        self.unknown: dict[int, str] = {}  # raised, and nobody said whether that was done
        self.port = 0
        self.open: dict[bytes, None] = {}
        self.closed: collections.Counter[str] = collections.Counter()
        self.strange: list[str] = []
        self.guests: collections.Counter[str] = collections.Counter()
        self.stayed = 0  # guests who did not leave by themselves
        self.ticked = asyncio.Event()
        self.over = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Register, and begin to work."""
        register = self.client.register
        self.jobs = [
            await register("timer", self.tick, every=PERIOD_NS, on_gap=self.ledgers["timer"].note),
            await register("user", self.hear, channel=self.channel, on_gap=self.ledgers["user"].note),
            await register("socket", self.serve, listen="tcp:127.0.0.1:0", on_gap=self.socket_gap),
        ]
        self.note_ids()
        work = (self.client.run(), self.raise_numbers(), self.come_and_go(), self.stay())
        self.tasks = [asyncio.create_task(each) for each in work]

    def note_ids(self) -> None:
        """Which jobs there are now."""
        ids = [job.id for job in self.jobs]
        if not self.ids or self.ids[-1] != ids:
            self.ids.append(ids)

    # -- handlers

    def tick(self, event: aem.TimerEvent) -> None:
        """The timer."""
        self.ledgers["timer"].note(event)
        self.expired.append((self.ledgers["timer"].stimuli, event.scheduled_ns))
        self.ticked.set()

    def hear(self, event: aem.UserEvent) -> None:
        """A number that was raised."""
        self.ledgers["user"].note(event)
        self.seen.append(int(event.data))

    def serve(self, event: aem.SocketEvent) -> bytes | aem.Reply | None:
        """The guests' host."""
        self.ledgers["socket"].note(event)
        match event.type:
            case "listening":
                self.port = int(event.local.rpartition(":")[2])
            case "accepted":
                if event.key in self.open:
                    self.strange.append(f"{event.key.hex()} accepted twice")
                self.open[event.key] = None
            case "data":
                return event.data
            case "end":
                return aem.Reply("close")
            case "closed":
                if event.key not in self.open:
                    self.strange.append(f"{event.key.hex()} closed, and was not open")
                self.open.pop(event.key, None)
                self.closed[event.payload.reason] += 1
        return None

    def socket_gap(self, gap: aem.Gap) -> None:
        """After a restart that is not proven nothing is known of the connections."""
        self.ledgers["socket"].note(gap)
        self.open.clear()

    # -- work

    async def raise_numbers(self) -> None:
        """Raise one number after the other."""
        while not self.over.is_set():
            try:
                await self.client.raise_event(self.channel, str(self.raised))
            except aem.AemError as error:
                self.unknown[self.raised] = f"{error.reason}: {error.message}"
            self.raised += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def come_and_go(self) -> None:
        """Guests who say one line, and read it."""
        while not self.over.is_set():
            self.guests[await self.visit(stay=False)] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def stay(self) -> None:
        """A guest who does not leave, and says a line from time to time."""
        while not self.over.is_set():
            self.stayed += 1
            await self.visit(stay=True)
            await asyncio.sleep(PAUSE_SECONDS)

    async def visit(self, *, stay: bool) -> str:
        """How it went; empty: well."""
        while not self.port:
            await self.ticked.wait()
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:
            return f"connect: {error}"
        try:
            writer.write(b"line\n")
            answer = await reader.readline()
            while stay and answer == b"line\n" and not self.over.is_set():
                await asyncio.sleep(PAUSE_SECONDS)
                writer.write(b"line\n")
                answer = await reader.readline()
            return "" if answer == b"line\n" else "cut"
        except OSError:
            return "cut"
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def end(self) -> dict[str, Any]:
        """Raise nothing more, see what was raised, and tell."""
        self.over.set()
        runs, *others = self.tasks
        await asyncio.wait(others, timeout=PATIENCE)
        missing = set(range(self.raised)) - set(self.unknown)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while (missing and max(missing) > max(self.seen, default=-1)) or self.open:
                    await asyncio.sleep(PAUSE_SECONDS)
        self.note_ids()
        self.client.stop()
        await runs
        report = self.report()
        await self.client.close()
        return report

    def report(self) -> dict[str, Any]:
        """What was seen."""
        return {
            "jobs": self.ids,
            "ledgers": {name: ledger.report() for name, ledger in self.ledgers.items()},
            "expired": [self.expired[0], self.expired[-1]],
            "raised": self.raised,
            "seen": self.seen,
            "unknown": self.unknown,
            "open": len(self.open),
            "closed": self.closed,
            "strange": self.strange,
            "guests": self.guests,
            "stayed": self.stayed,
        }


class Returns(logging.Handler):
    """Counts how clients came back: to the session that they had, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.resumed = 0
        self.anew = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See the log of the SDK."""
        text = record.getMessage()
        if text.startswith("connection is back"):
            if text == "connection is back":
                self.resumed += 1
            else:
                self.anew += 1


async def everybody_is_there(members: list[Member]) -> None:
    """Every client has seen a timer expire, from now on."""
    for member in members:
        member.ticked.clear()
    for member in members:
        await member.ticked.wait()
        member.note_ids()


async def main() -> None:
    """See above."""
    address, count, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    returns = Returns()
    log = logging.getLogger("aem")
    log.addHandler(returns)
    log.setLevel(logging.INFO)
    log.propagate = False
    members = [Member(address, f"{name}-{number}") for number in range(count)]
    for member in members:
        await member.begin()
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while await lines.readline():
        async with asyncio.timeout(PATIENCE):
            await everybody_is_there(members)
        print(json.dumps({"resumed": returns.resumed, "anew": returns.anew}), flush=True)
    reports = await asyncio.gather(*(member.end() for member in members))
    print(json.dumps({"resumed": returns.resumed, "anew": returns.anew, "members": reports}))


if __name__ == "__main__":
    asyncio.run(main())
