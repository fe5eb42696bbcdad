"""The front's end of the link, on asyncio, and the RPCs that travel on it.

A call has two directions that know nothing of each other: what the client sends goes up as the core's window
allows, and while it does not the client's stream is not read, so that HTTP/2 flow control reaches the client;
what the core sends waits here until gRPC takes it, and only then the window is given back.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from aemd import link
from aemd.link import Frame, Kind

GONE = (14, "the daemon is gone", b"")  # UNAVAILABLE: clients try again


class Call:
    """One RPC of a client."""

    __slots__ = (
        "_arrived",
        "_coming",
        "_given",
        "_room",
        "_roomy",
        "_uplink",
        "connection",
        "number",
        "over",
    )

    def __init__(self, uplink: Uplink, *, connection: int, number: int) -> None:
        self._uplink = uplink
        self._room = link.WINDOW_BYTES
        self._roomy: asyncio.Future[None] | None = None
        self._coming: deque[bytes | tuple[int, str, bytes]] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._given = 0
        self.connection = connection
        self.number = number
        self.over = False  # the core has ended it, or we have

    async def up(self, message: bytes) -> None:
        """Send a message to the core, when its window allows."""
        while self._room <= 0 and not self.over:
            self._roomy = asyncio.get_running_loop().create_future()
            await self._roomy
        if not self.over:
            self._room -= len(message)
            self._uplink.send(link.pack(Kind.DATA, self.connection, self.number, message))

    def half_close(self) -> None:
        """The client sends no more."""
        if not self.over:
            self._uplink.send(link.pack(Kind.END, self.connection, self.number, b"", link.HALF_CLOSE))

    async def down(self) -> bytes | tuple[int, str, bytes]:
        """The core's next message, or how it ended the call: (code, message, status)."""
        while not self._coming:
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        return self._coming.popleft()

    def taken(self, size_bytes: int) -> None:
        """So much of what came down was taken by gRPC."""
        self._given += size_bytes
        if self._given >= link.WINDOW_STEP_BYTES and not self.over:
            self._uplink.send(link.pack_window(self.connection, self.number, self._given))
            self._given = 0

    def cancel(self) -> None:
        """The client is not interested any more, or not there. After the end it changes nothing."""
        if not self.over:
            self._uplink.send(link.pack(Kind.END, self.connection, self.number, b"", link.CANCELLED))
            self._uplink.forget(self)

    def arrive(self, item: bytes | tuple[int, str, bytes]) -> None:
        """From the core."""
        self._coming.append(item)
        if self._arrived is not None:
            if not self._arrived.done():
                self._arrived.set_result(None)
            self._arrived = None

    def widen(self, size_bytes: int) -> None:
        """The core has consumed so much; or the call is over, and who waits for room must hear of it."""
        self._room += size_bytes
        if self._roomy is not None:
            if not self._roomy.done():
                self._roomy.set_result(None)
            self._roomy = None


class Uplink:
    """The link to the core. `control(frame)` is called for what is not about a call, `gone()` at its end."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        control: Callable[[Frame], None],
        gone: Callable[[], None],
        moved: Callable[[int], None],
    ) -> None:
        """`moved(size_bytes)` is called for what comes."""
        self._sock = sock
        self._control = control
        self._gone = gone
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._assembler = link.Assembler()
        self._out: list[bytes] = []
        self._flush_due = self._open = False
        self._last = 0
        self.calls: dict[int, Call] = {}
        sock.setblocking(False)

    def start(self) -> None:
        """Read and write from now on."""
        self._open = True
        self._loop.add_reader(self._sock, self._read)

    def open_call(self, connection: int, method: str) -> Call:
        """Tell the core of an RPC."""
        self._last += 1
        call = self.calls[self._last] = Call(self, connection=connection, number=self._last)
        if not self._open:
            self._end(call, GONE)
            return call
        self.send(link.pack(Kind.OPEN, connection, call.number, method.encode()))
        return call

    def forget(self, call: Call) -> None:
        """The call is over; what still comes for it is stale."""
        call.over = True
        self.calls.pop(call.number, None)
        call.widen(0)

    def send(self, frame: bytes) -> None:
        """Queue a frame; what is queued in one turn of the loop leaves together."""
        if not self._open:
            return
        self._out.append(frame)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _end(self, call: Call, status: tuple[int, str, bytes]) -> None:
        self.forget(call)
        call.arrive(status)

    def _flush(self) -> None:
        joined = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._flush_due = False
        if not joined or not self._open:
            return
        try:
            sent = self._sock.send(joined)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close()
            return
        if sent < len(joined):
            self._out.append(joined[sent:])
            self._flush_due = True
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._flush()

    def _read(self) -> None:
        try:
            piece = self._sock.recv(link.READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._close()
            return
        self._moved(len(piece))
        for frame in self._assembler.feed(piece):
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.kind not in (Kind.DATA, Kind.END, Kind.WINDOW):
            self._control(frame)
            return
        call = self.calls.get(frame.stream)
        if call is None:
            return  # cancelled here before the core knew
        if frame.kind == Kind.DATA:
            call.arrive(frame.payload)
        elif frame.kind == Kind.WINDOW:
            call.widen(link.parse_window(frame.payload))
        else:
            self._end(call, link.parse_status(frame.payload))

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for call in list(self.calls.values()):
            self._end(call, GONE)
        self._gone()
