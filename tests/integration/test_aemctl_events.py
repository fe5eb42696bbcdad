"""aemctl against a real daemon: the verbs that wait for events."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import aem
import pytest

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT = 30
EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_FOUND = 1, 2, 4
EXIT_TIMEOUT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 124, 130, 141


@pytest.fixture
def start(daemon: Any) -> Iterator[Start]:
    """Starts aemctl; whatever still runs at the end of the test is ended."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **more: Any) -> subprocess.Popen[str]:
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
        process = subprocess.Popen([sys.executable, "-m", "aemd.cli.ctl", *arguments], **options)
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait(LIMIT)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def outcome(process: subprocess.Popen[str], text: str | None = None) -> tuple[int, str, str]:
    out, err = process.communicate(text, timeout=LIMIT)
    return process.returncode, out, err


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def until_armed(process: subprocess.Popen[str], label: str) -> int:
    """The id of the job with this label, once `process` has it."""
    with aem.Client() as client:
        while process.poll() is None:
            for job in client.list_jobs(state="armed"):
                if job.label == label:
                    return job.id
    raise AssertionError(f"aemctl ended: {process.communicate()}")


def test_watch_ends_after_count_and_leaves_no_job(start: Start) -> None:
    code, out, err = outcome(start("watch", "timer", "every=20ms", "--count", "3", "--label", "three"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 3
    assert all(" timer/expired job " in line and "lateness" in line for line in lines)
    assert "three" not in outcome(start("list-jobs"))[1]


def test_watch_json_is_an_object_a_line(start: Start) -> None:
    code, out, err = outcome(start("watch", "timer", "every=20ms", "cookie=7", "--count", "2", "-o", "json"))
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert first["module"] == "timer"
    assert first["payload"]["cookie"] == 7
    assert first["payload"]["lateness_ns"] >= 0
    assert second["first"] == first["seq"] + 1
    assert isinstance(first["real_time_ns"], int)


def test_watch_timeout_is_an_end_without_count_and_a_failure_with_it(start: Start) -> None:
    code, out, err = outcome(start("watch", "user", "channel=silent", "--timeout", "200ms"))
    assert (code, out, err) == (0, "", "")
    code, out, err = outcome(start("watch", "user", "channel=silent", "--timeout", "200ms", "--count", "1"))
    assert (code, out, err) == (EXIT_TIMEOUT, "", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, 143)])
def test_signal_ends_watch_quietly_and_shuts_its_job_down(
    start: Start, number: signal.Signals, code: int
) -> None:
    watch = start("watch", "timer", "every=10ms", "--label", "signalled")
    assert "timer/expired" in first_line(watch)
    watch.send_signal(number)
    _, err = watch.communicate(timeout=LIMIT)
    assert (watch.returncode, err) == (code, "")
    assert "signalled" not in outcome(start("list-jobs"))[1]


def test_watch_ends_when_nobody_reads_it_any_more_although_no_event_comes(start: Start) -> None:
    watch = start("watch", "user", "channel=pipe", "--label", "piped")
    until_armed(watch, "piped")
    assert watch.stdout is not None
    watch.stdout.close()
    assert watch.wait(LIMIT) == EXIT_BROKEN_PIPE
    assert watch.stderr is not None
    assert watch.stderr.read() == ""


def test_watch_in_a_pipe_to_head_is_quiet(start: Start) -> None:
    line = f"{sys.executable} -m aemd.cli.ctl watch timer every=5ms | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_watch_says_when_its_connection_is_lost_and_when_it_is_back(daemon: Any, start: Start) -> None:
    watch = start("watch", "user", "channel=c", "--label", "faithful", "--count", "1")
    until_armed(watch, "faithful")
    daemon.kill()
    assert watch.stderr is not None
    assert watch.stderr.readline().startswith("aemctl: connection lost, coming back: ")
    daemon.start()
    assert watch.stderr.readline() == "aemctl: connection is back; the daemon knew nothing of us any more\n"
    until_armed(watch, "faithful")
    assert outcome(start("raise", "c", "hello"))[0] == 0
    assert outcome(watch)[0] == 0


