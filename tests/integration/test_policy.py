"""Policy in a real daemon, with real users: what rules deny, grant and take out, reload, explain, audit."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aemd.v1 import admin_pb2

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: processes of other users are started")

A, B = 64_001, 64_002  # users of no machine; nobody has files or processes of these numbers
GROUP = 64_003
DENIED, EXHAUSTED = 7, 8

POLICY = f"""
[[rule]]
name = "web"
subject = {{ uid = {A} }}
module = "socket"
params = {{ listen = "tcp:127.0.0.1:*" }}
effect = "allow"
grant = ["port"]
redact = ["peer", "data"]

[[rule]]
name = "operators"
subject = {{ gid = {GROUP} }}
module = ["process", "user"]
effect = "allow"
grant = ["process", "channel"]

[[rule]]
name = "no-timers"
subject = {{ uid = {A} }}
module = "timer"
effect = "deny"

[[quota]]
name = "few"
subject = {{ uid = {B} }}
channels = 1
"""


class Other:
    """A process of another user, which does what it is told."""

    def __init__(self, path, uid, *groups):
        command = [sys.executable, "-m", "tests.integration.other", path, str(uid), *map(str, groups)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def do(self, name, **asked):
        self.process.stdin.write(json.dumps({"do": name, **asked}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the other has died"
        return json.loads(line)

    def end(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def configure(folder):
    """Write the one file of the daemon's policy."""
    path = Path(folder, "etc/policy.d/10-test.toml")
    path.parent.mkdir(parents=True)

    def write(text):
        path.write_text(text)
        return path

    write(POLICY)
    return write


@pytest.fixture
def daemon(configure, launch):
    daemon = launch()
    yield daemon
    if daemon.process.poll() is None:
        daemon.stop()


@pytest.fixture
def other(daemon):
    made = []

    def make(uid, *groups):
        made.append(Other(daemon.path, uid, *groups))
        return made[-1]

    yield make
    for each in made:
        each.end()


def lines(daemon, event):
    """The lines of the daemon's log that say `event`."""
    told = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    return [line for line in told if line["event"] == event]


def reload(client):
    request = admin_pb2.ReloadConfigurationRequest()
    return client.call("AdminService/ReloadConfiguration", request, admin_pb2.ReloadConfigurationResponse)


def test_a_rule_denies_one_user_a_module_and_nobody_else(daemon, other):
    a, b = other(A), other(B)
    refused = a.do("register", module="timer", every="1h")
    assert refused["code"] == DENIED
    assert "rule no-timers" in refused["message"]
    assert b.do("register", module="timer", every="1h")["job"]
    (line,) = lines(daemon, "denied")
    assert (line["uid"], line["rule"], line["reason"]) == (A, "no-timers", "POLICY")


def test_a_low_port_is_granted_to_one_user_where_the_rule_says_and_its_events_are_redacted(daemon, other):
    a, b = other(A), other(B)
    listen = "tcp:127.0.0.1:981"
    assert b.do("register", module="socket", listen=listen)["code"] == DENIED
    assert a.do("register", module="socket", listen="tcp:127.0.0.2:981")["code"] == DENIED
    assert a.do("register", module="socket", listen=listen)["job"]
    assert a.do("event")["type"] == "listening"
    with socket.create_connection(("127.0.0.1", 981)) as client:
        client.sendall(b"secret")
        accepted, data = a.do("event"), a.do("event")
    assert accepted["type"] == "accepted"
    assert "peer" not in accepted["socket"]
    assert accepted["redacted"] == data["redacted"] == ["peer", "data"]
    assert data["type"] == "data"
    assert "data" not in data["socket"]
    (line,) = lines(daemon, "granted")
    assert (line["uid"], line["rule"], line["grant"], line["what"]) == (
        A,
        "web",
        "port",
        f"listen on {listen}",
    )
    assert {(line["uid"], line["reason"]) for line in lines(daemon, "denied")} == {
        (B, "NOT_ALLOWED"),
        (A, "NOT_ALLOWED"),
    }


def test_a_supplementary_group_is_enough_for_processes_and_channels_of_others(daemon, other):
    plain, operator = other(B), other(B, GROUP)
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        try:
            assert plain.do("register", module="process", pid=sleeper.pid)["code"] == 5
            assert operator.do("register", module="process", pid=sleeper.pid)["job"]
        finally:
            sleeper.kill()
    assert operator.do("event")["process"]["signalName"] == "SIGKILL"
    a = other(A)
    assert a.do("register", module="user", channel="mine")["job"]
    assert plain.do("raise_", channel="mine", payload="no", uid=A)["code"] == DENIED
    assert operator.do("raise_", channel="mine", payload="yes", uid=A)["code"] == 0
    assert a.do("event")["user"]["senderUid"] == B


