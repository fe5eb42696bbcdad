"""Module socket without sockets: encoding, parameters, keys."""

from __future__ import annotations

import errno
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.modules.address import parse_address
from aemd.modules.contract import Kind
from aemd.modules.params import parse_values
from aemd.modules.socket import DESCRIPTION
from aemd.modules.socket.datagram import Keys
from aemd.modules.socket.event import (
    Clock,
    address,
    address_message,
    connection_field,
    encode_data,
    key_field,
    varint,
)
from aemd.modules.socket.settings import PARAMETERS, Settings, settings
from aemd.sources.bound import refusal
from aemd.sources.framing import LengthFraming, LineFraming
from aemd.sources.socket import parse_credentials, parse_name
from aemd.v1 import event_pb2, job_pb2, socket_pb2


class Turn:
    """A reactor that only tells the time."""

    def __init__(self, mono, real):
        self.mono, self.real = mono, real

    def mono_ns(self):
        return self.mono

    def real_ns(self):
        return self.real


@given(
    number=st.integers(1, (1 << 64) - 1),
    data=st.binary(max_size=300),
    mono=st.integers(0, (1 << 63) - 1),
    real=st.integers(0, (1 << 63) - 1),
)
def test_data_put_together_by_hand_is_what_protobuf_gives(number, data, mono, real):
    key = number.to_bytes(8, "big")
    clock = Clock(Turn(mono, real))
    by_hand = encode_data(clock.times(), key_field(key), connection_field(number), memoryview(data))
    payload = socket_pb2.SocketEvent(connection=number, data=data)
    assert by_hand == clock.event("data", key, payload)


@pytest.mark.parametrize("size", [0, 1, 125, 127, 128, 16_383, 16_384, 65_536])
def test_data_of_every_length_of_length_is_what_protobuf_gives(size):
    before = socket_pb2.SocketEvent(peer=socket_pb2.SocketAddress(family="udp", port=1))
    clock = Clock(Turn(1, 2))
    by_hand = encode_data(clock.times(), key_field(b"k" * 14), before.SerializeToString(), bytes(size))
    before.data = bytes(size)
    assert by_hand == clock.event("data", b"k" * 14, before)


def test_event_without_a_key_has_no_key_field():
    clock = Clock(Turn(1, 2))
    event = event_pb2.Event.FromString(encode_data(clock.times(), key_field(b""), b"", b"x"))
    assert event.key == b""
    assert event.socket.data == b"x"


def test_times_are_encoded_anew_each_turn():
    turn = Turn(1, 2)
    clock = Clock(turn)
    first = clock.times()
    assert clock.times() is first
    turn.mono, turn.real = 300, 400
    event = event_pb2.Event.FromString(clock.times())
    assert (event.mono_time_ns, event.real_time_ns) == (300, 400)


@given(st.integers(0, (1 << 64) - 1))
def test_varint_is_protobufs(number):
    encoded = socket_pb2.SocketEvent(bytes_in=number).SerializeToString()
    assert varint(number) == (encoded[1:] or b"\0")


@pytest.mark.parametrize(
    ("raw", "display"),
    [
        (("127.0.0.1", 80), "tcp:127.0.0.1:80"),
        (("::1", 80, 0, 0), "tcp:[::1]:80"),
        (("fe80::1", 80, 0, 3), "tcp:[fe80::1%3]:80"),
        (("::ffff:10.0.0.1", 80, 0, 0), "tcp:10.0.0.1:80"),
    ],
)
def test_address_as_people_write_it(raw, display):
    assert address_message(address("tcp", raw)).display == display


def test_unix_names():
    assert parse_name("/run/\udcff") == ("", 0, b"/run/\xff")
    assert parse_name(b"\0name") == ("", 0, b"\0name")
    assert address_message(address("unix", "")).display == "unix:"
    assert address_message(address("unix", b"\0name")).display == "unix:@name"


def test_peer_that_the_kernel_does_not_know_has_no_credentials():
    assert parse_credentials(b"") is None
    assert parse_credentials(b"\0\0\0\0" + b"\xff" * 8) is None
    assert parse_credentials(b"\1\0\0\0\2\0\0\0\3\0\0\0") == (1, 2, 3)


def parsed(**texts: str) -> Settings:
    limits = Limits()
    given = {name: job_pb2.Value(text=text) for name, text in texts.items()}
    return settings(parse_values(PARAMETERS, given, limits), limits)


