"""How fast a user may connect, and what is said of those who are turned away."""

import pytest
from structlog.testing import capture_logs

from aemd.core.limits import SECOND
from aemd.peer import gate as module
from aemd.peer.gate import BURST_NS, DEBT_NS_MAX, OFFENCE_NS, Gate, Refusals

RATE = 100
BURST = RATE * BURST_NS // SECOND
NOW = 1_000 * SECOND


def admitted(gate, uid, now_ns, tries=10 * RATE):
    return sum(gate.admit(uid, now_ns) for _ in range(tries))


def test_burst_passes_and_not_one_more():
    gate = Gate(RATE)
    assert admitted(gate, 1, NOW) == BURST
    assert admitted(gate, 2, NOW) == BURST
    assert admitted(gate, 1, NOW + SECOND) == RATE


def test_rate_of_a_user_may_be_another():
    gate = Gate(RATE)
    gate.set_rate(1, 2 * RATE)
    assert admitted(gate, 1, NOW) == 2 * BURST
    gate.set_rate(1, RATE)
    assert admitted(gate, 1, NOW + SECOND) == RATE


def test_single_offence_costs_a_second_of_connections():
    gate = Gate(RATE)
    gate.offend(1, NOW)
    assert admitted(gate, 1, NOW) == RATE * (BURST_NS - OFFENCE_NS) // SECOND
    assert admitted(gate, 2, NOW) == BURST


def test_who_offends_again_and_again_is_kept_out_for_a_while_and_not_for_ever():
    gate = Gate(RATE)
    for _ in range(1_000):
        gate.offend(1, NOW)
    assert admitted(gate, 1, NOW + DEBT_NS_MAX) == 0
    assert admitted(gate, 1, NOW + DEBT_NS_MAX + SECOND) == RATE


def test_users_whose_buckets_are_full_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "USERS_MAX", 10)
    gate = Gate(RATE)
    gate.set_rate(0, 5)
    for uid in range(11):
        gate.admit(uid, NOW + uid * SECOND)
    assert len(gate._free_ns) < 5
    assert gate._rates == {}


def test_each_user_and_cause_is_said_once_in_a_while_with_the_number():
    refusals = Refusals()
    with capture_logs() as said:
        for _ in range(3):
            refusals.note(1, "PING", NOW)
        refusals.note(1, "SETTINGS", NOW)
        refusals.note(2, "PING", NOW)
    assert [(each["uid"], each["reason"], each["times"]) for each in said] == [
        (1, "PING", 1),
        (1, "SETTINGS", 1),
        (2, "PING", 1),
    ]
    with capture_logs() as said:
        refusals.note(1, "PING", NOW + module.SAY_AGAIN_NS)
    assert [each["times"] for each in said] == [3]
    assert refusals.counts == {"PING": 5, "SETTINGS": 1}


@pytest.mark.parametrize("count", [20])
def test_memory_of_what_was_said_is_bounded(monkeypatch, count):
    monkeypatch.setattr(module, "SAID_MAX", 5)
    refusals = Refusals()
    with capture_logs():
        for uid in range(count):
            refusals.note(uid, "PING", NOW)
    assert len(refusals._said) == 5
