"""One run: a real daemon and a real client under traffic, and faults at points that a seed chooses.

The seed decides which faults come, in which order and after how much traffic; what the kernel's scheduler
makes of that is its own. So a seed that failed may have to be run some times: `make model SEEDS=17`.

User events, datagrams, guests and processes come from here, and what became of each is kept as the truth.
Traffic goes on while a fault is injected, for points in the middle of things are what is looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aem

from tests.integration.conftest import DaemonProcess
from tests.model.client import CHANNEL, DURABLE
from tests.model.disk import Disk
from tests.model.truth import DONE, PENDING, REFUSED, UNKNOWN, Life, Line, Truth, Verdict, Visit, lines_of

CLIENT = Path(__file__).with_name("client.py")
PATIENCE = 40  # seconds until what should come counts as not coming
LOOK_SECONDS = 0.005
PAUSE_SECONDS = 0.002
BURST = 40  # user events of one request, at most
FLOOD = 200  # while somebody does not read: more than queues hold, and more bytes than a stream takes ahead
EVENT_BYTES = 500
DATAGRAM_BYTES = 1_000
DATAGRAM_FLOOD = 600  # the kernel keeps a quarter of it
CONFIGURATION = '[limits]\nsettle_ns = "100ms"\ndrain_ns = "400ms"\n'


class Run:
    """A daemon, a client, traffic, and what happened. `faults`: names of methods, chosen from by the seed."""

    def __init__(self, seed: int, folder: str, faults: tuple[str, ...], *, steps: int = 4) -> None:
        self.choice = random.Random(seed)
        self.plan = self.choice.choices(faults, k=steps) if faults else []
        self.truth = Truth()
        self.lives: list[Life] = []
        self.history: list[Line] = []
        self._folder = folder
        self._host = f"127.{1 + os.getpid() % 250}.{1 + seed // 250 % 250}.{1 + seed % 250}"  # nobody else's
        self._disk = Disk(f"{folder}/state") if "fill_disk" in faults else None
        self._daemon = DaemonProcess(folder, *([] if os.geteuid() == 0 else ["--user"]))
        if self._disk is not None:
            self._daemon.command = self._disk.inside(self._daemon.command)  # type: ignore[method-assign]
        self._process: subprocess.Popen[str] | None = None
        self._guests = itertools.count()
        self._children: list[subprocess.Popen[bytes]] = []
        self._over = asyncio.Event()

    async def play(self) -> Verdict:
        """The whole of it."""
        os.makedirs(f"{self._folder}/etc")
        Path(f"{self._folder}/etc/aemd.toml").write_text(CONFIGURATION)
        with self._disk or contextlib.nullcontext():
            try:
                await asyncio.to_thread(self._daemon.start)
                await self._play()
                await asyncio.to_thread(self._daemon.stop)
            finally:
                self._clear()
        verdict = Verdict(self.truth, self.lives, self.history)
        verdict.faults += [line for line in self._daemon.log().splitlines() if 'fault"' in line]
        return verdict

    async def _play(self) -> None:
        async with aem.AsyncClient(self._daemon.address, label="generator") as client:
            await self._begin_life()
            work = (self._raise(client), self._send(), self._visit(), self._visit())
            traffic = [asyncio.create_task(each) for each in work]
            for name in self.plan:
                await self._after(self.choice.randrange(60))
                await getattr(self, name)()
            await self._after(20)
            self._over.set()
            for task in traffic:
                await asyncio.wait_for(task, PATIENCE)
            await self._settle(client)

    def _clear(self) -> None:
        for process in (*self._children, self._process, self._daemon.process):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(PATIENCE)

    # -- traffic

    async def _raise(self, client: aem.AsyncClient) -> None:
        while not self._over.is_set():
            burst = self.choice.choice((1, 1, 1, BURST))
            await self._raise_some(client, burst)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _raise_some(self, client: aem.AsyncClient, count: int) -> str:
        """In one request, which is done or not."""
        raised = self.truth.raised
        numbers = range(len(raised), len(raised) + count)
        raised += [PENDING] * count
        try:
            await client.raise_event(CHANNEL, *(str(number).ljust(EVENT_BYTES) for number in numbers))
            fate = DONE
        except aem.ConnectionLost:
            fate = UNKNOWN
        except aem.AemError:
            fate = REFUSED
        raised[numbers.start : numbers.stop] = [fate] * count
        return fate

    async def _after(self, count: int) -> None:
        """Go on once so many more numbers were raised."""
        wanted = len(self.truth.raised) + count
        await self._until(lambda: len(self.truth.raised) >= wanted, "traffic")

    async def _send(self) -> None:
        while not self._over.is_set():
            self._datagrams(self.choice.randrange(1, 4))
            await asyncio.sleep(5 * PAUSE_SECONDS)

    def _datagrams(self, count: int) -> None:
        port = self._port("udp")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                payload = b"%012d" % self.truth.datagrams
                sock.sendto(payload.ljust(DATAGRAM_BYTES, b"."), (self._host, port))
                self.truth.datagrams += 1

    def _port(self, job: str) -> int:
        """Where the client listens, as it was told last."""
        told = [line for line in self._told() if line.get("job") == job and line["type"] == "listening"]
        return int(told[-1]["local"].rpartition(":")[2]) if told else 9  # discard: nobody is there

    async def _visit(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                await asyncio.wait_for(self._say_some(), PATIENCE)
            await asyncio.sleep(5 * PAUSE_SECONDS)

    async def _say_some(self) -> None:
        number = next(self._guests)  # an address for each: ports come again
        source = (f"127.255.{number // 250}.{1 + number % 250}", 0)
        reader, writer = await asyncio.open_connection(self._host, self._port("socket"), local_addr=source)
        host, port = writer.get_extra_info("sockname")
        visit = self.truth.visits[f"tcp:{host}:{port}"] = Visit()
        try:
            for number in range(self.choice.randrange(1, 5)):
                visit.sent += f"line {number}\n"
                writer.write(f"line {number}\n".encode())
                visit.read += (await reader.readline()).decode()
            writer.write_eof()
            ended = not await reader.read()
            visit.whole = ended and visit.read == visit.sent
        finally:
            writer.close()

    # -- the client

    async def _begin_life(self) -> None:
        path = f"{self._folder}/ledger-{len(self.lives)}"
        command = [sys.executable, "-m", "tests.model.client", self._daemon.address, path, self._host]
        with open(f"{self._folder}/client.log", "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, text=True)
        self.lives.append(Life(len(self.truth.raised)))
        await self._until(lambda: any(line.get("note") == "ready" for line in self._told()), "the client")
        self.lives[-1].first = len(self.truth.raised)

    def _told(self) -> list[Line]:
        """What the present client has written so far."""
        with contextlib.suppress(FileNotFoundError):
            return list(lines_of(Path(f"{self._folder}/ledger-{len(self.lives) - 1}").read_text()))
        return []

    def _order(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    async def _until(self, condition: Callable[[], object], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"{what} did not come within {PATIENCE} s"
            assert self._process is None or self._process.poll() is None, self._client_log()
            await asyncio.sleep(LOOK_SECONDS)

    def _client_log(self) -> str:
        return f"the client ended: {Path(self._folder, 'client.log').read_text()}"

    # -- faults

    async def cut_by_front(self) -> None:
        """All fronts are killed."""
        for pid in self._daemon.fronts():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def cut_by_client(self) -> None:
        """The client's connection breaks."""
        self._order("cut")

    async def pause_client(self) -> None:
        """It reads nothing while more comes than its queues hold."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        await self._after(FLOOD)
        self._process.send_signal(signal.SIGCONT)

    async def cut_while_paused(self) -> None:
        """What was on its way to it is lost."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        await self._after(FLOOD)
        await self.cut_by_front()
        self._process.send_signal(signal.SIGCONT)

    async def kill_client(self) -> None:
        """Another takes its place."""
        await self._kill_client()
        if self.choice.random() < 0.5:
            await self._after(self.choice.randrange(BURST))  # only the durable job is there to hear of it
        await self._begin_life()

    async def _kill_client(self) -> None:
        assert self._process is not None
        process, self._process = self._process, None
        process.kill()
        process.communicate()
        self.lives[-1].ledger = self._told()

    async def kill_both(self) -> None:
        """Nobody remembers what was delivered and not dealt with."""
        await self._kill_client()
        await self.kill_daemon()
        await self._begin_life()

    async def pause_daemon(self) -> None:
        """It reads nothing while more comes than the kernel keeps."""
        self._daemon.signal(signal.SIGSTOP)
        self._datagrams(DATAGRAM_FLOOD)
        self._daemon.signal(signal.SIGCONT)

    async def restart(self) -> None:
        """In order."""
        await asyncio.to_thread(self._daemon.stop)
        await self._between()

    async def kill_daemon(self) -> None:
        """At whatever it does."""
        await asyncio.to_thread(self._daemon.kill)
        await self._between()

    async def _between(self) -> None:
        if self.choice.random() < 0.3:
            await self.end_process()
        if self._disk is not None:
            self._disk.empty()
        await asyncio.to_thread(self._daemon.start)

    async def restart_while_paused(self) -> None:
        """The client neither reads nor says goodbye to the daemon that ends."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        await self._after(BURST)
        await self.restart()
        self._process.send_signal(signal.SIGCONT)

    async def fill_disk(self) -> None:
        """Nothing can be written, or something again."""
        assert self._disk is not None
        if self._disk.full:
            self._disk.empty()
        else:
            self._disk.fill()
        await self._after(BURST)

    async def begin_process(self) -> None:
        """One more whose end the client waits for."""
        child = subprocess.Popen(["/bin/sh", "-c", "read status; exit $status"], stdin=subprocess.PIPE)
        self._children.append(child)
        self._order(f"watch {child.pid}")
        name = f"process {child.pid}"
        await self._until(lambda: any(line.get("job") == name for line in self._told()), "the registration")

    async def end_process(self) -> None:
        """It exits, or is killed."""
        if not self._children:
            return
        child = self._children.pop()
        status = self.choice.randrange(256)
        if status % 4:
            child.communicate(b"%d\n" % status)
        else:
            child.kill()
            child.communicate()
        ended = child.returncode
        self.truth.fates[f"process {child.pid}"] = (max(ended, 0), max(-ended, 0))

    # -- the end

    async def _settle(self, client: aem.AsyncClient) -> None:
        """Everything that can still come has come; then it is read what the durable job keeps."""
        if self._disk is not None:
            self._disk.empty()
        while self._children:
            await self.end_process()
        self._datagrams(1)  # drops are counted when something is read
        while await self._raise_some(client, 1) != DONE:
            pass
        self._order("settle")
        await self._until(lambda: any(line.get("note") == "settled" for line in self._told()), "the end")
        life = self.lives[-1]
        life.ledger = self._told()
        life.settled = next(line for line in life.ledger if line.get("note") == "settled")
        assert self._process is not None
        process, self._process = self._process, None
        await asyncio.to_thread(process.communicate, timeout=PATIENCE)
        assert process.returncode == 0, self._client_log()
        await asyncio.wait_for(self._read_history(client), PATIENCE)

    async def _read_history(self, client: aem.AsyncClient) -> None:
        last = len(self.truth.raised) - 1
        async for entry in client.follow(DURABLE, start_from="oldest"):
            line: Line = {"epoch": entry.epoch, "first": entry.first, "last": entry.seq}
            if isinstance(entry, aem.Gap):
                line |= {"type": "gap", "cause": entry.cause, "count": entry.count, "stage": entry.stage}
            else:
                line |= {"type": entry.type, "number": int(entry.data)}
            self.history.append(line)
            if line.get("number") == last:
                return