def test_a_quota_holds_for_its_user_alone_and_says_its_key(daemon, other):
    a, b = other(A), other(B)
    for each, count in ((a, 3), (b, 1)):
        for number in range(count):
            assert each.do("register", module="user", channel=f"c{number}")["job"]
    refused = b.do("register", module="user", channel="more")
    assert refused["code"] == EXHAUSTED
    assert "channels" in refused["message"]


def test_reload_under_running_sessions_drops_none_and_ends_what_is_no_longer_allowed(
    daemon, configure, client, other
):
    a, b = other(A), other(B)
    granted = a.do("register", module="socket", listen="tcp:127.0.0.1:982", start=False)["job"]
    kept = a.do("register", module="user", channel="c")["job"]
    timer = b.do("register", module="timer", every="1h")["job"]
    configure(POLICY.replace(f"uid = {A}", f"uid = {B}"))
    answer = reload(client)
    assert answer.jobs_ended == 2
    assert answer.configuration.rules == 3
    told = a.do("event")
    assert (int(told["job"]), told["reason"]) == (granted, "policy: rule own-rights does not grant port")
    told = b.do("event")
    assert (int(told["job"]), told["reason"]) == (timer, "policy: rule no-timers")
    assert [job.id for job in client.jobs()] == [kept]
    assert a.do("raise_", channel="c", payload="still here")["code"] == 0
    assert a.do("event")["type"] == "raised"
    assert a.do("register", module="timer", every="1h")["job"]
    assert b.do("register", module="timer", every="1h")["code"] == DENIED


def test_reload_with_an_error_keeps_what_was_and_says_so_until_it_is_mended(
    daemon, configure, client, other, eventually
):
    a = other(A)
    path = configure(POLICY.replace("effect = ", "effects = "))
    daemon.signal(signal.SIGHUP)
    eventually(lambda: client.status().configuration.error, "the error in the status")
    told = client.status().configuration
    assert f"{path}:7: rule[1].effects: no such key; did you mean effect?" in told.error
    assert told.rules == 3
    assert a.do("register", module="timer", every="1h")["code"] == DENIED, "what was in force stays"
    assert "configuration" not in a.do("status"), "of that only the administrator is told"
    (line,) = lines(daemon, "configuration refused")
    assert line["problems"] == 6
    configure(POLICY)
    daemon.signal(signal.SIGHUP)
    eventually(lambda: not client.status().configuration.error, "the status without the error")
    assert a.do("register", module="timer", every="1h")["code"] == DENIED


def test_nobody_but_the_administrator_reloads(daemon, other):
    refused = other(A).do("reload")
    assert refused["code"] == DENIED
    (line,) = lines(daemon, "denied")
    assert (line["uid"], line["what"]) == (A, "reload the configuration")


def test_a_daemon_does_not_start_with_a_broken_configuration(daemon, configure):
    daemon.stop()
    path = configure(POLICY.replace("[[quota]]", "[[qouta]]"))
    ran = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 1
    assert f"{path}:24: qouta: no such table; did you mean quota?" in ran.stderr
    configure(POLICY)
    path.chmod(0o666)
    ran = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 1
    assert f"{path}: has mode 0666: others may write it" in ran.stderr


def test_explain_says_what_a_registration_would_be_told(daemon, other):
    a, operator = other(A), other(B, GROUP)
    cases = [
        (a, "timer", {"every": "1h"}, False, "no-timers"),
        (a, "socket", {"listen": "tcp:127.0.0.1:983"}, True, "web"),
        (a, "socket", {"listen": "tcp:127.0.0.2:983"}, False, "own-rights"),
        (a, "socket", {"listen": "tcp:127.0.0.1:0"}, True, "web"),
        (a, "process", {"pid": 1}, False, "own-rights"),
        (a, "process", {"pid": 4_194_304}, False, "own-rights"),
        (operator, "process", {"pid": 1}, True, "operators"),
        (operator, "user", {"channel": "x", "uid": A}, True, "operators"),
        (a, "user", {"channel": "x", "uid": B}, False, "own-rights"),
    ]
    for who, module, params, allowed, rule in cases:
        told = who.do("explain", module=module, **params)
        assert "allowed" in told, (module, params, told)
        assert (told["allowed"], told["rule"]) == (allowed, rule), (module, params)
        made = who.do("register", module=module, start=False, **params)
        assert bool(made.get("job")) is allowed, (module, params)
    hidden, absent = (a.do("explain", module="process", pid=pid)["reason"] for pid in (1, 4_194_304))
    assert hidden == absent, "explain is no way to learn of processes"
    told = a.do("explain", module="timer", every="1h")
    assert told["origin"] == ""
    assert [step["rule"] for step in told["steps"]] == ["web", "no-timers"]
    assert a.do("explain", module="timer", for_uid=B)["code"] == DENIED


