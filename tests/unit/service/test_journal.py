"""Entries of the journal, read from a socket of our own as journald reads it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from aemd.service.journal import VALUE_BYTES_MAX, Journal, encode, entry_of, stream_is_journal


def parse(datagram: bytes) -> dict[str, str]:
    """The fields of an entry, as the protocol describes them."""
    fields = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", rest)
            value, datagram = rest[8 : 8 + size], rest[8 + size :]
            assert datagram[:1] == b"\n"
            datagram = datagram[1:]
        else:
            datagram = rest
        fields[name.decode()] = value.decode()
    return fields


class Journald:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(10)
        self.sender = Journal(pytest.fail, path)

    def read(self) -> dict[str, str]:
        return parse(self.socket.recv(1 << 20))


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journald]:
    monkeypatch.chdir(tmp_path)  # pytest's paths are longer than a socket's may be
    journald = Journald("journal")
    yield journald
    journald.sender.close()
    journald.socket.close()


def test_event_becomes_an_entry_with_its_fields(journald: Journald) -> None:
    event = {"event": "it broke", "level": "error", "job": 7, "exception": "Traceback\n  line"}
    journald.sender.msg(entry_of(event, "job=7"), "text")
    assert journald.read() == {
        "MESSAGE": "it broke job=7\nTraceback\n  line",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "aemd",
        "SYSLOG_PID": str(os.getpid()),
        "AEMD_JOB": "7",
    }


@pytest.mark.parametrize("value", ["", "=", "a\nMESSAGE=forged", "\n", "\udcff", "x" * 10])
def test_value_stays_within_its_field(value: str) -> None:
    parsed = parse(encode({"A": value, "B": "end"}))
    assert parsed == {"A": value.encode("utf-8", "backslashreplace").decode(), "B": "end"}


def test_entry_fits_into_a_datagram_whatever_is_in_it(journald: Journald) -> None:
    event = {"event": "e" * (1 << 20), "level": "info", **{f"f{n}": "x\n" * (1 << 20) for n in range(9)}}
    journald.sender.msg(entry_of(event, ""), "text")
    assert {len(value) for name, value in journald.read().items() if name.startswith("AEMD_")} == {
        VALUE_BYTES_MAX
    }


def test_journal_that_does_not_read_drops_entries_and_says_so_later(journald: Journald) -> None:
    journal = journald.sender
    while not journal.dropped:
        journal.msg({"MESSAGE": "early"}, "")
    journal.msg({"MESSAGE": "lost too"}, "")
    assert journal.dropped == 2
    assert journald.read() == {"MESSAGE": "early"}
    journal.msg({"MESSAGE": "late"}, "")
    last = {}
    while last.get("MESSAGE") != "late":
        last = journald.read()
    assert last["AEMD_DROPPED"] == "2"
    journal.msg({"MESSAGE": "after"}, "")
    assert journald.read() == {"MESSAGE": "after"}


def test_without_a_journal_the_text_goes_elsewhere(tmp_path: Path) -> None:
    lines: list[str] = []
    journal = Journal(lines.append, str(tmp_path / "nobody"))
    journal.msg({"MESSAGE": "x"}, "<6>event=x")
    journal.close()
    assert lines == ["<6>event=x"]


def test_stream_of_somebody_else_is_not_the_journal() -> None:
    reader, writer = os.pipe()
    found = os.fstat(writer)
    assert stream_is_journal(writer, f"{found.st_dev}:{found.st_ino}")
    assert not stream_is_journal(writer, f"{found.st_dev}:{found.st_ino + 1}")
    assert not stream_is_journal(writer, "")
    os.close(reader)
    os.close(writer)
    assert not stream_is_journal(writer, f"{found.st_dev}:{found.st_ino}")
