"""Every system call of the core that can fail is made to, one at a time, at every place of a round of work.

A round registers jobs of each module and has them fire. In the first round the first call of a name fails,
in the next one the second, until a round has no so many. Whatever fails: what is asked for is delivered, or
it is refused, or told as lost; nobody waits for ever, and the round after it, where none fails, is perfect.

Left out is what cannot fail where a descriptor is good (getsockname(2), setsockopt(2), timerfd_settime(2),
shutdown(2) and their like), and EINTR, which the interpreter deals with itself.
"""

import asyncio
import contextlib
import errno
import os
import subprocess

import aem
import pytest

from tests.integration.conftest import DaemonProcess, new_folder
from tests.model.tap import Tap, refusal

pytestmark = [
    pytest.mark.skipif(bool(refusal()), reason=refusal()),
    pytest.mark.skipif(
        os.geteuid() != 0, reason="needs root: installs a filter and keeps the daemon's rights"
    ),
    pytest.mark.timeout(300),
]
PATIENCE = 25  # seconds; what is tried again later is tried within this, on a busy machine too
ROUNDS_MAX = 60
CALLS = {
    "accept4": ("EMFILE", "ENOMEM", "ECONNABORTED"),
    "bind": ("EADDRINUSE", "ENOMEM"),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "fdatasync": ("EIO", "ENOSPC"),
    "ioctl": ("ENOMEM",),
    "listen": ("EADDRINUSE",),
    "openat": ("EMFILE",),
    "pidfd_open": ("EMFILE", "ENOMEM"),
    "pwrite64": ("ENOSPC", "EIO"),
    "recvfrom": ("ENOMEM",),
    "sendmsg": ("ENOBUFS", "ETOOMANYREFS"),
    "sendto": ("ENOBUFS",),
    "socket": ("EMFILE", "ENOBUFS"),
}


class SilenceError(AssertionError):
    """Nothing came, and nothing was said."""


class Round:
    """A client of its own that wants one event of each module. `refused`: what it was told instead."""

    def __init__(self, address):
        self.client = aem.AsyncClient(address)
        self.probe = "connect"
        self.refused = []
        self.raised = False

    async def play(self):
        running = None
        try:
            async with asyncio.timeout(PATIENCE):
                await self.client.connect()
                running = asyncio.create_task(self.client.run())
                for probe in (self.timer, self.user, self.durable, self.process, self.connection):
                    self.probe = probe.__name__
                    try:
                        await probe()
                    except (aem.AemError, ConnectionError) as error:
                        self.refused.append(f"{self.probe}: {error}")
        except TimeoutError:
            raise SilenceError(f"{self.probe}: nothing more was said after {self.refused}") from None
        except aem.AemError as error:
            self.refused.append(f"connect: {error}")
        finally:
            self.client.stop()
            if running is not None:
                with contextlib.suppress(aem.AemError):
                    await running
            await self.client.close()

    async def told(self, module, *, after=None, **params):
        """An event of a new job, or what is said instead."""
        told = asyncio.get_running_loop().create_future()

        def tell(event):
            if not told.done():
                told.set_result(event)

        job = await self.client.register(module, tell, on_gap=tell, **params)
        if after is not None:
            await after(job)
        await self.until(lambda: told.done() or job.state not in ("ARMED", "REGISTERED"))
        if not told.done() or isinstance(told.result(), aem.Gap):
            self.refused.append(f"{module}: {job.state} {job.reason} {told}")
        return job

    async def until(self, condition):
        while not condition():
            await asyncio.sleep(0.002)

    async def timer(self):
        await self.told("timer", every="1ms")

    async def user(self):
        await self.told("user", channel="c", after=lambda _: self.client.raise_event("c", b"x"))

    async def durable(self):
        await self.client.raise_event("kept", b"x")
        self.raised = True

    async def process(self):
        child = subprocess.Popen(["/bin/sh", "-c", "read x; exit 3"], stdin=subprocess.PIPE)

        async def end(_job):
            child.communicate(b"\n")

        try:
            await self.told("process", pid=child.pid, after=end)
        finally:
            child.kill()
            child.communicate()

    async def connection(self):
        ports, ends = [], []

        def serve(event):
            if isinstance(event, aem.Gap) or event.type == "closed":
                ends.append(event)
            elif event.type == "listening":
                ports.append(int(event.local.rpartition(":")[2]))
            return event.data if getattr(event, "type", "") == "data" else None

        job = await self.client.register("socket", serve, listen="tcp:127.0.0.1:0", on_gap=serve)
        await self.until(lambda: ports or job.state != "ARMED")
        if not ports:
            self.refused.append(f"socket: {job.state} {job.reason}")
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[0])
        try:
            writer.write(b"line\n")
            if await reader.readline() != b"line\n":
                self.refused.append("socket: the connection was closed")
        finally:
            writer.close()


class Rig:
    """A daemon whose calls may fail."""

    def __init__(self, folder):
        self.daemon = DaemonProcess(folder)
        self.tap = Tap()

    async def start(self):
        self.daemon.process = self.tap.start(self.daemon.command(), self.daemon.log_path)
        await asyncio.to_thread(self.daemon.wait_until_serving)
        async with aem.AsyncClient(self.daemon.address) as client:
            await client.create_job("kept", "user", {"channel": "kept"})

    async def round(self):
        played = Round(self.daemon.address)
        await played.play()
        assert self.daemon.process.poll() is None, self.daemon.log()[-4_000:]
        return played

    async def history(self, count):
        """So many events, or what is said of them."""
        found = []
        async with aem.AsyncClient(self.daemon.address) as client, asyncio.timeout(PATIENCE):
            async for entry in client.follow("kept", start_from="oldest"):
                found.append(entry)
                if sum(each.seq - each.first + 1 for each in found) >= count:
                    return found
        return found


@pytest.fixture
def rig():
    with new_folder() as folder:
        rig = Rig(folder)
        try:
            yield rig
        finally:
            process = rig.daemon.process
            if process is not None and process.poll() is None:
                rig.daemon.stop()
            rig.tap.close()


@pytest.mark.parametrize("name", CALLS)
async def test_call_that_fails_anywhere_is_told_and_the_daemon_serves_on(rig, name):
    await rig.start()
    raised = (await rig.round()).raised  # everything has been opened once
    places = 0
    for number in map(errno.__dict__.get, CALLS[name]):
        for which in range(1, ROUNDS_MAX):
            rig.tap.wish(name, which, number)
            try:
                played = await rig.round()
            except SilenceError as silence:
                raise AssertionError(f"{name}, call {which}, {errno.errorcode[number]}: {silence}") from None
            raised += played.raised
            if not rig.tap.granted():
                break
            places += 1
            healthy = await rig.round()
            raised += healthy.raised
            assert healthy.refused == [], (name, which, errno.errorcode[number], played.refused)
    assert places, f"{name} is called nowhere"
    assert len(await rig.history(raised)) >= raised
