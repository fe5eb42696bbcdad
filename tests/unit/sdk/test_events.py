"""Typed events and their JSON."""

import json

import aem
import pytest
from aem._registration import Registration
from aem.events import make_event
from aem.job import BaseJob
from aem.options import Options
from aem.v1 import event_pb2, process_pb2, session_pb2, socket_pb2, timer_pb2, user_pb2
from google.protobuf import any_pb2, struct_pb2, timestamp_pb2, wrappers_pb2


def job_of(module):
    registration = Registration(module, {}, options=Options(), label="", armed=True, sink=None)
    registration.id = 17
    return BaseJob(registration)


def event_of(module, **fields):
    message = event_pb2.Event(real_time_ns=5, mono_time_ns=6, **fields)
    return make_event(message, job_of(module), first=3, seq=5, epoch=2, attempts=1)


def test_timer_event_counts_its_expirations():
    event = event_of(
        "timer",
        type="expired",
        timer=timer_pb2.TimerEvent(clock=timer_pb2.CLOCK_BOOTTIME, lateness_ns=9, cookie=4, next_ns=8),
    )
    assert isinstance(event, aem.TimerEvent)
    assert (event.expirations, event.count, event.first, event.seq, event.epoch) == (3, 3, 3, 5, 2)
    assert (event.clock, event.lateness_ns, event.cookie, event.next_ns) == ("boottime", 9, 4, 8)
    assert (event.scheduled_ns, event.clock_was_set) == (0, False)
    assert event.to_dict() == {
        "module": "timer",
        "type": "expired",
        "job": 17,
        "epoch": 2,
        "first": 3,
        "seq": 5,
        "count": 3,
        "attempts": 1,
        "real_time_ns": 5,
        "mono_time_ns": 6,
        "key": "",
        "redacted": [],
        "payload": {
            "clock": "boottime",
            "scheduled_ns": 0,
            "lateness_ns": 9,
            "cookie": 4,
            "clock_was_set": False,
            "next_ns": 8,
        },
    }


def test_socket_event_has_bytes_as_text_or_base64():
    text = event_of("socket", type="data", key=b"\x00\x07", socket=socket_pb2.SocketEvent(data=b"h\xc3\xa9"))
    assert (text.to_dict()["key"], text.to_dict()["payload"]["data"]) == ("0007", "hé")
    raw = event_of("socket", type="data", socket=socket_pb2.SocketEvent(data=b"\xff"))
    assert raw.to_dict()["payload"]["data_base64"] == "/w=="
    assert "data" not in raw.to_dict()["payload"]
    assert raw.to_dict()["payload"]["peer"] is None
    assert raw.credentials is None


def test_socket_event_names_its_ends():
    peer = socket_pb2.SocketAddress(family="unix", display="unix:/run/x", path=b"/run/x")
    message = socket_pb2.SocketEvent(
        connection=3,
        peer=peer,
        credentials=socket_pb2.PeerCredentials(pid=8),
        reason="eof",
        bytes_in=1,
        bytes_out=2,
        error_number=104,
        truncated=True,
    )
    event = event_of("socket", type="closed", socket=message)
    assert isinstance(event, aem.SocketEvent)
    assert (event.connection, event.peer, event.local, event.reason) == (3, "unix:/run/x", "", "eof")
    assert (event.bytes_in, event.bytes_out, event.error_number, event.truncated) == (1, 2, 104, True)
    assert event.credentials.pid == 8
    assert event.to_dict()["payload"]["peer"]["path"] == "/run/x"


def test_process_event_says_whether_it_knows():
    message = process_pb2.ProcessEvent(
        pid=9,
        knowledge=process_pb2.EXIT_KNOWLEDGE_KNOWN,
        signal=11,
        signal_name="SIGSEGV",
        core_dumped=True,
        command="cat",
        uid=4,
    )
    event = event_of("process", type="exited", process=message)
    assert isinstance(event, aem.ProcessEvent)
    assert (event.pid, event.known, event.signal, event.signal_name) == (9, True, 11, "SIGSEGV")
    assert (event.core_dumped, event.exit_status, event.command, event.uid) == (True, 0, "cat", 4)
    assert not event.reaped
    assert event.to_dict()["payload"]["knowledge"] == "known"


