"""The division of privilege between the units: who is what, and what becomes of one when the other goes."""

import json
import os
import subprocess
from pathlib import Path

from tests.system.box import ENVIRONMENT, PATIENCE, PYTHON
from tests.system.conftest import UNITS

SOCKET = "/run/aemd-deputy.sock"
CONNECT = f"""
import socket
deputy = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
deputy.connect({SOCKET!r})
print(deputy.recv(1))
"""
CORE = ("setpriv", "--reuid=aemd", "--regid=aemd", "--clear-groups")
CAP_NET_BIND_SERVICE = 1 << 10
ALONE = (  # as the service was before it was divided
    "systemd-run", "--unit=undivided", "--property=Type=notify", "--property=RuntimeDirectory=aemd",
    "--property=RuntimeDirectoryPreserve=yes", "--property=StateDirectory=aemd", "/opt/aemd/bin/aemd",
)  # fmt: skip


def field(aemd, pid, name):
    """A field of /proc/PID/status."""
    for line in Path(aemd.box.path(f"/proc/{pid}/status")).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1:]
    raise KeyError(name)


def uid_of(box, user):
    return box.run("id", "-u", user).stdout.strip()


def test_core_and_fronts_are_two_users_without_roots_rights(aemd):
    aemd.status()
    core, fronts = uid_of(aemd.box, "aemd"), uid_of(aemd.box, "aemd-front")
    assert field(aemd, aemd.pid, "Uid") == [core] * 4
    assert aemd.status()["uid"] == int(core)
    for capabilities in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(field(aemd, aemd.pid, capabilities)[0], 16) == CAP_NET_BIND_SERVICE
    assert aemd.box.children(aemd.pid) == []
    assert len(aemd.fronts) > 0
    for front in aemd.fronts:
        assert field(aemd, front, "Uid") == [fronts] * 4
        assert int(field(aemd, front, "CapPrm")[0], 16) == 0
    networks = {
        os.stat(aemd.box.path(f"/proc/{pid}/ns/net")).st_ino for pid in (1, aemd.office, *aemd.fronts)
    }
    assert len(networks) == 2 + len(aemd.fronts)


def test_cores_own_user_is_not_the_administrator(aemd):
    caller = json.loads(aemd.box.run(*CORE, "/opt/aemd/bin/aemctl", "status", "-o", "json").stdout)["caller"]
    assert (caller["uid"], caller["administrator"]) == (int(uid_of(aemd.box, "aemd")), False)


def test_doctor_finds_nothing_wrong_with_what_is_the_daemons(aemd):
    shown = aemd.ctl("doctor", "-o", "json", check=False).stdout
    findings = {row["what"]: row["verdict"] for row in json.loads(shown)}
    assert findings["user aemd-front"] == findings["state"] == findings["rights"] == "OK"
    assert "/run/aemd" not in findings  # said only of a folder that others can change


def test_nobody_but_the_core_in_its_unit_is_served(service):
    service.box.run("systemctl", "start", "aemd-deputy.socket")
    begin = service.box.journal_end()
    stranger = ("setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", PYTHON, "-c", CONNECT)
    assert "PermissionError" in service.box.run(*stranger, check=False).stderr
    assert service.box.run(PYTHON, "-c", CONNECT).stdout == "b''\n"
    assert service.box.run(*CORE, PYTHON, "-c", CONNECT).stdout == "b''\n"
    core = uid_of(service.box, "aemd")
    journal = service.box.journal("aemd-deputy.service", after=begin)
    assert f"is of uid 0, and not of {core}" in journal
    assert "is of visitors, and not of aemd.service" in journal  # a control group of the test
    service.box.run("systemctl", "start", *UNITS)
    assert service.status()["pid"] == service.pid


