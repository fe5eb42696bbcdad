"""One front as the core sees it: its connections and their streams, each frame of it checked.

A front parses what strangers send, so it counts as taken over: it may speak for the connections that it was
given and for nothing else. Each frame is checked against what a correct front can say at this moment; the
first that it cannot say ends the front, with its connections. What only looks wrong because two messages
crossed (DATA for a stream that the core ended meanwhile) is told apart by numbers that only grow.

A handler that raises has a bug: its stream ends with INTERNAL, the daemon goes on.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import structlog

from aemd import link
from aemd.core.accounts import Charge
from aemd.core.errors import Code
from aemd.core.principal import Principal
from aemd.link import Cut, Frame, Kind, LinkError
from aemd.peer.linkend import Handovers, LinkEnd, Traffic
from aemd.peer.principal import read_network
from aemd.peer.processes import Process
from aemd.peer.pulse import Pulse
from aemd.peer.stream import Stream, StreamHandler
from aemd.sources.reactor import Reactor

STREAMS_MAX = 65_536  # of one front
STREAMS_PER_USER_MAX = 16_384  # of them, so that users who share a front leave each other some


class Connection:
    """A connection of a client: in the hands of a front, known here by its number."""

    __slots__ = ("called", "charge", "closing", "front", "number", "principal", "process", "streams")

    def __init__(
        self, *, number: int, principal: Principal, charge: Charge, process: Process, front: Front
    ) -> None:
        self.number = number
        self.principal = principal
        self.charge = charge
        self.process = process
        self.front = front
        self.called = False  # something, ever
        self.closing = False  # the front was told to close it, and has not said that it did
        self.streams: set[int] = set()


class FrontOwner(Protocol):
    """Who is told what becomes of a front."""

    def open_stream(self, stream: Stream) -> StreamHandler:
        """A client began an RPC."""

    def before_sending(self) -> None:
        """Answers are about to leave."""

    def connection_cut(self, connection: Connection, cut: Cut) -> None:
        """The front has closed it, for this reason; connection_over comes next."""

    def connection_over(self, connection: Connection) -> None:
        """It is closed; its streams are over."""

    def front_ready(self, front: Front) -> None:
        """It serves."""

    def front_full(self, front: Front) -> None:
        """Its clients have made it too large; front_lost comes next."""

    def front_lost(self, front: Front, reason: str) -> None:
        """It is finished; its connections are over by now."""

    def kill_front(self, pidfd: int) -> None:
        """Kill it, which this process may not. Takes over `pidfd`."""


class Front:
    """The core's end of one front process."""

    def __init__(self, reactor: Reactor, owner: FrontOwner, *, number: int, message_bytes: int) -> None:
        self.number = number
        self.pid = 0  # until the zygote has forked it
        self.pidfd = -1
        self._network = 0
        self.ready = False
        self.full = False
        self.leaving = False
        self.connections: dict[int, Connection] = {}
        self._owner = owner
        self._open = True
        self._streams: dict[int, tuple[Stream, StreamHandler]] = {}
        self._per_uid: Counter[int] = Counter()
        self._half_closed: set[int] = set()
        self._stream_last = 0
        link_sock, link_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        handover_sock, handover_end = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
        self.ends = (link_end, handover_end)  # the front's; whoever sends them to it closes them
        self._link = LinkEnd(
            reactor,
            link_sock,
            payload_bytes_max=message_bytes,
            frames=self._take,
            broken=self.lose,
            before_sending=owner.before_sending,
        )
        self._handovers = Handovers(reactor, handover_sock, self.lose)
        self._pulse = Pulse(
            reactor,
            ask=lambda: self._link.send(link.pack(Kind.PING, 0)),
            silent=lambda: self.lose("it does not answer"),
        )

    # -- the process

    def forked(self, pid: int, pidfd: int) -> None:
        """It exists. Takes over `pidfd`."""
        self.pid, self.pidfd = pid, pidfd
        if not self._open:
            self._kill()

    def network(self) -> int:
        """The number of its network namespace, 0 while it has none of its own; namespaces(7). Once it has, it
        has no right to change it.
        """
        if not self._network and self.pid:
            self._network = read_network(self.pid)
        return self._network

    @property
    def traffic(self) -> Traffic:
        """What went over its link."""
        return self._link.traffic

    def finish(self, timeout_seconds: float) -> None:
        """Send all that is queued; the front sends it on and exits."""
        self._link.finish(timeout_seconds)
        self._pulse.close()

    def say_farewell(self) -> None:
        """Have it answer the calls that are there and exit; its end is then no loss."""
        self.leaving = True
        self.send(link.pack(Kind.FINISH, 0))

    def lose(self, reason: str) -> None:
        """End it, whatever state it is in: its streams, its connections, then the owner is told."""
        if not self._open:
            return
        self._open = False
        self._kill()
        self._link.close()
        self._handovers.close()
        self._pulse.close()
        for connection in list(self.connections.values()):
            self._over(connection, "front gone")
        self._owner.front_lost(self, reason)

    def _kill(self) -> None:
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except PermissionError:
            self._owner.kill_front(pidfd)
            return
        except ProcessLookupError:
            pass
        os.close(pidfd)

    # -- connections

    def hand_over(self, connection: Connection, sock: socket.socket) -> bool:
        """Give it a connection; takes over `sock`. False: it takes no more just now."""
        self.connections[connection.number] = connection
        if self._handovers.send(connection.number, sock):
            return True
        self.connections.pop(connection.number, None)
        return False

    def close_connection(self, connection: Connection, reason: str) -> None:
        """End its streams now and have the front close it."""
        if connection.closing or not self._open:
            return
        connection.closing = True
        self._end_streams(connection, reason)
        self.send(link.pack(Kind.CLOSED, connection.number))

    def drain(self) -> None:
        """Have it say NOT_SERVING."""
        self.send(link.pack(Kind.DRAIN, 0))

    def _over(self, connection: Connection, reason: str) -> None:
        del self.connections[connection.number]
        self._end_streams(connection, reason)
        self._owner.connection_over(connection)

    def _end_streams(self, connection: Connection, reason: str) -> None:
        for number in list(connection.streams):
            self._close_stream(number, reason)

    # -- streams: what they send

    def send(self, frame: bytes) -> None:
        """Queue a frame on the link."""
        self._link.send(frame)
        if self.ready and not self._pulse.asked:
            self._pulse.beat()

    def forget(self, stream: Stream) -> None:
        """The stream was ended here."""
        if self._streams.pop(stream.number, None) is not None:
            self._per_uid[stream.principal.uid] -= 1
        self._half_closed.discard(stream.number)
        connection = self.connections.get(stream.connection)
        if connection is not None:
            connection.streams.discard(stream.number)

    def _close_stream(self, number: int, reason: str) -> None:
        entry = self._streams.get(number)
        if entry is None:
            return
        stream, handler = entry
        stream.ended = True
        self.forget(stream)
        self._guarded(stream, handler.closed, reason)

    def _guarded(self, stream: Stream, call: Callable[..., object], *args: object) -> None:
        """Run a handler's method; what it raises is its stream's end."""
        try:
            call(*args)
        except Exception:
            structlog.get_logger().exception("a stream's handler failed", method=stream.method)
            if not stream.ended:
                entry = self._streams.get(stream.number)
                stream.end(Code.INTERNAL, "the daemon met a fault of its own; its log has it")
                if entry is not None:
                    self._guarded(stream, entry[1].closed, "internal error")

    # -- streams: what the front says of them

    def _take(self, frames: list[Frame]) -> None:
        for frame in frames:
            if not self._open:
                return
            _TAKE[frame.kind](self, frame)

    def _find(self, frame: Frame) -> tuple[Stream, StreamHandler] | None:
        """The stream of a frame; None if it is over on this side, which the front could not know yet."""
        entry = self._streams.get(frame.stream)
        if entry is None:
            if not 0 < frame.stream <= self._stream_last:
                raise LinkError(f"{frame.kind.name} for a stream that was never opened")
            return None
        if entry[0].connection != frame.connection:
            raise LinkError(f"{frame.kind.name} for a stream of another connection")
        return entry

    def _take_open(self, frame: Frame) -> None:
        connection = self.connections.get(frame.connection)
        if connection is None:
            raise LinkError("OPEN for a connection that it does not have")
        if frame.stream <= self._stream_last:
            raise LinkError("OPEN with a stream number that is not new")
        self._stream_last = frame.stream
        connection.called = True
        stream = Stream(
            self,
            principal=connection.principal,
            connection=connection.number,
            number=frame.stream,
            method=frame.payload.decode("utf-8", "replace"),
        )
        if connection.closing:
            stream.end(Code.UNAVAILABLE, "the connection is being closed")
            return
        if self._per_uid[stream.principal.uid] >= STREAMS_PER_USER_MAX or len(self._streams) >= STREAMS_MAX:
            # An honest front with many connections may come here: no reason to end it for all who share it.
            stream.end(Code.RESOURCE_EXHAUSTED, f"too many calls at once, {STREAMS_PER_USER_MAX} for a user")
            return
        connection.streams.add(stream.number)
        self._guarded(stream, self._open_stream, stream)

    def _open_stream(self, stream: Stream) -> None:
        handler = self._owner.open_stream(stream)
        if not stream.ended:
            self._streams[stream.number] = (stream, handler)
            self._per_uid[stream.principal.uid] += 1

    def _take_data(self, frame: Frame) -> None:
        entry = self._find(frame)
        if entry is None:
            return
        stream, handler = entry
        if stream.number in self._half_closed:
            raise LinkError("DATA after half-close")
        if stream.outstanding >= link.WINDOW_BYTES:
            raise LinkError("DATA beyond the window")
        stream.outstanding += len(frame.payload)
        self._guarded(stream, handler.data, frame.payload)

    def _take_end(self, frame: Frame) -> None:
        entry = self._find(frame)
        if entry is None:
            return
        stream, handler = entry
        if frame.flags == link.CANCELLED:
            self._close_stream(stream.number, "cancelled")
        elif frame.flags == link.HALF_CLOSE and stream.number not in self._half_closed:
            self._half_closed.add(stream.number)
            self._guarded(stream, handler.half_closed)
        else:
            raise LinkError(f"END with flags {frame.flags}")

    def _take_window(self, frame: Frame) -> None:
        size_bytes = link.parse_window(frame.payload)
        entry = self._find(frame)
        if entry is None:
            return
        stream, handler = entry
        stream.room += size_bytes
        if stream.room > link.WINDOW_BYTES:
            raise LinkError("WINDOW for more than was sent")
        self._guarded(stream, handler.writable)

    def _take_closed(self, frame: Frame) -> None:
        connection = self.connections.get(frame.connection)
        if connection is None:
            raise LinkError("CLOSED for a connection that it does not have")
        cut = link.parse_cut(frame.payload)
        if cut is not None:
            self._owner.connection_cut(connection, cut)
        self._over(connection, "connection gone" if cut is None else f"connection closed: {cut.name}")

    def _take_ready(self, _frame: Frame) -> None:
        if self.ready:
            raise LinkError("READY twice")
        self.ready = True
        self._owner.front_ready(self)

    def _take_drain(self, _frame: Frame) -> None:
        raise LinkError("DRAIN is not a front's to say")

    def _take_ping(self, _frame: Frame) -> None:
        if not self._pulse.asked:
            raise LinkError("PING that was not asked for")
        self._pulse.answered()

    def _take_finish(self, _frame: Frame) -> None:
        raise LinkError("FINISH is not a front's to say")

    def _take_full(self, _frame: Frame) -> None:
        self.full = True
        self._owner.front_full(self)
        self.lose("it has more memory than it may have")


_TAKE: dict[Kind, Callable[[Front, Frame], None]] = {
    Kind.OPEN: Front._take_open,
    Kind.DATA: Front._take_data,
    Kind.END: Front._take_end,
    Kind.WINDOW: Front._take_window,
    Kind.CLOSED: Front._take_closed,
    Kind.READY: Front._take_ready,
    Kind.DRAIN: Front._take_drain,
    Kind.FULL: Front._take_full,
    Kind.FINISH: Front._take_finish,
    Kind.PING: Front._take_ping,
}
