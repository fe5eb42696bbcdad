"""Texts that clients and the kernel give: any of them is parsed or refused, in bounded time."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given, settings
from hypothesis import strategies as st

from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.modules.address import parse_address
from aemd.modules.params import parse_values
from aemd.modules.quantity import parse_duration, parse_integer, parse_size, parse_time
from aemd.modules.timer.calendar import parse_calendar, parse_zone
from aemd.modules.timer.parameters import DESCRIPTION, parse_schedule
from aemd.peer.principal import parse_start_time
from aemd.v1 import job_pb2

NOW_NS = 1_780_000_000_000_000_000
calendars = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="0123456789*/,.:-~@ MonFriJaLWU#TC", max_size=60),
    st.lists(
        st.sampled_from(
            [
                "*",
                "Mon..Fri",
                "*-*-*",
                "1..5/2",
                "02:30",
                "*:*:0/0.1",
                "L",
                "~7",
                "2199-12-31",
                "UTC",
                "#",
                "9,",
            ]
        ),
        max_size=7,
    ).map(" ".join),
)


@settings(max_examples=300, deadline=5_000)
@given(calendars)
@example("*-02-29 *:*:*")
@example("*-02-30")
@example("* * 31 2 *")
@example("Mon *-02-29 Europe/Berlin")
def test_any_calendar_goes_forward_or_is_a_value_error(text):
    # Invariant: an expiration lies after the time asked for, and nothing but ValueError is raised.
    try:
        calendar = parse_calendar(text, None)
    except ValueError:
        return
    next_ns = calendar.next_after(NOW_NS)
    assert next_ns is None or next_ns > NOW_NS


@given(
    st.one_of(st.text(max_size=100), st.sampled_from(["../../etc/passwd", "/etc/localtime", "Europe", "\0"]))
)
def test_any_zone_is_a_zone_or_a_value_error(name):
    # Invariant: nothing but ValueError, and no file outside of the tz database is opened.
    with suppress(ValueError):
        assert parse_zone(name).key == name


values = st.one_of(
    st.builds(job_pb2.Value, text=st.one_of(st.text(max_size=40), calendars)),
    st.builds(job_pb2.Value, integer=st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(job_pb2.Value, text=st.sampled_from(["1h", "0", "UTC", "boottime", "*:*", "@0", "100us"])),
)
names = st.sampled_from([parameter.name for parameter in DESCRIPTION.parameters])


def scheduled(given_values):
    try:
        return parse_schedule(parse_values(DESCRIPTION.parameters, given_values, Limits()), NOW_NS)
    except AemError as error:
        return error


@settings(deadline=5_000)
@given(st.dictionaries(names, values, max_size=4))
def test_any_parameters_of_a_timer_are_a_schedule_or_a_refusal(given_values):
    # Invariant: AemError INVALID_ARGUMENT, or a schedule whose times can be computed.
    schedule = scheduled(given_values)
    if isinstance(schedule, AemError):
        assert schedule.code is Code.INVALID_ARGUMENT
        return
    due_ns = schedule.begin(NOW_NS)
    if due_ns is not None:
        latest_ns, count, next_ns = schedule.passed(due_ns, due_ns + 10**9)
        assert latest_ns <= due_ns + 10**9
        assert count >= 1
        assert next_ns is None or next_ns > due_ns


@given(st.text(max_size=200))
def test_any_text_is_a_quantity_or_an_address_or_a_value_error(text):
    # Invariant: nothing but ValueError.
    for parse in (parse_duration, parse_integer, parse_size, parse_time, parse_address):
        with suppress(ValueError):
            parse(text)


@given(
    st.one_of(st.binary(max_size=400), st.binary(max_size=20).map(lambda name: b"1 (" + name + b") S 1 2"))
)
def test_any_stat_of_a_peer_has_a_start_time_or_none(stat):
    # Invariant: never raises; 0 where there is none.
    assert isinstance(parse_start_time(stat), int)
