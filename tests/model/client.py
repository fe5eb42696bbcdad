"""The client of a run, as a program of its own: it may be stopped, cut off or killed at any point.

    client.py ADDRESS LEDGER HOST

It has a timer, user events acknowledged and not, a durable job that it answers for, a TCP echo and a datagram
socket on HOST, and does nothing for resuming. What a handler is called with goes to the ledger first, in one
write: what stands there was delivered, however the program ends.

Orders come as lines on standard input: `watch PID`; `cut` its connections; `settle`: note the time, have all
jobs synced, wait until nothing is in flight, and say so in the ledger. At the end of input it says goodbye.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import aem

CHANNEL = "numbers"
DURABLE = "kept"
PERIOD_NS = 20_000_000
DEPTH = 64
LOOK_SECONDS = 0.01


class Client:
    """The client, and its jobs."""

    def __init__(self, address: str, ledger: str, host: str) -> None:
        self.path = address.removeprefix("unix:")
        self.host = host
        self.client = aem.AsyncClient(address, label="model")
        self.jobs: dict[str, aem.AsyncJob] = {}
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **line: Any) -> None:
        """One line, whole."""
        os.write(self._ledger, json.dumps(line).encode() + b"\n")

    def noting(
        self, job: str, what: Callable[[Any], dict[str, Any]], answer: Callable[[Any], Any] = lambda _: None
    ) -> Callable[[Any], Any]:
        """A handler that notes `what` of an event."""

        def handle(event: aem.Event) -> Any:
            self.write(job=job, type=event.type, attempts=event.attempts, **_place(event), **what(event))
            return answer(event)

        return handle

    def gap_of(self, job: str) -> Callable[[aem.Gap], None]:
        """A handler that notes gaps."""

        def handle(gap: aem.Gap) -> None:
            loss = {"stage": gap.stage, "cause": gap.cause, "count": gap.count}
            self.write(job=job, type="gap", attempts=1, **_place(gap), **loss)

        return handle

    async def begin(self) -> None:
        """Register everything."""
        few = aem.Options(queue_depth=DEPTH, credit_events=16)
        once = aem.Options(queue_depth=DEPTH, acknowledgement=aem.Acknowledgement.NONE)
        wide = aem.Options(queue_depth=DEPTH)
        numbered = {"what": lambda event: {"number": int(event.data)}}
        await self.add("timer", lambda event: {"scheduled_ns": event.scheduled_ns}, every=PERIOD_NS)
        await self.add("user", **numbered, options=few, channel=CHANNEL)
        await self.add("once", **numbered, module="user", options=once, channel=CHANNEL)
        await self.add("socket", _connection, _echo, listen=f"tcp:{self.host}:0")
        await self.add("udp", _datagram, module="socket", options=wide, listen=f"udp:{self.host}:0")
        self.jobs[DURABLE] = await self.client.durable(
            DURABLE,
            "user",
            self.noting(DURABLE, numbered["what"]),
            on_gap=self.gap_of(DURABLE),
            channel=CHANNEL,
        )
        self.write(note="ready")

    async def add(
        self,
        name: str,
        what: Callable[[Any], dict[str, Any]],
        answer: Callable[[Any], Any] = lambda _: None,
        *,
        module: str = "",
        **more: Any,
    ) -> None:
        """Register a job that is called `name` in the ledger."""
        handler, on_gap = self.noting(name, what, answer), self.gap_of(name)
        self.jobs[name] = await self.client.register(module or name, handler, on_gap=on_gap, **more)

    # -- orders

    async def obey(self, order: str) -> None:
        """Do what a line says."""
        match order.split():
            case ["watch", pid]:
                await self.watch(pid)
            case ["cut"]:
                self.cut()
            case ["settle"]:
                await self.settle()

    async def watch(self, pid: str) -> None:
        """Register for the end of a process."""
        name = f"process {pid}"

        def fate(event: aem.ProcessEvent) -> dict[str, Any]:
            return {"known": event.known, "status": event.exit_status, "signal": event.signal}

        try:
            await self.add(name, fate, module="process", pid=int(pid))
        except aem.AemError as error:
            self.write(note="not watched", job=name, reason=error.reason)
        else:
            self.write(note="watched", job=name)

    def cut(self) -> None:
        """Break the connections to the daemon, as if by accident."""
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family == socket.AF_UNIX and sock.getpeername() == self.path:
                    sock.shutdown(socket.SHUT_RDWR)

    async def settle(self) -> None:
        """Everything until now has been delivered, and dealt with."""
        before_ns = time.monotonic_ns()
        for job in self.jobs.values():
            while job.state != "GONE":
                try:
                    await job.sync()
                    stats = await job.stats()
                except aem.AemError as error:
                    if job.state == "GONE" or error.code in (aem.Code.NOT_FOUND, aem.Code.UNAVAILABLE):
                        await asyncio.sleep(LOOK_SECONDS)  # it ends, or comes back, and that is told
                        continue
                    raise
                if not (stats.in_flight or stats.queued):
                    break
                await asyncio.sleep(LOOK_SECONDS)
        states = {name: job.state for name, job in self.jobs.items()}
        self.write(note="settled", before_ns=before_ns, states=states)


def _place(event: aem.Event | aem.Gap) -> dict[str, int]:
    return {"epoch": event.epoch, "first": event.first, "last": event.seq}


def _connection(event: aem.SocketEvent) -> dict[str, Any]:
    found = {"key": event.key.hex(), "peer": event.peer, "data": event.data.decode()}
    return {**found, "local": event.local, "reason": event.reason}


def _echo(event: aem.SocketEvent) -> bytes | aem.Reply | None:
    if event.type == "data":
        return event.data
    return aem.Reply("close") if event.type == "end" else None


def _datagram(event: aem.SocketEvent) -> dict[str, Any]:
    if event.type != "data":
        return {"local": event.local}
    return {"number": int(event.data[:12]), "local": event.local}


async def main() -> None:
    """See above."""
    client = Client(*sys.argv[1:])
    await client.begin()
    running = asyncio.create_task(client.client.run())
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await lines.readline():
        await client.obey(line.decode())
    client.client.stop()
    await running
    await client.client.close()


if __name__ == "__main__":
    asyncio.run(main())
