from __future__ import annotations

from typing import Any

import pytest

from aemd.cli.eventline import event_line, gap_line
from aemd.cli.output import Output

PEER = {"display": "tcp:127.0.0.1:9"}
LOCAL = {"display": "tcp:127.0.0.1:8080"}


def row(module: str, kind: str, payload: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {
        "module": module,
        "type": kind,
        "job": 7,
        "seq": 3,
        "count": 1,
        "attempts": 1,
        "real_time_ns": 1_700_000_000_012_000_000,
        "payload": payload,
        **more,
    }


def tell(module: str, kind: str, payload: dict[str, Any] | None, **more: Any) -> str:
    line = event_line(Output(), row(module, kind, payload, **more))
    clock, rest = line.split(" ", 1)
    assert clock.endswith(".012")
    return rest


def test_timer_says_lateness_and_what_comes_next() -> None:
    payload = {"lateness_ns": 200_000, "scheduled_ns": 5, "next_ns": 1_000_000_005, "cookie": 9}
    assert tell("timer", "expired", payload, count=3) == (
        "timer/expired job 7 x3  lateness 200us, cookie 9, next 1s later"
    )
    assert tell("timer", "expired", {"clock_was_set": True}).endswith(
        "lateness 0s, the clock was set, the last"
    )


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"knowledge": "known", "exit_status": 3, "reaped": True}, "exited with status 3"),
        ({"knowledge": "known", "exit_status": 0}, "exited with status 0, not reaped yet"),
        (
            {
                "knowledge": "known",
                "signal": 11,
                "signal_name": "SIGSEGV",
                "core_dumped": True,
                "reaped": True,
            },
            "was ended by SIGSEGV, core dumped",
        ),
        ({"knowledge": "known", "signal": 64, "reaped": True}, "was ended by signal 64"),
        ({"knowledge": "unknown", "source": "none"}, "ended, nobody knows how (none)"),
    ],
)
def test_process_says_how_it_ended(payload: dict[str, Any], text: str) -> None:
    line = tell("process", "exited", {"pid": 42, "command": "sleep", **payload})
    assert line == f"process/exited job 7  pid 42 (sleep) {text}"


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        ("listening", {"local": LOCAL}, "on tcp:127.0.0.1:8080"),
        (
            "accepted",
            {"connection": 1, "peer": PEER, "local": LOCAL},
            "connection 1 from tcp:127.0.0.1:9 on tcp:127.0.0.1:8080",
        ),
        ("accepted", {"connection": 1, "peer": None}, "connection 1 from an unnamed peer"),
        ("data", {"connection": 1, "data": "hi\n"}, r'connection 1 "hi\n"'),
        ("data", {"peer": PEER, "data": "hi", "truncated": True}, 'from tcp:127.0.0.1:9 "hi", cut off'),
        ("data", {"connection": 1, "data_base64": "//8="}, "connection 1 2 bytes that are no text"),
        ("end", {"connection": 1}, "connection 1"),
        (
            "closed",
            {"connection": 1, "reason": "reset", "error_number": 104, "bytes_in": 2048},
            "connection 1 reset (errno 104), 2.0KiB in, 0B out",
        ),
    ],
)
def test_socket_says_what_happened(kind: str, payload: dict[str, Any], text: str) -> None:
    assert tell("socket", kind, payload) == f"socket/{kind} job 7  {text}"


def test_user_event_shows_payload_and_sender() -> None:
    payload = {"channel": "deploy", "payload": "\x1b[2J", "sender_pid": 5, "sender_uid": 0}
    assert tell("user", "raised", payload) == r'user/raised job 7  deploy "\x1b[2J" from pid 5, uid 0'


def test_module_nobody_has_heard_of_shows_what_it_has() -> None:
    assert tell("disk", "full", {"device": "sda", "free": 0, "path": "/\x07"}) == (
        r"disk/full job 7  device=sda path=/\x07"
    )
    assert tell("disk", "full", None, attempts=2) == "disk/full job 7 (delivery 2)"


def test_gap_is_marked_and_says_where_and_why() -> None:
    gap = {
        "module": "timer",
        "type": "gap",
        "job": 7,
        "count": 3,
        "stage": "job",
        "cause": "overflow",
        "scope": "",
        "remedy": "",
    }
    assert gap_line(Output(), gap) == "GAP timer job 7  3 events lost: stage job, cause overflow"
    unknown = {**gap, "count": 0, "scope": "/srv", "remedy": "rescan"}
    assert gap_line(Output(), unknown) == (
        "GAP timer job 7  events lost, nobody knows how many in /srv: "
        "stage job, cause overflow, remedy rescan"
    )
    assert gap_line(Output(color=True), gap).startswith("\x1b[31m\x1b[1mGAP")


def test_what_policy_has_taken_out_is_told() -> None:
    told = tell("user", "raised", {"channel": "c"}, redacted=["payload", "sender\n"])
    assert told.endswith(" (policy took out payload, sender\\n)")
