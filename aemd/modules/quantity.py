"""Quantities as people write them: whole numbers, time spans, points in time, numbers of bytes.

Every parser takes text and returns an `int` in the base unit (nanoseconds, bytes), and raises ValueError
with what is wrong and how to write it. Arithmetic is whole numbers throughout: "0.1s" is 100,000,000 ns,
not what a float makes of it. Fractions below the base unit are cut off, as systemd does.
"""

from __future__ import annotations

import re
from datetime import date

INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1
TEXT_CHARS_MAX = 128  # no quantity needs more; it also bounds the cost of int()

US = 1_000
MS = 1_000 * US
SECOND = 1_000 * MS
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# The units of systemd.time(7). Only the single letters m (minute) and M (month) differ by case.
_SPAN_UNITS: dict[str, int] = {
    **dict.fromkeys(("ns", "nsec"), 1),
    **dict.fromkeys(("us", "usec", "\u00b5s", "\u03bcs"), US),  # micro sign and Greek mu
    **dict.fromkeys(("ms", "msec"), MS),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), SECOND),
    **dict.fromkeys(("m", "min", "minute", "minutes"), MINUTE),
    **dict.fromkeys(("h", "hr", "hour", "hours"), HOUR),
    **dict.fromkeys(("d", "day", "days"), DAY),
    **dict.fromkeys(("w", "week", "weeks"), 7 * DAY),
    **dict.fromkeys(("M", "month", "months"), 2_629_800 * SECOND),  # a twelfth of the year below
    **dict.fromkeys(("y", "year", "years"), 31_557_600 * SECOND),  # 365.25 days
}
_SIZE_UNITS: dict[str, int] = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _SIZE_UNITS[_letter] = _SIZE_UNITS[f"{_letter}ib"] = 1 << (10 * _power)

_INTEGER = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|([0-9]+))")
_SPAN_PART = re.compile(r"\s*([0-9]*)(?:\.([0-9]+))?\s*([A-Za-z\u00b5\u03bc]*)")
_SIZE = re.compile(r"([0-9]+)(?:\.([0-9]+))?\s*([A-Za-z]*)")
_EPOCH = re.compile(r"@(-?)([0-9]+)(?:\.([0-9]{1,9}))?")
_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:([Zz])|([+-])([0-9]{2}):([0-9]{2}))?"
)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


def parse_integer(text: str) -> int:
    """A whole number, decimal or hexadecimal after 0x."""
    match = _INTEGER.fullmatch(_stripped(text))
    if match is None:
        raise ValueError("not a whole number; write digits only, such as 42, -1 or 0x2a")
    sign, hexadecimal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(decimal)
    return -value if sign == "-" else value


def parse_duration(text: str) -> int:
    """A time span of systemd.time(7) in nanoseconds; without a unit it is seconds."""
    text = _stripped(text)
    if text.lower() == "infinity":
        raise ValueError("infinity is no time span here; leave the parameter out instead")
    total_ns = offset = 0
    while offset < len(text) or not text:
        match = _SPAN_PART.match(text, offset)
        if match is None or not (match[1] or match[2]):
            raise ValueError("not a time span; write a number and a unit, such as 200ms, 1.5s or 1h 30min")
        unit_ns = _SPAN_UNITS.get(match[3])
        if unit_ns is None:
            raise ValueError(
                f"{match[3]!r} is no unit of time; there are ns, us, ms, s, min, h, d, w, month, y"
            )
        total_ns += _scaled(match[1], match[2], unit_ns)
        offset = match.end()
    return _in_int64(total_ns, "292 years")


def parse_size(text: str) -> int:
    """A number of bytes: 4096, 64K, 1.5MiB; K, M, G, T, P, E are powers of 1,024."""
    match = _SIZE.fullmatch(_stripped(text))
    if match is None:
        raise ValueError("not a number of bytes; write it as 4096, 64K or 1MiB")
    whole, fraction, unit = match.groups()
    scale = _SIZE_UNITS.get(unit.lower())
    if scale is None:
        raise ValueError(
            f"{unit!r} is no unit of size; there are K, M, G, T, P, E and KiB, MiB, ... (1K is 1024)"
        )
    return _in_int64(_scaled(whole, fraction, scale), "8 EiB less one byte")


def parse_time(text: str) -> int:
    """A point in time in nanoseconds since 1970-01-01T00:00:00Z: RFC 3339, or seconds after @."""
    text = _stripped(text)
    epoch = _EPOCH.fullmatch(text)
    if epoch is not None:
        value = _scaled(epoch[2], epoch[3], SECOND)
        return _in_int64(-value if epoch[1] else value, "the years 1678 to 2261")
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(
            "not a point in time; write 2026-03-01T09:00:00Z, 2026-03-01T09:00:00+01:00 or @SECONDS"
        )
    if match[8] is None and match[9] is None:
        raise ValueError("the offset from UTC is missing; add Z or an offset such as +01:00")
    return _in_int64(_instant(match), "the years 1678 to 2261")


def _instant(match: re.Match[str]) -> int:
    year, month, day, hour, minute, second = (int(match[group]) for group in range(1, 7))
    try:
        days = date(year, month, day).toordinal() - _EPOCH_ORDINAL
    except ValueError:
        raise ValueError(f"there is no day {match[1]}-{match[2]}-{match[3]}") from None
    offset_hour, offset_minute = int(match[10] or 0), int(match[11] or 0)
    # RFC 3339 knows second 60; POSIX time counts it as the first of the next minute.
    if hour > 23 or minute > 59 or second > 60 or offset_hour > 23 or offset_minute > 59:
        raise ValueError("hours go to 23, minutes to 59, seconds to 60")
    offset_ns = offset_hour * HOUR + offset_minute * MINUTE
    local_ns = days * DAY + hour * HOUR + minute * MINUTE + _scaled(str(second), match[7], SECOND)
    return local_ns + offset_ns if match[9] == "-" else local_ns - offset_ns


def _stripped(text: str) -> str:
    if len(text) > TEXT_CHARS_MAX:
        raise ValueError(f"{len(text)} characters, at most {TEXT_CHARS_MAX} make sense here")
    return text.strip()


def _scaled(whole: str, fraction: str | None, scale: int) -> int:
    value = int(whole or "0") * scale
    return value + int(fraction) * scale // 10 ** len(fraction) if fraction else value


def _in_int64(value: int, reach: str) -> int:
    if not INT64_MIN <= value <= INT64_MAX:
        raise ValueError(f"too large for 64 bits; at most {reach}")
    return value
