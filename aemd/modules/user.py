"""Event module `user`: events raised by programs, for programs.

A channel is a name that belongs to a user; it exists as long as somebody listens, and to raise on a channel
to which nobody listens is no error: it reaches nobody. There is no kernel object behind it, so this module
has a command of its own, `raise_events`, that the service calls for every Raise frame.

This is the busiest path of the daemon. An event is encoded once, whoever listens, and not by protobuf: all
events of one Raise differ in the payload only, so what stands before and after it is put together once for
each length of payload. A test holds the result against protobuf's, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aemd.core.accounts import Charge
from aemd.core.errors import exhausted, invalid
from aemd.core.policy import Ruling
from aemd.core.principal import Owner, Principal
from aemd.core.right import Act
from aemd.modules.contract import Basic, Delivery, Description, Host, Job, Kind, Parameter

CHANNEL_BYTES_MAX = 255  # as a file name, NAME_MAX of limits.h
UID_MAX = (1 << 32) - 2  # the last one stands for "no user" in setresuid(2)

_EVENT_TYPE = b"\x0a\x06raised"  # Event.type, field 1
_EVENT_REAL, _EVENT_MONO, _EVENT_USER = b"\x10", b"\x18", b"\x9a\x01"  # fields 2, 3 and 19
_USER_CHANNEL, _USER_PAYLOAD, _USER_UID, _USER_PID = b"\x0a", b"\x12", b"\x18", b"\x20"  # fields 1 to 4


class _Channel:
    """One channel and its jobs, by id; `open_jobs` counts those that are stopped as well.

    What every Raise on it needs is made once: the act that is checked, and the name as it is encoded.
    """

    __slots__ = ("act", "armed", "charge", "encoded", "name", "open_jobs", "owner")

    def __init__(self, owner: Owner, name: str, charge: Charge) -> None:
        encoded = name.encode()
        self.owner = owner
        self.name = name
        self.charge = charge  # of whoever listened first
        self.act = _raising(owner, name)
        self.encoded = _USER_CHANNEL + _varint(len(encoded)) + encoded
        self.open_jobs = 0
        self.armed: dict[int, Job] = {}


class User(Basic):
    """Events between programs, on named channels."""

    description = Description(
        name="user",
        summary="Events raised by programs, on named channels",
        description=(
            "Fires for every payload that is raised on the channel, in the order in which they were raised. "
            "Channels belong to the user who listens; programs of the same user meet on the same name."
        ),
        delivery=Delivery.QUEUE,
        parameters=(
            Parameter(
                "channel",
                Kind.PARAMETER_KIND_TEXT,
                "The channel's name: 1 to 255 bytes of printable text.",
                required=True,
                minimum=1,
                maximum=CHANNEL_BYTES_MAX,
                example="deploy",
            ),
            Parameter(
                "uid",
                Kind.PARAMETER_KIND_INTEGER,
                "Whose channel; the caller's own if absent. Another's is for the administrator.",
                minimum=0,
                maximum=UID_MAX,
                example="1000",
            ),
        ),
        events={"raised": "A payload was raised on the channel."},
        payload_message="aem.v1.UserEvent",
        examples=("user channel=deploy", "user channel=deploy --count 1 -o json"),
    )

    def __init__(self, host: Host) -> None:
        self._host = host
        self._channels: dict[tuple[Owner, str], _Channel] = {}
        # Parts of an encoded event that outlast one Raise: the times are those of the loop's turn, and a
        # program raises more than once.
        self._times = (0, 0)
        self._head = b""
        self._sender: Principal | None = None
        self._seen_from = 0  # the pid namespace that the sender's pid in the tail belongs to
        self._tail = b""

    def raise_events(
        self,
        principal: Principal,
        channel: str,
        payloads: Sequence[bytes],
        uid: int | None = None,
        *,
        ruling: Ruling | None = None,
    ) -> int:
        """Fire an event for each payload at every armed job of the channel; returns how many jobs that is.
        `ruling` is what policy says to it.

        INVALID_ARGUMENT for a bad channel name, no payload, too many, or one over limits.payload_bytes;
        PERMISSION_DENIED for another's channel; RESOURCE_EXHAUSTED for too many at once for so many
        listeners. Either all payloads are raised or none.
        """
        owner = _owner(principal, uid)
        found = self._channels.get((owner, channel))
        if found is None:
            _check_name("channel", channel)
        self._host.right(principal, _raising(owner, channel) if found is None else found.act, ruling)
        self._check_payloads(payloads)
        if found is None or not found.armed:
            return 0
        self._check_fires(found, len(payloads))
        self._host.afford(principal, len(payloads) * len(found.armed))
        events = self._encode(principal, found, payloads)
        jobs = list(found.armed.values())
        if len(events) == 1:
            for job in jobs:
                self._host.fire(job, events[0])
        else:
            for job in jobs:
                self._host.fire_many(job, events)
        return len(jobs)

    def acts(self, principal: Principal, values: Mapping[str, object]) -> Sequence[Act]:
        """Listening to the channel."""
        uid = values.get("uid")
        assert uid is None or isinstance(uid, int)
        return (_listening(_owner(principal, uid), str(values["channel"])),)

    def open(self, job: Job) -> None:
        """Find or make the channel."""
        name, uid = job.values["channel"], job.values.get("uid")
        assert isinstance(name, str)
        assert uid is None or isinstance(uid, int)
        _check_name("params.channel", name)
        owner = _owner(job.owner, uid)
        self._host.right(job.owner, _listening(owner, name), job.ruling)
        channel = self._channels.get((owner, name))
        if channel is None:
            channel = _Channel(owner, name, self._host.hold(job, "channels"))
            self._channels[owner, name] = channel
        channel.open_jobs += 1
        job.data = channel

    def start(self, job: Job) -> None:
        """Listen."""
        _channel(job).armed[job.id] = job

    def stop(self, job: Job) -> None:
        """Do not listen: what is raised until start() is not for this job."""
        _channel(job).armed.pop(job.id, None)

    def close(self, job: Job) -> None:
        """Leave the channel; the last one takes it away."""
        channel = _channel(job)
        channel.armed.pop(job.id, None)
        channel.open_jobs -= 1
        if not channel.open_jobs:
            del self._channels[channel.owner, channel.name]
            channel.charge.refund()

    def memento(self, job: Job) -> bytes | None:  # noqa: ARG002
        """Nothing is missed: without a daemon nobody can raise."""
        return b""

    def details(self, job: Job) -> dict[str, str]:
        """Which channel, and how many listen to it."""
        channel = _channel(job)
        return {
            "channel": channel.name,
            "uid": str(channel.owner.uid),
            "listeners": str(len(channel.armed)),
        }

    def _check_payloads(self, payloads: Sequence[bytes]) -> None:
        if not payloads:
            raise invalid("payloads", "there is none; an empty one raises an event without data")
        most = self._host.limits.raise_payloads
        if len(payloads) > most:
            raise invalid(
                "payloads",
                f"{len(payloads)} in one Raise, at most {most} are taken; spread them over several",
                value=len(payloads),
                limit=most,
            )
        size, limit = max(map(len, payloads)), self._host.limits.payload_bytes
        if size > limit:
            raise invalid(
                "payloads",
                f"one has {size} bytes, at most {limit} are taken; raise limits.payload_bytes",
                value=size,
                limit=limit,
            )

    def _check_fires(self, channel: _Channel, payloads: int) -> None:
        """Everybody waits while one Raise is carried out, so its work has a bound."""
        listeners, most = len(channel.armed), self._host.limits.raise_fires
        if payloads * listeners > most:
            raise exhausted(
                f"{payloads} payloads to {listeners} listeners",
                limit=most,
                used=payloads * listeners,
                key="limits.raise_fires",
                what=f"channel {channel.name}: too many events in one Raise",
                way_out="or spread the payloads over several",
            )

    def _encode(self, principal: Principal, channel: _Channel, payloads: Sequence[bytes]) -> list[bytes]:
        """The Events of one Raise, as protobuf would encode them."""
        head, before, after = self._event_head(), channel.encoded, self._event_tail(principal, channel.owner)
        events = []
        length = -1
        for payload in payloads:
            if len(payload) != length:  # the payloads of one Raise are mostly of one length
                length = len(payload)
                data = _USER_PAYLOAD + _varint(length) if length else b""
                size = len(before) + len(data) + length + len(after)
                start = b"".join((head, _varint(size), before, data))
            events.append(b"".join((start, payload, after)))
        return events

    def _event_head(self) -> bytes:
        reactor = self._host.reactor
        times = (reactor.real_ns(), reactor.mono_ns())
        if times != self._times:
            self._times = times
            real, mono = map(_varint, times)
            self._head = b"".join((_EVENT_TYPE, _EVENT_REAL, real, _EVENT_MONO, mono, _EVENT_USER))
        return self._head

    def _event_tail(self, principal: Principal, owner: Owner) -> bytes:
        if principal is not self._sender or owner.pid_namespace != self._seen_from:
            self._sender, self._seen_from = principal, owner.pid_namespace
            pid = principal.pid_for(owner)
            self._tail = _USER_UID + _varint(principal.uid) if principal.uid else b""
            self._tail += _USER_PID + _varint(pid) if pid else b""
        return self._tail


def _owner(principal: Principal, uid: int | None) -> Owner:
    own = principal.owner
    return own if uid is None or uid == own.uid else Owner(uid)


def _raising(owner: Owner, channel: str) -> Act:
    return Act(what=f"raise on channel {channel} of uid {owner.uid}", owner=owner, of="channel")


def _listening(owner: Owner, channel: str) -> Act:
    return Act(what=f"listen to channel {channel} of uid {owner.uid}", owner=owner, of="channel")


def _channel(job: Job) -> _Channel:
    assert isinstance(job.data, _Channel)
    return job.data


def _check_name(field: str, name: str) -> None:
    size = len(name.encode())
    if not 0 < size <= CHANNEL_BYTES_MAX:
        raise invalid(
            field,
            f"the name has {size} bytes; it must have 1 to {CHANNEL_BYTES_MAX}",
            value=size,
            limit=CHANNEL_BYTES_MAX,
        )
    if not name.isprintable():
        raise invalid(field, f"{name!r} has characters that cannot be printed; use letters, digits, spaces")


def _varint(value: int) -> bytes:
    """A number as protobuf encodes it; `value` is not negative."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