def test_watch_process_tells_status_signal_and_core(start: Start) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    watch = start("watch", "process", f"pid={child.pid}", "-o", "json", "--label", "victim")
    until_armed(watch, "victim")
    child.send_signal(signal.SIGTERM)
    child.wait(LIMIT)
    code, out, _ = outcome(watch)
    assert code == 0
    event = json.loads(out)
    assert event["type"] == "exited"
    payload = event["payload"]
    assert payload["pid"] == child.pid
    if payload["knowledge"] == "known":
        assert (payload["signal"], payload["signal_name"], payload["core_dumped"]) == (15, "SIGTERM", False)


def test_watch_socket_shows_connections(start: Start) -> None:
    watch = start("watch", "socket", "listen=tcp:127.0.0.1:0", "-o", "jsonl", "--label", "listener")
    identity = until_armed(watch, "listener")
    job = json.loads(outcome(start("show-job", str(identity), "-o", "json"))[1])
    address = next(text for text in job["details"].values() if "127.0.0.1:" in text)
    port = int(address.split()[0].rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.sendall(b"hello")
        seen: dict[str, dict[str, Any]] = {}
        while "data" not in seen:
            event = json.loads(first_line(watch))
            seen[event["type"]] = event
    assert seen["accepted"]["payload"]["peer"]["host"] == "127.0.0.1"
    assert seen["data"]["payload"]["data"] == "hello"


def test_unknown_parameter_names_the_nearest(start: Start) -> None:
    code, out, err = outcome(start("watch", "timer", "evry=1s"))
    assert (code, out) == (EXIT_USAGE, "")
    assert "did you mean every=?" in err
    assert "show-module timer" in err


def test_wrong_value_is_the_daemons_word_and_a_usage_error(start: Start) -> None:
    code, out, err = outcome(start("watch", "timer", "every=soon", "-o", "json"))
    assert (code, out) == (EXIT_USAGE, "")
    error = json.loads(err)
    assert error["code"] == "INVALID_ARGUMENT"
    assert error["exit_code"] == EXIT_USAGE
    assert "every" in error["error"]


def test_unknown_module_names_what_is_loaded(start: Start) -> None:
    code, _, err = outcome(start("watch", "timmer", "every=1s"))
    assert code == EXIT_NOT_FOUND
    assert "did you mean timer?" in err
    assert "process" in err


def test_wait_ends_with_the_first_event(start: Start) -> None:
    code, out, err = outcome(start("wait", "timer", "every=20ms", "--timeout", "20s"))
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    code, out, _ = outcome(start("wait", "timer", "after=10ms", "--quiet"))
    assert (code, out) == (0, "")


def test_wait_gives_up_after_its_time_limit(start: Start) -> None:
    assert outcome(start("wait", "user", "channel=never", "--timeout", "200ms")) == (EXIT_TIMEOUT, "", "")


def test_wait_for_a_zombie_does_not_hang(start: Start) -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    code, out, err = outcome(start("wait", "process", f"pid={child.pid}", "-o", "json", "--timeout", "20s"))
    assert (code, err) == (0, "")
    payload = json.loads(out)["payload"]
    assert (payload["exit_status"], payload["reaped"]) == (0, False)
    child.wait(LIMIT)


def test_wait_for_a_process_that_is_gone_is_not_found_unless_that_is_fine(start: Start) -> None:
    child = subprocess.Popen(["true"])
    child.wait(LIMIT)
    code, out, err = outcome(start("wait", "process", f"pid={child.pid}"))
    assert (code, out) == (EXIT_NOT_FOUND, "")
    assert str(child.pid) in err
    assert outcome(start("wait", "process", f"pid={child.pid}", "--missing-ok")) == (0, "", "")


def test_wait_says_that_its_job_was_shut_down(start: Start) -> None:
    waiting = start("wait", "user", "channel=never", "--label", "doomed")
    outcome(start("shutdown-job", str(until_armed(waiting, "doomed"))))
    code, out, err = outcome(waiting)
    assert (code, out) == (EXIT_REFUSED, "")
    assert "JOB_ENDED" in err


def test_on_runs_the_command_with_the_event(start: Start) -> None:
    script = 'echo "$AEM_MODULE $AEM_TYPE $AEM_COOKIE"; cat'
    command = ["--", "sh", "-c", script]
    code, out, err = outcome(start("on", "timer", "every=20ms", "cookie=7", "--count", "2", *command))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == lines[2] == "timer expired 7"
    assert json.loads(lines[1])["payload"]["cookie"] == 7
    assert json.loads(lines[3])["seq"] > json.loads(lines[1])["seq"]


def test_on_tells_a_failed_run_and_the_daemon_knows_it(start: Start) -> None:
    handler = start("on", "user", "channel=work", "--label", "failing", "--", "sh", "-c", "exit 3")
    identity = until_armed(handler, "failing")
    assert outcome(start("raise", "work", "x"))[0] == 0
    assert handler.stderr is not None
    assert "sh: exited with status 3" in handler.stderr.readline()
    while True:
        job = json.loads(outcome(start("show-job", str(identity), "-o", "json"))[1])
        if job["stats"]["failed"]:
            break
    assert "exited with status 3" in job["stats"]["last_error"]
    handler.send_signal(signal.SIGINT)
    assert outcome(handler)[0] == EXIT_INTERRUPTED


def test_on_exits_with_1_if_a_run_failed(start: Start) -> None:
    code, _, err = outcome(start("on", "timer", "every=10ms", "--count", "1", "--", "false"))
    assert code == EXIT_REFUSED
    assert "false: exited with status 1" in err


def test_on_ends_a_run_that_takes_too_long(start: Start) -> None:
    command = ["--timeout", "200ms", "--", "sleep", "1000"]
    code, _, err = outcome(start("on", "timer", "after=10ms", *command))
    assert code == EXIT_REFUSED
    assert "time limit of 0.2s" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "1 0 ::"),
        (["--allow-new-privs", "--limit-core", "4KiB"], "0 8 ::"),
        (["--env", "SECRET", "--env", "MODE=x"], "1 0 :token:x"),
        (["--keep-env"], "1 0 ten:token:"),
    ],
)
def test_on_gives_its_command_few_variables_no_privileges_and_no_core_dumps(
    start: Start, monkeypatch: Any, options: list[str], told: str
) -> None:
    monkeypatch.setenv("SECRET", "token")
    monkeypatch.setenv("OTHER", "ten")
    script = (
        "set -- $(grep NoNewPrivs /proc/self/status); echo $2 $(ulimit -Sc) $OTHER:$SECRET:$MODE;"
        ' test $(ps -o sid= -p $$) = $$ && test -n "$HOME"'
    )
    arguments = ["--count", "1", *options, "--", "sh", "-c", script]
    code, out, err = outcome(start("on", "timer", "after=10ms", *arguments))
    assert (code, out.strip(), err) == (0, told, "")


