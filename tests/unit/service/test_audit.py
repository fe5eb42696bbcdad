"""Each cause is told once in a window, and no flood of causes fills the log or the memory."""

from __future__ import annotations

import json

import pytest
import structlog

from aemd.core.patterns import Patterns
from aemd.core.policy import Rule, Ruling, Subject
from aemd.core.principal import Owner, Principal
from aemd.service.audit import (
    CAUSES_MAX,
    LINES_PER_WINDOW,
    LINES_PER_WINDOW_ALL,
    WHAT_CHARS_MAX,
    WINDOW_NS,
    Audit,
)

RULING = Ruling(Rule("web", Subject(everyone=True), Patterns(("*",)), allow=True))


def who(uid: int) -> Principal:
    return Principal(Owner(uid), uid, (), 77, 1, administrator=uid == 0)


class Bench:
    def __init__(self) -> None:
        self.now_ns = 10**15
        self.audit = Audit(lambda: self.now_ns)
        self.lines: list[dict[str, object]] = []

    def told(self) -> list[dict[str, object]]:
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def bench():
    bench = Bench()

    def keep(_logger, _name, event):
        bench.lines.append(json.loads(json.dumps(event)))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(10))
    yield bench
    structlog.configure(**before)


def test_each_kind_says_who_what_and_which_rule(bench):
    bench.audit.granted(who(7), "listen on tcp::80", {"port"}, RULING)
    bench.audit.denied(who(7), "register for module timer", "POLICY", "web")
    bench.audit.looked(who(0), "GetJob", Owner(7))
    bench.audit.looked(who(7), "GetJob", Owner(7))
    assert bench.told() == [
        {
            "event": "granted",
            "uid": 7,
            "pid": 77,
            "what": "listen on tcp::80",
            "grant": "port",
            "rule": "web",
        },
        {
            "event": "denied",
            "uid": 7,
            "pid": 77,
            "what": "register for module timer",
            "reason": "POLICY",
            "rule": "web",
        },
        {"event": "looked", "uid": 0, "pid": 77, "what": "GetJob of uid 7"},
    ]


def test_a_cause_is_told_once_in_a_window_and_then_with_its_repetitions(bench):
    for _ in range(5):
        bench.audit.denied(who(7), "watch process 1", "NOT_FOUND")
    assert len(bench.told()) == 1
    bench.now_ns += WINDOW_NS - 1
    bench.audit.denied(who(7), "watch process 1", "NOT_FOUND")
    assert bench.told() == []
    bench.now_ns += 1
    bench.audit.denied(who(7), "watch process 1", "NOT_FOUND")
    (line,) = bench.told()
    assert line["repeated"] == 5


def test_another_user_rule_or_act_is_another_cause(bench):
    bench.audit.denied(who(7), "a", "POLICY", "r")
    bench.audit.denied(who(8), "a", "POLICY", "r")
    bench.audit.denied(who(7), "b", "POLICY", "r")
    bench.audit.denied(who(7), "a", "POLICY", "s")
    assert len(bench.told()) == 4


def test_one_user_cannot_fill_the_log_and_what_was_left_out_is_counted(bench):
    for number in range(LINES_PER_WINDOW + 30):
        bench.audit.denied(who(7), f"watch process {number}", "NOT_FOUND")
    assert len(bench.told()) == LINES_PER_WINDOW
    bench.audit.denied(who(8), "watch process 1", "NOT_FOUND")
    assert [line["uid"] for line in bench.told()] == [8], "another user's line is still told"
    bench.now_ns += WINDOW_NS
    bench.audit.denied(who(8), "else", "NOT_FOUND")
    told = bench.told()
    assert told[0] == {"event": "audit lines left out", "left_out": 30}
    assert told[1]["what"] == "else"


def test_many_users_together_cannot_either(bench):
    for uid in range(2 * LINES_PER_WINDOW_ALL):
        bench.audit.denied(who(uid), "x", "NOT_FOUND")
    assert len(bench.told()) == LINES_PER_WINDOW_ALL
    bench.audit.close()
    assert bench.told() == [{"event": "audit lines left out", "left_out": LINES_PER_WINDOW_ALL}]
    bench.audit.close()
    assert bench.told() == []


def test_memory_is_bounded_whatever_is_asked(bench):
    for number in range(3 * CAUSES_MAX):
        bench.now_ns += WINDOW_NS
        bench.audit.denied(who(7), f"{number}" * 10_000, "NOT_FOUND")
    assert len(bench.audit._causes) == CAUSES_MAX
    assert all(len(line["what"]) == WHAT_CHARS_MAX for line in bench.told())
    assert len(bench.audit._lines) == 1
