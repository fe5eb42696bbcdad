"""Calendar expressions: OnCalendar of systemd.time(7), and cron(5).

One parameter takes both; the number of words tells them apart, since OnCalendar has at most four (weekday,
date, time, zone) and cron has five fields, or six with seconds in front.

OnCalendar gives the times that systemd gives, also where the clocks change; the tests hold it against
`systemd-analyze calendar`:

- A local time that does not exist because the clocks go forward is left out: a daily 02:30 has no
  expiration on that day.
- A local time that comes twice because the clocks go back expires the first time only. So `minutely` is
  silent for an hour in that night; a job that needs an even rhythm takes every=, or a zone without changes
  such as UTC. A job that is started within the second of the two hours has its expirations in that hour.
- There is nothing after the year 2199.

One difference is known: where summer time is the negative one (Casablanca at the end of Ramadan), systemd 252
leaves out the rest of the day together with the missing hour. That is not imitated.

cron does as Debian's cron: a job at a fixed hour that would be left out comes right after the change, one
that would come twice comes once, and one with `*` for the minute or the hour simply goes on.

Not taken, with an error that says so: `@SECONDS` and cron's `@daily` (there is at=, and `daily`),
abbreviations that are no zone of their own (CEST), and more than 600 expirations a minute (there is
every=). A zone stands at the end of the expression or in timezone=; without one it is the machine's, as
/etc/localtime was when the job was registered.

oncalendar and cronsim do the parsing and the search on local time. They are kept to local time without a
zone, and zones are applied here, because oncalendar takes a start in the second of two equal hours for one
in the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from oncalendar import BaseIterator, OnCalendarError

TEXT_CHARS_MAX = 256
COMPILED_MAX = 256  # expressions kept compiled, some 20 KB each; the others cost 0.1 ms a look-up
CALENDARS_MAX = 4_096  # equal expressions share one object, and with it the last answer
STEPS_PER_MINUTE_MAX = 600  # with fractions of a second
DAYS_OF_MONTH = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
LOCALTIME = "/etc/localtime"
ON_CALENDAR_FORM = "write it as in systemd.time(7), such as 'Mon..Fri 09:00', or as the five fields of cron"
CRON_FORM = "cron has five fields, or six with seconds in front, such as '*/5 * * * *'"

_SECOND = 1_000_000_000
_US = 1_000
_MINUTE_US = 60_000_000
_ONE = timedelta(seconds=1)
_SPELLINGS = {  # that systemd takes and oncalendar does not
    "anually": "annually",  # codespell:ignore anually
    "bi-annually": "semiannually",
    "biannually": "semiannually",
    "semi-annually": "semiannually",
}
_FRACTION = re.compile(r"\d\.\d", re.ASCII)
_NUMBER = r"(\d+(?:\.\d{1,6})?)"
_SECONDS = re.compile(rf"{_NUMBER}(?:\.\.{_NUMBER})?(?:/{_NUMBER})?", re.ASCII)

# For each second of the minute that matches, the fractions of it that do, in nanoseconds.
Fractions = dict[int, tuple[int, ...]]
_WHOLE: tuple[int, ...] = (0,)


class Calendar:
    """A calendar expression in a time zone. Make one with `parse_calendar`."""

    __slots__ = ("_known_from_ns", "_known_next_ns", "_next_of", "text", "zone")

    def __init__(self, text: str, zone: ZoneInfo) -> None:
        self.text = text
        self.zone = zone
        self._next_of: Callable[[str, ZoneInfo, int], int | None] = (
            _next_cron if _is_cron(text) else _next_on_calendar
        )
        self._known_from_ns = self._known_next_ns = 0

    def next_after(self, real_ns: int) -> int | None:
        """The first expiration after `real_ns`, in nanoseconds since 1970; None if there is none."""
        if self._known_from_ns <= real_ns < self._known_next_ns:
            return self._known_next_ns
        next_ns = self._next_of(self.text, self.zone, real_ns)
        # In the first of two equal hours the answer holds for that hour only, not for the second.
        if next_ns is not None and not _is_ambiguous(_local(real_ns, self.zone)):
            self._known_from_ns, self._known_next_ns = real_ns, next_ns
        return next_ns


def parse_calendar(text: str, zone: ZoneInfo | None) -> Calendar:
    """The calendar of an expression, in `zone`, its own, or the machine's.

    ValueError with what is wrong and how to write it.
    """
    if len(text) > TEXT_CHARS_MAX:
        raise ValueError(f"{len(text)} characters; at most {TEXT_CHARS_MAX} are taken")
    words, cron = text.split(), _is_cron(text)
    if words and words[0].startswith("@"):
        raise ValueError("there are no @ forms; a single time is at=@SECONDS, and @daily is written daily")
    if not cron and len(words) > 1 and words[-1][0].isalpha():
        name = words.pop()
        if zone is not None:
            raise ValueError(
                f"the zone {name} stands in it, and timezone= is given too; leave one of them out"
            )
        zone = parse_zone(name)
    if zone is None:
        zone = local_zone()
    expression = " ".join(_SPELLINGS.get(word.lower(), word) for word in words)
    try:
        if cron:
            _compiled_cron(expression, zone)
        else:
            _compiled(expression)
    except (OnCalendarError, CronSimError) as error:
        raise ValueError(f"{str(error).lower()}; {CRON_FORM if cron else ON_CALENDAR_FORM}") from None
    return _shared(expression, zone)


def parse_zone(name: str) -> ZoneInfo:
    """A time zone of the tz database by its name; ValueError if there is none."""
    try:
        return ZoneInfo("UTC" if name.upper() == "UTC" else name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a directory such as Europe
        shown = name[:64]
        raise ValueError(
            f"there is no time zone {shown!r}; write it as in the tz database, such as Europe/Berlin or UTC"
        ) from None


def local_zone() -> ZoneInfo:
    """The machine's time zone; UTC where nobody has chosen one."""
    try:
        status = os.stat(LOCALTIME)
    except FileNotFoundError:
        return ZoneInfo("UTC")
    return _zone_of_file(LOCALTIME, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=2)
