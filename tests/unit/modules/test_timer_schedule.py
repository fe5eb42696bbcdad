"""Schedules as values: what has passed, what is next, what a set clock does to it."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from aemd.modules.timer.calendar import parse_calendar
from aemd.modules.timer.schedule import PASSED_MAX, Dates, Passed, Point, Span, aligned

SECOND = 1_000_000_000
DAY = 86_400 * SECOND


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


def dates(text: str) -> Dates:
    return Dates(parse_calendar(text, ZoneInfo("UTC")))


@given(
    due_ns=st.integers(-(1 << 62), 1 << 62),
    period_ns=st.integers(1, 1 << 62),
    late_ns=st.integers(0, 1 << 62),
)
def test_span_counts_every_period_and_keeps_its_rhythm(due_ns, period_ns, late_ns):
    now_ns = due_ns + late_ns
    passed = Span(0, period_ns).passed(due_ns, now_ns)
    assert passed.latest_ns <= now_ns < passed.next_ns
    assert passed.next_ns - passed.latest_ns == period_ns
    assert passed.latest_ns - due_ns == (passed.expirations - 1) * period_ns


def test_span_begins_after_its_first_and_goes_on_with_its_period():
    span = Span(5, 10)
    assert span.begin(100) == 105
    assert span.passed(105, 105) == Passed(105, 1, 115)


def test_span_without_period_comes_once():
    assert Span(5, 0).passed(105, 10_000) == Passed(105, 1, None)


def test_span_moves_with_the_clock():
    assert Span(5, 10).reset(105, 1_050, 1_000) == 1_105
    assert Span(5, 10).reset(105, 50, -100) == Passed(45, 5, 55)


def test_point_stays_when_the_clock_is_set():
    assert Point(500).begin(900) == 500
    assert Point(500).reset(500, 100, -800) == 500
    assert Point(500).reset(500, 900, 800) == Passed(500, 1, None)


def test_dates_that_were_missed_are_counted():
    daily = dates("09:00")
    due_ns = daily.begin(at("2026-03-02T10:00"))
    assert due_ns == at("2026-03-03T09:00")
    passed = daily.passed(due_ns, at("2026-03-06T08:59"))
    assert passed == Passed(at("2026-03-05T09:00"), 3, at("2026-03-06T09:00"))


def test_dates_missed_without_number_are_counted_in_parts_and_none_is_left_out():
    secondly = dates("*:*:*")
    start_ns = due_ns = at("2026-03-02T10:00")
    now_ns = start_ns + 1_000 * SECOND
    counted = 0
    while due_ns <= now_ns:
        passed = secondly.passed(due_ns, now_ns)
        assert passed.expirations <= PASSED_MAX
        counted += passed.expirations
        due_ns = passed.next_ns
    assert counted == 1_001
    assert due_ns == now_ns + SECOND


def test_dates_end():
    once = dates("2026-03-03 09:00")
    assert once.passed(at("2026-03-03T09:00"), at("2026-03-03T09:00")) == Passed(
        at("2026-03-03T09:00"), 1, None
    )


def test_clock_set_across_dates_gives_one_expiration():
    daily = dates("09:00")
    due_ns = at("2026-03-03T09:00")
    assert daily.reset(due_ns, at("2026-03-10T12:00"), 7 * DAY) == Passed(due_ns, 1, at("2026-03-11T09:00"))


def test_clock_set_back_makes_dates_come_again():
    daily = dates("09:00")
    assert daily.reset(at("2026-03-03T09:00"), at("2026-02-01T12:00"), -30 * DAY) == at("2026-02-02T09:00")


@given(due_ns=st.integers(0, 1 << 62), window_ns=st.integers(0, 1 << 61))
def test_aligned_time_is_within_the_window(due_ns, window_ns):
    assert due_ns <= aligned(due_ns, window_ns) <= due_ns + window_ns


def test_timers_with_a_window_share_wake_ups():
    window_ns = 100_000_000
    dues = range(10 * SECOND, 11 * SECOND, 1_234_567)
    assert len({aligned(due_ns, window_ns) for due_ns in dues}) <= 20
    assert len({aligned(due_ns, 0) for due_ns in dues}) == len(dues)
