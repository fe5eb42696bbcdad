"""Module socket with its jobs and their clients."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from aemd.core.errors import AemError
from aemd.modules.address import parse_address
from aemd.modules.socket import Socket
from aemd.v1 import event_pb2

MS = 1_000_000


class Rig:
    """The module, its jobs and their clients; gives everything back and checks that it was all."""

    def __init__(self, host, loop):
        self.host = host
        self.loop = loop
        self.module = Socket(host)
        self.jobs = []
        self.clients = []

    def open(self, listen, *, owner=None, start=True, **values):
        job = self.host.job({"listen": parse_address(listen), **values}, owner=owner)
        self.host.satisfy(self.module, job, opening=True, starting=start)
        self.module.open(job)
        self.jobs.append(job)
        if start:
            self.module.start(job)
        return job

    def close(self, job):
        """Close it, and see what it had given back, its name too."""
        self.jobs.remove(job)
        self.module.close(job)
        self.host.wait_until(lambda: not self.host.deputy.busy)

    def client(self, job) -> socket.socket:
        bound = job.data.bound.socket
        client = socket.socket(bound.family, bound.type)
        self.clients.append(client)
        client.connect(bound.getsockname())
        client.setblocking(False)
        return client

    def connect(self, job) -> tuple[socket.socket, bytes]:
        """A client, and the key of its connection."""
        count = len(self.of("accepted"))
        client = self.client(job)
        self.until(lambda: len(self.of("accepted")) > count)
        return client, self.of("accepted")[-1].key

    def op(self, job, key, name, data=b""):
        self.module.operate(job, key, name, data)

    def fill(self, job, key, message: Callable[[int], bytes]) -> tuple[int, AemError]:
        """Write until it is refused: how many went, and the refusal."""
        for number in range(10_000):
            try:
                self.op(job, key, "write", message(number))
            except AemError as error:
                return number, error
        raise AssertionError("nothing was refused")

    def until(self, condition: Callable[[], object]):
        self.host.wait_until(condition)

    def of(self, kind, key=None) -> list[event_pb2.Event]:
        return [f.event for f in self.host.fired if f.event.type == kind and key in (None, f.key)]

    def types(self, key=None) -> list[str]:
        return [f.event.type for f in self.host.fired if key in (None, f.key)]

    def data(self, key=None) -> bytes:
        return b"".join(event.socket.data for event in self.of("data", key))

    def wait_data(self, size, key=None) -> bytes:
        self.until(lambda: len(self.data(key)) >= size)
        return self.data(key)

    def closed(self, key) -> event_pb2.Event:
        self.until(lambda: self.of("closed", key))
        (event,) = self.of("closed", key)
        return event

    def receive(self, client, size) -> bytes:
        """So many bytes, while the loop turns."""
        got = bytearray()

        def enough():
            try:
                while len(got) < size and (piece := client.recv(65536)):
                    got.extend(piece)
            except BlockingIOError:
                self.loop.turn(10 * MS)
            return len(got) >= size

        while not enough():
            pass
        return bytes(got)

    def receive_end(self, client) -> bytes:
        """Everything up to the end."""
        got = bytearray()
        while True:
            try:
                piece = client.recv(65536)
            except BlockingIOError:
                self.loop.turn(10 * MS)
                continue
            if not piece:
                return bytes(got)
            got.extend(piece)

    def hard_close(self, client: socket.socket) -> None:
        """Close with RST."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    def quiet(self):
        """The loop has nothing to do: no descriptor is ready, and none spins."""
        turns = 0
        while True:
            before = len(self.host.fired)
            ready = self.loop._epoll.poll(0)
            if not ready:
                return
            self.loop.turn(0)
            turns += 1
            assert turns < 1000 or len(self.host.fired) > before, "the loop spins"


@pytest.fixture
def rig(host, loop) -> Iterator[Rig]:
    descriptors = len(os.listdir("/proc/self/fd"))
    rig = Rig(host, loop)
    yield rig
    for client in rig.clients:
        client.close()
    for job in tuple(rig.jobs):
        rig.close(job)
    assert host.charged.total() == 0
    loop.clock("monotonic")
    deputy = host.deputy.descriptors
    assert len(os.listdir("/proc/self/fd")) <= descriptors + deputy + 1  # the clock's timerfd
