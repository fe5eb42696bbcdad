"""aemctl top against a real daemon, in a real terminal: a pseudo-terminal pair."""

from __future__ import annotations

import contextlib
import curses
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import aem
import pytest

LIMIT = 30
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"  # the alternate screen of xterm


def has_xterm() -> bool:
    with contextlib.suppress(curses.error):
        curses.setupterm("xterm", 1)
        return True
    return False


@pytest.fixture
def program(daemon: Any) -> Iterator[aem.Client]:
    with aem.Client(label="the client") as client:
        client.register("timer", lambda event: None, label="ticker", every="1h")
        client.register("user", lambda event: None, label="\x1b[2J日本語" * 15, channel="c")
        yield client


class Terminal:
    """aemctl top in a terminal of its own."""

    def __init__(self, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self.seen = b""
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aemd.cli.ctl", "top", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        os.close(self.master)
        os.close(self.slave)

    def resize(self, rows: int, columns: int) -> None:
        """The kernel tells the terminal's foreground with SIGWINCH."""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def until(self, wanted: bytes) -> bytes:
        """What is drawn until `wanted` comes, and that."""
        deadline = time.monotonic() + LIMIT
        while wanted not in self.seen:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.master], [], [], max(left, 0))
            assert ready, f"{wanted!r} did not come: {self.seen!r}"
            self.seen += os.read(self.master, 65536)
        drawn, _, self.seen = self.seen.partition(wanted)
        return drawn + wanted

    def ended(self) -> int:
        """The exit code; what it wrote at the end is in `seen`."""
        while select.select([self.master], [], [], 0 if self.process.poll() is not None else 0.05)[0]:
            self.seen += os.read(self.master, 65536)
        code = self.process.wait(LIMIT)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return code


@pytest.fixture
def terminal(program: aem.Client) -> Iterator[Terminal]:
    if not has_xterm():
        pytest.skip("there is no terminfo entry for xterm")
    made = Terminal("--interval", "200ms")
    yield made
    made.close()


def test_it_draws_sorts_resizes_and_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.until(ENTER)
    drawn = terminal.until(b"ticker")
    assert b"RATE*" in drawn
    terminal.press(b"l")
    terminal.until(b"LAG*")
    terminal.resize(12, 60)
    terminal.until(b"interval")
    terminal.resize(3, 10)  # absurd, and no fault
    terminal.until(b"q quit")
    terminal.resize(40, 132)
    terminal.until(b"arrows scroll")
    terminal.press(b"q")
    assert terminal.ended() == 0
    assert terminal.seen.rstrip().endswith(b"\x1b>")  # rmkx behind rmcup: the last that curses says
    assert LEAVE in terminal.seen
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_labels_reach_the_terminal_as_text_only(terminal: Terminal) -> None:
    terminal.until(ENTER)
    drawn = terminal.until("日本語".encode())
    assert b"\\x1b[2J" in drawn


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(terminal: Terminal, number: int, code: int) -> None:
    terminal.until(b"ticker")
    if number == signal.SIGINT:
        terminal.press(b"\x03")
    else:
        terminal.process.send_signal(number)
    assert terminal.ended() == code
    assert LEAVE in terminal.seen
    assert b"Traceback" not in terminal.seen
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_it_waits_for_a_daemon_that_is_away(terminal: Terminal, daemon: Any) -> None:
    terminal.until(b"ticker")
    daemon.stop()
    terminal.until(b"no daemon")
    daemon.start()
    terminal.until(b"events 0/s")
    terminal.press(b"q")
    assert terminal.ended() == 0


def ctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aemd.cli.ctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


def test_once_is_a_table_and_json_an_object(program: aem.Client) -> None:
    table = ctl("top", "--once", "--interval", "100ms").stdout.splitlines()
    assert table[0].startswith("aemd ")
    assert any("ticker" in line for line in table)
    told = json.loads(ctl("top", "-o", "json", "--interval", "100ms").stdout)
    assert {one["label"] for one in told["jobs"]} >= {"ticker"}
    assert told["totals"]["lost"] == {"kernel": 0, "source": 0, "job": 0, "session": 0}
    lines = ctl("top", "-o", "jsonl", "--count", "2", "--interval", "100ms").stdout.splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"totals", "jobs"}] * 2


def test_without_a_terminal_it_says_what_to_do(program: aem.Client) -> None:
    refused = ctl("top")
    assert refused.returncode == 2
    assert "--once" in refused.stderr


def test_without_a_daemon_once_fails_as_other_verbs_do(tmp_path: Any) -> None:
    assert ctl("--address", f"unix:{tmp_path}/none", "top", "--once").returncode == 3
