"""Calendar expressions: what is taken, what is refused and how, and local time that is missing or comes
twice. That the times are those of systemd is checked in tests/kernel/test_timer_calendar.py."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aemd.modules.timer import calendar
from aemd.modules.timer.calendar import local_zone, parse_calendar, parse_fractions, parse_zone

SECOND = 1_000_000_000
BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


def times(text: str, start: str, count: int, zone: ZoneInfo | None = None) -> list[str]:
    """The next `count` expirations, in UTC."""
    found, now_ns = [], at(start)
    expression = parse_calendar(text, zone)
    for _ in range(count):
        now_ns = expression.next_after(now_ns)
        found.append(datetime.fromtimestamp(now_ns / SECOND, UTC).strftime("%m-%d %H:%M:%S"))
    return found


def test_zone_stands_in_the_expression_or_beside_it():
    expected = ["03-30 07:00:00", "03-31 07:00:00"]
    assert times("Mon..Fri 09:00 Europe/Berlin", "2026-03-28T12:00", 2) == expected
    assert times("Mon..Fri 09:00", "2026-03-28T12:00", 2, BERLIN) == expected


def test_next_is_after_the_moment_itself_even_by_a_nanosecond():
    hourly = parse_calendar("hourly UTC", None)
    noon_ns = at("2026-03-01T12:00")
    assert hourly.next_after(noon_ns - 1) == noon_ns
    assert hourly.next_after(noon_ns) == at("2026-03-01T13:00")
    assert hourly.next_after(noon_ns + 1) == at("2026-03-01T13:00")


def test_calendar_that_is_over_has_no_next():
    once = parse_calendar("2026-03-01 UTC", None)
    assert once.next_after(at("2026-02-01")) == at("2026-03-01")
    assert once.next_after(at("2026-03-01")) is None


def test_hour_that_does_not_exist_is_left_out():
    """Clocks go from 02:00 to 03:00 on 2026-03-29."""
    assert times("02:30", "2026-03-28T12:00", 2, BERLIN) == ["03-30 00:30:00", "03-31 00:30:00"]
    assert times("*:*:*", "2026-03-29T00:59:58", 3, BERLIN) == [
        "03-29 00:59:59",
        "03-29 01:00:00",
        "03-29 01:00:01",
    ]


def test_hour_that_comes_twice_expires_the_first_time_only():
    """Clocks go from 03:00 back to 02:00 on 2026-10-25, at 01:00 UTC."""
    assert times("02:30", "2026-10-24T12:00", 2, BERLIN) == ["10-25 00:30:00", "10-26 01:30:00"]
    assert times("*:30", "2026-10-25T00:00", 2, BERLIN) == ["10-25 00:30:00", "10-25 02:30:00"]


def test_started_in_the_second_of_two_hours_stays_there():
    assert times("*:0/20", "2026-10-25T01:10", 3, BERLIN) == [
        "10-25 01:20:00",
        "10-25 01:40:00",
        "10-25 02:00:00",
    ]


def test_what_was_answered_in_the_first_hour_is_not_taken_for_the_second():
    shared = parse_calendar("*:45 Europe/Berlin", None)
    assert shared.next_after(at("2026-10-25T00:50")) == at("2026-10-25T02:45")
    assert shared.next_after(at("2026-10-25T01:10")) == at("2026-10-25T01:45")


def test_fractions_of_seconds():
    tenth = parse_calendar("*:*:0/7.5 UTC", None)
    start_ns = at("2026-03-01")
    assert tenth.next_after(start_ns - 1) == start_ns
    assert tenth.next_after(start_ns) == start_ns + 7_500_000_000
    assert tenth.next_after(start_ns + 7_499_999_999) == start_ns + 7_500_000_000
    assert tenth.next_after(start_ns + 52_500_000_000) == start_ns + 60 * SECOND
    assert parse_calendar("1:02:03.25 UTC", None).next_after(start_ns) == start_ns + 3_723_250_000_000


def test_fractions_are_start_stop_and_step():
    assert parse_fractions("1.5") == {1: (500_000_000,)}
    assert parse_fractions("0.5..2.5") == {0: (500_000_000,), 1: (500_000_000,), 2: (500_000_000,)}
    assert parse_fractions("3,59/0.5") == {3: (0,), 59: (0, 500_000_000)}


@pytest.mark.parametrize(
    "text", ["", ".5", "1.", "1.1234567", "60.0", "3.5..2.5", "0.5/0", "1.5,", "*.5", "١.٥"]
)
def test_bad_fractions_are_refused(text):
    with pytest.raises(ValueError, match="second"):
        parse_fractions(text)


def test_fractions_too_fine_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="every="):
        parse_calendar("*:*:0/0.000001", None)


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("*/20 * * * *", "2026-03-01T10:05", ["03-01 10:20:00", "03-01 10:40:00"]),
        ("30 9 * * 1-5", "2026-03-06T12:00", ["03-09 09:30:00", "03-10 09:30:00"]),
        ("15 0 0 1 * *", "2026-03-06T12:00", ["04-01 00:00:15", "05-01 00:00:15"]),
        ("0 0 L * *", "2026-02-01T12:00", ["02-28 00:00:00", "03-31 00:00:00"]),
    ],
)
def test_five_or_six_words_are_cron(text, start, expected):
    assert times(text, start, 2, ZoneInfo("UTC")) == expected


def test_cron_at_a_fixed_hour_comes_once_when_clocks_change():
    assert times("30 2 * * *", "2026-03-28T12:00", 2, BERLIN) == ["03-29 01:00:00", "03-30 00:30:00"]
    assert times("30 2 * * *", "2026-10-24T12:00", 2, BERLIN) == ["10-25 00:30:00", "10-26 01:30:00"]
    assert times("30 2 * * *", "2026-10-25T01:10", 1, BERLIN) == ["10-26 01:30:00"]


def test_cron_every_so_many_minutes_goes_on_when_clocks_change():
    assert times("*/30 * * * *", "2026-10-25T00:10", 4, BERLIN) == [
        "10-25 00:30:00",
        "10-25 01:00:00",
        "10-25 01:30:00",
        "10-25 02:00:00",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "systemd.time"),
        ("25:00", "bad hour"),
        ("Foo 09:00", "bad day-of-week"),
        ("*-13-01", "bad month"),
        ("09:00 Mon", "no time zone 'Mon'"),
        ("09:00 CEST", "no time zone 'CEST'"),
        ("*-*-*T09:00", "bad hour"),
        ("Mon Tue *-*-* 09:00", "wrong number"),
        ("@1790000000", "at=@SECONDS"),
        ("@daily", "written daily"),
        ("*-02-30", "never expires"),
        ("* * * * 9", "bad day-of-week; cron has five fields"),
        ("*:1.5:0", "bad"),
        ("x" * 257, "at most 256"),
    ],
)
def test_bad_expressions_say_what_is_wrong(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_calendar(text, None)


def test_two_zones_are_refused():
    with pytest.raises(ValueError, match="leave one of them out"):
        parse_calendar("09:00 Europe/Berlin", ZoneInfo("UTC"))


@pytest.mark.parametrize(
    "name", ["", "Nowhere/City", "../../etc/passwd", "/etc/localtime", "Europe", "a\0b", "x" * 5_000]
)
def test_bad_zones_are_refused(name):
    with pytest.raises(ValueError, match="no time zone"):
        parse_zone(name)


def test_local_zone_is_that_of_the_file_and_utc_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(calendar, "LOCALTIME", str(tmp_path / "localtime"))
    assert str(local_zone()) == "UTC"
    (tmp_path / "localtime").symlink_to("/usr/share/zoneinfo/Europe/Berlin")
    if (tmp_path / "localtime").exists():
        assert str(local_zone()) == "Europe/Berlin"


@given(st.text(alphabet="0123456789*/,.:-~@ MonFriJaLWU#TC", max_size=24))
@example("1..2/3/4 *")
@example("~ ~")
def test_any_text_is_a_calendar_that_goes_forward_or_a_value_error(text):
    try:
        expression = parse_calendar(text, ZoneInfo("Europe/Berlin"))
    except ValueError:
        return
    found = [at("2026-03-29T00:30")]
    for _ in range(3):
        next_ns = expression.next_after(found[-1])
        if next_ns is None:
            break
        found.append(next_ns)
    assert all(earlier < later for earlier, later in pairwise(found))
