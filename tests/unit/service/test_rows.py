"""Rows of the daemon are those of the SDK."""

from __future__ import annotations

from typing import Any

import pytest
from aem._registration import Registration
from aem.events import Gap, make_event
from aem.job import BaseJob
from aem.options import Options
from google.protobuf import any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2

from aemd.core.encoding import gap_frame
from aemd.core.entry import OVERFLOWED, SOURCE_FAILED, Entry, Loss
from aemd.core.job import Job
from aemd.core.principal import Owner, Principal
from aemd.core.traits import Traits
from aemd.service.feed import dumps, ending, variables
from aemd.service.rows import entry_row
from aemd.v1 import event_pb2, job_pb2, process_pb2, session_pb2, socket_pb2, timer_pb2, user_pb2

EPOCH = 2


def packed(message: Any) -> event_pb2.Event:
    event = event_pb2.Event(type="counted")
    event.any.Pack(message)
    return event


def job_of(module: str) -> Job:
    owner = Principal(Owner(7), 7, (), 0, 0, administrator=False)
    options = None
    return Job(
        17, owner, traits=Traits(module), values={}, params=b"", options=options, label="", create_time_ns=1
    )  # type: ignore[arg-type]


def sdk_job(module: str) -> BaseJob:
    registration = Registration(module, {}, options=Options(), label="", armed=True, sink=None)
    registration.id = 17
    return BaseJob(registration)


peer = socket_pb2.SocketAddress(display="unix:/run/x", path=b"/run/\xff")


E, TIMER, USER = event_pb2.Event, timer_pb2.TimerEvent, user_pb2.UserEvent
JOB = job_pb2.Job(params={"a": job_pb2.Value(data=b"\xff"), "b": job_pb2.Value(truth=True)})
UNKNOWN = any_pb2.Any(type_url="type.googleapis.com/no.such.Type", value=b"\xff")


@pytest.mark.parametrize(
    ("module", "event"),
    [
        ("timer", E(type="expired", timer=TIMER(clock=timer_pb2.CLOCK_BOOTTIME))),
        ("timer", E(type="expired", timer=TIMER(clock=17, cookie=1))),  # type: ignore[arg-type]
        ("user", E(type="raised", user=USER(channel="c", payload=b"h\xc3\xa9"))),
        ("user", E(type="raised", user=USER(payload=b"\xff\0"))),
        ("process", E(process=process_pb2.ProcessEvent(pid=4, exit_status=3), redacted=["a.b"])),
        ("socket", E(key=b"\0\7", socket=socket_pb2.SocketEvent(data=b"x", peer=peer))),
        ("socket", E(socket=socket_pb2.SocketEvent())),
        ("counter", E(type="counted", real_time_ns=5, mono_time_ns=6)),
        ("counter", packed(wrappers_pb2.StringValue(value="x"))),
        ("counter", packed(wrappers_pb2.BytesValue(value=b"\xff"))),
        ("counter", packed(timestamp_pb2.Timestamp(seconds=1))),
        ("counter", packed(duration_pb2.Duration(nanos=1))),
        ("counter", packed(empty_pb2.Empty())),
        ("counter", packed(struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=1)}))),
        ("counter", packed(JOB)),
        ("counter", packed(E(redacted=["x"], timer=TIMER()))),
        ("counter", packed(any_pb2.Any(type_url="a/b", value=b"\xfe"))),
        ("counter", E(any=UNKNOWN)),
    ],
)  # fmt: skip
def test_row_of_an_event_is_what_the_sdk_makes_of_it(module: str, event: event_pb2.Event) -> None:
    entry = Entry(3, 5, event.SerializeToString(), event.key, 0)
    entry.attempts = 2
    row = entry_row(job_of(module), EPOCH, entry)
    assert row == make_event(event, sdk_job(module), first=3, seq=5, epoch=EPOCH, attempts=2).to_dict()
    assert list(row) == list(make_event(event, sdk_job(module), 3, 5, EPOCH, 2).to_dict())
    assert dumps(row) == make_event(event, sdk_job(module), 3, 5, EPOCH, 2).to_json()


@pytest.mark.parametrize("loss", [OVERFLOWED, SOURCE_FAILED, Loss(session_pb2.STAGE_KERNEL, 99, scope="x")])  # type: ignore[arg-type]
def test_row_of_a_gap_is_what_the_sdk_makes_of_it(loss: Loss) -> None:
    entry = Entry.gap(3, 5, loss)
    entry.attempts = 1
    frame = session_pb2.ServerFrame.FromString(gap_frame(binding=1, epoch=EPOCH, entry=entry))
    row = entry_row(job_of("timer"), EPOCH, entry)
    assert dumps(row) == Gap(frame.gap, sdk_job("timer")).to_json()


def test_variables_of_a_gap_say_what_was_lost() -> None:
    row = entry_row(job_of("timer"), EPOCH, Entry.gap(3, 5, OVERFLOWED))
    assert variables(row) == {
        "AEM_MODULE": "timer", "AEM_TYPE": "gap", "AEM_JOB": "17", "AEM_SEQ": "5", "AEM_EPOCH": "2",
        "AEM_COUNT": "3", "AEM_ATTEMPTS": "0", "AEM_STAGE": "job", "AEM_CAUSE": "overflow", "AEM_SCOPE": "",
        "AEM_REMEDY": "",
    }  # fmt: skip


def test_no_field_of_a_payload_takes_the_place_of_a_fact() -> None:
    row = entry_row(
        job_of("timer"), EPOCH, Entry(1, 1, event_pb2.Event(type="t").SerializeToString(), b"", 0)
    )
    row["payload"] = {"seq": 99, "job": {"x": 1}, "type": "theirs"}
    found = variables(row)
    assert (found["AEM_SEQ"], found["AEM_TYPE"], found["AEM_JOB"], found["AEM_JOB_X"]) == (
        "1",
        "t",
        "17",
        "1",
    )


def test_endings_in_words() -> None:
    words = [ending(code) for code in (0, 3, -9, -200)]
    assert words == [
        "exited with status 0",
        "exited with status 3",
        "ended by SIGKILL",
        "ended by signal 200",
    ]