def test_user_event_parses_json():
    message = user_pb2.UserEvent(channel="c", payload=b'{"a": 1}', sender_uid=1, sender_pid=2)
    event = event_of("user", type="raised", user=message)
    assert isinstance(event, aem.UserEvent)
    assert (event.channel, event.data, event.payload_bytes) == ("c", b'{"a": 1}', b'{"a": 1}')
    assert (event.sender_uid, event.sender_pid, event.json()) == (1, 2, {"a": 1})
    broken = event_of("user", user=user_pb2.UserEvent(payload=b"{"))
    with pytest.raises(ValueError, match="Expecting"):
        broken.json()


def test_payload_of_another_module_is_unpacked_if_its_type_is_known():
    packed = any_pb2.Any()
    packed.Pack(wrappers_pb2.StringValue(value="x"))
    event = event_of("counter", type="counted", any=packed)
    assert type(event) is aem.Event
    assert event.payload.value == "x"
    assert event.to_dict()["payload"] == {"value": "x"}
    unknown = any_pb2.Any(type_url="type.googleapis.com/no.such.Type", value=b"\xff")
    event = event_of("counter", any=unknown)
    assert event.payload == unknown
    assert event.to_dict()["payload"] == {"type_url": unknown.type_url, "value_base64": "/w=="}


def test_event_without_payload():
    event = event_of("counter", type="counted")
    assert event.payload is None
    assert event.to_dict()["payload"] is None


def packed_event(message):
    packed = any_pb2.Any()
    packed.Pack(message)
    # As it comes over the wire: made from bytes, by a process that has not seen the type.
    return event_of("counter", type="counted", any=any_pb2.Any.FromString(packed.SerializeToString()))


def test_struct_of_a_module_of_somebody_else_is_json():
    given = {"name": "disk", "full": True, "sizes": [1.5, 2], "more": {"none": None}}
    message = struct_pb2.Struct()
    message.update(given)
    assert packed_event(message).to_dict()["payload"] == given


def test_well_known_type_that_is_no_json_object_is_a_value():
    event = packed_event(timestamp_pb2.Timestamp(seconds=86_400))
    assert event.to_dict()["payload"] == {"value": "1970-01-02T00:00:00Z"}
    assert json.loads(event.to_json())["payload"] == {"value": "1970-01-02T00:00:00Z"}


def test_repeated_fields_are_lists():
    run = session_pb2.Run(binding=1, counts=[1, 2], events=[b"text", b"\xff"])
    from aem._json import message_dict

    assert message_dict(run)["counts"] == [1, 2]
    assert message_dict(run)["events"] == ["text", {"base64": "/w=="}]
    batch = session_pb2.Batch(runs=[run])
    assert message_dict(batch)["runs"][0]["binding"] == 1


def test_gap_tells_in_words():
    message = session_pb2.Gap(
        epoch=1,
        first=4,
        last=6,
        stage=session_pb2.STAGE_KERNEL,
        cause=session_pb2.CAUSE_SOURCE_FAILED,
        remedy=session_pb2.REMEDY_RESCAN,
        scope="/tmp",
        attempts=1,
    )
    gap = aem.Gap(message, job_of("file"))
    assert (gap.stage, gap.cause, gap.remedy, gap.scope) == ("kernel", "source-failed", "rescan", "/tmp")
    assert (gap.first, gap.seq, gap.count, gap.type, gap.module) == (4, 6, 0, "gap", "file")
    assert json.loads(gap.to_json())["cause"] == "source-failed"
    assert "unknown number" in repr(gap)
    assert aem.Gap(session_pb2.Gap(), job_of("file")).remedy == ""


def test_json_is_one_line():
    event = event_of("user", type="raised", user=user_pb2.UserEvent(payload=b"a\nb"))
    assert "\n" not in event.to_json()
    assert json.loads(event.to_json())["payload"]["payload"] == "a\nb"


def test_what_policy_has_taken_out_is_named():
    event = event_of("timer", timer=timer_pb2.TimerEvent(cookie=1), redacted=["next_ns", "cookie"])
    assert event.redacted == ("next_ns", "cookie")
    assert event.to_dict()["redacted"] == ["next_ns", "cookie"]
