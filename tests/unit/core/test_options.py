from __future__ import annotations

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.core.options import CUMULATIVE, DROP_OLDEST, EXPLICIT, PAUSE_SOURCE, OptionsParser, parse_options
from aemd.core.traits import Traits
from aemd.v1 import job_pb2

PLAIN = Traits("plain")
REPLIES = Traits("replies", replies=True, pausable=True, pause_by_default=True)
LIMITS = Limits()


def test_empty_options_get_the_defaults():
    options = parse_options(job_pb2.Options(), PLAIN, LIMITS)
    assert (options.priority, options.queue_depth, options.overflow) == (3, 1024, DROP_OLDEST)
    assert (options.acknowledgement, options.lease_ns) == (CUMULATIVE, LIMITS.lease_ns)


def test_module_with_replies_is_explicit_and_pauses():
    options = parse_options(job_pb2.Options(), REPLIES, LIMITS)
    assert (options.acknowledgement, options.overflow) == (EXPLICIT, PAUSE_SOURCE)


def test_priority_zero_is_no_default():
    assert parse_options(job_pb2.Options(priority=0), PLAIN, LIMITS).priority == 0


@pytest.mark.parametrize(
    ("field", "value", "traits"),
    [
        ("priority", 8, PLAIN),
        ("queue_depth", 65_537, PLAIN),
        ("queue_bytes", (64 << 20) + 1, PLAIN),
        ("overflow", job_pb2.OVERFLOW_PAUSE_SOURCE, PLAIN),
        ("overflow", 99, PLAIN),
        ("acknowledgement", 99, PLAIN),
        ("acknowledgement", job_pb2.ACKNOWLEDGEMENT_NONE, REPLIES),
        ("acknowledgement", job_pb2.ACKNOWLEDGEMENT_CUMULATIVE, REPLIES),
        ("ack_timeout_ns", -1, PLAIN),
        ("ack_timeout_ns", 1, PLAIN),
        ("lease_ns", -1, PLAIN),
        ("lease_ns", 10**15, PLAIN),
    ],
)
def test_wrong_option_names_field_and_value(field, value, traits):
    with pytest.raises(AemError) as raised:
        parse_options(job_pb2.Options(**{field: value}), traits, LIMITS)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert raised.value.details["field"] == f"options.{field}"
    assert "value" in raised.value.details


def test_timeout_without_acknowledgement_is_refused():
    options = job_pb2.Options(ack_timeout_ns=10**9, acknowledgement=job_pb2.ACKNOWLEDGEMENT_NONE)
    with pytest.raises(AemError):
        parse_options(options, PLAIN, LIMITS)


def test_equal_options_are_one_object():
    parser = OptionsParser(LIMITS)
    first = parser.parse(job_pb2.Options(queue_depth=5), PLAIN)
    assert parser.parse(job_pb2.Options(queue_depth=5), PLAIN) is first
    changed = parser.with_priority(first, 6, PLAIN)
    assert changed.priority == 6
    assert parser.with_priority(first, 6, PLAIN) is changed


def test_options_survive_the_wire():
    options = parse_options(job_pb2.Options(one_shot=True, attempts_max=3), PLAIN, LIMITS)
    assert parse_options(options.to_pb(), PLAIN, LIMITS) == options


def test_fields_of_the_future_are_neither_told_apart_nor_kept():
    parser = OptionsParser(LIMITS)
    field_111 = b"\xfa\x06\x64"  # 100 bytes of it follow
    one, other = (job_pb2.Options.FromString(field_111 + bytes([number]) * 100) for number in range(2))
    assert parser.parse(one, PLAIN) is parser.parse(other, PLAIN)
    assert one.ByteSize() == 0
