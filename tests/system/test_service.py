"""The life of the service under a real systemd."""

import json
import os
import subprocess

import pytest

from tests.system.box import ENVIRONMENT, PATIENCE, PYTHON
from tests.system.conftest import UNITS

EXPOSURE_MAX = {
    "aemd.service": 16,
    "aemd-deputy.service": 22,
    "aemd-runner.service": 30,
}  # tenths, of `systemd-analyze security`
SOCKET = "/run/aemd/aemd.sock"
NOBODY = ("setpriv", "--reuid=4242", "--regid=4243", "--clear-groups", "/opt/aemd/bin/aemctl")
RULE = """
[[rule]]
name = "no-timers"
subject = {uid = 4242}
effect = "deny"
module = "timer"
"""


# The units.


def test_units_are_found_good(service):
    verified = service.box.run("systemd-analyze", "verify", *UNITS, *EXPOSURE_MAX, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", EXPOSURE_MAX)
def test_exposure_is_bounded(service, unit):
    threshold = f"--threshold={EXPOSURE_MAX[unit]}"
    rated = service.box.run("systemd-analyze", "security", "--no-pager", threshold, unit, check=False)
    assert rated.returncode == 0, rated.stdout


# Start and stop.


def test_start_returns_when_the_daemon_answers(aemd):
    assert aemd.state == "active"
    status = aemd.status()
    assert status["pid"] == aemd.pid
    assert status["caller"]["administrator"]  # although the daemon lives in a mount namespace of its own
    assert aemd.box.show("aemd.service", "StatusText")["StatusText"] == f"serving {SOCKET}"


def test_first_client_starts_the_daemon(service):
    service.box.run("systemctl", "start", "aemd.socket")
    assert service.state == "inactive"
    assert service.status()["pid"] == service.pid
    assert service.state == "active"


def test_ordinary_user_is_served_and_recognised(aemd):
    status = json.loads(aemd.box.run(*NOBODY, "status", "-o", "json").stdout)
    caller = status["caller"]
    assert (caller["uid"], caller["gid"], caller["administrator"]) == (4242, 4243, False)
    watched = aemd.box.run(*NOBODY, "watch", "timer", "after=1ms", "--count", "1", "-o", "json")
    assert json.loads(watched.stdout)["type"] == "expired"


def test_stop_ends_in_order_and_leaves_nothing(aemd):
    pid = aemd.pid
    aemd.box.run("systemctl", "stop", *UNITS)
    shown = aemd.box.show("aemd.service", "Result", "ExecMainStatus", "ActiveState")
    assert shown == {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}
    gone = aemd.box.run("sh", "-c", f"test ! -e {SOCKET} && test ! -d /proc/{pid}", check=False)
    assert gone.returncode == 0
    assert "killed" not in aemd.journal.lower()


def test_service_that_stops_leaves_the_socket_to_its_successor(aemd):
    aemd.box.run("systemctl", "stop", "aemd.service")
    assert aemd.status()["pid"] == aemd.pid  # started by this very call


# Restart and reload.


def test_restart_under_a_storm_of_connections_refuses_nobody(aemd, program):
    storm = program("storm.py", SOCKET, "8")
    pids = {aemd.pid}
    for _ in range(5):
        aemd.box.run("systemctl", "restart", "aemd.service")
        pids.add(aemd.pid)
    outcome = json.loads(storm.communicate(timeout=PATIENCE)[0])
    assert len(pids) == 6
    assert outcome["answered"] > 100
    assert outcome["failed"] == {}


def test_restart_costs_a_client_that_stays_connected_no_call(aemd, program):
    callers = [program("caller.py", f"unix:{SOCKET}") for _ in range(2)]
    for _ in range(3):
        aemd.box.run("systemctl", "restart", "aemd.service")
    for caller in callers:
        outcome = json.loads(caller.communicate(timeout=PATIENCE)[0])
        assert outcome["answered"] > 3
        assert outcome["failed"] == {}


def test_reload_changes_no_process(aemd):
    aemd.status()  # root's front is there
    pid, fronts = aemd.pid, aemd.fronts
    aemd.box.run("systemctl", "reload", "aemd.service")
    assert (aemd.state, aemd.pid, aemd.fronts, aemd.restarts) == ("active", pid, fronts, 0)


def test_reload_takes_a_changed_configuration_and_refuses_a_broken_one(aemd, request):
    pid = aemd.pid
    request.addfinalizer(lambda: os.unlink(aemd.box.path("/etc/aemd/policy.d/test.toml")))
    aemd.box.write("/etc/aemd/policy.d/test.toml", RULE)
    aemd.box.run("systemctl", "reload", "aemd.service")
    refused = aemd.box.run(*NOBODY, "watch", "timer", "after=1ms", check=False)
    assert "no-timers" in refused.stderr
    aemd.box.write("/etc/aemd/policy.d/test.toml", RULE.replace("effect", "effects"))
    broken = aemd.box.run("systemctl", "reload", "aemd.service", check=False)
    assert broken.returncode != 0
    assert "/etc/aemd/policy.d/test.toml:5: rule[1].effects" in aemd.journal
    refused = aemd.box.run(*NOBODY, "watch", "timer", "after=1ms", check=False)
    assert "no-timers" in refused.stderr
    aemd.box.write("/etc/aemd/policy.d/test.toml", "")
    aemd.box.run("systemctl", "reload", "aemd.service")
    aemd.box.run(*NOBODY, "watch", "timer", "after=1ms", "--count", "1")
    assert (aemd.state, aemd.pid, aemd.restarts) == ("active", pid, 0)


# Faults.


def test_killed_daemon_is_started_again_and_its_clients_wait(aemd):
    pid = aemd.pid
    aemd.box.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "aemd.service")
    aemd.box.until(lambda: aemd.pid not in (0, pid), "another daemon")
    assert aemd.status()["pid"] == aemd.pid
    assert aemd.restarts == 1