def _zone_of_file(path: str, _inode: int, _mtime_ns: int) -> ZoneInfo:
    name = os.path.realpath(path).partition("/zoneinfo/")[2]
    with open(path, "rb") as file:
        return ZoneInfo.from_file(file, key=name or "localtime")


@lru_cache(maxsize=CALENDARS_MAX)
def _shared(text: str, zone: ZoneInfo) -> Calendar:
    return Calendar(text, zone)


def _is_cron(text: str) -> bool:
    return len(text.split()) in (5, 6)


# -- OnCalendar


def _next_on_calendar(text: str, zone: ZoneInfo, real_ns: int) -> int | None:
    base = _local(real_ns, zone)
    iterator, fractions = _compiled(text)
    # From the second before, because a fraction of this one may still come.
    iterator.dt = base.replace(tzinfo=None, fold=0) - _ONE
    for found in iterator:
        early, late = _offsets(found, zone)
        if early < late:  # the clocks go forward over it
            iterator.dt = _before_gap_end(found, late - early, zone)
            continue
        # The first of two equal times, but who starts in the second stays there.
        start_ns = _utc_ns(found, early)
        if base.fold and start_ns <= real_ns:
            start_ns = _utc_ns(found, late)
        for fraction_ns in fractions.get(found.second, _WHOLE):
            if start_ns + fraction_ns > real_ns:
                return start_ns + fraction_ns
    return None


@lru_cache(maxsize=COMPILED_MAX)
def _compiled(text: str) -> tuple[BaseIterator, Fractions]:
    """The iterator over local times, and the fractions of seconds; OnCalendarError, ValueError."""
    fractions: Fractions = {}
    if _FRACTION.search(text):
        head, colon, seconds = text.rpartition(":")
        if head.count(":") != 1:
            raise OnCalendarError("Bad second" if colon else "Bad date")
        fractions = parse_fractions(seconds)
        text = f"{head}:{','.join(map(str, fractions))}"
    iterator = BaseIterator(text, datetime(1970, 1, 1))  # noqa: DTZ001 - local time of no zone
    longest = max(DAYS_OF_MONTH[month] for month in iterator.months)
    if min(iterator.days) > longest:  # it would search every day until 2200
        raise ValueError(f"never expires: its months have {longest} days at most")
    return iterator, fractions


