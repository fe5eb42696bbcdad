"""The sockets to one front: frames both ways, and descriptors down.

Neither ever blocks. Output is queued as frames, joined, and sent once a turn; it is bounded by the windows
of the streams above. What is read is bounded per turn, so that one busy front does not keep the others
waiting.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from aemd import link
from aemd.core.limits import SECOND
from aemd.link import Frame, LinkError
from aemd.sources.reactor import Reactor, Timer
from aemd.sources.socket import leave

STALL_NS = 30 * SECOND  # a front that takes nothing for so long is as good as dead
SEND_BYTES = 512 * 1024  # joined for one send(2); the kernel takes about 200 KiB at a time
HANDOVERS_MAX = 8_192  # connections that wait for a front to take them; as many as one user may have


@dataclass(slots=True)
class Traffic:
    """What has gone over a link, seen from the core."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, other: Traffic) -> None:
        """Add what went over another link."""
        self.frames_in += other.frames_in
        self.frames_out += other.frames_out
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out


class Stall:
    """Notices that output has not moved at all for STALL_NS. Costs nothing while none waits."""

    def __init__(self, reactor: Reactor, stalled: Callable[[], None]) -> None:
        self._reactor = reactor
        self._stalled = stalled
        self._timer: Timer | None = None
        self._waiting = self._moved = False

    def wait(self) -> None:
        """Output waits from now on."""
        self._waiting = True
        if self._timer is None:
            self._again()

    def move(self) -> None:
        """Some of it has gone."""
        self._moved = True

    def end(self) -> None:
        """All of it has gone."""
        self._waiting = False

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self._moved = False
        clock = self._reactor.clock("monotonic")
        self._timer = clock.call_at(clock.now_ns() + STALL_NS, self._look)

    def _look(self, _now_ns: int) -> None:
        self._timer = None
        if not self._waiting:
            return
        if self._moved:
            self._again()
        else:
            self._stalled()


class LinkEnd:
    """The core's end of a link. `broken` is called at most once, and nothing after it or after close().
    `before_sending` is called before anything of a turn leaves. `traffic` is what went over it.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        *,
        payload_bytes_max: int,
        frames: Callable[[list[Frame]], None],
        broken: Callable[[str], None],
        before_sending: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._frames = frames
        self._before_sending = before_sending
        self._broken = broken
        self._assembler = link.Assembler(payload_bytes_max)
        self.traffic = Traffic()
        self._out: deque[bytes] = deque()
        self._flush_due = self._blocked = False
        self._stall = Stall(reactor, lambda: self._fail("it reads nothing"))
        reactor.add(sock.fileno(), select.EPOLLIN, self._ready)

    def send(self, frame: bytes) -> None:
        """Queue a frame; it leaves at the end of this turn."""
        if self._sock.fileno() < 0:
            return
        self._out.append(frame)
        self.traffic.frames_out += 1
        if not self._flush_due and not self._blocked:
            self._flush_due = True
            self._reactor.defer(self._flush)

    def finish(self, timeout_seconds: float) -> None:
        """Send all that is queued, waiting so long at most, and end the output; input is still read."""
        if self._sock.fileno() < 0:
            return
        try:
            self._sock.settimeout(timeout_seconds)
            self._sock.sendall(b"".join(self._out))
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is stuck or gone, and will be killed
        self._out.clear()

    def close(self) -> None:
        """Give the socket back. Closing twice changes nothing."""
        if self._sock.fileno() < 0:
            return
        self._stall.close()
        self._out.clear()
        leave(self._reactor, self._sock)
        self._sock.close()

    def _fail(self, reason: str) -> None:
        self.close()
        self._broken(reason)

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT and self._sock.fileno() >= 0:
            self._read()

    def _read(self) -> None:
        try:
            piece = self._sock.recv(link.READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"link: {error.strerror}")
            return
        if not piece:
            self._fail("it is gone")
            return
        try:
            frames = self._assembler.feed(piece)
            self.traffic.bytes_in += len(piece)
            self.traffic.frames_in += len(frames)
            self._frames(frames)
        except LinkError as error:
            self._fail(f"it broke the protocol: {error}")

    def _flush(self) -> None:
        self._flush_due = False
        if self._out:
            self._before_sending()
        while self._out:
            joined = self._join()
            try:
                sent = self._sock.send(joined)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._fail(f"link: {error.strerror}")
                return
            if sent:
                self.traffic.bytes_out += sent
                self._stall.move()
            if sent < len(joined):
                self._out.appendleft(joined[sent:])
                self._wait()
                return
        if self._blocked:
            self._blocked = False
            self._stall.end()
            self._reactor.modify(self._sock.fileno(), select.EPOLLIN)

    def _join(self) -> bytes:
        out = self._out
        if len(out) == 1:
            return out.popleft()
        taken, size = [], 0
        while out and size < SEND_BYTES:
            taken.append(out.popleft())
            size += len(taken[-1])
        return b"".join(taken)

    def _wait(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._stall.wait()
            self._reactor.modify(self._sock.fileno(), select.EPOLLIN | select.EPOLLOUT)


class Handovers:
    """Descriptors on their way to a front, over a SEQPACKET socket."""

    def __init__(self, reactor: Reactor, sock: socket.socket, broken: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._sock = sock
        self._broken = broken
        self._queue: deque[tuple[bytes, socket.socket]] = deque()
        self._waiting = False
        self._stall = Stall(reactor, lambda: self._fail("it takes no connections"))

    def send(self, connection: int, sock: socket.socket) -> bool:
        """Send away a connection's descriptor, now or when there is room; it is closed here then.

        False: too many wait already, and it is closed at once.
        """
        if len(self._queue) >= HANDOVERS_MAX or self._sock.fileno() < 0:
            sock.close()
            return False
        self._queue.append((link.DESCRIPTOR.pack(link.HAND_OVER, connection), sock))
        if not self._waiting:
            self._flush()
        return True

    def close(self) -> None:
        """Give everything back. Closing twice changes nothing."""
        for _, sock in self._queue:
            sock.close()
        self._queue.clear()
        self._wait(False)
        self._stall.close()
        self._sock.close()

    def _fail(self, reason: str) -> None:
        self.close()
        self._broken(reason)

    def _flush(self, _events: int = 0) -> None:
        while self._queue:
            message, sock = self._queue[0]
            try:
                socket.send_fds(self._sock, [message], [sock.fileno()])
            except BlockingIOError:
                self._wait(True)
                return
            except OSError as error:  # also ETOOMANYREFS, where it takes none of those in flight
                self._fail(f"descriptors: {error.strerror}")
                return
            self._stall.move()
            self._queue.popleft()
            sock.close()
        self._wait(False)

    def _wait(self, wanted: bool) -> None:
        if wanted == self._waiting:
            return
        self._waiting = wanted
        if wanted:
            self._stall.wait()
            self._reactor.add(self._sock.fileno(), select.EPOLLOUT, self._flush)
        else:
            self._stall.end()
            self._reactor.remove(self._sock.fileno())
