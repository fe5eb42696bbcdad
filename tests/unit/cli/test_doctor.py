"""The checks of `aemctl doctor`, on this very machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aemd.cli.doctor import daemons, kernel, machine
from aemd.cli.doctor.finding import Verdict, carried_out, ok

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
CHECKS = [*kernel.checks(), *machine.checks()]


LOOK = """
import json, os, sys
from aemd.cli.doctor import kernel, machine
from aemd.cli.doctor.finding import carried_out

def look():
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        running = children.read()
    links = [os.readlink(f"/proc/self/ns/{name}") for name in ("net", "user", "mnt")]
    return running, links, sorted(os.listdir("/proc/self/fd")), os.getcwd(), os.listdir(".")

before, told = look(), []
for check in [*kernel.checks(), *machine.checks()]:
    for found in carried_out([check]):
        told.append([check[0], found.verdict.value, found.found, found.remedy, look() == before])
json.dump(told, sys.stdout)
"""


def test_every_check_says_something_changes_nothing_and_leaves_nothing_open(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, cwd=tmp_path, timeout=60, check=True
    )
    told = json.loads(result.stdout)
    assert {name for name, *_ in told} == {name for name, _ in CHECKS}
    assert [row for row in told if not row[-1]] == []
    assert [row for row in told if "could not be looked at" in row[2]] == []
    assert [row for row in told if bool(row[3]) is (row[1] == "OK")] == []


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on():
    def broken():
        raise ZeroDivisionError("oh")

    found = list(carried_out([("one", broken), ("two", lambda: ok("two", "well"))]))
    assert [(one.what, one.verdict) for one in found] == [("one", WARN), ("two", OK)]
    assert "oh" in found[0].found


def findings_in(code, module, function):
    """The finding of a check in a process where `code` has been run before."""
    ask = f"from aemd.cli.doctor import {module}; f = {module}.{function}()"
    program = f"{code}\n{ask}\nprint(f.verdict.value, f.found)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    return result.stdout


# A filter that lets one system call fail with ENOSYS, as a kernel without it would: seccomp(2) over prctl(2).
WITHOUT = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
program = b"".join(struct.pack("=HBBI", *one) for one in [
    (0x20, 0, 0, 0),  # load the number of the call
    (0x15, 0, 1, {number}),  # is it this one?
    (0x06, 0, 0, 0x00050000 | 38),  # ENOSYS
    (0x06, 0, 0, 0x7FFF0000),  # anything else is allowed
])
filter = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
described = Program(4, ctypes.addressof(filter))
assert libc.prctl(22, 2, ctypes.byref(described), 0, 0) == 0, ctypes.get_errno()
"""


@pytest.mark.parametrize(
    ("function", "number"), [("landlock", 444), ("open_in_root", 437)], ids=["landlock", "openat2"]
)
def test_a_kernel_without_a_feature_is_noticed(function, number):
    assert findings_in(WITHOUT.format(number=number), "kernel", function).startswith(
        "WARN Function not implemented"
    )


def test_a_low_limit_on_descriptors_is_noticed():
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))"
    assert findings_in(code, "machine", "descriptors").startswith("WARN a process may have 500")


def configured(folder):
    return [(found.verdict, found.found) for found in machine.configuration(str(folder), uid=os.geteuid())]


def test_a_configuration_that_can_be_used_is_counted(tmp_path):
    assert configured(tmp_path) == [(OK, f"there are no files in {tmp_path}: defaults")]
    tmp_path.chmod(0o755)
    (tmp_path / "policy.d").mkdir(mode=0o755)
    file = tmp_path / "policy.d" / "a.toml"
    file.write_text("")
    file.chmod(0o644)
    assert configured(tmp_path) == [(OK, f"{tmp_path}: 1 files, 0 rules of policy")]


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("x = 1\ny = \n", 0o644, "a.toml:2"),
        ("surprise = 1\n", 0o644, "surprise"),
        ("", 0o666, "others may write"),
    ],
)
def test_what_is_wrong_with_the_configuration_is_told(tmp_path, text, mode, told):
    (tmp_path / "policy.d").mkdir(mode=0o755)
    file = tmp_path / "policy.d" / "a.toml"
    file.write_text(text)
    file.chmod(mode)
    ((verdict, found),) = configured(tmp_path)
    assert verdict is FAIL
    assert told in found


def test_a_state_directory_that_others_may_see_is_noticed(tmp_path):
    tmp_path.chmod(0o755)
    assert machine.state(str(tmp_path)).verdict is FAIL
    assert machine.state(f"{tmp_path}/none").verdict is OK


@pytest.fixture
def path(tmp_path):
    return f"{tmp_path}/aemd.sock"


def seen(path, *, chosen=True):
    return [(found.verdict, found.found) for found in daemons.daemon(f"unix:{path}", chosen=chosen)]


def test_an_address_without_a_daemon_is_a_fault_only_where_aemctl_would_look(path):
    assert seen(path) == [(FAIL, "there is none")]
    assert seen(path, chosen=False) == [(OK, "there is none")]


def test_a_socket_that_a_killed_daemon_left_is_told_from_one_that_listens(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    ((verdict, found),) = seen(path)
    assert verdict is FAIL
    assert "nobody listens" in found


def test_a_file_is_no_socket(path):
    Path(path).write_text("")
    assert "no socket" in seen(path)[0][1]


def test_a_daemon_that_does_not_answer_does_not_hang_the_doctor(path, monkeypatch):
    monkeypatch.setattr(daemons, "ANSWER_SECONDS", 0.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        findings = seen(path)
    assert (FAIL, "it took the connection and did not answer within 0.5 s") in findings


def test_a_folder_in_which_others_can_put_a_socket_is_noticed(path, monkeypatch):
    monkeypatch.setattr(daemons, "ANSWER_SECONDS", 0.1)
    os.chmod(os.path.dirname(path), 0o777)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        findings = seen(path)
    assert any(verdict is WARN and "others can put a socket" in found for verdict, found in findings)


def test_what_a_status_says_is_judged():
    from aem.v1 import admin_pb2, session_pb2

    def verdicts(**more):
        caller = session_pb2.Principal(uid=0, not_administrator="another pid namespace")
        status = admin_pb2.DaemonStatus(**{"version": daemons.__version__, "caller": caller, **more})
        return [(found.what, found.verdict) for found in daemons._judge("daemon at x", status)]

    assert verdicts() == [("rights", WARN)]
    assert verdicts(caller=session_pb2.Principal(uid=7)) == [("rights", OK)]
    assert verdicts(caller=session_pb2.Principal(uid=0, administrator=True)) == [("rights", OK)]
    broken = admin_pb2.Configuration(error="a.toml:2: it is wrong")
    for wrong in (
        {"version": "0.0.1"},
        {"draining": True},
        {"descriptors_max": 100},
        {"fronts_replaced": 1},
        {"configuration": broken},
    ):
        assert ("daemon at x", WARN) in verdicts(**wrong)