def parse_fractions(text: str) -> Fractions:
    """The seconds of a time with decimals: a list of START[..STOP][/STEP] with up to six of them each."""
    points_us: set[int] = set()
    for part in text.split(","):
        match = _SECONDS.fullmatch(part)
        if match is None:
            raise ValueError(f"bad second {part[:32]!r}; at most six decimals, such as 0/7.5 or 1.5..3.5")
        start_us = _microseconds(match[1])
        stop_us = start_us if match[2] is None else _microseconds(match[2])
        step_us = 1_000_000
        if match[3] is not None:
            step_us = _microseconds(match[3])
            stop_us = _MINUTE_US - 1 if match[2] is None else stop_us
        if not start_us <= stop_us < _MINUTE_US or step_us == 0:
            raise ValueError(f"bad second {part[:32]!r}; START <= STOP < 60 and STEP > 0")
        points = range(start_us, stop_us + 1, step_us)
        if len(points_us) + len(points) > STEPS_PER_MINUTE_MAX:
            raise ValueError(
                f"more than {STEPS_PER_MINUTE_MAX} expirations a minute; for a faster rhythm take every="
            )
        points_us.update(points)
    fractions: dict[int, list[int]] = {}
    for point_us in sorted(points_us):
        fractions.setdefault(point_us // 1_000_000, []).append(point_us % 1_000_000 * _US)
    return {second: tuple(within) for second, within in fractions.items()}


def _microseconds(text: str) -> int:
    whole, _, decimals = text.partition(".")
    return int(whole) * 1_000_000 + int(decimals.ljust(6, "0"))


def _before_gap_end(found: datetime, gap: timedelta, zone: ZoneInfo) -> datetime:
    """The last local second that does not exist, `found` being one that does not; a gap is at most a day."""
    low, high = 0, int(gap.total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        early, late = _offsets(found + middle * _ONE, zone)
        low, high = (middle, high) if early < late else (low, middle)
    return found + low * _ONE


# -- cron


def _next_cron(text: str, zone: ZoneInfo, real_ns: int) -> int | None:
    base = _local(real_ns, zone)
    cron = _compiled_cron(text, zone)
    # Debian's rules for changes of the clock apply to jobs of a fixed hour, and need bare local time.
    cron.dt = base.replace(tzinfo=None, fold=0) if cron.fixup_tz else base
    for found in cron:
        found_ns = _utc_ns(found.replace(tzinfo=None), found.utcoffset() or timedelta())
        if found_ns > real_ns:  # not so for what has come already in the first of two equal hours
            return found_ns
    return None


@lru_cache(maxsize=COMPILED_MAX)
def _compiled_cron(text: str, zone: ZoneInfo) -> CronSim:
    return CronSim(text, datetime(1970, 1, 2, tzinfo=zone))


# -- zones


def _local(real_ns: int, zone: ZoneInfo) -> datetime:
    """Local time, whole seconds; its fold says whether it is the second of two equal times."""
    return (_EPOCH + timedelta(seconds=real_ns // _SECOND)).astimezone(zone)


def _offsets(local: datetime, zone: ZoneInfo) -> tuple[timedelta, timedelta]:
    """What is ahead of UTC at `local` (PEP 495): equal as a rule; the first is larger where the local time
    comes twice, and smaller where it does not exist.
    """
    early = zone.utcoffset(local.replace(tzinfo=zone, fold=0))
    late = zone.utcoffset(local.replace(tzinfo=zone, fold=1))
    return early or timedelta(), late or timedelta()


def _is_ambiguous(local: datetime) -> bool:
    return local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()


def _utc_ns(local: datetime, offset: timedelta) -> int:
    return (local.replace(tzinfo=UTC) - offset - _EPOCH) // _ONE * _SECOND


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