def test_signal_ends_on_together_with_its_command(start: Start) -> None:
    handler = start("on", "timer", "after=10ms", "--", "sh", "-c", "echo $$; exec sleep 1000")
    pid = int(first_line(handler))
    descriptor = os.pidfd_open(pid)
    handler.send_signal(signal.SIGTERM)
    assert outcome(handler)[0] == 143
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, 0)
    os.close(descriptor)


def test_raise_reaches_a_watcher_from_arguments_and_standard_input(start: Start) -> None:
    watch = start("watch", "user", "channel=news", "--count", "5", "-o", "json", "--label", "reader")
    until_armed(watch, "reader")
    assert outcome(start("raise", "news", '{"version": 7}')) == (0, "", "")
    assert outcome(start("raise", "news"))[0] == 0
    assert outcome(start("raise", "news", "-", stdin=subprocess.PIPE), "a\nb\n")[0] == 0
    code, out, _ = outcome(
        start("raise", "news", "-", "--lines", "-o", "json", stdin=subprocess.PIPE), "c\nd"
    )
    assert (code, json.loads(out)) == (0, {"channel": "news", "raised": 2})
    code, out, _ = outcome(watch)
    assert code == 0
    payloads = [json.loads(line)["payload"]["payload"] for line in out.splitlines()]
    assert payloads == ['{"version": 7}', "", "a\nb\n", "c", "d"]