def test_defaults_of_the_description_are_those_of_settings():
    assert parsed(listen="tcp:127.0.0.1:80") == Settings(parse_address("tcp:127.0.0.1:80"))


def test_values_become_settings():
    found = parsed(
        listen="unix:/run/s",
        framing="length",
        message_max="1K",
        length_bytes="2",
        idle_timeout="2s",
        end_timeout="0",
        mode="0660",
        paused="yes",
    )
    assert (found.message_max_bytes, found.length_bytes) == (1024, 2)
    assert (found.idle_timeout_ns, found.end_timeout_ns) == (2_000_000_000, 0)
    assert (found.mode, found.paused) == (0o660, True)
    assert isinstance(found.new_framing(), LengthFraming)
    assert isinstance(parsed(listen="unix:/s", framing="line").new_framing(), LineFraming)
    assert parsed(listen="unix:/s").new_framing() is None


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ({"listen": "udp:127.0.0.1:1", "framing": "line"}, "framing"),
        ({"listen": "unix-seqpacket:/s", "framing": "length"}, "framing"),
        ({"listen": "tcp:127.0.0.1:1", "message_max": "1M"}, "message_max"),
        ({"listen": "tcp:127.0.0.1:1", "data_max": "128K"}, "data_max"),
        ({"listen": "tcp:127.0.0.1:1", "mode": "0600"}, "mode"),
        ({"listen": "unix:@name", "mode": "0600"}, "mode"),
        ({"listen": "unix:/s", "mode": "rw"}, "mode"),
        ({"listen": "unix:/s", "mode": "1777"}, "mode"),
        ({"listen": "unix:/s", "reuse_port": "yes"}, "reuse_port"),
    ],
)
def test_values_that_do_not_go_together_name_the_parameter(texts, field):
    with pytest.raises(AemError) as caught:
        parsed(**texts)
    assert caught.value.details["field"] == f"params.{field}"


def test_description_is_complete():
    assert {parameter.name for parameter in PARAMETERS if parameter.required} == {"listen"}
    assert all(
        parameter.description and parameter.kind != Kind.PARAMETER_KIND_UNSPECIFIED
        for parameter in PARAMETERS
    )
    assert DESCRIPTION.keyed
    assert DESCRIPTION.replies
    assert DESCRIPTION.pause_by_default


@pytest.mark.parametrize(
    ("family", "raw"),
    [
        (socket.AF_INET, ("192.0.2.1", 53)),
        (socket.AF_INET6, ("2001:db8::1", 53, 0, 7)),
        (socket.AF_UNIX, "/run/s"),
        (socket.AF_UNIX, b"\0name"),
    ],
)
def test_key_leads_back_to_the_sender(family, raw):
    keys = Keys(b"secret")
    expected = b"/run/s" if raw == "/run/s" else raw
    key = keys.encode(raw)
    assert keys.decode(key, family) == expected
    for other in (Keys(b"another"), keys):
        forged = key if other is not keys else key[:-1] + bytes([key[-1] ^ 1])
        with pytest.raises(AemError):
            other.decode(forged, family)


@given(st.binary(max_size=40))
def test_no_bytes_are_a_key_by_chance(data):
    with pytest.raises(AemError):
        Keys(b"secret").decode(data, socket.AF_INET)


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (errno.EADDRINUSE, Code.ALREADY_EXISTS, "ADDRESS_IN_USE"),
        (errno.EADDRNOTAVAIL, Code.INVALID_ARGUMENT, "ADDRESS_NOT_AVAILABLE"),
        (errno.EACCES, Code.PERMISSION_DENIED, "NOT_ALLOWED"),
        (errno.EAFNOSUPPORT, Code.FAILED_PRECONDITION, "FAMILY_NOT_SUPPORTED"),
        (errno.EMFILE, Code.RESOURCE_EXHAUSTED, "SYSTEM_LIMIT"),
        (errno.ENOENT, Code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (errno.EIO, Code.FAILED_PRECONDITION, "SYSTEM_CALL_FAILED"),
    ],
)
def test_what_bind_says_becomes_an_error_with_the_address_and_the_errno(number, code, reason):
    error = refusal("bind", parse_address("tcp:192.0.2.1:80"), OSError(number, "x"))
    assert (error.code, error.reason) == (code, reason)
    assert "tcp:192.0.2.1:80" in error.message
    assert error.details["errno"] == errno.errorcode[number]
    assert error.details["field"] == "params.listen"
