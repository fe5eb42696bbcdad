"""Entries of the systemd journal, with their fields: its native protocol, spoken by hand.

A line on stderr reaches the journal as text, and whoever looks for the entries about one job has to search in
it. The native protocol is one datagram an entry to /run/systemd/journal/socket: `KEY=value` lines, or,
where a value has line breaks, the key, its length as 64 bits little-endian, and the value
(systemd.io/JOURNAL_NATIVE_PROTOCOL). `journalctl -u aemd AEMD_JOB=7` finds them.

The daemon must never wait for the journal: a datagram that finds no room is dropped and counted, and the
count goes out with the next one. What cannot be sent at all (the journal is being replaced) goes to stderr,
as text, where systemd keeps it. Values are cut, so that an entry always fits into one datagram: larger ones
would need a sealed memfd.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Mapping

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "aemd"
PREFIX = "AEMD_"  # of our fields, so that none is taken for one of the journal's own
VALUE_BYTES_MAX = 16 * 1024  # a datagram holds some 200 KiB, and an entry has ten fields at most
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)


def encode(fields: Mapping[str, object]) -> bytes:
    """An entry of these fields; their names are the caller's to choose."""
    parts = []
    for name, value in fields.items():
        raw = str(value).encode("utf-8", "backslashreplace")[:VALUE_BYTES_MAX]
        if b"\n" in raw:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(raw)), raw))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), raw))
    return b"".join(parts)


def entry_of(event: Mapping[str, object], text: str) -> dict[str, object]:
    """What is said about an event of the log. `text`: the event's data, for people."""
    message = str(event["event"])
    if text:
        message += f" {text}"
    if "exception" in event:
        message += f"\n{event['exception']}"
    fields: dict[str, object] = {
        "MESSAGE": message,
        "PRIORITY": PRIORITIES.get(str(event.get("level")), 6),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "SYSLOG_PID": os.getpid(),
    }
    for name, value in event.items():
        if name not in ("event", "level", "exception"):
            fields[PREFIX + name.upper()] = value
    return fields


class Journal:
    """Sends entries; `otherwise(line)` is for those that the journal cannot be given."""

    def __init__(self, otherwise: Callable[[str], None], path: str = SOCKET) -> None:
        self.dropped = 0
        self._otherwise = otherwise
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def msg(self, fields: dict[str, object], line: str) -> None:
        """Send an entry, or count it as dropped. `line`: the same as text."""
        if self.dropped:
            fields[PREFIX + "DROPPED"] = self.dropped
        try:
            self._socket.sendto(encode(fields), self._path)
        except BlockingIOError:
            self.dropped += 1
            return
        except OSError:
            self._otherwise(line)
        self.dropped = 0

    def close(self) -> None:
        """Send no more."""
        self._socket.close()

    debug = info = warning = error = critical = log = msg


def stream_is_journal(fd: int, variable: str) -> bool:
    """Whether `fd` is the stream that `variable`, of the form of JOURNAL_STREAM, names: systemd.exec(5)."""
    device, _, inode = variable.partition(":")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return f"{found.st_dev}:{found.st_ino}" == f"{device}:{inode}"


def can_be_spoken(fd: int) -> bool:
    """Whether the journal behind `fd` takes entries, and not lines alone."""
    return stat.S_ISSOCK(os.fstat(fd).st_mode) and os.path.exists(SOCKET)
