"""Time spans, points in time and sizes as people write them; systemd-analyze(1) is asked."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import datetime

import pytest

from aemd.modules.quantity import (
    DAY,
    HOUR,
    MINUTE,
    MS,
    SECOND,
    parse_duration,
    parse_integer,
    parse_size,
    parse_time,
)

SPANS = {
    "200ms": 200 * MS,
    "1h 30min": 90 * MINUTE,
    "1.5s": 1_500 * MS,
    ".5s": 500 * MS,
    "5": 5 * SECOND,
    "2 h": 2 * HOUR,
    "2hours": 2 * HOUR,
    "48hr": 48 * HOUR,
    "1y 12month": 2 * 31_557_600 * SECOND,
    "55s500ms": 55_500 * MS,
    "300ms20s 5day": 5 * DAY + 20_300 * MS,
    "1M 1m": 2_629_800 * SECOND + MINUTE,
    "1\u00b5s": 1_000,
    "3 weeks 2 d": 23 * DAY,
    "1 2": 3 * SECOND,
    "0": 0,
}


@pytest.mark.parametrize(("text", "span_ns"), SPANS.items())
def test_a_time_span_is_what_systemd_takes_it_for(text, span_ns):
    assert parse_duration(text) == span_ns


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("text", SPANS)
def test_systemd_agrees_about_a_time_span(text):
    said = subprocess.run(["systemd-analyze", "timespan", text], capture_output=True, text=True, check=True)
    found = re.search(r"s: (\d+)", said.stdout)
    assert found is not None
    assert parse_duration(text) == int(found[1]) * 1_000


def test_nanoseconds_are_ours():
    assert parse_duration("500ns") == 500
    assert parse_duration("0.3s") == 300 * MS


@pytest.mark.parametrize(
    "text", ["", " ", "soon", "-1s", "1.s", "1,5s", "infinity", "10 parsecs", "1e3", "s", "\u0661s"]
)
def test_what_is_no_time_span_is_refused(text):
    with pytest.raises(ValueError, match="time"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9" * 120, "300y", "9223372036854775808ns"])
def test_a_span_beyond_64_bits_is_refused(text):
    with pytest.raises(ValueError, match="64 bits"):
        parse_duration(text)


def test_absurdly_long_numbers_are_refused_before_they_are_read():
    for parse in (parse_duration, parse_integer, parse_size, parse_time):
        with pytest.raises(ValueError, match="at most 128"):
            parse("9" * 100_000)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 65_536),
        ("64k", 65_536),
        ("1MiB", 1 << 20),
        ("1.5M", 3 << 19),
        ("2 GiB", 2 << 30),
        ("7B", 7),
    ],
)
def test_a_size_is_in_powers_of_1024(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1KB", "1 XiB", "16E", "1..5K"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"bytes|unit|64 bits"):
        parse_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T09:00:00Z",
        "2026-03-01T09:00:00+01:00",
        "1969-12-31T23:59:59.25-05:30",
        "2000-02-29T23:59:59.999999Z",
    ],
)
def test_a_point_in_time_is_that_of_rfc_3339(text):
    moment = datetime.fromisoformat(text)
    seconds = round(moment.replace(microsecond=0).timestamp())
    assert parse_time(text) == seconds * SECOND + moment.microsecond * 1_000


def test_points_in_time_keep_nanoseconds_and_leap_seconds():
    assert parse_time("@1.000000001") == SECOND + 1
    assert parse_time("@-0.5") == -500 * MS
    assert parse_time("1970-01-01 00:00:00.000000001z") == 1
    assert parse_time("2016-12-31T23:59:60Z") == parse_time("2017-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "now",
        "2026-03-01",
        "2026-03-01T09:00:00",
        "2026-02-30T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "0000-01-01T00:00:00Z",
        "9999-01-01T00:00:00Z",
        "2026-01-01T00:00:00+24:00",
    ],
)
def test_what_is_no_point_in_time_is_refused(text):
    with pytest.raises(ValueError, match=r"time|offset|day|hours|64 bits"):
        parse_time(text)


def test_integers_are_decimal_or_hexadecimal():
    assert [parse_integer(text) for text in ("42", "-1", "+7", "0x2a", " 5 ")] == [42, -1, 7, 42, 5]
    for text in ("", "1.0", "1_000", "one", "0b1", "--1"):
        with pytest.raises(ValueError, match="whole number"):
            parse_integer(text)
