from __future__ import annotations

import pytest

from aemd.cli.text import age_text, moment_text, preview, safe, size_text, span_text

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("span_ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5us"),
        (210_000, "210us"),
        (200_000_000, "200ms"),
        (SECOND, "1s"),
        (2_500_000_000, "2.5s"),
        (65 * SECOND, "1min 5s"),
        (3_600 * SECOND, "1h"),
        (3_905 * SECOND, "1h 5min"),
        (90_000 * SECOND, "1d 1h"),
        (-SECOND, "-1s"),
    ],
)
def test_span_shows_the_two_largest_units(span_ns: int, text: str) -> None:
    assert span_text(span_ns) == text


def test_moment_is_local_time_and_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    assert moment_text(0) == "never"
    text = moment_text(1_700_000_000 * SECOND, now_ns=1_700_000_003 * SECOND)
    assert text.endswith(" (3s ago)")
    assert moment_text(5 * SECOND, now_ns=SECOND).endswith("(in 4s)")


def test_age_of_a_moment_just_ahead_of_our_clock_is_zero() -> None:
    assert age_text(2 * SECOND, now_ns=SECOND) == "0s"
    assert age_text(0) == "-"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (1 << 20, "1.0MiB"), (1 << 60, "1048576.0TiB")],
)
def test_size(size: int, text: str) -> None:
    assert size_text(size) == text


def test_text_from_elsewhere_cannot_drive_the_terminal() -> None:
    assert safe("a\x1b[2Jb\rc\nd\x9b") == r"a\x1b[2Jb\rc\nd\x9b"
    assert safe("grüße 日本") == "grüße 日本"


def test_preview_says_how_much_is_left_out() -> None:
    assert preview("short") == '"short"'
    assert preview("x" * 100, width=3) == '"xxx"… (100 characters)'
