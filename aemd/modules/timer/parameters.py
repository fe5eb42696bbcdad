"""The parameters of a timer: what there is, and which schedule they describe.

`aemd.modules.params` has parsed each by itself and held it against its bounds; what is decided here is what
they mean together.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import cast

from aemd.core.errors import invalid
from aemd.modules.contract import Delivery, Description, Kind, Parameter
from aemd.modules.timer.calendar import parse_calendar, parse_zone
from aemd.modules.timer.schedule import Dates, Point, Schedule, Span
from aemd.v1 import timer_pb2

US = 1_000
SECOND = 1_000_000 * US
EVERY_MIN_NS = 100 * US  # below it one timer takes a processor; the latency of a wake-up is about this
SPAN_MAX_NS = 100 * 365 * 24 * 3_600 * SECOND  # now and this fit into 64 bits on every clock
ACCURACY_MAX_NS = 24 * 3_600 * SECOND
COOKIE_MAX = (1 << 64) - 1
WAYS = ("after", "every", "at", "calendar")
SHOWN_CHARS_MAX = 64  # of an expression, in an error message

CLOCKS = {
    "monotonic": timer_pb2.CLOCK_MONOTONIC,
    "boottime": timer_pb2.CLOCK_BOOTTIME,
    "realtime": timer_pb2.CLOCK_REALTIME,
}

DESCRIPTION = Description(
    name="timer",
    summary="Time: once, periodically, or by the calendar",
    description=(
        "Give after= or every= (or both: first after, then every), or at=, or calendar=. Expirations that "
        "nobody had time for come as one event with their count. A job that cannot expire any more ends by "
        "itself. Starting a stopped job arms it anew, as if it had just been registered.\n"
        "Where clocks change, calendar= does as systemd does: a local time that is left out does not "
        "expire, one that comes twice expires the first time. Five fields are cron, as Debian has it. Not "
        "taken are @SECONDS and @daily, abbreviations of zones such as CEST, and more than 600 expirations "
        "a minute.\n"
        "When the wall clock is set, at= stays, calendar= is computed anew and what was passed expires "
        "once, after= and every= are not affected on any clock; the event says clock_was_set."
    ),
    delivery=Delivery.COALESCE,
    parameters=(
        Parameter(
            "after",
            Kind.PARAMETER_KIND_DURATION,
            "The first expiration, from the start of the job",
            minimum=0,
            maximum=SPAN_MAX_NS,
            example="5s",
        ),
        Parameter(
            "every",
            Kind.PARAMETER_KIND_DURATION,
            "The period, at least 100us; the first expiration comes after one period, or after after=",
            minimum=EVERY_MIN_NS,
            maximum=SPAN_MAX_NS,
            example="200ms",
        ),
        Parameter(
            "at",
            Kind.PARAMETER_KIND_TIME,
            "A point in time; one that is past expires at once",
            minimum=0,
            example="2026-03-01T09:00:00Z",
        ),
        Parameter(
            "calendar",
            Kind.PARAMETER_KIND_TEXT,
            "A calendar expression of systemd.time(7), or five fields of cron (six: seconds first)",
            example="Mon..Fri 09:00",
        ),
        Parameter(
            "timezone",
            Kind.PARAMETER_KIND_TEXT,
            "The zone of calendar=, by its name in the tz database; the machine's if not given",
            example="Europe/Berlin",
        ),
        Parameter(
            "clock",
            Kind.PARAMETER_KIND_CHOICE,
            "The clock of after= and every=, monotonic if not given; at= and calendar= are realtime",
            choices=tuple(CLOCKS),
            example="boottime",
        ),
        Parameter(
            "accuracy",
            Kind.PARAMETER_KIND_DURATION,
            "How much later it may come, so that timers can share a wake-up; 0: as exactly as possible",
            default="0s",
            minimum=0,
            maximum=ACCURACY_MAX_NS,
            example="100ms",
        ),
        Parameter(
            "cookie",
            Kind.PARAMETER_KIND_INTEGER,
            "A number of 64 bits, echoed in every event; a negative one as its two's complement",
            default="0",
            minimum=-(1 << 63),
            maximum=COOKIE_MAX,
            example="42",
        ),
    ),
    events={"expired": "The time has come, count times since the last event"},
    payload_message="aem.v1.TimerEvent",
    examples=(
        "every=200ms",
        "after=5s every=1min accuracy=1s",
        "at=2026-03-01T09:00:00Z",
        "calendar='Mon..Fri 09:00' timezone=Europe/Berlin",
        "calendar='*/5 * * * *'",
    ),
)


def parse_schedule(values: Mapping[str, object], now_ns: int) -> Schedule:
    """The schedule that a job's values describe; `now_ns` is CLOCK_REALTIME.

    Raises AemError with the field that is wrong, `params.NAME`.
    """
    given = [name for name in WAYS if name in values]
    if not given:
        raise invalid("params", "a timer needs after=, every=, at= or calendar=; for example every=200ms")
    if len(given) > 1 and given != ["after", "every"]:
        raise invalid(
            f"params.{given[-1]}",
            f"cannot stand beside {given[0]}=; only after= and every= go together, "
            "for anything else register two jobs",
        )
    if "timezone" in values and "calendar" not in values:
        raise invalid("params.timezone", "is the zone of calendar=, which is not given; leave it out")
    if "after" in given or "every" in given:
        every_ns = cast(int, values.get("every", 0))
        _check_accuracy(cast(int, values.get("accuracy", 0)), every_ns)
        return _span(cast(int, values.get("after", every_ns)), every_ns)
    clock = values.get("clock", "realtime")
    if clock != "realtime":
        raise invalid("params.clock", f"{clock}: {given[0]}= is of the wall clock; leave clock= out")
    if "at" in given:
        return Point(cast(int, values["at"]))
    return _dates(cast(str, values["calendar"]), cast("str | None", values.get("timezone")), now_ns)


def _check_accuracy(accuracy_ns: int, every_ns: int) -> None:
    if 0 < every_ns < accuracy_ns:
        raise invalid(
            "params.accuracy",
            f"{accuracy_ns} ns is more than every={every_ns} ns; at most one period makes sense",
        )


@lru_cache(maxsize=1_024)
def _span(first_ns: int, period_ns: int) -> Span:
    """Equal spans share one object."""
    return Span(first_ns, period_ns)


def _dates(text: str, zone_name: str | None, now_ns: int) -> Dates:
    try:
        zone = None if zone_name is None else parse_zone(zone_name)
    except ValueError as error:
        raise invalid("params.timezone", str(error)) from None
    shown = text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}..."
    try:
        calendar = parse_calendar(text, zone)
    except ValueError as error:
        raise invalid("params.calendar", f"{shown!r}: {error}") from None
    if calendar.next_after(now_ns) is None:
        raise invalid("params.calendar", f"{shown!r}: never expires from now on; check its date")
    return Dates(calendar)