def test_explain_has_a_path_tried_as_the_user_and_tells_no_more_than_it_may_know(
    daemon, client, other, folder
):
    secret = Path(folder, "secret")
    secret.mkdir(mode=0o700)
    (secret / "there").mkdir()
    a = other(A)
    reasons = []
    for name in ("there", "absent"):
        told = a.do("explain", module="socket", listen=f"unix:{secret}/{name}/sock")
        assert not told["allowed"]
        reasons.append(told["reason"].replace(name, "#"))
    assert reasons[0] == reasons[1]
    assert "permission denied" in reasons[0].lower()
    secret.chmod(0o755)
    assert a.do("explain", module="socket", listen=f"unix:{secret}/there/sock")["allowed"]
    assert not a.do("explain", module="socket", listen=f"unix:{secret}/absent/sock")["allowed"]
    secret.chmod(0o700)
    request = admin_pb2.ExplainPolicyRequest(module="socket", uid=B)
    request.params["listen"].text = f"unix:{secret}/there/sock"
    told = client.call("AdminService/ExplainPolicy", request, admin_pb2.ExplainPolicyResponse)
    assert not told.allowed
    secret.chmod(0o755)
    told = client.call("AdminService/ExplainPolicy", request, admin_pb2.ExplainPolicyResponse)
    assert told.allowed, told
    assert not list((secret / "there").iterdir()), "nothing was made"


def test_aemctl_explains_for_anybody_and_exits_by_the_answer(daemon, configure):
    def aemctl(*words):
        command = [sys.executable, "-m", "aemd.cli.ctl", "--address", daemon.address, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    ran = aemctl("policy", "explain", "--uid", str(A), "socket", "listen=tcp:127.0.0.1:983")
    assert ran.returncode == 0
    assert ran.stdout.startswith(f"allowed: rule web ({daemon.folder}/etc/policy.d/10-test.toml:2)\n")
    ran = aemctl("-o", "json", "policy", "explain", "--uid", str(A), "timer", "every=1s")
    assert ran.returncode == 5
    assert json.loads(ran.stdout)["rule"] == "no-timers"
    ran = aemctl("policy", "explain", "--uid", str(B), "file", "path=/etc/shadow")
    assert "no such module is loaded" in ran.stdout
    assert aemctl("reload").stdout.startswith("1 file, 3 rules in force, 0 jobs shut down\n")
    path = configure(POLICY.replace('grant = ["port"]', 'grant = ["prot"]'))
    ran = aemctl("reload")
    assert ran.returncode == 1
    assert f'{path}:8: rule[1].grant[1]: "prot": no such grant; did you mean port?' in ran.stderr
    assert "NOT RELOADED" in aemctl("status").stdout
    ran = aemctl("policy", "check", str(path))
    assert (ran.returncode, ran.stdout.split(" ")[0]) == (1, f"{path}:8:")


def test_the_administrator_who_looks_at_others_jobs_is_in_the_log_once_and_others_are_not(
    daemon, client, other
):
    a = other(A)
    job = a.do("register", module="user", channel="c")["job"]
    assert lines(daemon, "looked") == []
    for _ in range(3):
        assert [each.id for each in client.jobs()] == [job]
    looked = lines(daemon, "looked")
    assert [(line["uid"], line["what"]) for line in looked] == [(0, f"ListJobs of uid {A}")]


def test_jobs_of_files_outlive_the_daemon_and_end_with_their_file(daemon, folder):
    path = Path(folder, "etc/jobs.d/10-test.toml")
    path.parent.mkdir(parents=True)
    path.write_text(
        f'[[job]]\nname = "deploys"\nmodule = "user"\nowner = {A}\nparams = {{ channel = "c" }}\n'
    )
    restarted(daemon)
    with daemon.client() as client:
        (made,) = client.jobs()
        assert (made.uid, made.durable_name) == (A, "deploys")
    restarted(daemon)
    with daemon.client() as client:
        assert [job.id for job in client.jobs()] == [made.id]
    path.unlink()
    restarted(daemon)
    with daemon.client() as client:
        assert client.jobs() == []
    assert "its file in jobs.d has gone" in daemon.log()


def restarted(daemon):
    daemon.stop()
    daemon.start()
