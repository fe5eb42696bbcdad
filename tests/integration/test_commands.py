"""Command jobs against a real daemon: what is run, how often, as whom, and what becomes of what fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import aem
import grpc
import pytest

from aemd.v1 import event_pb2, job_pb2, session_pb2
from tests.integration.conftest import alive
from tests.integration.test_daemon import nobody_can_run_python
from tests.integration.test_durable import bind, get, raise_on, refused, shut_down

NOBODY = 65_534
MS = 1_000_000
IDLE, RUNNING, WAITING, HALTED = (
    job_pb2.EXEC_PHASE_IDLE,
    job_pb2.EXEC_PHASE_RUNNING,
    job_pb2.EXEC_PHASE_WAITING,
    job_pb2.EXEC_PHASE_HALTED,
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: commands of another user are run")


class Place:
    """A directory where commands leave what they have seen. Anybody may write to it."""

    def __init__(self, folder):
        self.path = Path(folder, "seen")
        self.path.mkdir()
        self.path.chmod(0o777)

    def lines(self, name):
        try:
            return (self.path / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    def payloads(self, name="events"):
        return [json.loads(line)["payload"]["payload"] for line in self.lines(name)]

    def put(self, name):
        (self.path / name).touch()

    def shell(self, script):
        return ["sh", "-c", f"cd {self.path}; {script}"]


@pytest.fixture
def place(folder):
    return Place(folder)


@pytest.fixture
def guest(shared_daemon):
    """A client of a daemon that others use, too."""
    with shared_daemon.client() as client:
        yield client


def create(client, command, *, name="backup", options=None, keep=None, **how):
    request = job_pb2.CreateJobRequest(
        name=name,
        module="user",
        params={"channel": job_pb2.Value(text="c")},
        options=job_pb2.Options(**(options or {})),
        keep=keep,
        exec=job_pb2.Exec(command=command, **how),
    )
    return client.call("JobService/CreateJob", request, job_pb2.Job)


def phase(client, name="backup"):
    return get(client, name).exec_state.phase


def parked(client, name="backup"):
    request = job_pb2.ListParkedRequest(name=f"jobs/{name}")
    return client.call("JobService/ListParked", request, job_pb2.ListParkedResponse).entries


def stop(client, name="backup"):
    return client.call("JobService/StopJob", job_pb2.StopJobRequest(name=f"jobs/{name}"), job_pb2.Job)


def start(client, name="backup"):
    return client.call("JobService/StartJob", job_pb2.StartJobRequest(name=f"jobs/{name}"), job_pb2.Job)


def retry(client, name="backup"):
    request = job_pb2.RetryParkedRequest(name=f"jobs/{name}")
    return client.call("JobService/RetryParked", request, job_pb2.RetryParkedResponse).retried


# What is run.


def test_each_event_is_a_run_and_runs_are_in_order(client, session, place, eventually):
    create(client, place.shell("cat >> events; echo $AEM_PAYLOAD $AEM_EVENTS $AEM_NAME >> facts"))
    raise_on(session, "c", b"one", b"two", b"three")
    eventually(lambda: len(place.lines("facts")) == 3, "the third run")
    assert place.payloads() == ["one", "two", "three"]
    assert place.lines("facts") == ["one 1 backup", "two 1 backup", "three 1 backup"]
    eventually(lambda: phase(client) == IDLE, "its end")
    job = get(client)
    assert (job.stats.acked.seq, job.stats.lag, job.exec_state.runs, job.exec_state.failures) == (3, 0, 3, 0)
    assert (job.exec_state.last_result, job.exec_state.last_status) == ("exited with status 0", 0)


def test_there_is_one_run_at_a_time(client, session, place, eventually):
    create(client, place.shell("mkdir busy || touch overlapped; echo $AEM_SEQ >> runs; rmdir busy"))
    raise_on(session, "c", *(b"x" for _ in range(20)))
    eventually(lambda: len(place.lines("runs")) == 20, "the last run")
    assert not (place.path / "overlapped").exists()


def test_dirty_runs_once_for_what_has_happened_meanwhile(client, session, place, eventually):
    script = (
        "echo begun >> begun; while ! [ -e go ]; do sleep 0.01; done; cat >> events; echo $AEM_EVENTS >> runs"
    )
    create(client, place.shell(script), mode=job_pb2.EXEC_MODE_DIRTY)
    raise_on(session, "c", b"0")
    eventually(lambda: place.lines("begun"), "the first run")
    for number in range(1, 10):
        raise_on(session, "c", str(number).encode())
    place.put("go")
    eventually(lambda: len(place.lines("runs")) == 2, "the second run")
    assert place.lines("runs") == ["1", "9"]
    assert place.payloads() == [str(number) for number in range(10)]
    eventually(lambda: get(client).stats.lag == 0, "their acknowledgement")


def test_a_gap_is_a_line_like_an_event(client, session, place, eventually):
    create(
        client,
        place.shell(
            "while ! [ -e go ]; do sleep 0.01; done; cat >> events; echo $AEM_TYPE $AEM_STAGE >> facts"
        ),
        options={"queue_depth": 1},
        keep=job_pb2.Keep(entries=2),
    )
    for _ in range(6):
        raise_on(session, "c", *(b"x" for _ in range(1_000)))
    eventually(lambda: get(client).oldest.seq > 5_000, "a history that has forgotten")
    place.put("go")
    eventually(lambda: "gap job" in place.lines("facts"), "the gap")
    gap = next(json.loads(line) for line in place.lines("events") if '"gap"' in line)
    assert (gap["module"], gap["cause"], gap["job"]) == ("user", "overflow", get(client).id)
    assert gap["count"] == gap["seq"] - gap["first"] + 1 > 5_000


# What fails.


def test_what_fails_comes_again_after_a_backoff_and_is_done_once(client, session, place, eventually):
    script = "echo $AEM_PAYLOAD $AEM_ATTEMPTS >> runs; [ $AEM_ATTEMPTS = 3 ] || exit 7"
    create(client, place.shell(script), backoff_min_ns=10 * MS)
    raise_on(session, "c", b"one")
    eventually(lambda: get(client).stats.acked.seq == 1, "the third attempt")
    raise_on(session, "c", b"two")
    eventually(lambda: get(client).stats.acked.seq == 2, "the other one")
    assert place.lines("runs") == [f"{name} {number}" for name in ("one", "two") for number in (1, 2, 3)]
    state = get(client).exec_state
    assert (state.runs, state.failures, state.failed_in_a_row) == (6, 4, 0)
    assert get(client).stats.last_error == "exited with status 7"


def test_nothing_behind_it_is_run_while_the_backoff_lasts(client, session, place, eventually):
    create(client, place.shell("echo $AEM_PAYLOAD >> runs; exit 3"), backoff_min_ns=3_600_000 * MS)
    raise_on(session, "c", b"one", b"two")
    eventually(lambda: phase(client) == WAITING, "the backoff")
    job = get(client)
    state = job.exec_state
    assert place.lines("runs") == ["one"]
    assert (state.waiting_for, state.last_status, state.failed_in_a_row) == ("exited with status 3", 3, 1)
    assert state.until_time_ns - state.last_time_ns == job.exec.backoff_min_ns == 3_600_000 * MS
    assert job.exec.backoff_max_ns == 3_600_000 * MS  # never less than the least


def test_what_always_fails_is_parked_with_the_reason_and_can_be_retried(client, session, place, eventually):
    script = "[ -e good ] || exit 3; echo $AEM_PAYLOAD >> runs"
    create(client, place.shell(script), backoff_min_ns=10 * MS, options={"attempts_max": 2})
    raise_on(session, "c", b"one", b"two")
    eventually(lambda: len(parked(client)) == 2, "both")
    assert [(one.cursor.seq, one.reason, one.attempts, one.kept) for one in parked(client)] == [
        (1, "exited with status 3", 2, True),
        (2, "exited with status 3", 2, True),
    ]
    place.put("good")
    assert retry(client) == 2
    eventually(lambda: place.lines("runs") == ["one", "two"], "the retry")
    eventually(lambda: not parked(client), "an empty list")


def test_retry_does_not_wait_for_the_backoff(client, session, place, eventually):
    create(
        client,
        place.shell("[ -e good ] || exit 3; echo $AEM_PAYLOAD >> runs"),
        backoff_min_ns=3_600_000 * MS,
        options={"attempts_max": 1},
    )
    raise_on(session, "c", b"one")
    eventually(lambda: len(parked(client)) == 1, "it")
    place.put("good")
    retry(client)
    eventually(lambda: place.lines("runs") == ["one"], "the retry")


@pytest.mark.parametrize(
    ("command", "how", "result"),
    [
        (["/nowhere/at/all"], {}, "not executed: /nowhere/at/all: No such file or directory (ENOENT)"),
        (["no-such-program"], {}, "not executed: no-such-program: No such file or directory (ENOENT)"),
        (["/etc/passwd"], {}, "not executed: /etc/passwd: Permission denied (EACCES)"),
        (["sh", "-c", "kill -9 $$"], {}, "ended by SIGKILL"),
    ],
)
def test_how_it_ended_is_told(client, session, eventually, command, how, result):
    create(client, command, options={"attempts_max": 1}, **how)
    raise_on(session, "c", b"x")
    eventually(lambda: len(parked(client)) == 1, "the end")
    assert parked(client)[0].reason == result == get(client).exec_state.last_result
    assert get(client).exec_state.last_status == -1


def test_time_limit_ends_a_run_with_what_it_has_started(client, session, place, eventually):
    create(
        client,
        place.shell("sleep 1000 & echo $! > child; echo $$ > leader; wait"),
        timeout_ns=200 * MS,
        options={"attempts_max": 1},
    )
    raise_on(session, "c", b"x")
    eventually(lambda: len(parked(client)) == 1, "the end")
    assert parked(client)[0].reason == "ended after its time limit of 0.2s"
    for name in ("child", "leader"):
        assert not alive(int(place.lines(name)[0]))


def test_what_a_run_leaves_behind_ends_with_it(client, session, place, eventually):
    create(client, place.shell("sleep 1000 & echo $! > child"))
    raise_on(session, "c", b"x")
    eventually(lambda: get(client).stats.acked.seq == 1, "the end")
    assert not alive(int(place.lines("child")[0]))


# Who answers.


def test_nobody_else_answers_for_it_and_anybody_may_follow(client, session, place, eventually):
    create(client, place.shell("cat >> events"))
    answer = bind(session)
    assert answer.result.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert "a command answers for it" in answer.result.status.message
    follower = client.session()
    bind(follower, role=session_pb2.ROLE_FOLLOW)
    raise_on(session, "c", b"one")
    batch = follower.skip_to("batch")
    assert event_pb2.Event.FromString(batch.runs[0].events[0]).user.payload == b"one"
    eventually(lambda: place.payloads() == ["one"], "the run")


# Stopped and gone.


def held(place):
    return place.shell("echo $$ >> begun; trap 'echo told >> told; exit 0' TERM; sleep 1000 & wait")


def test_stopped_job_has_its_run_ended_and_runs_again_when_it_is_started(client, session, place, eventually):
    create(client, held(place))
    raise_on(session, "c", b"x")
    eventually(lambda: place.lines("begun"), "the run")
    stop(client)
    eventually(lambda: phase(client) == HALTED, "its end")
    assert place.lines("told") == ["told"]
    assert not alive(int(place.lines("begun")[0]))
    assert get(client).stats.acked.seq == 0  # that it exits with 0 when it is ended says nothing
    start(client)
    eventually(lambda: len(place.lines("begun")) == 2, "the second run")
    assert get(client).stats.failed == 0


def test_shutdown_waits_for_the_run_until_the_deadline(client, session, place, eventually):
    create(client, place.shell("echo $$ > begun; while ! [ -e go ]; do sleep 0.01; done; touch done"))
    raise_on(session, "c", b"x")
    eventually(lambda: place.lines("begun"), "the run")
    assert shut_down(client).state == job_pb2.STATE_CLOSING
    place.put("go")
    eventually(lambda: (place.path / "done").exists(), "the end of the run")
    eventually(lambda: not client.jobs(), "the end of the job")


def test_run_that_outlives_the_deadline_is_ended(client, session, place, eventually):
    create(client, held(place))
    raise_on(session, "c", b"x")
    eventually(lambda: place.lines("begun"), "the run")
    request = job_pb2.ShutdownJobRequest(name="jobs/backup", deadline_ns=1 * MS)
    client.call("JobService/ShutdownJob", request, job_pb2.Job)
    eventually(lambda: place.lines("told"), "SIGTERM")
    eventually(lambda: not alive(int(place.lines("begun")[0])), "its end")
    assert not client.jobs()


# Restarts.


def test_run_is_ended_with_the_daemon_and_made_again_by_the_next(launch, place, eventually):
    daemon = launch()
    with daemon.client() as client:
        create(client, held(place))
        raise_on(client.session(), "c", b"one")
        eventually(lambda: place.lines("begun"), "the run")
    daemon.stop()
    assert place.lines("told") == ["told"]
    assert not alive(int(place.lines("begun")[0]))
    daemon.start()
    with daemon.client() as client:
        eventually(lambda: len(place.lines("begun")) == 2, "the second run")
        assert get(client).exec_state.phase == RUNNING


def test_run_that_does_not_heed_sigterm_is_killed_with_the_daemon(launch, place, eventually):
    daemon = launch()
    with daemon.client() as client:
        create(client, place.shell("trap '' TERM; echo $$ > begun; while :; do sleep 1000; done"))
        raise_on(client.session(), "c", b"one")
        eventually(lambda: place.lines("begun"), "the run")
    daemon.stop()
    assert not alive(int(place.lines("begun")[0]))


def test_run_dies_with_a_killed_daemon_and_is_made_again(launch, place, eventually):
    daemon = launch()
    with daemon.client() as client:
        create(client, place.shell("sleep 1000 & echo $! > child; echo $$ $AEM_TYPE >> begun; wait"))
        raise_on(client.session(), "c", b"one")
        eventually(lambda: place.lines("begun"), "the run")
        eventually(lambda: get(client).stats.head.seq == 1, "it")
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.process.wait()
    pids = [int(place.lines("begun")[0].split()[0]), int(place.lines("child")[0])]
    eventually(lambda: not any(map(alive, pids)), "their end")
    daemon.start()
    eventually(lambda: len(place.lines("begun")) == 2, "the second run")


def test_runner_that_is_killed_takes_its_runs_with_it_and_they_are_made_again(launch, place, eventually):
    daemon = launch()
    with daemon.client() as client:
        create(client, place.shell("echo $$ >> begun; sleep 1000"), backoff_min_ns=10 * MS)
        raise_on(client.session(), "c", b"one")
        eventually(lambda: place.lines("begun"), "the run")
        os.kill(daemon.child("aemd-runner"), signal.SIGKILL)
        eventually(lambda: len(place.lines("begun")) == 2, "the second run")
        assert not alive(int(place.lines("begun")[0]))
        assert get(client).stats.failed == 0
        shut_down(client)


def test_backlog_is_run_when_the_daemon_is_there_again(launch, place, eventually):
    daemon = launch()
    with daemon.client() as client:
        create(client, place.shell("[ -e go ] || exit 1; cat >> events"), backoff_min_ns=3_600_000 * MS)
        raise_on(client.session(), "c", b"one", b"two")
        eventually(lambda: phase(client) == WAITING, "the backoff")
    daemon.stop()
    place.put("go")
    daemon.start()
    eventually(lambda: place.payloads() == ["one", "two"], "both")


# Definitions.


def test_made_again_it_is_the_same_job_and_with_another_command_it_is_refused(guest):
    first = create(guest, ["true"])
    assert create(guest, ["true"]).id == first.id
    code, message = refused(create, guest, ["false"])
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert "with other exec" in message
    shut_down(guest)


@pytest.mark.parametrize(
    ("how", "options", "said"),
    [
        ({"command": []}, {}, "exec.command: is required"),
        ({"command": ["./here"]}, {}, "'./here' is relative"),
        ({"command": ["a\0b"]}, {}, "has a NUL"),
        ({"command": ["x"] * 257}, {}, "has 257 words, at most 256"),
        ({"command": ["x" * 70_000]}, {}, "has 70000 bytes with its environment, at most 65536"),
        ({"command": ["true"], "mode": 17}, {}, "exec.mode: is 17"),
        ({"command": ["true"], "timeout_ns": 1}, {}, "exec.timeout_ns: is 1, must be 1000000 to"),
        ({"command": ["true"], "timeout_ns": 8 * 86_400 * 1000 * MS}, {}, "exec.timeout_ns"),
        ({"command": ["true"], "backoff_min_ns": -1}, {}, "exec.backoff_min_ns: is -1"),
        (
            {"command": ["true"], "backoff_min_ns": 2_000 * MS, "backoff_max_ns": 1_000 * MS},
            {},
            "exec.backoff_max_ns: is 1000000000, must be at least backoff_min_ns",
        ),
        ({"command": ["true"], "directory": "here"}, {}, "'here' is no absolute path"),
        ({"command": ["true"], "directory": "/nowhere"}, {}, "/nowhere"),
        ({"command": ["true"], "environment": {"A-B": "x"}}, {}, "'A-B' is no name"),
        ({"command": ["true"], "environment": {"AEM_SEQ": "x"}}, {}, "AEM_SEQ: names that begin with AEM_"),
        ({"command": ["true"], "environment": {"A": "\0"}}, {}, "A has a NUL"),
        ({"command": ["true"], "environment": {f"V{n}": "" for n in range(65)}}, {}, "has 65 variables"),
        (
            {"command": ["true"]},
            {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_NONE},
            "exit status acknowledges",
        ),
        ({"command": ["true"]}, {"ack_timeout_ns": 1_000 * MS}, "exec.timeout_ns is the time of a run"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_field(guest, how, options, said):
    code, message = refused(create, guest, options=options, **how)
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert said in message
    assert guest.jobs() == []


# As whom.


def as_nobody(daemon, *arguments, elsewhere=False):
    """aemctl as another user; it begins as root, for the interpreter may lie where only root may go."""
    script = (
        "import os, sys, grp, pwd, grpc._channel, aem, aem.v1.job_pb2, aemd.cli.verb\n"
        "from aemd.cli.ctl import main\n"
        + ("import ctypes; ctypes.CDLL(None).unshare(0x20000)\n" if elsewhere else "")
        + "os.setgroups([12]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "sys.argv[0] = 'aemctl'\nmain()\n"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", script, "--address", daemon.address, *arguments],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@needs_root
def test_jobs_file_has_a_command_run_as_its_owner(launch, folder, place, eventually):
    Path(folder, "etc/jobs.d").mkdir(parents=True)
    script = place.shell("id -u >> id; id -g >> id; umask >> id; cat >> events; env > env")[2]
    Path(folder, "etc/jobs.d/a.toml").write_text(
        f"""
