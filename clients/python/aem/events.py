"""Events as handlers get them: one class for each module, over the message that came.

Nothing is copied out of the message until it is asked for. `Gap` is no event but stands among them: a
counted hole, where the daemon or the kernel lost something.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from aem._json import enum_word, payload_dict
from aem.history import Cursor
from aem.v1 import event_pb2, process_pb2, session_pb2, socket_pb2, timer_pb2, user_pb2

if TYPE_CHECKING:
    from aem.job import BaseJob

__all__ = ["Event", "Gap", "ProcessEvent", "SocketEvent", "TimerEvent", "UserEvent"]


class Event:
    """One entry of a job: a stimulus with its data, or, where a module coalesces, several.

    `job`: the Job it came from. `seq`, `first`, `epoch`: its place in the job's history; it covers the
    numbers first..seq. `count`: how many stimuli it stands for. `attempts`: how often it has been delivered.
    """

    __slots__ = ("_payload", "attempts", "count", "epoch", "first", "job", "message", "seq")

    def __init__(  # positional: one is made for every event, and keywords cost twice the time
        self, message: event_pb2.Event, job: BaseJob, first: int, seq: int, epoch: int, attempts: int
    ) -> None:
        self.message = message
        self.job = job
        self.first = first
        self.seq = seq
        self.epoch = epoch
        self.attempts = attempts
        self.count = seq - first + 1
        self._payload: Message | None = None

    @property
    def module(self) -> str:
        """The event module."""
        return self.job.module

    @property
    def type(self) -> str:
        """Which of the module's event types this is."""
        return self.message.type

    @property
    def key(self) -> bytes:
        """What orders it within its job, for sockets the connection; empty where the module has no keys."""
        return self.message.key

    @property
    def cursor(self) -> Cursor:
        """The position behind it in the job's history."""
        return Cursor(self.epoch, self.seq)

    @property
    def real_time_ns(self) -> int:
        """When it happened or was first seen, CLOCK_REALTIME nanoseconds."""
        return self.message.real_time_ns

    @property
    def mono_time_ns(self) -> int:
        """The same moment on CLOCK_MONOTONIC, nanoseconds."""
        return self.message.mono_time_ns

    @property
    def redacted(self) -> tuple[str, ...]:
        """Fields of the payload that the administrator's policy has taken out, as dotted names."""
        return tuple(self.message.redacted)

    @property
    def payload(self) -> Message | None:
        """The module's own message. One of a module that this process has no classes for stays an Any."""
        if self._payload is None:
            which = self.message.WhichOneof("payload")
            if which is not None:
                found: Message = getattr(self.message, which)
                self._payload = _unpack(self.message) if which == "any" else found
        return self._payload

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON can hold it; the names are stable.

        `key` is hexadecimal. Bytes in the payload are text where they are UTF-8, else base64 under their
        name with `_base64` behind it. Enumerations are their words in lower case. Every field is there, also
        when it is zero.
        """
        return {
            "module": self.module,
            "type": self.type,
            "job": self.job.id,
            "epoch": self.epoch,
            "first": self.first,
            "seq": self.seq,
            "count": self.count,
            "attempts": self.attempts,
            "real_time_ns": self.real_time_ns,
            "mono_time_ns": self.mono_time_ns,
            "key": self.key.hex(),
            "redacted": list(self.redacted),
            "payload": None if self.payload is None else payload_dict(self.payload),
        }

    def to_json(self) -> str:
        """to_dict() in one line."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.type!r} job={self.job.id} seq={self.seq} count={self.count}>"


