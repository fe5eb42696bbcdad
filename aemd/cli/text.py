"""Values as people read them: time spans, moments, sizes, and text of unknown origin.

Everything that reaches a terminal from somewhere else (labels, payloads, error messages) goes through
`safe()`: a program must not be able to move the cursor of whoever lists its jobs.
"""

from __future__ import annotations

import time

SECOND = 1_000_000_000
_UNITS = (
    ("d", 86_400 * SECOND),
    ("h", 3_600 * SECOND),
    ("min", 60 * SECOND),
    ("s", SECOND),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
)
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def span_text(span_ns: int) -> str:
    """The two largest units of a time span that say something: 1h 5min, 3s, 210us."""
    if span_ns < 0:
        return "-" + span_text(-span_ns)
    for place, (unit, factor) in enumerate(_UNITS):
        if span_ns < factor:
            continue
        whole, rest = divmod(span_ns, factor)
        if unit in ("d", "h", "min"):
            smaller, smaller_factor = _UNITS[place + 1]
            second = rest // smaller_factor
            return f"{whole}{unit} {second}{smaller}" if second else f"{whole}{unit}"
        digits = f"{span_ns / factor:.1f}".removesuffix(".0") if whole < 100 else str(whole)
        return f"{digits}{unit}"
    return "0s"


def moment_text(real_ns: int, *, now_ns: int | None = None) -> str:
    """A moment in local time and how long ago it was; "never" for 0."""
    if not real_ns:
        return "never"
    now_ns = time.time_ns() if now_ns is None else now_ns
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(real_ns // SECOND))
    away_ns = now_ns - real_ns
    relative = f"{span_text(away_ns)} ago" if away_ns >= 0 else f"in {span_text(-away_ns)}"
    return f"{stamp} ({relative})"


def age_text(real_ns: int, *, now_ns: int | None = None) -> str:
    """How long ago a moment was, for a column; "-" for 0."""
    if not real_ns:
        return "-"
    now_ns = time.time_ns() if now_ns is None else now_ns
    return span_text(max(0, now_ns - real_ns) // SECOND * SECOND)


def clock_text(real_ns: int) -> str:
    """A moment of today or nearly so, to the millisecond: 09:00:00.012."""
    stamp = time.strftime("%H:%M:%S", time.localtime(real_ns // SECOND))
    return f"{stamp}.{real_ns % SECOND // 1_000_000:03d}"


def size_text(size_bytes: int) -> str:
    """A number of bytes: 512B, 3.4MiB."""
    if size_bytes < 1024:
        return f"{size_bytes}B"
    value, place = float(size_bytes), 0
    while value >= 1024 and place < len(_SIZES) - 1:
        value, place = value / 1024, place + 1
    return f"{value:.1f}{_SIZES[place]}"


def safe(text: str) -> str:
    """`text` on one line, with everything that a terminal might obey made visible."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def preview(text: str, width: int = 80) -> str:
    """The beginning of a payload, in quotes, safe for a terminal."""
    shown = safe(text[:width])
    return f'"{shown}"' if len(text) <= width else f'"{shown}"… ({len(text)} characters)'
