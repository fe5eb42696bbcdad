"""One accepted connection, from "accepted" to "closed".

    open --peer ends--> half-open --(nothing written for end_timeout)--+
      |                    |                                           |
      +---- write-close, frame too long ----> ending --(output is out)-+--> closed --> discarding --> gone
      |                                          |                     |
      +---- close, reset, error, silence --------+---------------------+

"closed" is fired exactly once, last, and at once: the descriptor may live on for a moment as a `Discard`,
which reads and throws away what still comes, so that no RST overtakes our last bytes (`sources/socket.py`).

Reading: one read for each turn of the loop in which something is there, and at most FRAMES_PER_TURN messages;
what is complete beyond that waits for the next turn. Nothing is read while the job is stopped or paused,
while this connection is paused, or while complete messages wait. What nobody waits for leaves the epoll
set; what becomes ready while the job does not read is parked until it does.

Writing: as much as the kernel takes goes at once, the rest waits for EPOLLOUT. What waits is never more than
`room_bytes`; room is given back by the quarter, or when everything that had to wait is out.
"""

from __future__ import annotations

import errno
import socket
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING

from aemd.core.errors import AemError, Code, exhausted, invalid
from aemd.core.limits import SECOND
from aemd.modules.socket.discard import DISCARD_READS, Discard
from aemd.modules.socket.event import connection_field, encode_data, key_field
from aemd.modules.socket.memento import ConnectionMemento
from aemd.sources.counts import counts
from aemd.sources.framing import FrameIncompleteError, Framing
from aemd.sources.output import MessageOutput, StreamOutput
from aemd.sources.reactor import Timer
from aemd.sources.socket import ended, leave, reset, shut
from aemd.v1 import socket_pb2

if TYPE_CHECKING:
    from aemd.modules.socket.listener import Listener

FRAMES_PER_TURN = 256  # a quarter of a job's queue
STALL_NS = 30 * SECOND  # a peer that takes nothing for so long gets no more; nginx: send_timeout 60 s
UNWATCHED = -1

_COUNTS = counts("stream")


