"""What the office takes for a unit, and what it lets itself be told to start."""

import sys

import pytest

from aemd.deputy.office import BYTES_MAX, MILLISECONDS_MAX, command, unit_of
from aemd.deputy.starting import Kind, Message, Program


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/aemd.service\n", "aemd.service"),
        ("0::/system.slice/aemd.service/below\n", "aemd.service"),
        ("0::/aemd.slice/aemd-more.slice/aemd.service\n", "aemd.service"),
        ("0::/user.slice/user-4.slice/user@4.service/app.slice/aemd.service\n", "user@4.service"),
        ("0::/system.slice/other.service/system.slice/aemd.service\n", "other.service"),
        ("12:cpu:/aemd.service\n1:name=systemd:/system.slice/aemd.service\n0::/\n", "aemd.service"),
        ("12:cpu:/system.slice/aemd.service\n", ""),
        ("0::/\n", ""),
        ("", ""),
        ("0::/system.slice\n", ""),
    ],
)
def test_unit_is_the_first_name_below_the_slices(cgroups, unit):
    assert unit_of(cgroups) == unit


def start(program, first=0, second=0):
    return Message(Kind.START, 1, program, first, second)


def test_programs_are_the_four_that_there_are():
    python = [sys.executable, "-P", "-m"]
    assert command(start(Program.DEPUTY, 2_500)) == [*python, "aemd.deputy", "2.5"]
    assert command(start(Program.FRONTS, 7, 9)) == [*python, "aemd.front", "", "7", "9"]
    assert command(start(Program.LOOKER)) == [*python, "aemd.deputy.looker"]
    assert command(start(Program.RUNNER)) == [*python, "aemd.deputy.runner"]


@pytest.mark.parametrize(
    "message",
    [
        start(Program.NONE, 1, 1),
        start(Program.DEPUTY, 0),
        start(Program.DEPUTY, MILLISECONDS_MAX + 1),
        start(Program.FRONTS, 1, 0),
        start(Program.FRONTS, -1, 1),
        start(Program.FRONTS, BYTES_MAX + 1, 1),
    ],
)
def test_numbers_out_of_bounds_start_nothing(message):
    with pytest.raises(ValueError, match="first="):
        command(message)
