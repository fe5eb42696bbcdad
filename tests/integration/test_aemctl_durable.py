"""aemctl against a real daemon: durable jobs made, found, followed, and what was put aside retried."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import aem
import pytest

Ctl = Callable[..., "subprocess.CompletedProcess[str]"]
EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_TIMEOUT, EXIT_INTERRUPTED = 1, 2, 4, 124, 130


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "aemd.cli.ctl", *arguments]


@pytest.fixture
def ctl(daemon: Any) -> Ctl:
    """Runs aemctl to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=30, check=False)

    return run


@pytest.fixture
def program(daemon: Any) -> Iterator[aem.Client]:
    with aem.Client(label="the client") as client:
        yield client


def test_a_durable_job_is_made_once_and_found_by_its_name(ctl: Ctl, program: aem.Client) -> None:
    made = ctl(
        "create-job", "deploys", "user", "channel=deploy", "--keep-entries", "10", "--keep-age", "1h",
        "--priority", "5",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (number,) = re.findall(r"^job (\d+) deploys armed$", made.stdout, re.MULTILINE)
    again = ctl(
        "create-job", "deploys", "user", "channel=deploy", "--keep-entries", "10", "--keep-age", "60min",
        "--priority", "5", "-o", "json",
    )  # fmt: skip
    assert json.loads(again.stdout)["id"] == int(number)
    differs = ctl("create-job", "deploys", "user", "channel=other")
    assert differs.returncode == EXIT_REFUSED
    assert "with other params, options, keep" in differs.stderr
    shown = ctl("show-job", "deploys").stdout
    assert re.search(
        r"^ +name  deploys: keeps 10 entries, 16.0MiB, 1h; from 1:0 on; 0 bound$", shown, re.MULTILINE
    )
    table = ctl("list-jobs").stdout.splitlines()
    assert table[1].split()[table[0].split().index("NAME")] == "deploys"
    assert ctl("stop-job", "deploys").stdout == f"job {number} registered\n"
    assert ctl("start-job", "jobs/deploys").stdout == f"job {number} armed\n"
    assert ctl("set-priority", "deploys", "6").stdout == f"job {number} priority 6\n"
    assert ctl("shutdown-job", "deploys").returncode == 0
    assert ctl("show-job", "deploys").returncode == EXIT_NOT_FOUND
    assert ctl("show-job", "no name").returncode == EXIT_USAGE


def test_a_job_that_is_made_stopped_does_not_fire(ctl: Ctl, program: aem.Client) -> None:
    assert ctl("create-job", "deploys", "user", "channel=deploy", "--stopped").stdout.endswith("registered\n")
    wrong = ctl("create-job", "deploys", "user", "chan=deploy")
    assert (wrong.returncode, "did you mean channel=" in wrong.stderr) == (EXIT_USAGE, True)
    assert ctl("create-job", "17", "user", "channel=deploy").returncode == EXIT_USAGE


def test_a_job_is_followed_from_where_one_says(ctl: Ctl, program: aem.Client) -> None:
    program.create_job("deploys", "user", {"channel": "deploy"})
    program.raise_event("deploy", "a", "b", "c")
    followed = ctl("follow-job", "deploys", "--from", "oldest", "--count", "3")
    assert followed.returncode == 0, followed.stderr
    assert [line.split()[0] for line in followed.stdout.splitlines()] == ["1:1", "1:2", "1:3"]
    for start, expected in (("1:1", "b"), ("1h", "a"), ("2026-01-01", "a")):
        result = ctl("follow-job", "deploys", "--from", start, "--count", "1", "-o", "json")
        assert json.loads(result.stdout)["payload"]["payload"] == expected, start
    late = ctl("follow-job", "deploys", "--count", "1", "--timeout", "200ms")
    assert (late.returncode, late.stdout) == (EXIT_TIMEOUT, "")
    unknown = ctl("follow-job", "deploys", "--from", "1:99", "-o", "json")
    assert unknown.returncode == EXIT_REFUSED
    assert json.loads(unknown.stderr)["metadata"]["head"] == "1:3"
    assert ctl("follow-job", "deploys", "--from", "yesterday").returncode == EXIT_USAGE
    assert ctl("follow-job", "nonesuch").returncode == EXIT_NOT_FOUND
    ephemeral = program.register("timer", print, every="1h")
    refused = ctl("follow-job", str(ephemeral.id))
    assert (refused.returncode, "only durable jobs" in refused.stderr) == (EXIT_REFUSED, True)


def test_following_goes_on_across_a_restart_and_leaves_the_job(daemon: Any, program: aem.Client) -> None:
    program.create_job("deploys", "user", {"channel": "deploy"})
    program.raise_event("deploy", "a")
    arguments = command("follow-job", "deploys", "--from", "oldest", "-o", "json")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["payload"]["payload"] == "a"
        daemon.stop()
        daemon.start()
        program.raise_event("deploy", "b")
        assert json.loads(process.stdout.readline())["payload"]["payload"] == "b"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == EXIT_INTERRUPTED
    finally:
        process.kill()
        process.communicate()
    assert program.get_job("deploys").durable_name == "deploys"


def test_what_was_put_aside_is_listed_and_retried(ctl: Ctl, program: aem.Client) -> None:
    seen: list[str] = []

    def handle(event: aem.UserEvent) -> None:
        seen.append(event.data.decode())
        if event.attempts == 1:
            raise aem.Park("cannot")

    program.durable("deploys", "user", handle, channel="deploy")
    program.raise_event("deploy", "a", "b")
    program.run(lambda: program.get_job("deploys").stats.parked == 2)
    lines = ctl("list-parked", "deploys").stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["1:1", "1", "yes"], ["1:2", "1", "yes"]]
    assert '"cannot"' in lines[1]
    listed = json.loads(ctl("list-parked", "deploys", "-o", "json").stdout)
    assert [(entry["cursor"], entry["payload"]["payload"]) for entry in listed] == [
        ("1:1", "a"),
        ("1:2", "b"),
    ]
    assert ctl("retry-parked", "deploys", "1:2").stdout == "job deploys: 1 entry delivered once more\n"
    program.run(lambda: seen == ["a", "b", "b"])
    assert ctl("retry-parked", "deploys", "1:2").returncode == EXIT_NOT_FOUND
    assert ctl("retry-parked", "deploys", "here").returncode == EXIT_USAGE
    assert json.loads(ctl("retry-parked", "deploys", "-o", "json").stdout)["retried"] == 1
    program.run(lambda: seen == ["a", "b", "b", "a"])
    assert ctl("list-parked", "deploys").stderr == "nothing is put aside\n"


def test_names_are_completed(daemon: Any, program: aem.Client) -> None:
    program.create_job("deploys", "user", {"channel": "deploy"})
    other = program.register("timer", print, every="1h")

    def completed(line: str) -> list[str]:
        environment = {**os.environ, "_AEMCTL_COMPLETE": "bash_complete", "COMP_LINE": line}
        result = subprocess.run(
            command(), capture_output=True, text=True, timeout=30, env=environment, check=False
        )
        return [one.partition(",")[2] for one in result.stdout.splitlines()]

    assert completed("aemctl follow-job ") == ["deploys"]
    assert "deploys" in completed("aemctl show-job ")
    assert str(other.id) in completed("aemctl show-job ")
    assert completed("aemctl create-job x user ch") == ["channel="]
