"""Calendar expressions against systemd's own opinion: `systemd-analyze calendar` is the oracle.

Zones and moments are chosen around changes of the clock: hours that are missing or come twice, in both
hemispheres, by half an hour in Lord Howe, by a whole day in Samoa, and back for Ramadan in Casablanca.

Not compared is the end of Ramadan there: when the clocks go forward, systemd 252 leaves out not only the
missing hour but, for `2..3:45`, the rest of the day.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime

import pytest

from aemd.modules.timer.calendar import parse_calendar

SECOND = 1_000_000_000
ITERATIONS = 6

EXPRESSIONS = """
    minutely; hourly; daily; weekly; monthly; yearly; annually; quarterly; semiannually; Weekly
    semi-annually; biannually; bi-annually
    Mon..Fri 09:00; Mon-Fri 17:00; Sat,Sun 20:15; Mon,Wed *-*-* 10:00; Wed..Wed,Wed *-1; Mon, 10:00
    mon; MON..wed; Monday 9:00; Sat..Sun 3:00; Wed *-1; Thu,Fri 2027-*-1,5 11:12; Mon *-*-29..31
    02:30; *-*-* 02:30:00; *-*-* 01:30; *-*-* 02:00; *-*-* 03:00; *-*-* 01:45; 01:00..03:00/1; 2..3:45
    *:0/15; *:30; *:2/3; *:45; *-*-* *:*:*; *:*:30; *:*:0/20; *-*-* *:*:0..5/2; 00:30..45; 1,2,3/4:00
    *-*-* 00/2:15; *-*-* 00..23/6:00; 2:30:30; 08:05:40; 5:40; 0..3:*/10; 0..3:0/10; 12,14,13:20,10,30
    *-*~3; *-*~01; *~1; *-*~1..3; *-2~1; *~1..7/1; Mon *-05~07/1; Mon *-*~1 10:00; *-*~29; ~1
    *-02-29; *-*-31; *-04-31; *-01/3-01 00:00; *-*-01..07/2; *-2,4-1; *-10..12-15; 2026..2027-01-01
    2026-10-25 02:30; *-10-25 02:15; *-3-29 02:30; *-4-5 1:45; *-10-4 2:15; Sun *-*-25..31 02:30
    2003-02..04-05; 27-3-28 1:0; 2020-01-01; 69-1-1; 170-1-1; 2199-12-31; 2200-01-01; *-*-*; Tue
    1:02:03.5; *:*:0/7.5; *:*:1/1.5,3; *:*:0.5..3.5/1; 0:0:1.5/2; *:*:*.5; *:*:59.9999999; 0:0:1.; 0:0:.5
    *-*-* 24:00; 00:00:60; *-*-* 0:0:0/0; 9; 10-15; *:*:61; Fri..Mon 12:00; *-*-*/2; *-*/2-1; *-*-~1
    Mon.. 10:00; ,Mon 10:00; Mon..Wed..Fri; 1:2:3:4; *-*-00; *-00-01; 09:00-17:00; weekly 10:00; now
    2026-01-01T10:00; *-*-01,~1; ::; 10:; *:*; 9..17:0; *:0/1,5; *:*:1,1,1
"""
EXPRESSIONS += "anually"  # codespell:ignore anually
MOMENTS = {
    "UTC": ["2026-03-28 12:00:00", "2027-12-31 23:59:58"],
    "Europe/Berlin": [
        "2026-03-28 12:00:00",
        "2026-03-29 00:59:58",
        "2026-10-24 23:10:07",
        "2026-10-25 00:20:00",
        "2026-10-25 01:20:00",
    ],
    "America/New_York": [
        "2026-03-07 22:00:00",
        "2026-10-31 21:00:00",
        "2026-11-01 05:40:00",
        "2026-11-01 06:40:00",
    ],
    "Australia/Lord_Howe": ["2026-04-04 10:00:00", "2026-04-04 15:10:00", "2026-10-03 09:30:00"],
    "Africa/Casablanca": ["2026-02-14 20:00:00"],
    "Pacific/Apia": ["2011-12-29 00:00:00"],
}


@pytest.fixture(scope="module")
def oracle():
    """Asks systemd-analyze for the next expirations of expressions, in UTC; what it refuses is absent."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze, the oracle for calendar expressions")

    def ask(expressions: list[str], moment: str) -> dict[str, list[str]]:
        command = [
            program,
            "calendar",
            f"--iterations={ITERATIONS}",
            f"--base-time={moment} UTC",
            *expressions,
        ]
        environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        found = {}
        for block in answer.stdout.split("\n\n"):
            # The original form is left out where it is normal.
            form = re.search(r"Original form: (.*)", block) or re.search(r"Normalized form: (.*)", block)
            if form is not None:
                found[form[1]] = re.findall(r"(?:elapse|#\d+): (?:\w+ )?([\d-]+ [\d:]+) UTC", block)
        return found

    if not ask(["daily UTC"], "2026-01-01 00:00:00"):
        pytest.skip("needs systemd-analyze calendar with --base-time and --iterations (systemd 244)")
    return ask


def ours(expression: str, moment: str) -> list[str] | None:
    try:
        calendar = parse_calendar(expression, None)
    except ValueError as error:
        return [] if "never expires" in str(error) else None
    now_ns = int(datetime.fromisoformat(f"{moment}+00:00").timestamp()) * SECOND
    found = []
    while len(found) < ITERATIONS:
        next_ns = calendar.next_after(now_ns)
        if next_ns is None:
            break
        now_ns = next_ns
        # systemd-analyze shows whole seconds.
        found.append(datetime.fromtimestamp(now_ns // SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S"))
    return found


@pytest.mark.parametrize("zone", MOMENTS)
def test_expirations_are_those_of_systemd(oracle, zone):
    expressions = [f"{part} {zone}" for part in re.split(r"\s*[;\n]\s*", EXPRESSIONS.strip())]
    wrong = []
    for moment in MOMENTS[zone]:
        said = oracle(expressions, moment)
        assert len(said) > len(expressions) // 2
        for expression in expressions:
            got = ours(expression, moment)
            if said.get(expression) != got:
                wrong.append(f"{expression!r} after {moment}: systemd {said.get(expression)}, aemd {got}")
    assert not wrong, "\n".join(wrong)