def test_core_that_hangs_is_ended_with_a_traceback_and_replaced(service):
    service.override("WatchdogSec=2")
    service.box.run("systemctl", "start", *UNITS)
    pid = service.pid
    service.box.run("kill", "-STOP", str(pid))
    service.box.until(lambda: service.restarts == 1, "a restart")
    assert service.status()["pid"] not in (0, pid)
    journal = service.journal
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal


def test_front_that_hangs_is_replaced_and_the_daemon_stays(service):
    service.override("WatchdogSec=2")
    service.box.run("systemctl", "start", *UNITS)
    pid, (front,) = service.pid, service.fronts
    service.box.run("kill", "-STOP", str(front))
    service.box.until(lambda: service.fronts not in ([], [front]), "another front")
    assert service.status()["fronts_replaced"] == 1
    assert (service.pid, service.restarts) == (pid, 0)


def test_daemon_that_cannot_start_fails_the_start_with_its_reason(service):
    command = "/opt/aemd/bin/python -P -m aemd --deputy /run/aemd-deputy.sock --socket /run/aemd/other.sock"
    service.override(f"ExecStart=\nExecStart={command}")
    started = service.box.run("systemctl", "start", *UNITS, check=False)
    assert started.returncode != 0
    assert "is bound to '/run/aemd/aemd.sock', and /run/aemd/other.sock" in service.journal


# A user's own.

USER_MANAGER = """
[Service]
Type=notify
User=tester
Environment=XDG_RUNTIME_DIR=/run/user/4711
ExecStartPre=+/usr/bin/install -d -m 0700 -o tester /run/user/4711 /home/tester
ExecStart=/lib/systemd/systemd --user
Delegate=yes
"""


@pytest.fixture
def user_manager(box):
    """A service manager of an ordinary user; runs commands as that user."""
    box.write("/run/sysusers.d/tester.conf", "u tester 4711 - /home/tester\n")
    box.run("systemd-sysusers", "tester.conf")
    box.write("/run/systemd/system/user-manager.service", USER_MANAGER)
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", "user-manager.service")
    prefix = ("setpriv", "--reuid=tester", "--regid=tester", "--init-groups")
    environment = ("env", "HOME=/home/tester", "XDG_RUNTIME_DIR=/run/user/4711")
    yield lambda *command: box.run(*prefix, *environment, *command)
    box.run("systemctl", "stop", "user-manager.service")


def test_user_instance_is_started_by_its_first_client(user_manager):
    user_manager("/opt/aemd/bin/aemctl", "install-units", "--user")
    user_manager("systemctl", "--user", "daemon-reload")
    user_manager("systemctl", "--user", "enable", "--now", "aemd.socket")
    status = json.loads(user_manager("/opt/aemd/bin/aemctl", "status", "-o", "json").stdout)
    assert (status["user_instance"], status["uid"]) == (True, 4711)
    assert status["socket"] == "/run/user/4711/aemd/aemd.sock"
    assert user_manager("systemctl", "--user", "is-active", "aemd.service").stdout.strip() == "active"
    user_manager("systemctl", "--user", "restart", "aemd.service")
    user_manager("systemctl", "--user", "stop", "aemd.service", "aemd.socket")


# What it does for callers although it sees little itself.


def test_caller_has_a_socket_where_the_daemon_sees_nothing(aemd):
    home = aemd.box.path("/home/caller")
    os.makedirs(home)
    os.chmod(home, 0o700)
    os.chown(home, 4242, 4243)
    watch = ("watch", "socket", "listen=unix:/home/caller/socket", "--count", "2", "-o", "json")
    watching = subprocess.Popen(
        aemd.box.command(*NOBODY, *watch), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    aemd.box.until(lambda: os.path.exists(f"{home}/socket") or watching.poll() is not None, "the socket")
    found = os.stat(f"{home}/socket")
    assert (found.st_uid, found.st_gid) == (4242, 4243)
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/home/caller/socket')"
    aemd.box.run(PYTHON, "-c", connect)
    events = [json.loads(line) for line in watching.communicate(timeout=PATIENCE)[0].splitlines()]
    assert {event["module"] for event in events} == {"socket"}
    aemd.box.until(lambda: not os.listdir(home), "its removal")


# Its log.


def test_journal_has_the_fields_of_what_is_logged(aemd):
    shown = aemd.box.run(
        "journalctl", "--unit=aemd.service", f"AEMD_SOCKET={SOCKET}", "--lines=1", "--output=json"
    )
    entry = json.loads(shown.stdout)
    assert entry["MESSAGE"].startswith(f"serving socket={SOCKET}")
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("6", "aemd")
    assert int(entry["_PID"]) == aemd.pid