class TimerEvent(Event):
    """One or more expirations of a timer; what it says of time belongs to the latest of them."""

    __slots__ = ()

    @property
    def payload(self) -> timer_pb2.TimerEvent:
        """The message."""
        return self.message.timer

    @property
    def expirations(self) -> int:
        """How many expirations since the event before."""
        return self.count

    @property
    def clock(self) -> str:
        """The clock: monotonic, boottime or realtime."""
        return enum_word(timer_pb2.Clock.DESCRIPTOR, self.message.timer.clock)

    @property
    def scheduled_ns(self) -> int:
        """When it was to expire, nanoseconds on `clock`."""
        return self.message.timer.scheduled_ns

    @property
    def lateness_ns(self) -> int:
        """How much later it was noticed, nanoseconds."""
        return self.message.timer.lateness_ns

    @property
    def cookie(self) -> int:
        """The number given at registration."""
        return self.message.timer.cookie

    @property
    def clock_was_set(self) -> bool:
        """CLOCK_REALTIME was set since the last expiration."""
        return self.message.timer.clock_was_set

    @property
    def next_ns(self) -> int:
        """When it expires next, nanoseconds on `clock`; 0 if never."""
        return self.message.timer.next_ns


class SocketEvent(Event):
    """What happened to a listener, a connection or a datagram socket; `type` says which."""

    __slots__ = ()

    @property
    def payload(self) -> socket_pb2.SocketEvent:
        """The message."""
        return self.message.socket

    @property
    def connection(self) -> int:
        """The connection's number; 0 for datagrams."""
        return self.message.socket.connection

    @property
    def data(self) -> bytes:
        """The bytes that came."""
        return self.message.socket.data

    @property
    def local(self) -> str:
        """The near end, for example tcp:127.0.0.1:8080."""
        return self.message.socket.local.display

    @property
    def peer(self) -> str:
        """The other end."""
        return self.message.socket.peer.display

    @property
    def credentials(self) -> socket_pb2.PeerCredentials | None:
        """Unix families: who the peer is."""
        socket = self.message.socket
        return socket.credentials if socket.HasField("credentials") else None

    @property
    def truncated(self) -> bool:
        """The datagram was longer than the limit, and its rest is lost."""
        return self.message.socket.truncated

    @property
    def reason(self) -> str:
        """closed: why."""
        return self.message.socket.reason

    @property
    def error_number(self) -> int:
        """closed: the errno behind the reason, 0 if none."""
        return self.message.socket.error_number

    @property
    def bytes_in(self) -> int:
        """closed: bytes received over the connection's life."""
        return self.message.socket.bytes_in

    @property
    def bytes_out(self) -> int:
        """closed: bytes that the kernel took for sending."""
        return self.message.socket.bytes_out


class ProcessEvent(Event):
    """The end of a process."""

    __slots__ = ()

    @property
    def payload(self) -> process_pb2.ProcessEvent:
        """The message."""
        return self.message.process

    @property
    def pid(self) -> int:
        """Process id in the daemon's pid namespace."""
        return self.message.process.pid

    @property
    def command(self) -> str:
        """Its name when the job was registered."""
        return self.message.process.command

    @property
    def uid(self) -> int:
        """Its real user id when the job was registered."""
        return self.message.process.uid

    @property
    def known(self) -> bool:
        """How it ended is known; if not, exit_status, signal and core_dumped mean nothing."""
        return self.message.process.knowledge == process_pb2.EXIT_KNOWLEDGE_KNOWN

    @property
    def exit_status(self) -> int:
        """0 to 255, if it exited by itself."""
        return self.message.process.exit_status

    @property
    def signal(self) -> int:
        """The signal that ended it; 0 if it exited by itself."""
        return self.message.process.signal

    @property
    def signal_name(self) -> str:
        """That signal's name, for example SIGSEGV."""
        return self.message.process.signal_name

    @property
    def core_dumped(self) -> bool:
        """It dumped core."""
        return self.message.process.core_dumped

    @property
    def reaped(self) -> bool:
        """It has been reaped; False: it is a zombie that waits for its parent."""
        return self.message.process.reaped