[[job]]
name = "backup"
module = "user"
params = {{channel = "c"}}
owner = {NOBODY}
exec.command = ["sh", "-c", "{script}"]
exec.timeout_ns = "1min"
exec.environment = {{COLOUR = "green"}}
"""
    )
    daemon = launch()
    with daemon.client() as client:
        channel = session_pb2.Raise(channel="c", payloads=[b"one"], uid=NOBODY)
        client.session().ask(**{"raise": channel})
        eventually(lambda: place.lines("env"), "the run")
        assert place.lines("id") == [str(NOBODY), str(NOBODY), "0022"]
        assert "COLOUR=green" in place.lines("env")
        assert place.payloads() == ["one"]
        assert get(client).uid == NOBODY


# The command line.


@pytest.fixture
def ctl(daemon):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "aemd.cli.ctl", *arguments],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    return run


def test_command_line_makes_a_job_and_shows_how_it_gets_on(ctl, place, eventually):
    made = ctl(
        "create-job", "deploy", "user", "channel=c", "--attempts-max", "1", "--timeout", "1min",
        "--backoff-min", "1h", "--backoff-max", "2h", "--env", "COLOUR=light green", "--directory", "/tmp",
        "--", *place.shell("echo $COLOUR >> runs; exit $AEM_PAYLOAD"),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    shown = ctl("show-job", "deploy").stdout
    assert "one run for each event, at most 1min, backoff 1h to 2h, in /tmp" in shown
    assert "with  COLOUR='light green'" in shown
    assert "runs  0, 0 failed; none is wanted" in shown
    assert ctl("raise", "c", "4").returncode == 0
    eventually(lambda: "waits until" in ctl("show-job", "deploy").stdout, "the failure")
    shown = ctl("show-job", "deploy").stdout
    assert "runs  1, 1 failed; the next one waits until" in shown
    assert "last run  exited with status 4 after" in shown
    state = json.loads(ctl("show-job", "deploy", "-o", "json").stdout)["exec_state"]
    assert (state["phase"], state["last_status"], state["runs"]) == ("waiting", 4, 1)
    assert place.lines("runs") == ["light green"]
    assert 'aemd_command_runs_total{module="user",result="failed"} 1' in ctl("metrics").stdout
    listed = json.loads(ctl("list-parked", "deploy", "-o", "json").stdout)
    assert [entry["reason"] for entry in listed] == ["exited with status 4"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dirty",), "there is no command; put it behind --"),
        (("--",), "there is no command; put it behind --"),
        (("--env", "COLOUR", "--", "true"), "--env 'COLOUR' is not NAME=VALUE"),
    ],
)
def test_command_line_that_contradicts_itself_is_refused(ctl, arguments, said):
    refusal = ctl("create-job", "deploy", "user", "channel=c", *arguments)
    assert refusal.returncode == 2
    assert said in refusal.stderr


def test_sdk_makes_one(daemon, place, eventually):
    with aem.Client() as client:
        client.create_job("deploy", "user", {"channel": "c"}, exec=aem.Exec(place.shell("cat >> events")))
        client.raise_event("c", b"one")
        eventually(lambda: place.payloads() == ["one"], "the run")


@needs_root
def test_job_of_another_user_is_run_as_that_user_with_its_groups(daemon, place, eventually):
    made = as_nobody(daemon, "create-job", "deploy", "user", "channel=c", "--", *place.shell(
        "(id -u; id -g; id -G; grep -E '^(Cap|NoNewPrivs)' /proc/self/status) > id; touch done"
    ))  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert as_nobody(daemon, "raise", "c", "x").returncode == 0
    eventually(lambda: (place.path / "done").exists(), "the run")
    uid, gid, groups, *rights = place.lines("id")
    assert (uid, gid, set(groups.split())) == (str(NOBODY), str(NOBODY), {str(NOBODY), "12"})
    assert [line.split()[1] for line in rights] == ["0" * 16] * 5 + ["1"]


@needs_root
def test_client_of_another_root_makes_no_command_job(daemon):
    refusal = as_nobody(daemon, "create-job", "deploy", "user", "channel=c", "--", "true", elsewhere=True)
    assert refusal.returncode == 1
    assert "another root directory or mount namespace" in refusal.stderr


@needs_root
def test_used_up_quota_lets_the_command_wait(launch, folder, place, eventually):
    etc = Path(folder, "etc/policy.d")
    etc.mkdir(parents=True)
    (etc / "q.toml").write_text(f"[[quota]]\nname = 'few'\nsubject = {{uid = {NOBODY}}}\nchildren = 1\n")
    daemon = launch()
    hold = place.shell("touch held; while ! [ -e go ]; do sleep 0.01; done")
    for name, command in (("first", hold), ("second", place.shell("touch done"))):
        assert as_nobody(
            daemon, "create-job", name, "user", f"channel={name}", "--backoff-min", "20ms", "--", *command
        ).returncode == 0  # fmt: skip
    as_nobody(daemon, "raise", "first", "x")
    eventually(lambda: (place.path / "held").exists(), "the first")
    as_nobody(daemon, "raise", "second", "x")
    with daemon.client() as client:
        eventually(lambda: phase(client, "second") == WAITING, "the second")
        assert "uid 65534 has 1 of 1" in get(client, "second").exec_state.waiting_for
        assert get(client, "second").stats.failed == 0
        place.put("go")
        eventually(lambda: (place.path / "done").exists(), "the second")


@needs_root
def test_who_may_have_no_children_makes_no_command_job(launch, folder):
    etc = Path(folder, "etc/policy.d")
    etc.mkdir(parents=True)
    (etc / "q.toml").write_text(f"[[quota]]\nname = 'none'\nsubject = {{uid = {NOBODY}}}\nchildren = 0\n")
    refusal = as_nobody(launch(), "create-job", "deploy", "user", "channel=c", "--", "true")
    assert refusal.returncode == 1
    assert "children" in refusal.stderr


@needs_root
def test_policy_that_forbids_the_module_ends_the_run(launch, folder, place, eventually):
    etc = Path(folder, "etc/policy.d")
    etc.mkdir(parents=True)
    daemon = launch()
    assert as_nobody(daemon, "create-job", "deploy", "user", "channel=c", "--", *held(place)).returncode == 0
    as_nobody(daemon, "raise", "c", "x")
    eventually(lambda: place.lines("begun"), "the run")
    (etc / "no.toml").write_text(
        f"[[rule]]\nname = 'no'\nsubject = {{uid = {NOBODY}}}\neffect = 'deny'\nmodule = 'user'\n"
    )
    daemon.signal(signal.SIGHUP)
    eventually(lambda: place.lines("told"), "SIGTERM")
    with daemon.client() as client:
        eventually(lambda: phase(client, "deploy") == HALTED, "its end")
        assert "policy" in get(client, "deploy").reason


@needs_root
def test_daemon_of_a_user_runs_commands_as_that_user_only(launch, folder, place, eventually):
    if not nobody_can_run_python():
        pytest.skip("needs an interpreter that an ordinary user can execute")
    os.chmod(folder, 0o777)
    daemon = launch("--user", user=NOBODY)
    with daemon.client() as client:
        code, message = refused(create, client, ["true"])
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "runs no commands as uid 0" in message
    made = as_nobody(
        daemon, "create-job", "deploy", "user", "channel=c", "--", *place.shell("id -u > id; touch done")
    )
    assert made.returncode == 0, made.stderr
    as_nobody(daemon, "raise", "c", "x")
    eventually(lambda: (place.path / "done").exists(), "the run")
    assert place.lines("id") == [str(NOBODY)]
