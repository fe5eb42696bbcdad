from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aemd.cli.halt import Halt, Halted
from aemd.cli.handler import Command, CommandError, end
from aemd.service.feed import variables

ROW: dict[str, Any] = {
    "module": "process",
    "type": "exited",
    "job": 17,
    "epoch": 1,
    "seq": 4,
    "count": 1,
    "attempts": 1,
    "real_time_ns": 5,
    "payload": {"pid": 42, "core_dumped": False, "peer": {"port": 80}, "none": None, "type": "mine"},
}


def test_facts_and_payload_become_variables() -> None:
    assert variables(ROW) == {
        "AEM_MODULE": "process",
        "AEM_TYPE": "exited",
        "AEM_JOB": "17",
        "AEM_SEQ": "4",
        "AEM_EPOCH": "1",
        "AEM_COUNT": "1",
        "AEM_ATTEMPTS": "1",
        "AEM_TIME_NS": "5",
        "AEM_PID": "42",
        "AEM_CORE_DUMPED": "0",
        "AEM_PEER_PORT": "80",
    }


def test_what_cannot_be_a_variable_is_left_out() -> None:
    names = variables({**ROW, "payload": {"nul": "a\0b", "long": "x" * 40_000, "fine": "y"}})
    assert "AEM_FINE" in names
    assert "AEM_NUL" not in names
    assert "AEM_LONG" not in names


def test_command_gets_the_event_on_stdin_and_in_variables(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f'cat > {out}; echo "$AEM_TYPE $AEM_PID" >> {out}'
    Command(["sh", "-c", script]).run(ROW)
    first, second = out.read_text().splitlines()
    assert json.loads(first) == ROW
    assert second == "exited 42"


def test_command_that_does_not_read_its_input_is_no_failure() -> None:
    Command(["true"]).run({**ROW, "payload": {"data": "x" * 1_000_000}})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sh", "-c", "exit 3"], "sh: exited with status 3"),
        (["sh", "-c", "kill -SEGV $$"], "sh: ended by SIGSEGV"),
        (["/no/such/command"], "/no/such/command: No such file or directory"),
    ],
)
def test_command_that_fails_says_how(words: list[str], message: str) -> None:
    with pytest.raises(CommandError) as caught:
        Command(words).run(ROW)
    assert str(caught.value) == message


def test_time_limit_ends_the_command_and_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! > {pids}; wait"
    with pytest.raises(CommandError, match="time limit"):
        Command(["sh", "-c", script], timeout_ns=300_000_000).run(ROW)
    pid = int(pids.read_text())
    descriptor = _pidfd(pid)
    if descriptor is not None:
        assert select.select([descriptor], [], [], 10)[0], "the child of the script still runs"
        os.close(descriptor)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def test_command_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('x', flush=True)\nsignal.pause()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"x\n"
    end(process, grace_seconds=0.1)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


def test_signal_while_the_command_starts_waits_until_it_can_be_ended(tmp_path: Path) -> None:
    """Was a bug: the command ran on with nobody who knew of it."""
    halt = Halt()
    pid = tmp_path / "pid"
    code = f"echo $$ > {pid}; kill -TERM {os.getpid()}; exec sleep 1000"
    with halt.armed(), pytest.raises(Halted):
        halt.wait(lambda: Command(["sh", "-c", code], shield=halt.shielded).run(ROW))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
