"""The systems that are compared: how to start them, to publish and to subscribe.

Each peer runs as its users run it: Redis with its Python client and its parser in C, D-Bus with dbus-fast on
a bus of its own, aemd with its SDK. Payloads are 64 bytes, the first eight the CLOCK_MONOTONIC time of their
sending.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PAYLOAD_BYTES = 64
START_S = 20.0
Receive = Callable[[bytes], bool]  # takes a payload; false: enough

STAMP = struct.Struct("<q")


def payload() -> bytes:
    """A payload that is sent now."""
    return STAMP.pack(time.monotonic_ns()).ljust(PAYLOAD_BYTES, b"x")


class Aemd:
    """User events through aemd over gRPC."""

    name = "aemd"
    missing = ""

    @staticmethod
    @contextmanager
    def server(folder: Path) -> Iterator[str]:
        """A daemon of its own; gives its address."""
        socket = folder / "aemd.sock"
        user = [] if os.geteuid() == 0 else ["--user"]
        command = [sys.executable, "-m", "aemd", *user, "--socket", str(socket), "--state-dir", str(folder)]
        with running(command, socket):
            yield f"unix:{socket}"

    @staticmethod
    def subscribe(address: str, receive: Receive, ready: Callable[[], None]) -> None:
        """Hand every payload to `receive` until it has enough."""
        import aem

        options = aem.Options(queue_depth=65_536, queue_bytes=64 * 1024 * 1024)
        with aem.Client(address) as client:

            def handle(event: aem.UserEvent) -> None:
                if not receive(event.data):
                    client.stop()

            client.register("user", handle, options=options, channel="bench")
            ready()
            client.run_forever()

    @staticmethod
    @contextmanager
    def publisher(address: str) -> Iterator[Callable[[Sequence[bytes]], None]]:
        """Gives a function that publishes some payloads together."""
        import aem

        with aem.Client(address) as client:
            yield lambda payloads: client.raise_event("bench", *payloads, wait=False)


class Redis:
    """Redis pub/sub over a Unix socket."""

    name = "Redis pub/sub"
    missing = "" if shutil.which("redis-server") else "redis-server is not installed"

    @staticmethod
    @contextmanager
    def server(folder: Path) -> Iterator[str]:
        """A server of its own; gives its address."""
        socket = folder / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
        unlimited = ["--client-output-buffer-limit", "pubsub 0 0 0"]
        with running(["redis-server", *options, *unlimited, "--dir", str(folder)], socket):
            yield str(socket)

    @staticmethod
    def subscribe(address: str, receive: Receive, ready: Callable[[], None]) -> None:
        """Hand every payload to `receive` until it has enough."""
        import redis

        subscription = redis.Redis(unix_socket_path=address).pubsub(ignore_subscribe_messages=True)
        subscription.subscribe("bench")
        subscription.get_message(timeout=START_S)
        ready()
        for message in subscription.listen():
            if not receive(message["data"]):
                return

    @staticmethod
    @contextmanager
    def publisher(address: str) -> Iterator[Callable[[Sequence[bytes]], None]]:
        """Gives a function that publishes some payloads together: one, or a pipeline."""
        import redis

        connection = redis.Redis(unix_socket_path=address)

        def publish(payloads: Sequence[bytes]) -> None:
            if len(payloads) == 1:
                connection.publish("bench", payloads[0])
                return
            with connection.pipeline(transaction=False) as pipeline:
                for each in payloads:
                    pipeline.publish("bench", each)
                pipeline.execute()

        yield publish


class DBus:
    """D-Bus signals on a bus of their own."""

    name = "D-Bus"
    missing = "" if shutil.which("dbus-daemon") else "dbus-daemon is not installed"
    rule = "type='signal',interface='org.aemd.Bench'"

    @staticmethod
    @contextmanager
    def server(folder: Path) -> Iterator[str]:
        """A bus of its own; gives its address."""
        socket = folder / "bus.sock"
        command = ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address=unix:path={socket}"]
        with running(command, socket):
            yield f"unix:path={socket}"

    @classmethod
    def subscribe(cls, address: str, receive: Receive, ready: Callable[[], None]) -> None:
        """Hand every payload to `receive` until it has enough."""
        from dbus_fast import Message, MessageType
        from dbus_fast.aio import MessageBus

        async def listen() -> None:
            enough = asyncio.Event()
            bus = await MessageBus(bus_address=address).connect()

            def handle(message: Message) -> None:
                ours = message.message_type is MessageType.SIGNAL and message.interface == "org.aemd.Bench"
                if ours and not receive(message.body[0]):
                    enough.set()

            bus.add_message_handler(handle)
            add = {"destination": "org.freedesktop.DBus", "path": "/org/freedesktop/DBus"}
            await bus.call(
                Message(
                    **add, interface="org.freedesktop.DBus", member="AddMatch", signature="s", body=[cls.rule]
                )
            )
            ready()
            await enough.wait()
            bus.disconnect()

        asyncio.run(listen())

    @staticmethod
    @contextmanager
    def publisher(address: str) -> Iterator[Callable[[Sequence[bytes]], None]]:
        """Gives a function that publishes some payloads, and after several waits for the bus once.

        D-Bus has no batches; without the wait dbus-fast fails as soon as the socket is full.
        """
        from dbus_fast import Message
        from dbus_fast.aio import MessageBus

        loop = asyncio.new_event_loop()

        async def connect() -> MessageBus:
            return await MessageBus(bus_address=address).connect()

        bus = loop.run_until_complete(connect())

        name = "org.freedesktop.DBus"
        ask = {"destination": name, "path": "/org/freedesktop/DBus", "interface": name, "member": "GetId"}

        async def send(payloads: Sequence[bytes]) -> None:
            for each in payloads:
                bus.send(Message.new_signal("/bench", "org.aemd.Bench", "Event", "ay", [each]))
            if len(payloads) > 1:
                await bus.call(Message(**ask))
            else:
                await asyncio.sleep(0)

        yield lambda payloads: loop.run_until_complete(send(payloads))
        bus.disconnect()
        loop.close()


PEERS = {"aemd": Aemd, "redis": Redis, "dbus": DBus}


@contextmanager
def running(command: Sequence[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it listens on `socket`, and end it afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait()