class UserEvent(Event):
    """A payload that a program raised on a channel."""

    __slots__ = ()

    @property
    def payload(self) -> user_pb2.UserEvent:
        """The message."""
        return self.message.user

    @property
    def channel(self) -> str:
        """The channel."""
        return self.message.user.channel

    @property
    def data(self) -> bytes:
        """What was raised."""
        return self.message.user.payload

    @property
    def payload_bytes(self) -> bytes:
        """What was raised; the same as `data`."""
        return self.message.user.payload

    @property
    def sender_uid(self) -> int:
        """Who raised it: user id, from the kernel."""
        return self.message.user.sender_uid

    @property
    def sender_pid(self) -> int:
        """Who raised it: process id in the daemon's pid namespace, from the kernel."""
        return self.message.user.sender_pid

    def json(self) -> Any:
        """What was raised, parsed as JSON; raises ValueError if it is none."""
        return json.loads(self.message.user.payload)


class Gap:
    """A counted hole in a job's events.

    `count`: how many are missing, 0 if nobody knows. `stage`: kernel, source, job or session. `cause`:
    overflow, superseded, source-failed, stream-lost or restart. `remedy`: rescan, or empty.
    """

    __slots__ = ("job", "message")

    def __init__(self, message: session_pb2.Gap, job: BaseJob) -> None:
        self.message = message
        self.job = job

    type: ClassVar[str] = "gap"

    @property
    def module(self) -> str:
        """The event module."""
        return self.job.module

    @property
    def epoch(self) -> int:
        """The job's epoch."""
        return self.message.epoch

    @property
    def first(self) -> int:
        """The first number that it covers."""
        return self.message.first

    @property
    def seq(self) -> int:
        """The last number that it covers."""
        return self.message.last

    @property
    def cursor(self) -> Cursor:
        """The position behind it in the job's history."""
        return Cursor(self.epoch, self.seq)

    @property
    def attempts(self) -> int:
        """How often it has been delivered."""
        return self.message.attempts

    @property
    def count(self) -> int:
        """How many events are missing; 0: not known."""
        return self.message.count

    @property
    def stage(self) -> str:
        """Where they were lost."""
        return enum_word(session_pb2.Stage.DESCRIPTOR, self.message.stage)

    @property
    def cause(self) -> str:
        """Why."""
        return enum_word(session_pb2.Cause.DESCRIPTOR, self.message.cause)

    @property
    def scope(self) -> str:
        """What is affected, in the module's terms; empty: the whole job."""
        return self.message.scope

    @property
    def remedy(self) -> str:
        """What can be done: rescan, or empty if nothing."""
        return enum_word(session_pb2.Remedy.DESCRIPTOR, self.message.remedy)

    def to_dict(self) -> dict[str, Any]:
        """The gap as JSON can hold it; the names are stable. Its type is "gap"."""
        return {
            "module": self.module,
            "type": "gap",
            "job": self.job.id,
            "epoch": self.epoch,
            "first": self.first,
            "seq": self.seq,
            "count": self.count,
            "attempts": self.attempts,
            "stage": self.stage,
            "cause": self.cause,
            "scope": self.scope,
            "remedy": self.remedy,
        }

    def to_json(self) -> str:
        """to_dict() in one line."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    def __repr__(self) -> str:
        count = self.count or "an unknown number of"
        return f"<Gap job={self.job.id} {count} events lost, stage={self.stage} cause={self.cause}>"


_CLASSES: dict[str, type[Event]] = {
    "timer": TimerEvent,
    "socket": SocketEvent,
    "process": ProcessEvent,
    "user": UserEvent,
}


def make_event(
    message: event_pb2.Event, job: BaseJob, first: int, seq: int, epoch: int, attempts: int
) -> Event:
    """The event, of the class of its module."""
    return _CLASSES.get(job.module, Event)(message, job, first, seq, epoch, attempts)


def _unpack(message: event_pb2.Event) -> Message:
    """What is packed in `any`, if this process knows its type, else the Any itself."""
    name = message.any.TypeName()
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        return message.any
    found = message_factory.GetMessageClass(descriptor)()
    return found if message.any.Unpack(found) else message.any