def test_deputy_that_dies_costs_no_job(aemd):
    pid, office = aemd.pid, aemd.office
    watch = ("/opt/aemd/bin/aemctl", "watch", "timer", "every=50ms", "--count", "60", "-o", "json")
    watching = subprocess.Popen(aemd.box.command(*watch), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    lines = [watching.stdout.readline()]
    aemd.box.run("systemctl", "kill", "--signal=KILL", "aemd-deputy.service")
    aemd.box.until(lambda: aemd.office not in (0, office), "another deputy")
    lines += watching.communicate(timeout=PATIENCE)[0].splitlines()
    events = [json.loads(line) for line in lines]
    assert {event["type"] for event in events} == {"expired"}
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
    assert (aemd.pid, aemd.restarts) == (pid, 0)


ZOMBIE = """
import subprocess
child = subprocess.Popen(["sh", "-c", "read x; exit 7"], stdin=subprocess.PIPE, text=True)
print(child.pid, flush=True)
input()
child.stdin.close()  # it ends, and nobody waits for it
input()
"""


def test_how_a_foreign_process_ended_is_known_before_it_is_reaped(aemd):
    stranger = ("setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", PYTHON, "-c", ZOMBIE)
    parent = subprocess.Popen(
        aemd.box.command(*stranger), env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = parent.stdout.readline().strip()
    watch = ("/opt/aemd/bin/aemctl", "watch", "process", f"pid={pid}", "-o", "json")
    watching = subprocess.Popen(aemd.box.command(*watch), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    aemd.box.until(lambda: json.loads(aemd.ctl("list-jobs", "-o", "json").stdout or "null"), "the job")
    parent.stdin.write("\n")
    parent.stdin.flush()
    event = json.loads(watching.communicate(timeout=PATIENCE)[0].splitlines()[0])
    parent.communicate("\n", timeout=PATIENCE)
    told = {name: event["payload"][name] for name in ("exit_status", "source", "uid")}
    assert told == {"exit_status": 7, "source": "stat", "uid": 4242}


def test_each_core_has_a_deputy_of_its_own(aemd):
    aemd.status()
    office, fronts = aemd.office, aemd.fronts
    aemd.box.run("systemctl", "restart", "aemd.service")
    assert aemd.office not in (0, office)
    assert not set(fronts) & set(aemd.fronts)
    aemd.box.run("systemctl", "stop", "aemd.service")
    aemd.box.until(lambda: aemd.office == 0, "the end of the deputy")
    shown = aemd.box.show("aemd-deputy.service", "Result", "ActiveState")
    assert shown == {"Result": "success", "ActiveState": "inactive"}


def test_without_the_runners_unit_no_command_is_run(service):
    service.box.run("systemctl", "mask", "--runtime", "aemd-runner.socket")
    try:
        service.box.run("systemctl", "start", "aemd.socket", "aemd.service")
        service.ctl("create-job", "masked", "user", "channel=masked", "--", "touch", "/run/masked")
        service.ctl("raise", "masked", "x")
        refused = "no process can be started"
        service.box.until(lambda: refused in service.ctl("show-job", "masked").stdout, "the refusal")
        assert not os.path.exists(service.box.path("/run/masked"))
    finally:
        service.box.run("systemctl", "unmask", "--runtime", "aemd-runner.socket")
    service.box.run("systemctl", "start", *UNITS)
    service.box.until(lambda: os.path.exists(service.box.path("/run/masked")), "the run")
    service.ctl("shutdown-job", "masked")


def test_state_of_a_daemon_that_was_root_is_kept(service):
    service.box.run("rm", "-rf", "/var/lib/aemd")
    service.box.run(*ALONE)
    service.ctl("create-job", "kept", "user", "channel=kept")
    service.ctl("raise", "kept", "before")
    service.box.run("systemctl", "stop", "undivided.service")
    assert os.stat(service.box.path("/var/lib/aemd/aemd.db")).st_uid == 0
    service.box.run("systemctl", "start", *UNITS)
    assert str(os.stat(service.box.path("/var/lib/aemd/aemd.db")).st_uid) == uid_of(service.box, "aemd")
    service.ctl("raise", "kept", "after")
    shown = service.ctl("follow-job", "kept", "--from", "oldest", "--count", "2", "-o", "json")
    service.ctl("shutdown-job", "kept")
    assert [json.loads(line)["seq"] for line in shown.stdout.splitlines()] == [1, 2]
