"""What policy takes out of events is out, and nothing else is."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2, struct_pb2

from aemd.service.redaction import redactor, unknown_field
from aemd.v1 import event_pb2, socket_pb2, timer_pb2

SOCKET, TIMER = "aem.v1.SocketEvent", "aem.v1.TimerEvent"


def accepted() -> event_pb2.Event:
    return event_pb2.Event(
        type="accepted",
        real_time_ns=7,
        key=b"k",
        socket=socket_pb2.SocketEvent(
            connection=3,
            peer=socket_pb2.SocketAddress(host="10.0.0.1", port=5),
            credentials=socket_pb2.PeerCredentials(pid=7, uid=8),
        ),
    )


def redacted(event: event_pb2.Event, paths: list[str], message: str = SOCKET) -> event_pb2.Event:
    return event_pb2.Event.FromString(redactor(paths, message)(event.SerializeToString()))


def test_fields_are_cleared_and_named_and_the_rest_stays():
    event = redacted(accepted(), ["peer.host", "credentials"])
    expected = accepted()
    expected.socket.peer.ClearField("host")
    expected.socket.ClearField("credentials")
    expected.redacted.extend(["peer.host", "credentials"])
    assert event == expected
    assert b"10.0.0.1" not in event.SerializeToString()


def test_what_was_not_there_is_named_as_well():
    event = event_pb2.Event(type="end", socket=socket_pb2.SocketEvent(connection=3))
    assert list(redacted(event, ["data", "peer.host"]).redacted) == ["data", "peer.host"]
    assert not redacted(event, ["peer.host"]).socket.HasField("peer"), "nothing is made by looking"


def test_a_packed_payload_is_opened_and_packed_again():
    secret = struct_pb2.ListValue(values=[struct_pb2.Value(string_value="secret")])
    packed = any_pb2.Any()
    packed.Pack(secret)
    event = redacted(event_pb2.Event(any=packed), ["values.string_value"], "google.protobuf.ListValue")
    found = struct_pb2.ListValue()
    assert event.any.Unpack(found)
    assert len(found.values) == 1
    assert found.values[0].WhichOneof("kind") is None


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (event_pb2.Event(timer=timer_pb2.TimerEvent(cookie=5)), SOCKET),
        (event_pb2.Event(timer=timer_pb2.TimerEvent(cookie=5)), "google.protobuf.Struct"),
        (event_pb2.Event(any=any_pb2.Any(type_url="x/y", value=b"secret")), "google.protobuf.Struct"),
        (event_pb2.Event(any=any_pb2.Any(type_url="x/y", value=b"secret")), SOCKET),
        (event_pb2.Event(any=any_pb2.Any(type_url="x/y", value=b"secret")), "no.such.Message"),
    ],
)
def test_of_a_payload_that_is_not_what_the_module_says_nothing_passes(event, message):
    assert redacted(event, ["data"], message).WhichOneof("payload") is None


def test_a_map_is_taken_out_whole():
    packed = any_pb2.Any()
    packed.Pack(struct_pb2.Struct(fields={"a": struct_pb2.Value(string_value="secret")}))
    event = redacted(event_pb2.Event(any=packed), ["fields.value"], "google.protobuf.Struct")
    assert b"secret" not in event.SerializeToString()


@pytest.mark.parametrize(
    ("path", "message", "wrong"),
    [
        ("peer", SOCKET, ""),
        ("peer.host", SOCKET, ""),
        ("cookie", TIMER, ""),
        ("pear", SOCKET, "its events have no field pear; did you mean peer?"),
        ("peer.hots", SOCKET, "its events have no field peer.hots; did you mean peer.host?"),
        ("data.x", SOCKET, "its events have no field data.x"),
        ("", SOCKET, "its events have no field "),
        ("x", "no.such.Message", "no message no.such.Message"),
        ("x", "", "it does not say what its events hold"),
    ],
)
def test_a_field_that_events_do_not_have_is_told(path, message, wrong):
    told = unknown_field(path, message)
    assert told.startswith(wrong) if wrong else told == ""
