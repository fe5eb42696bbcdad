"""`make soak`: whether anything grows. A day of the core under a simulated clock, then a daemon under load.

The day: sessions that come, are cut, come back, lapse and go, each with jobs that fire; counted are the
objects of the process at the same point of every hour. The real part: clients that stay and clients that
come and go, with timers, user events, connections, processes and a durable job; looked at are the memory and
the descriptors of core, fronts and deputy. Memory is that of no file, proportionally: what they share with
each other is divided. How much of a file's they have depends on which other interpreters run on the machine.

Flat means: the straight line through what was seen after the warm-up rises by less than the bound until the
end. Exit code 1 if anything is not flat. Figures go to stderr as they come; the verdict to stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import aem

from aemd.core.engine import Engine
from aemd.core.limits import SECOND, Limits
from aemd.core.now import Now
from aemd.core.principal import Owner, Principal
from aemd.core.session import Session
from aemd.core.traits import Traits
from aemd.v1 import job_pb2
from benchmarks.peers import Aemd
from benchmarks.quick import table

SECONDS_DEFAULT = 600
LOOKS = 60  # of the real part
WARM_UP = 1 / 3  # of what was seen: caches, arenas and tables reach their size
WARM_UP_SECONDS = 60.0  # under load before anything is looked at; a third of a short run is less
KIB = 1024
MEMORY_RISE_MAX = 0.03  # of the mean; an allocator's grain is above a hundredth
DESCRIPTORS_RISE_MAX = 4.0  # how many clients are there at a look is chance
OBJECTS_RISE_MAX = 0.01
HOURS, HOUR_SECONDS = 24, 3_600
SESSIONS = 20  # at a time
VISITORS = 4  # at a time
EVENTS_PER_SECOND = 200
MODULES = (Traits("queues"), Traits("levels", coalesce=True), Traits("replies", replies=True, keyed=True))


def rise(seen: Sequence[float]) -> float:
    """By how much the straight line through it rises, after the warm-up."""
    judged = seen[int(len(seen) * WARM_UP) :]
    slope, _ = statistics.linear_regression(range(len(judged)), judged)
    return slope * (len(judged) - 1)


# The simulated day.


class Day:
    """One core, and clients that come and go by a seeded choice."""

    def __init__(self, seed: int) -> None:
        tokens = itertools.count(1)
        self.engine = Engine(Limits(), new_token=lambda: next(tokens).to_bytes(16, "big"))
        self.now = Now(SECOND, 10**18)
        self._choice = random.Random(seed)
        self._pids = itertools.count(1_000)
        self._sessions: list[Session] = []
        self.events = 0

    def second(self) -> None:
        """One second: somebody comes, is cut, comes back, or goes; jobs fire; who is there reads."""
        self.now = Now(self.now.mono_ns + SECOND, self.now.real_ns + SECOND)
        engine, choice = self.engine, self._choice
        engine.tick(self.now)
        if len(self._sessions) < SESSIONS:
            self._come()
        session = choice.choice(self._sessions)
        what = choice.random()
        if what < 0.2:
            engine.lose_stream(session, self.now)
        elif what < 0.25:
            engine.end_process(session.principal.pid, 1, self.now)
        elif what < 0.3:
            engine.end_session(session, "it says goodbye", self.now)
        for other in self._sessions:
            if not other.connected and not other.ended and choice.random() < 0.1:  # else its lease ends
                engine.resume_session(
                    other.token, other.principal, positions={}, credit=(1_000, 1 << 20), now=self.now
                )
                for binding in other.bindings:
                    engine.grant(other, binding, 1_000, 1 << 20)
        self._work()
        engine.take_effects()
        self._sessions = [each for each in self._sessions if not each.ended]

    def _come(self) -> None:
        owner = Owner(1_000 + self._choice.randrange(5))
        principal = Principal(owner, 1_000, (), next(self._pids), 1, administrator=False)
        session = self.engine.open_session(principal, label="", sdk="", credit=(1_000, 1 << 20), now=self.now)
        for module in MODULES:
            job = self.engine.register(
                session, module=module, values={}, params=None, label="",
                options=job_pb2.Options(queue_depth=8, attempts_max=2), credit=(4, 4_096), now=self.now,
            )  # fmt: skip
            self.engine.start(job, self.now)
        self._sessions.append(session)

    def _work(self) -> None:
        engine, choice = self.engine, self._choice
        for session in self._sessions:
            for binding in list(session.bindings.values()):
                for number in range(choice.randrange(3)):
                    engine.fire(binding.job, b"event", key=b"%d" % number)
                    self.events += 1
            engine.take_ready()
            while engine.collect(session, 1 << 20) is not None:
                pass
            if not session.connected or choice.random() < 0.3:  # it is slow
                continue
            for binding in list(session.bindings.values()):
                for last in list(binding.unacked or ()):
                    engine.complete(
                        session, binding.id, binding.epoch, last, error=None, reply=None, now=self.now
                    )
                engine.grant(session, binding.id, 4, 4_096)
            engine.grant(session, 0, 16, 1 << 16)

    def end(self) -> bool:
        """Everybody goes; whether nothing is left of them."""
        for session in self._sessions:
            self.engine.end_session(session, "the day is over", self.now)
        self.engine.take_effects()
        return self.engine.next_deadline_ns() is None and not self.engine.accounts.in_use()


def simulate() -> bool:
    """The day; whether it was flat."""
    day, objects = Day(seed=1), []
    for hour in range(HOURS):
        for _ in range(HOUR_SECONDS):
            day.second()
        gc.collect()
        objects.append(float(len(gc.get_objects())))
        say(f"hour {hour + 1:2}: {day.events:,} events, {objects[-1]:,.0f} objects")
    nothing_left = day.end()
    rose = rise(objects) / statistics.mean(objects)
    flat = rose < OBJECTS_RISE_MAX and nothing_left
    print(
        f"simulated: {HOURS} hours, {day.events:,} events; objects rose by {rose:.2%}"
        f" (bound {OBJECTS_RISE_MAX:.0%}); {'nothing' if nothing_left else 'SOMETHING'} was left at the end:"
        f" {'flat' if flat else 'NOT FLAT'}"
    )
    return flat


# The real daemon.


class Visit:
    """A client that comes, has one of everything, and goes: politely, or by losing its connection."""

    def __init__(self, address: str, folder: str, number: int) -> None:
        self._address = address
        self._path = f"{folder}/visit-{number}"
        self._number = number

    async def make(self) -> None:
        """Come and go."""
        client = aem.AsyncClient(self._address, label=f"visitor-{self._number}", reconnect=False)
        listening, ended = asyncio.Event(), asyncio.Event()
        ports: list[int] = []

        def serve(event: aem.SocketEvent) -> bytes | aem.Reply | None:
            if event.type == "listening":
                ports.append(int(event.local.rpartition(":")[2]))
                listening.set()
            if event.type == "data":
                return event.data
            return aem.Reply("close") if event.type == "end" else None

        channel = f"visit-{self._number}"
        heard: list[object] = []
        await client.register("socket", heard.append, listen=f"unix:{self._path}")  # the deputy's work
        await client.register("socket", serve, listen="tcp:127.0.0.1:0")
        await client.register("timer", heard.append, every="50ms")
        await client.register("user", heard.append, channel=channel)
        running = asyncio.create_task(client.run())
        child = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
        assert child.stdin is not None
        await client.register("process", lambda _: ended.set(), pid=child.pid)
        await listening.wait()
        for _ in range(3):
            await client.raise_event(channel, b"x" * 1_000)
            await guest(ports[0])
        await client.status()
        child.stdin.close()
        await ended.wait()
        await child.wait()
        client.stop()
        await running
        await client.close()
        assert len(heard) >= 4, heard  # the path, and what it raised


async def guest(port: int) -> None:
    """Says a line, reads it, and leaves."""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"line\n")
        await reader.readline()
        writer.close()


async def visits(address: str, folder: str, numbers: Iterator[int], over: asyncio.Event) -> None:
    """One visit after the other."""
    while not over.is_set():
        await Visit(address, folder, next(numbers)).make()


async def raises(client: aem.AsyncClient, over: asyncio.Event) -> None:
    """A stream of user events, for one who stays and for a durable job."""
    while not over.is_set():
        for _ in range(10):
            await client.raise_event("load", os.urandom(64))
        await asyncio.sleep(10 / EVENTS_PER_SECOND)


class Parts:
    """The processes of a daemon, and what they hold now."""

    def __init__(self, core: int) -> None:
        self._core = core

    def look(self) -> dict[str, tuple[float, float]]:
        """By name: memory in KiB, and descriptors."""
        children = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in _children(self._core)}
        zygotes = [pid for pid, name in children.items() if name == "aemd-zygote"]
        groups = {
            "core": [self._core],
            "fronts": [*zygotes, *(front for pid in zygotes for front in _children(pid))],
            "deputy": [pid for pid in children if pid not in zygotes],
        }
        return {
            name: (self._sum(_anonymous_kib, pids), self._sum(_descriptors, pids))
            for name, pids in groups.items()
        }

    @staticmethod
    def _sum(of: Callable[[int], float], pids: list[int]) -> float:
        total = 0.0
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                total += of(pid)
        return total


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _anonymous_kib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return float(line.split()[1])
    return 0.0


def _descriptors(pid: int) -> float:
    return float(len(os.listdir(f"/proc/{pid}/fd")))


async def load(address: str, folder: str, seconds: float) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """Load for so long; what was seen of each part, and how many came and went."""
    over, numbers = asyncio.Event(), itertools.count(1)
    seen: dict[str, list[tuple[float, float]]] = {}
    async with aem.AsyncClient(address, label="stays") as client:
        heard = itertools.count()

        @client.on("user", channel="load")
        def hear(_event: aem.UserEvent) -> None:
            next(heard)

        await client.durable("soak", "user", lambda _: None, channel="load", keep=aem.Keep(entries=1_000))
        parts = Parts((await client.status()).pid)
        tasks = [asyncio.create_task(visits(address, folder, numbers, over)) for _ in range(VISITORS)]
        tasks += [asyncio.create_task(raises(client, over)), asyncio.create_task(client.run())]
        say(f"{WARM_UP_SECONDS:.0f} s to warm up")
        await asyncio.sleep(WARM_UP_SECONDS)
        begin = time.monotonic()
        for look in range(1, LOOKS + 1):
            await asyncio.sleep(begin + look * seconds / LOOKS - time.monotonic())
            found = await asyncio.to_thread(parts.look)
            for name, figures in found.items():
                seen.setdefault(name, []).append(figures)
            held = ", ".join(
                f"{name} {kib / KIB:.1f} MiB {count:.0f} fds" for name, (kib, count) in found.items()
            )
            say(f"{look * seconds / LOOKS:5.0f} s: {next(heard):,} events heard, {held}")
            for task in tasks:
                if task.done():
                    task.result()  # what went wrong
        over.set()
        await asyncio.gather(*tasks[:-1])
        client.stop()
        await tasks[-1]
    return seen, next(numbers) - 1


def soak(seconds: float) -> bool:
    """The real part; whether it was flat."""
    with tempfile.TemporaryDirectory(prefix="aemd-soak-") as folder, Aemd.server(Path(folder)) as address:
        seen, visitors = asyncio.run(load(address, folder, seconds))
    rows, all_flat = [], True
    for name, figures in seen.items():
        memory, descriptors = ([each[which] for each in figures] for which in (0, 1))
        memory_rise, descriptors_rise = rise(memory) / statistics.mean(memory), rise(descriptors)
        flat = memory_rise < MEMORY_RISE_MAX and descriptors_rise < DESCRIPTORS_RISE_MAX
        all_flat &= flat
        rows.append(
            [name, f"{memory[0] / KIB:.1f}", f"{memory[-1] / KIB:.1f}", f"{memory_rise:+.2%}",
             f"{statistics.mean(descriptors):.0f}", f"{descriptors_rise:+.1f}", "yes" if flat else "NO"]
        )  # fmt: skip
    head = ["", "first MiB", "last MiB", "rise", "descriptors", "rise", "flat"]
    table(f"{seconds:.0f} s under load, {visitors:,} clients came and went", head, rows)
    return all_flat


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main(seconds: str = str(SECONDS_DEFAULT)) -> int:
    """Simulate, load, judge."""
    simulated = simulate()
    return 0 if soak(float(seconds)) and simulated else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
