"""The front's end of the link, over a real socket pair; the test is the core."""

import asyncio
import socket

import pytest

from aemd import link
from aemd.front.uplink import GONE, Uplink
from aemd.link import Kind


class Core:
    """The core's end, and an Uplink at the other."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.sock = ours
        self.theirs = theirs
        self.control = []
        self.moved = []
        self.gone = asyncio.Event()
        self.assembler = link.Assembler()
        self.uplink = Uplink(theirs, control=self.control.append, gone=self.gone.set, moved=self.moved.append)
        self.uplink.start()

    async def say(self, *frames):
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(frames))

    async def hear(self, count):
        """So many frames."""
        frames = []
        while len(frames) < count:
            piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 1 << 20), 10)
            assert piece
            frames += self.assembler.feed(piece)
        return [(frame.kind, frame.connection, frame.stream, frame.payload, frame.flags) for frame in frames]

    def close(self):
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.theirs)
        loop.remove_writer(self.theirs)
        self.theirs.close()
        self.sock.close()


@pytest.fixture
async def core():
    core = Core()
    yield core
    core.close()


async def test_call_goes_up_and_comes_down(core):
    call = core.uplink.open_call(7, "/a/B")
    await call.up(b"question")
    call.half_close()
    assert await core.hear(3) == [
        (Kind.OPEN, 7, 1, b"/a/B", 0),
        (Kind.DATA, 7, 1, b"question", 0),
        (Kind.END, 7, 1, b"", link.HALF_CLOSE),
    ]
    await core.say(
        link.pack(Kind.DATA, 7, 1, b"answer"),
        link.pack(Kind.END, 7, 1, link.pack_status(5, "not there", b"why")),
    )
    assert await call.down() == b"answer"
    assert await call.down() == (5, "not there", b"why")
    assert core.uplink.calls == {}


async def test_sender_stops_at_the_window_and_goes_on_with_room(core):
    call = core.uplink.open_call(7, "/a/B")
    await call.up(b"x" * link.WINDOW_BYTES)
    waiting = asyncio.create_task(call.up(b"more"))
    assert len(await core.hear(2)) == 2
    await asyncio.sleep(0)
    assert not waiting.done()
    await core.say(link.pack_window(7, 1, 1))
    await asyncio.wait_for(waiting, 10)
    assert [frame[3] for frame in await core.hear(1)] == [b"more"]


async def test_sender_that_waits_is_let_go_when_the_call_ends(core):
    call = core.uplink.open_call(7, "/a/B")
    await call.up(b"x" * link.WINDOW_BYTES)
    waiting = asyncio.create_task(call.up(b"more"))
    await core.say(link.pack(Kind.END, 7, 1, link.pack_status(0, "", b"")))
    await asyncio.wait_for(waiting, 10)
    assert len(await core.hear(2)) == 2


async def test_window_is_given_back_in_steps(core):
    call = core.uplink.open_call(7, "/a/B")
    call.taken(link.WINDOW_STEP_BYTES - 1)
    call.taken(2)
    frames = await core.hear(2)
    assert frames[1][0] == Kind.WINDOW
    assert link.parse_window(frames[1][3]) == link.WINDOW_STEP_BYTES + 1


async def test_cancelled_call_says_so_once_and_hears_no_more(core):
    call = core.uplink.open_call(7, "/a/B")
    call.cancel()
    call.cancel()
    await core.say(link.pack(Kind.DATA, 7, 1, b"crossed"), link.pack(Kind.CLOSED, 7))
    other = core.uplink.open_call(7, "/a/B")
    frames = await core.hear(3)
    assert [frame[:3] for frame in frames] == [(Kind.OPEN, 7, 1), (Kind.END, 7, 1), (Kind.OPEN, 7, 2)]
    assert frames[1][4] == link.CANCELLED
    await core.say(link.pack(Kind.DATA, 7, 2, b"for the other"))
    assert await asyncio.wait_for(other.down(), 10) == b"for the other"
    assert [frame.kind for frame in core.control] == [Kind.CLOSED]


async def test_end_of_the_core_ends_every_call(core):
    calls = [core.uplink.open_call(7, "/a/B") for _ in range(3)]
    core.sock.shutdown(socket.SHUT_RDWR)
    await asyncio.wait_for(core.gone.wait(), 10)
    for call in [*calls, core.uplink.open_call(7, "/a/B")]:
        assert await call.down() == GONE
        await call.up(b"nowhere")
        call.cancel()


async def test_output_that_does_not_fit_at_once_arrives_in_order(core):
    calls = [core.uplink.open_call(7, "/a/B") for _ in range(20)]
    for call in calls:
        await call.up(bytes([call.number]) * 100_000)
    frames = await core.hear(40)
    assert [frame[3] for frame in frames if frame[0] == Kind.DATA] == [
        bytes([call.number]) * 100_000 for call in calls
    ]
