"""aemctl against a real daemon: jobs, modules, sessions, status, completion."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aem
import pytest

Ctl = Callable[..., "subprocess.CompletedProcess[str]"]
EXIT_USAGE, EXIT_NOT_FOUND, EXIT_DENIED = 2, 4, 5


@pytest.fixture
def ctl(daemon: Any) -> Ctl:
    """Runs aemctl to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "aemd.cli.ctl", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    return run


@pytest.fixture
def program(daemon: Any) -> Iterator[aem.Client]:
    with aem.Client(label="the client") as client:
        yield client


@pytest.fixture
def job(program: aem.Client) -> aem.Job:
    return program.register("timer", lambda event: None, label="ticker", every="1h", cookie="7")


def rows(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_list_jobs_as_table_json_and_jsonl(ctl: Ctl, program: aem.Client, job: aem.Job) -> None:
    program.register("user", lambda event: None, label="listener", channel="c")
    table = ctl("list-jobs").stdout.splitlines()
    assert table[0].split()[:3] == ["JOB", "MODULE", "STATE"]
    line = next(line for line in table if "ticker" in line)
    assert line.split()[:3] == [str(job.id), "timer", "armed"]
    assert "every=1h" in line
    listed = rows(ctl("list-jobs", "-o", "json"))
    assert [one["id"] for one in listed] == sorted(one["id"] for one in listed)
    mine = next(one for one in listed if one["id"] == job.id)
    assert mine["params"] == {"every": "1h", "cookie": "7"}
    assert mine["stats"]["fires"] == 0
    assert [one["label"] for one in rows(ctl("list-jobs", "--module", "user", "-o", "json"))] == ["listener"]
    lines = ctl("list-jobs", "--state", "armed", "-o", "jsonl").stdout.splitlines()
    assert {json.loads(line)["label"] for line in lines} == {"ticker", "listener"}


def test_no_jobs_is_said_to_people_and_an_empty_array_for_programs(ctl: Ctl) -> None:
    assert ctl("list-jobs").stderr == "no jobs\n"
    assert ctl("list-jobs", "-o", "json").stdout == "[]\n"
    assert ctl("list-jobs", "-o", "jsonl").stdout == ""


def test_show_job_in_full(ctl: Ctl, program: aem.Client, job: aem.Job) -> None:
    shown = ctl("show-job", str(job.id))
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^ +state  armed$", shown.stdout, re.MULTILINE)
    assert re.search(rf"owner  uid {os.getuid()}, pid {os.getpid()}, sessions/\d+", shown.stdout)
    assert rows(ctl("show-job", f"jobs/{job.id}", "-o", "json"))["label"] == "ticker"
    other = program.register("user", lambda event: None, channel="c")
    both = rows(ctl("show-job", str(job.id), str(other.id), "-o", "json"))
    assert [one["id"] for one in both] == [job.id, other.id]


def test_stop_start_priority_shutdown(ctl: Ctl, job: aem.Job) -> None:
    identity = str(job.id)
    assert ctl("stop-job", identity).stdout == f"job {identity} registered\n"
    assert ctl("start-job", identity).stdout == f"job {identity} armed\n"
    assert ctl("set-priority", identity, "6").stdout == f"job {identity} priority 6\n"
    assert rows(ctl("show-job", identity, "-o", "json"))["options"]["priority"] == 6
    ended = ctl("shutdown-job", identity, "--deadline", "1s", "-o", "json")
    assert rows(ended)["id"] == job.id
    assert ctl("show-job", identity).returncode == EXIT_NOT_FOUND


def test_one_wrong_id_does_not_keep_the_others_from_their_change(ctl: Ctl, job: aem.Job) -> None:
    result = ctl("stop-job", "999999999", str(job.id))
    assert result.returncode == EXIT_NOT_FOUND
    assert "999999999" in result.stderr
    assert result.stdout == f"job {job.id} registered\n"


def test_modules_are_listed_and_described(ctl: Ctl) -> None:
    listed = rows(ctl("list-modules", "-o", "json"))
    assert {"process", "socket", "timer", "user"} <= {module["id"] for module in listed}
    assert "timer" in ctl("list-modules").stdout
    shown = ctl("show-module", "timer").stdout
    assert "every" in shown
    assert "aemctl watch timer" in shown
    parameters = rows(ctl("show-module", "timer", "-o", "json"))["parameters"]
    assert {"every", "after", "calendar"} <= {parameter["name"] for parameter in parameters}
    missing = ctl("show-module", "nonesuch")
    assert (missing.returncode, missing.stdout) == (EXIT_NOT_FOUND, "")


def test_module_is_unloaded_and_loaded_again(ctl: Ctl, job: aem.Job) -> None:
    assert ctl("unload-module", "timer").stdout == "module timer unloaded, 1 job shut down\n"
    assert ctl("watch", "timer", "every=1s").returncode == EXIT_NOT_FOUND
    assert ctl("load-module", "timer").stdout.startswith("module timer loaded")
    assert ctl("wait", "timer", "after=10ms", "-q").returncode == 0
    assert ctl("load-module", "nonesuch").returncode == EXIT_NOT_FOUND


def test_sessions_are_listed_and_ended(ctl: Ctl, program: aem.Client, job: aem.Job) -> None:
    listed = rows(ctl("list-sessions", "-o", "json"))
    session = next(one for one in listed if one["label"] == "the client")
    assert session["principal"]["pid"] == os.getpid()
    assert session["jobs"] == 1
    line = next(one for one in ctl("list-sessions").stdout.splitlines() if "the client" in one)
    assert line.split()[0] == str(session["id"])
    assert ctl("end-session", str(session["id"])).stdout == f"session {session['id']} ended, 1 job with it\n"
    assert ctl("end-session", "999999999").returncode == EXIT_NOT_FOUND


def test_quota_shows_what_is_in_use_and_all_on_demand(ctl: Ctl, job: aem.Job) -> None:
    uid = os.getuid()
    used = {row["resource"]: row for row in rows(ctl("quota", "-o", "json"))}
    assert (used["jobs"]["used"], used["jobs"]["uid"], used["jobs"]["refused"]) == (1, uid, 0)
    assert used["connections"]["used"] == 2
    assert "children" not in used
    everything = rows(ctl("quota", "--all", "-o", "json"))
    assert {"children", "history_bytes", "frames_per_second"} <= {row["resource"] for row in everything}
    shown = ctl("quota", "--uid", str(uid)).stdout.splitlines()
    assert shown[0].split() == ["USER", "RESOURCE", "USED", "LIMIT", "REFUSED", "FROM"]
    assert [str(uid), "jobs", "1", "2200000", "0", "default"] in [line.split() for line in shown]
    assert ctl("quota", "--uid", "4242424").stdout == ""


def test_status_for_people_and_programs(ctl: Ctl, job: aem.Job) -> None:
    shown = ctl("status")
    assert shown.returncode == 0, shown.stderr
    assert "aemd" in shown.stdout
    assert f"uid {os.getuid()}" in shown.stdout
    status = rows(ctl("status", "-o", "json"))
    assert status["jobs"] == 1
    assert "timer" in status["modules"]
    assert isinstance(status["start_time_ns"], int)


def test_status_shows_the_caller_as_the_daemon_sees_it(ctl: Ctl, daemon: Any) -> None:
    caller = rows(ctl("status", "-o", "json"))["caller"]
    assert (caller["uid"], caller["gid"], caller["groups"]) == (os.getuid(), os.getgid(), os.getgroups())
    assert caller["executable"] == os.readlink("/proc/self/exe")
    shown = ctl("status").stdout
    for name, field in (("your program", "executable"), ("your cgroup", "cgroup"), ("your unit", "unit")):
        lines = [
            line.split(None, 2)[2] for line in map(str.strip, shown.splitlines()) if line.startswith(name)
        ]
        assert lines == [caller[field]] * bool(caller[field])
    assert pwd.getpwuid(os.getuid()).pw_name in shown
    assert ("administrator  yes" if caller["administrator"] else "administrator  no: ") in shown


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be root elsewhere")
def test_root_in_another_namespace_sees_that_it_is_not_the_administrator_and_why(daemon: Any) -> None:
    command = ["unshare", "--mount", sys.executable, "-m", "aemd.cli.ctl", "status"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert "uid 0 (root)" in shown
    assert "no: in another mount namespace than the daemon" in shown


def test_errors_are_objects_where_json_was_asked_for(ctl: Ctl) -> None:
    result = ctl("show-job", "999999999", "-o", "json")
    assert (result.returncode, result.stdout) == (EXIT_NOT_FOUND, "")
    error = json.loads(result.stderr)
    assert (error["code"], error["exit_code"]) == ("NOT_FOUND", EXIT_NOT_FOUND)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with a module that is not aemd's own, for daemons that are started later."""
    install = Path(__file__).parent.parent / "packages" / "install.py"
    subprocess.run([sys.executable, install, "aemd-module-counter", tmp_path], check=True, timeout=30)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_module_of_somebody_else_is_known_as_well_as_the_own_ones(site: Path, ctl: Ctl) -> None:
    fifo = site / "fifo"
    os.mkfifo(fifo)
    assert ctl("unload-module", "counter").stdout == "module counter unloaded, 0 jobs shut down\n"
    assert ctl("watch", "counter", f"path={fifo}").returncode == EXIT_NOT_FOUND
    assert ctl("load-module", "counter").stdout.startswith("module counter loaded from aemd-module-counter")
    wrong = ctl("watch", "counter", f"pth={fifo}")
    assert wrong.returncode == EXIT_USAGE
    assert "did you mean path=?" in wrong.stderr
    writer = os.open(fifo, os.O_RDWR)
    os.write(writer, b"12345")
    event = rows(ctl("watch", "counter", f"path={fifo}", "--count", "1", "-o", "json"))
    os.close(writer)
    assert (event["module"], event["type"]) == ("counter", "counted")
    assert event["payload"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to ask as somebody else")
def test_what_only_the_administrator_may_is_permission_denied(daemon: Any) -> None:
    # Somebody else may not be able to run this interpreter, so that it changes only once it has loaded all.
    code = (
        "import os, sys, aem; from aemd.cli import ctl\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "sys.exit(ctl.run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "unload-module", "timer"]
    denied = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (denied.returncode, denied.stdout) == (EXIT_DENIED, "")
    assert "NOT_ALLOWED" in denied.stderr
    assert "aemctl status" in denied.stderr


ASK = """
eval "$(aemctl completion bash)"
for line; do
    COMP_LINE=$line COMP_POINT=${#line} COMP_WORDS=() COMP_CWORD=0
    _aemctl_completion aemctl
    IFS=' '; echo "${COMPREPLY[*]}"
done
"""


def complete(*lines: str) -> list[str]:
    """What bash offers when TAB is pressed behind each of the lines."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", *lines],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_completes_what_the_daemon_knows(job: aem.Job) -> None:
    modules, names, name, others, choice, ids, value = complete(
        "aemctl watch ti",
        "aemctl watch timer ",
        "aemctl watch timer ev",
        "aemctl watch timer every=1s ",
        "aemctl watch timer clock=bo",
        "aemctl show-job ",
        "aemctl list-jobs --module us",
    )
    assert modules == "timer"
    assert {"every=", "after=", "calendar="} <= set(names.split())
    assert name == "every="
    assert "every=" not in others.split()
    # bash takes `clock=` for a word of its own and replaces only what stands behind it.
    assert choice == "boottime"
    assert ids == str(job.id)
    assert value == "user"
