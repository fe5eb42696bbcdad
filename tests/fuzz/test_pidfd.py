"""What the kernel writes about processes: any bytes give a record or ValueError."""

from __future__ import annotations

import struct
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from aemd.sources.pidfd import PIDFD_INFO_EXIT, parse_exit_info, parse_stat, parse_uids

numbers = st.integers(0, (1 << 64) - 1)
commands = st.binary(max_size=15).filter(lambda name: b"\0" not in name)


@given(st.one_of(st.binary(max_size=600), st.text("()Z 0123456789-", max_size=300).map(str.encode)))
def test_any_bytes_parse_or_raise_value_error(buffer: bytes) -> None:
    # Invariant: nothing but ValueError.
    for parse in (parse_stat, parse_uids, parse_exit_info):
        with suppress(ValueError):
            parse(buffer)


@given(commands, numbers, st.integers(0, 0xFFFF))
def test_a_command_of_any_bytes_does_not_shift_the_fields(command: bytes, ticks: int, status: int) -> None:
    # Invariant: fields are counted from the last closing bracket, whatever the command holds.
    fields = [b"Z", *[b"7"] * 18, b"%d" % ticks, *[b"8"] * 29, b"%d" % status]
    stat = parse_stat(b"4242 (%b) %b\n" % (command, b" ".join(fields)))
    assert (stat.command, stat.state, stat.start_time_ticks, stat.wait_status) == (
        command,
        "Z",
        ticks,
        status,
    )


@given(numbers, numbers, numbers)
def test_uids_are_the_first_three_of_the_line(real: int, effective: int, saved: int) -> None:
    # Invariant: real, effective, saved, in this order.
    text = f"Name:\tx\nUmask:\t0022\nUid:\t{real}\t{effective}\t{saved}\t5\nGid:\t1\t1\t1\t1\n"
    assert parse_uids(text.encode()) == (real, effective, saved)


@given(numbers, st.integers(0, 0xFFFF))
def test_an_exit_code_counts_only_where_the_mask_says_so(mask: int, status: int) -> None:
    # Invariant: None unless PIDFD_INFO_EXIT is in the mask.
    buffer = bytearray(80)
    struct.pack_into("=Q", buffer, 0, mask)
    struct.pack_into("=i", buffer, 60, status)
    assert parse_exit_info(buffer) == (status if mask & PIDFD_INFO_EXIT else None)
