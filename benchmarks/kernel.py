"""A kernel event, here a datagram, on its way to a handler in another program.

Through aemd, which reads and delivers it; and as it is done without aemd: an agent of one's own reads it and
emits a signal on D-Bus. Everybody is a process of his own, and the datagrams come from this one.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.peers import DBus, Receive, payload
from benchmarks.pubsub import LATENCY_EVENTS, LATENCY_GAP_S, LIMIT_S, Figures, collect

DATAGRAM_BYTES = 2_048


class Aemd:
    """A job of module `socket`."""

    name = "aemd"
    peer = "aemd"
    agent = None

    @staticmethod
    def subscribe(address: str, port: int, receive: Receive, ready: Callable[[], None]) -> None:
        """Hand every datagram to `receive` until it has enough."""
        import aem

        with aem.Client(address) as client:

            def handle(event: aem.SocketEvent) -> None:
                if event.type == "listening":
                    ready()
                elif not receive(event.data):
                    client.stop()

            client.register("socket", handle, listen=f"udp:127.0.0.1:{port}")
            client.run_forever()


class DBusFast:
    """An agent on asyncio and dbus-fast, and a subscriber of the same kind."""

    name = "agent, D-Bus (dbus-fast)"
    peer = "dbus"

    @staticmethod
    def agent(address: str, port: int, ready: Callable[[], None]) -> None:
        """Make every datagram a signal."""
        from dbus_fast import Message
        from dbus_fast.aio import MessageBus

        async def serve() -> None:
            bus = await MessageBus(bus_address=address).connect()

            class Protocol(asyncio.DatagramProtocol):
                def datagram_received(self, data: bytes, _: object) -> None:
                    bus.send(Message.new_signal("/bench", "org.aemd.Bench", "Event", "ay", [data]))

            here = ("127.0.0.1", port)
            await asyncio.get_running_loop().create_datagram_endpoint(Protocol, local_addr=here)
            ready()
            await asyncio.get_running_loop().create_future()

        asyncio.run(serve())

    @staticmethod
    def subscribe(address: str, _port: int, receive: Receive, ready: Callable[[], None]) -> None:
        """Hand every signal's bytes to `receive` until it has enough."""
        DBus.subscribe(address, receive, ready)


class Jeepney:
    """An agent and a subscriber that block in sockets, in Python alone."""

    name = "agent, D-Bus (jeepney)"
    peer = "dbus"

    @staticmethod
    def agent(address: str, port: int, ready: Callable[[], None]) -> None:
        """Make every datagram a signal."""
        from jeepney import DBusAddress, new_signal
        from jeepney.io.blocking import open_dbus_connection

        emitter = DBusAddress("/bench", interface="org.aemd.Bench")
        with open_dbus_connection(bus=address) as bus, _bound(port) as sock:
            ready()
            while True:
                bus.send(new_signal(emitter, "Event", "ay", (sock.recv(DATAGRAM_BYTES),)))

    @staticmethod
    def subscribe(address: str, _port: int, receive: Receive, ready: Callable[[], None]) -> None:
        """Hand every signal's bytes to `receive` until it has enough."""
        from jeepney import HeaderFields, message_bus
        from jeepney.io.blocking import open_dbus_connection

        with open_dbus_connection(bus=address) as bus:
            bus.send_and_get_reply(message_bus.AddMatch(DBus.rule))
            ready()
            while True:
                message = bus.receive()
                ours = message.header.fields.get(HeaderFields.interface) == "org.aemd.Bench"
                if ours and not receive(message.body[0]):
                    return


WAYS = {"aemd": Aemd, "dbus-fast": DBusFast, "jeepney": Jeepney}


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    return sock


def _start(stack: ExitStack, role: str, *arguments: str) -> subprocess.Popen[str]:
    """Run this file in that role until it is ready."""
    command = [sys.executable, "-m", "benchmarks.kernel", role, *arguments]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"{role} {arguments[0]} did not start")
    return process


def measure(way: str, address: str) -> Figures:
    """Send datagrams, one a millisecond."""
    with _bound(0) as probe:
        port: int = probe.getsockname()[1]
    with ExitStack() as stack:
        if WAYS[way].agent is not None:
            _start(stack, "agent", way, address, str(port))
        subscriber = _start(stack, "subscribe", way, address, str(port))
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect(("127.0.0.1", port))
        due = time.monotonic()
        for _ in range(LATENCY_EVENTS):
            sock.send(payload())
            due += LATENCY_GAP_S
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
        output, _ = subscriber.communicate(timeout=LIMIT_S)
    return Figures(**json.loads(output))


def main(role: str, way: str, address: str, port: int) -> None:
    """Be the agent or the subscriber."""

    def ready() -> None:
        print("ready", flush=True)

    if role == "agent":
        WAYS[way].agent(address, port, ready)
    else:
        collect(LATENCY_EVENTS, lambda receive: WAYS[way].subscribe(address, port, receive, ready))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