class Connection:
    """See above. Small, because there are many of them that do nothing."""

    __slots__ = (
        "_before",
        "_ending",
        "_eof",
        "_errno",
        "_framing",
        "_heard_ns",
        "_key_field",
        "_more",
        "_output",
        "_owed",
        "_parked",
        "_paused",
        "_shut",
        "_timer",
        "_watched",
        "bytes_in",
        "bytes_out",
        "closed",
        "key",
        "listener",
        "number",
        "sock",
    )

    def __init__(self, listener: Listener, sock: socket.socket, number: int) -> None:
        self.listener = listener
        self.sock = sock
        self.number = number
        self.key = number.to_bytes(8, "big")
        self.bytes_in = 0
        self.bytes_out = 0
        self.closed = False
        self._key_field = key_field(self.key)
        self._before = connection_field(number)
        self._framing: Framing | None = listener.settings.new_framing()
        self._output: StreamOutput | MessageOutput | None = None
        self._owed = 0  # bytes the kernel took since room was last given back
        self._errno = 0  # what ended our direction before the peer's
        self._eof = False
        self._shut = False  # nothing more may be written
        self._ending = ""  # the reason with which it closes once its output is out
        self._paused = listener.settings.paused
        self._more: Timer | None = None  # complete messages wait for the next turn
        self._parked = False  # it had something while the job did not read
        self._watched = UNWATCHED
        self._timer: Timer | None = None
        self._heard_ns = listener.reactor.mono_ns()
        self._set_timer()

    # -- the loop

    def watch(self) -> None:
        """Wait for what is wanted now, no more."""
        if self.closed:
            return
        wanted = EPOLLOUT if self._output is not None else 0
        if not (self._parked or self._paused or self._eof or self._ending or self._more is not None):
            wanted |= EPOLLIN
        if not wanted and not (self._eof and not self._parked):
            self._unwatch()
        elif self._watched == UNWATCHED:
            try:
                self.listener.reactor.add(self.sock.fileno(), wanted, self.ready)
            except OSError as error:  # it would never be read
                self._fail(error.errno or 0)
                return
            self._watched = wanted
        elif self._watched != wanted:
            self.listener.reactor.modify(self.sock.fileno(), wanted)
            self._watched = wanted

    def _unwatch(self) -> None:
        if self._watched != UNWATCHED:
            leave(self.listener.reactor, self.sock)
            self._watched = UNWATCHED

    def ready(self, events: int) -> None:
        """The loop's call."""
        if self._output is not None and events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
            self._flush()
        if self._watched == UNWATCHED or not events & ~EPOLLOUT:
            return
        if not self.listener.reads:
            self._parked = True
            self.listener.parked.add(self)
            self.watch()
        elif self._watched & EPOLLIN:
            self._read()
        elif self._eof and events & (EPOLLERR | EPOLLHUP):
            number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                self._fail(number)
            else:
                self._finish_eof()

    # -- input

    def _read(self) -> None:
        listener = self.listener
        if not listener.may_read():
            return
        view, flags = listener.view, listener.read_flags
        _COUNTS.reads += 1
        try:
            size = self.sock.recv_into(view, 0, flags)
        except BlockingIOError:
            return
        except OSError as error:
            _COUNTS.failures += 1
            self._fail(error.errno or 0)
            return
        if not size and (not flags or ended(self.sock)):
            self._end()
            return
        _COUNTS.events += 1
        self.bytes_in += size
        self._heard_ns = listener.reactor.mono_ns()
        if self._framing is not None:
            self._framing.feed(view[:size])
            self._take()
        elif size <= len(view):
            event = encode_data(listener.clock.times(), self._key_field, self._before, view[:size])
            listener.fire(self.key, event)
        else:
            payload = socket_pb2.SocketEvent(connection=self.number, data=bytes(view), truncated=True)
            listener.fire(self.key, listener.clock.event("data", self.key, payload))
        if listener.syncs:
            listener.check_syncs()

    def _take(self) -> None:
        """Fire the messages that are complete, within the bound of a turn."""
        framing, listener = self._framing, self.listener
        if framing is None:
            return
        largest = listener.settings.message_max_bytes
        count = min(FRAMES_PER_TURN, listener.host.spare(listener.job, largest))
        frames = framing.take(count)
        times = listener.clock.times()
        key, before = self._key_field, self._before
        events = [encode_data(times, key, before, frame) for frame in frames]
        if events:
            listener.fire_many(self.key, events)
        if framing.too_long:
            self._framing = None
            self._end_with("frame-too-long")
        elif len(frames) == count:
            self._more = listener.monotonic.call_at(0, self._go_on)
            self.watch()

    def _go_on(self, _now_ns: int) -> None:
        self._more = None
        if self.listener.reads and not self._paused and not self._ending:
            self._take()
            if self.listener.syncs:
                self.listener.check_syncs()
        elif not self._ending:
            self._more = _WAITING
            self.listener.parked.add(self)
        if self._more is None:
            self.watch()

    def _end(self) -> None:
        """The peer has ended its direction."""
        if self._framing is not None:
            try:
                last = self._framing.finish()
            except FrameIncompleteError:
                last, self._errno = None, self._errno or errno.EBADMSG
            if last is not None:
                times = self.listener.clock.times()
                self.listener.fire(self.key, encode_data(times, self._key_field, self._before, last))
            self._framing = None
        self._eof = True
        if self._errno not in (0, errno.EBADMSG):
            self.finish("reset", self._errno)
            return
        event = self.listener.clock.event(
            "end", self.key, socket_pb2.SocketEvent(connection=self.number, bytes_in=self.bytes_in)
        )
        self.listener.fire(self.key, event)
        if self._output is None and (self._shut or not self.listener.settings.end_timeout_ns):
            self._finish_eof()
            return
        self._set_timer()
        self.watch()

    def _fail(self, number: int) -> None:
        self.finish("reset" if number in (errno.ECONNRESET, errno.EPIPE) else "error", number)

    # -- output

    def write(self, data: bytes) -> None:
        """Send `data`, now as far as the kernel takes it. Raises AemError."""
        self._check_open()
        waiting = len(self._output) if self._output is not None else 0
        room = self.listener.room_bytes
        if waiting + len(data) > room:
            raise exhausted(
                f"connection {self.number}",
                limit=room,
                used=waiting,
                key="limits.room_bytes",
                what=f"write of {len(data)} bytes",
                way_out=f"{room - waiting} bytes may be written now; wait for Room, or write smaller pieces",
            )
        rest = self._send(data) if self._output is None else data
        if rest is None:
            return
        if self._output is None:
            self._output = MessageOutput() if self.listener.messages else StreamOutput()
        try:
            self._output.push(rest)
        except BufferError:
            raise exhausted(
                f"connection {self.number}",
                limit=len(self._output),
                used=len(self._output),
                key="limits.room_bytes",
                what="write",
                way_out="too many messages wait for the peer",
            ) from None
        self.watch()

    def _send(self, data: bytes) -> bytes | None:
        """What the kernel did not take; None if it took everything."""
        if not data and not self.listener.messages:
            return None
        try:
            taken = self.sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return data
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise invalid("data", f"{len(data)} bytes are too long for one message") from error
            self._break(error.errno or 0)
            raise self._gone(f"the peer has gone ({error.strerror})") from error
        self._took(taken)
        if self._owed >= self.listener.room_bytes >> 2:
            self._give_room()
        return None if taken == len(data) else data[taken:]

    def _took(self, taken: int) -> None:
        self.bytes_out += taken
        self._owed += taken
        self._heard_ns = self.listener.reactor.mono_ns()

    def _give_room(self) -> None:
        owed, self._owed = self._owed, 0
        self.listener.host.room(self.listener.job, self.key, owed)

    def _flush(self) -> None:
        output = self._output
        if output is None:
            return
        try:
            taken = output.flush(self.sock)
        except OSError as error:
            self._break(error.errno or 0)
            return
        if taken:
            self._took(taken)
        if not output:
            self._output = None
        if self._owed and not self._ending and (not output or self._owed >= self.listener.room_bytes >> 2):
            self._give_room()
        if not output:
            self._output_is_out()

    def _output_is_out(self) -> None:
        if self._ending:
            self.finish(self._ending)
        elif self._eof and (self._shut or not self.listener.settings.end_timeout_ns):
            self._finish_eof()
        else:
            if self._shut:
                shut(self.sock)
            self.watch()

    def _break(self, number: int) -> None:
        """Our direction is broken. What the peer has sent before may still be read; its end follows.

        A peer that is still there, for it was the kernel that had no memory, is told that no more will come.
        """
        self._output = None
        self._shut = True
        shut(self.sock)
        self._errno = number
        if self._ending or self._eof:
            self.finish("reset", number)
        else:
            self.watch()

    def _check_open(self) -> None:
        if self._shut or self._ending:
            raise self._gone("its output has been ended")

    def _gone(self, why: str) -> AemError:
        return AemError(
            Code.FAILED_PRECONDITION,
            "CONNECTION_CLOSED",
            f"connection {self.number}: {why}",
            connection=self.number,
        )

    # -- operations

    def write_close(self, data: bytes) -> None:
        """Send `data`, and close once everything is out."""
        if data:
            self.write(data)
        else:
            self._check_open()
        self._end_with("closed")

    def shutdown(self) -> None:
        """End our direction once everything is out."""
        self._check_open()
        self._shut = True
        if self._output is None:
            self._output_is_out()

    def close(self) -> None:
        """Close now; what waits for output is lost."""
        self.finish("closed")

    def abort(self) -> None:
        """Close with RST."""
        self._forget()
        reset(self.sock)
        self._fire_closed("closed", 0)
        self.listener.release()

    def pause(self) -> None:
        """Read no more."""
        self._paused = True
        self.watch()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self.go_on()

    def go_on(self) -> None:
        """The job, or this connection, may read again: first what had been read before."""
        self._parked = False
        if self._more is _WAITING:
            self._more = self.listener.monotonic.call_at(0, self._go_on)
        self._heard_ns = self.listener.reactor.mono_ns()
        self.watch()

    @property
    def sends(self) -> bool:
        """Whether output waits for the peer."""
        return self._output is not None

    @property
    def waits(self) -> bool:
        """What was read has not all been fired."""
        return self._more is not None

    @property
    def readable(self) -> bool:
        """It is to be read."""
        return not (self._paused or self._eof or self._ending)

    # -- the end

    def _end_with(self, reason: str) -> None:
        """Close for `reason` as soon as the output is out; read no more."""
        self._ending = reason
        if self._output is None:
            self.finish(reason)
        else:
            self._set_timer()
            self.watch()

    def _finish_eof(self) -> None:
        self.finish("error" if self._errno else "eof", self._errno)

    def finish(self, reason: str, number: int = 0) -> None:
        """Fire "closed" and let go of the descriptor."""
        self._forget()
        self._fire_closed(reason, number)
        self._output = None
        if self._eof or number:
            self.sock.close()
            self.listener.release()
        else:
            shut(self.sock)
            Discard(self.listener, self.sock)

    def _fire_closed(self, reason: str, number: int) -> None:
        payload = socket_pb2.SocketEvent(
            connection=self.number,
            reason=reason,
            error_number=number,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
        )
        self.listener.fire_closed(self.key, self.listener.clock.event("closed", self.key, payload))

    def drop(self) -> None:
        """The job is closed: give the kernel what it takes at once, and end without a word."""
        self._forget()
        try:
            if self._output is not None:
                self._output.flush(self.sock)
            shut(self.sock)
            for _ in range(DISCARD_READS):
                if not self.sock.recv_into(self.listener.discarded):
                    break
        except OSError:
            pass  # nothing is left to read, or nobody to write to
        self.sock.close()

    # -- the next daemon

    def memento(self) -> ConnectionMemento:
        """As it is now."""
        return ConnectionMemento(
            self.number,
            self.bytes_in,
            self.bytes_out,
            unread=self._framing.held if self._framing is not None else None,
            output=self._output.held if self._output is not None else [],
            owed=self._owed,
            error=self._errno,
            ended=self._eof,
            shut=self._shut,
            ending=self._ending,
            paused=self._paused,
        )

    def take_up(self, was: ConnectionMemento) -> None:
        """Go on where it was; whatever may take only so long takes it from now on. What was read before comes
        first, once the job reads. ValueError if it cannot have been like that.
        """
        self.bytes_in, self.bytes_out, self._owed = was.bytes_in, was.bytes_out, was.owed
        self._errno, self._eof, self._shut = was.error, was.ended, was.shut
        self._ending, self._paused = was.ending, was.paused
        if was.output:
            self._output = MessageOutput() if self.listener.messages else StreamOutput()
            for piece in was.output:
                self._output.push(piece)
        elif was.ending:
            raise ValueError("it has nothing to wait for")
        if was.unread is None:
            self._framing = None
        elif self._framing is not None and was.unread:
            self._framing.feed(was.unread)
            self._more = _WAITING
            self.listener.parked.add(self)
        self._set_timer()
        self.watch()

    def leave(self) -> None:
        """It goes on elsewhere: touch nothing of it."""
        self._forget()
        self.sock.close()

    def _forget(self) -> None:
        self._unwatch()
        self.closed = True
        self.listener.parked.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._more is not None:
            self._more.cancel()
            self._more = None

    # -- silence

    def _limit_ns(self) -> int:
        if self._ending:
            return STALL_NS
        if self._eof:
            return self.listener.settings.end_timeout_ns or STALL_NS
        return self.listener.settings.idle_timeout_ns

    def _set_timer(self) -> None:
        """Begin to wait for whatever may take only so long now."""
        limit_ns = self._limit_ns()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if limit_ns:
            self._heard_ns = self.listener.reactor.mono_ns()
            self._timer = self.listener.monotonic.call_at(self._heard_ns + limit_ns, self._silent)

    def _silent(self, now_ns: int) -> None:
        self._timer = None
        limit_ns = self._limit_ns()
        if not limit_ns:
            return
        due_ns = self._heard_ns + limit_ns
        if now_ns < due_ns:
            self._timer = self.listener.monotonic.call_at(due_ns, self._silent)
        elif self._ending:
            self.finish(self._ending, errno.ETIMEDOUT)
        elif self._eof:
            self._finish_eof()
        elif self._paused or not self.listener.reads:
            self._set_timer()  # nobody listened, so silence means nothing
        else:
            self.finish("idle-timeout")


class _Waiting:
    """Complete messages wait, not for a time, but for the job or the connection to be resumed."""

    def cancel(self) -> None:
        """Nothing was asked for."""


_WAITING: Timer = _Waiting()
