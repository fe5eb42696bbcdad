"""Control groups of runs: nothing that a command has started outlives it, however it hides."""

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest

from aemd.deputy import subtree
from aemd.deputy.orders import Ended
from tests.kernel.runner.conftest import Rig
from tests.kernel.runner.test_runner import alive

ENTER = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
os.execv(sys.executable, [sys.executable, "-P", "-m", "aemd.deputy.runner", sys.argv[2]])
"""
ESCAPE = "(setsid sh -c 'echo $$ > escaped; exec sleep 1000' &); "
WAIT = "while ! [ -s escaped ]; do sleep 0.01; done; "


def hierarchy():
    """Where the unified hierarchy is mounted; empty if it is not, or is not for us."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return place
    return ""


pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not hierarchy(), reason="needs root and a cgroup2 hierarchy to write to"
)


@pytest.fixture
def group():
    """A control group that was given to whoever is in it, as systemd does it."""
    path = Path(hierarchy(), f"aemd-runner-{os.getpid()}")
    path.mkdir()
    os.setxattr(path, "user.delegate", b"1")
    yield path
    (path / "cgroup.kill").write_text("1")
    until = time.monotonic() + 10
    while (path / "cgroup.procs").read_text() and time.monotonic() < until:
        time.sleep(0.01)
    for below in path.glob("*/"):
        below.rmdir()
    path.rmdir()


@pytest.fixture
def rig(loop, place, group):
    rig = Rig(loop, place, (sys.executable, "-c", ENTER, str(group)))
    yield rig
    rig.runner.close()


def below(group):
    return sorted(path.name for path in group.iterdir() if path.is_dir())


def test_a_run_has_a_group_of_its_own_while_it_lasts(rig, group):
    seen = rig.begin("cat /proc/self/cgroup > out; touch there; while ! [ -e go ]; do sleep 0.01; done")
    rig.until(lambda: rig.there("there"))
    assert below(group) == ["job-1"]
    assert f"0::/{group.name}/job-1" in rig.text()
    (rig.place / "go").touch()
    assert rig.finish(seen) == Ended(1)
    assert below(group) == []


def test_what_has_left_session_and_group_ends_with_the_command(rig):
    assert rig.run(f"{ESCAPE}{WAIT}") == Ended(1)
    assert not alive(int(rig.text("escaped")))


def test_what_has_left_session_and_group_ends_with_the_time(rig):
    assert rig.run(f"{ESCAPE}{WAIT} sleep 1000", timeout_ms=1_000).late
    assert not alive(int(rig.text("escaped")))


def test_what_has_left_session_and_group_ends_with_the_core(rig, group):
    rig.begin(f"{ESCAPE}{WAIT} touch there; sleep 1000")
    rig.until(lambda: rig.there("there"))
    rig.runner.close()
    rig.until(lambda: not alive(int(rig.text("escaped"))))
    assert below(group) == []


def test_next_runner_ends_what_the_last_one_has_left(rig, group):
    seen = rig.begin(f"{ESCAPE}{WAIT} touch there; sleep 1000")
    rig.until(lambda: rig.there("there"))
    os.kill(rig.runner.pid, 9)
    rig.until(lambda: seen.told)
    assert alive(int(rig.text("escaped")))
    assert rig.run("touch again").status == 0
    rig.until(lambda: not alive(int(rig.text("escaped"))))


def test_command_cannot_leave_its_group(rig, group):
    rig.run(f"(echo 0 > {group}/cgroup.procs) && touch left; mkdir {group}/job-1/x && touch made")
    assert not rig.there("left")
    assert not rig.there("made")


def test_group_that_was_not_given_is_left_alone(group):
    own = f"0::/{group.name}\n"
    assert subtree.find("", own) == subtree.Subtree(str(group))
    with contextlib.suppress(OSError):
        os.removexattr(group, "user.delegate")
    assert subtree.find("", own) is None
    assert subtree.find("", "0::/\n") is None
    assert subtree.find("", "9:pids:/x\n") is None
