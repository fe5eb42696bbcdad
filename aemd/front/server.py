"""A front: one asyncio loop, one grpc.aio server, one link.

One loop only: several grpc.aio loops in a process disturb each other. asyncio's own, because uvloop brings
grpc.aio nothing.

The keepalive options are those under which clients in other languages stay connected when idle: Go and Node
ping as often as they like, and gRPC's defaults would answer with GOAWAY `too_many_pings`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import google.rpc.error_details_pb2
import google.rpc.status_pb2  # noqa: F401
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from aemd import link
from aemd.front import sandbox
from aemd.front.memory import Memory
from aemd.front.relay import Relay
from aemd.front.rpc import Methods, find_services
from aemd.front.uplink import Uplink
from aemd.link import Cut, Frame, Kind

STREAMS_PER_CONNECTION = 4_096
DATA_SHARE = 2  # RLIMIT_DATA counts stacks and reserves, which are not resident
FINISH_CALLS_SECONDS = 0.4  # at the end: for calls to be answered and trailers to be written,
SETTLE_SECONDS = 0.05  # for gRPC to see what has passed; what it sees later it would cancel
FINISH_SERVER_SECONDS = 0.3  # connections to be ended in order,
FINISH_RELAY_SECONDS = 0.2  # and the last bytes to be piped
_LOOK_SECONDS = 0.01

SERVICES = find_services()  # here, because after the lock-up nothing can be imported


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a front keeps to."""

    message_bytes: int
    front_bytes: int  # memory, resident; when it has more it is replaced


def options(message_bytes: int) -> list[tuple[str, int]]:
    """Channel arguments of gRPC. A longer message is refused with RESOURCE_EXHAUSTED."""
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def run(
    link_sock: socket.socket,
    descriptors: socket.socket,
    *,
    folder: bytes,
    bounds: Bounds,
    lodger: sandbox.Lodger | None,
) -> None:
    """Lock up, then serve until the core is gone."""
    cell = sandbox.enter(folder, lodger, data_bytes=DATA_SHARE * bounds.front_bytes)
    asyncio.run(_serve(link_sock, descriptors, cell, bounds))


async def _serve(
    link_sock: socket.socket,
    descriptors: socket.socket,
    cell: sandbox.Cell,
    bounds: Bounds,
) -> None:
    await _Server(link_sock, descriptors, cell, bounds).serve()


class _Server:
    def __init__(
        self,
        link_sock: socket.socket,
        descriptors: socket.socket,
        cell: sandbox.Cell,
        bounds: Bounds,
    ) -> None:
        memory = Memory(bounds.front_bytes)
        self._over = asyncio.Event()
        self._told = False  # by the core, which is still there
        self._health = health.aio.HealthServicer()
        self._cell = cell
        self._uplink = Uplink(link_sock, control=self._control, gone=self._over.set, moved=memory.moved)
        self._relay = Relay(descriptors, address=cell.connect, closed=self._closed, moved=memory.moved)
        memory.full = self._full
        self._methods = Methods(self._uplink, self._relay, SERVICES)
        self._server = grpc.aio.server(options=options(bounds.message_bytes))
        self._server.add_generic_rpc_handlers((self._methods,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the core is gone."""
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._server.add_insecure_port(self._cell.address)
        await self._server.start()
        self._uplink.start()
        self._relay.start()
        self._uplink.send(link.pack(Kind.READY, 0, 0, self._cell.words.encode()))
        await self._over.wait()
        if self._told:
            self._relay.take_no_calls()
            await asyncio.sleep(SETTLE_SECONDS)
            await self._server.stop(FINISH_CALLS_SECONDS)
        else:
            await _until(lambda: self._methods.running == 0, FINISH_CALLS_SECONDS)
            await self._server.stop(FINISH_SERVER_SECONDS)
        await _until(lambda: self._relay.piped == 0, FINISH_RELAY_SECONDS)

    def _control(self, frame: Frame) -> None:
        if frame.kind == Kind.CLOSED:
            self._relay.close(frame.connection)
        elif frame.kind == Kind.DRAIN:
            task = asyncio.create_task(self._health.enter_graceful_shutdown())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif frame.kind == Kind.PING:
            self._uplink.send(link.pack(Kind.PING, 0))
        elif frame.kind == Kind.FINISH:
            self._told = True
            self._over.set()

    def _full(self) -> None:
        self._uplink.send(link.pack(Kind.FULL, 0))

    def _closed(self, connection: int, cut: Cut | None) -> None:
        payload = b"" if cut is None else bytes((cut,))
        self._uplink.send(link.pack(Kind.CLOSED, connection, 0, payload))


async def _until(done: Callable[[], bool], seconds: float) -> None:
    """Wait for it, so long at most; looks often because it happens once in a front's life."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        await asyncio.sleep(_LOOK_SECONDS)
