"""What a command is when it runs: its owner, with what the daemon gives it, and nothing else."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aemd.deputy import caller
from aemd.deputy.orders import Ended
from aemd.deputy.protocol import BECOMING, Fault
from tests.kernel.runner.conftest import GROUP, NOBODY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: commands of other users are run")

CAP_DAC_OVERRIDE = 1


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def status(rig, **more):
    assert rig.run("cat /proc/self/status > out", **more) == Ended(1)
    return dict(line.split(":\t", 1) for line in rig.text().splitlines() if ":\t" in line)


# Who it is.


def test_nothing_of_root_is_left_in_a_command(rig):
    found = status(rig)
    assert found["Uid"].split() == [str(NOBODY)] * 4
    assert found["Gid"].split() == [str(GROUP)] * 4
    assert found["Groups"].split() == ["34", "56"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"] == "1"


def test_root_has_its_uid_and_no_capability_unless_it_is_the_administrator(rig):
    found = status(rig, uid=0, gid=0, groups=())
    assert found["Uid"].split() == ["0"] * 4
    assert int(found["CapPrm"], 16) == int(found["CapBnd"], 16) == 0


def test_administrator_keeps_the_rights_over_files_and_no_other(rig):
    found = status(rig, uid=0, gid=0, groups=(), capable=True)
    assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == caller.CAPABLE
    assert int(found["CapBnd"], 16) == 0


def test_command_gains_nothing_by_a_set_user_id_program(rig):
    copy = rig.place / "id"
    copy.write_bytes(Path("/usr/bin/id").read_bytes())
    copy.chmod(0o4755)
    assert rig.run("./id -u > out") == Ended(1)
    assert rig.text() == f"{NOBODY}\n"


# What it has.


def test_environment_is_clean(rig, monkeypatch):
    monkeypatch.setenv("SECRET", "token")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    assert rig.run("env > out", environment={"AEM_SEQ": "7", "PATH": "/bin"}) == Ended(1)
    found = dict(line.split("=", 1) for line in rig.text().splitlines())
    found.pop("PWD")  # the shell's own
    found.pop("_", None)
    found.pop("SHLVL", None)
    lang = os.environ.get("LANG") or "C.UTF-8"
    assert found == {
        "AEM_SEQ": "7", "PATH": "/bin", "LANG": lang, "USER": "nobody", "LOGNAME": "nobody",
        "HOME": "/nonexistent", "SHELL": "/usr/sbin/nologin",
    }  # fmt: skip


def test_it_has_no_descriptor_but_the_three(rig, tmp_path):
    with open(tmp_path / "held", "wb") as held:
        os.set_inheritable(held.fileno(), True)
        assert rig.run("ls /proc/self/fd > out") == Ended(1)
    assert sorted(rig.text().split()) == ["0", "1", "2", "3"]  # the last is that of ls


def test_standard_input_is_what_came_and_nobody_can_change_it(rig):
    change = "(echo x >&0) && touch changed; (truncate -s 0 /dev/stdin) && touch cut"
    rig.run(f"cat > out; {change}; cat /dev/stdin >> out", stdin=b"a line\nanother\n")
    assert rig.text() == "a line\nanother\n" * 2
    assert not rig.there("changed")
    assert not rig.there("cut")


def test_it_leads_a_session_of_its_own_and_has_no_terminal(rig):
    seen = rig.begin("cut -d' ' -f5-7 /proc/$$/stat > out")
    rig.finish(seen)
    group, session, terminal = rig.text().split()
    assert int(group) == int(session) == seen.pid
    assert terminal == "0"


def test_limits_umask_directory_signals_and_oom_score_are_those_of_a_fresh_process(rig):
    own = Path("/proc/self/oom_score_adj")
    assert own.read_text() == "0\n"
    script = (
        "umask > out; pwd >> out; ulimit -c >> out; ulimit -n >> out; cat /proc/self/oom_score_adj >> out;"
        " grep -E '^Sig(Ign|Blk)' /proc/self/status | cut -f2 >> out; touch made"
    )
    own.write_text("7\n")
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        rig.run(script)
    finally:
        signal.signal(signal.SIGUSR1, before)
        own.write_text("0\n")
    umask, directory, core, files, score, *signals = rig.text().split()
    assert (umask, directory, core, files, score) == ("0022", str(rig.place), "0", "1024", "0")
    own_to_libc = 3 << 31  # signals 32 and 33, which no program can set, signal(7)
    assert [int(mask, 16) & ~own_to_libc for mask in signals] == [0, 0]
    made = (rig.place / "made").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (NOBODY, GROUP, 0o644)


def test_limits_of_a_look_at_a_path_are_not_those_of_a_command(rig):
    rig.run("cat /proc/self/limits > out; (:; :) && touch forked")
    limits = {line[:26].strip(): line[26:].split()[:2] for line in rig.text().splitlines()}
    assert limits["Max cpu time"] == ["unlimited", "unlimited"]
    assert limits["Max processes"] == ["4096", "4096"]
    assert rig.there("forked")


def test_output_that_no_journal_takes_comes_line_by_line_without_control_characters(rig, capfd, monkeypatch):
    if os.path.exists("/run/systemd/journal/stdout"):
        pytest.skip("there is a journal here, which takes it")
    assert rig.run(r"echo one; printf 'two\033[31m\a' >&2; printf 'x%.0s' $(seq 5000)") == Ended(1)
    first, second, *rest = capfd.readouterr().err.splitlines()
    assert (first, second[:25]) == ("aemd-job-test: one", "aemd-job-test: two?[31m?x")
    assert all(line.startswith("aemd-job-test: ") for line in rest)
    assert all(len(line) <= 2_100 for line in (second, *rest))


# What becomes of it.


@pytest.mark.parametrize(
    ("how", "error", "call"),
    [
        ({"command": ["/nowhere"]}, errno.ENOENT, "execve"),
        ({"command": ["no-such-program"]}, errno.ENOENT, "execve"),
        ({"command": ["/etc/passwd"]}, errno.EACCES, "execve"),
        ({"command": ["true"], "directory": "/nowhere"}, errno.ENOENT, "chdir"),
        ({"command": ["true"], "directory": "/root"}, errno.EACCES, "chdir"),
    ],
)
def test_what_is_not_executed_is_told_apart_from_an_exit_status(rig, how, error, call):
    ended = rig.run("", **how)
    assert (ended.error, ended.call) == (error, call)


def test_exit_status_and_signal_are_told(rig):
    assert os.waitstatus_to_exitcode(rig.run("exit 3").status) == 3
    assert os.waitstatus_to_exitcode(rig.run("kill -SEGV $$").status) == -signal.SIGSEGV


def test_command_that_closes_its_output_is_waited_for(rig):
    seen = rig.begin("exec >&- 2>&-; while ! [ -e go ]; do sleep 0.01; done; exit 5")
    rig.until(lambda: seen.pid)
    assert not seen.told
    (rig.place / "go").touch()
    assert os.waitstatus_to_exitcode(rig.finish(seen).status) == 5


def test_time_limit_is_sigterm_to_the_whole_group(rig):
    ended = rig.run("sh -c 'echo $$ > out; exec sleep 1000' & wait", timeout_ms=2_000)
    assert ended.late
    assert os.waitstatus_to_exitcode(ended.status) == -signal.SIGTERM
    assert not alive(int(rig.text()))


def test_order_to_end_without_grace_kills(rig):
    seen = rig.begin("trap '' TERM; touch there; while :; do sleep 1000; done")
    rig.until(lambda: rig.there("there"))
    rig.runner.end(seen.number, 0)
    ended = rig.finish(seen)
    assert ended.told
    assert os.waitstatus_to_exitcode(ended.status) == -signal.SIGKILL


def test_order_to_end_with_grace_is_sigterm_then_sigkill(rig):
    seen = rig.begin("trap 'touch told' TERM; touch there; while :; do sleep 0.05; done")
    rig.until(lambda: rig.there("there"))
    rig.runner.end(seen.number, 500)
    ended = rig.finish(seen)
    assert rig.there("told")
    assert os.waitstatus_to_exitcode(ended.status) == -signal.SIGKILL


def test_what_stays_in_the_group_is_killed_when_the_command_has_ended(rig):
    assert rig.run("sleep 1000 & echo $! > out") == Ended(1)
    assert not alive(int(rig.text()))


def test_runs_stand_beside_each_other(rig):
    held = [rig.begin(f"touch {n}; while ! [ -e go ]; do sleep 0.01; done; exit {n}") for n in range(5)]
    rig.until(lambda: all(rig.there(str(n)) for n in range(5)))
    (rig.place / "go").touch()
    assert [os.waitstatus_to_exitcode(rig.finish(seen).status) for seen in held] == list(range(5))


def test_runner_that_dies_takes_its_commands_with_it_and_the_next_run_has_another(rig):
    seen = rig.begin("sleep 1000 & echo $! > out; touch there; wait")
    rig.until(lambda: rig.there("there") and seen.pid)
    first = rig.runner.pid
    os.kill(first, signal.SIGKILL)
    rig.until(lambda: seen.told)
    assert seen.ended is None
    rig.until(lambda: not alive(seen.pid) and not alive(int(rig.text())))
    assert rig.run("touch again").status == 0
    assert rig.runner.pid not in (0, first)


def test_close_kills_what_runs_and_leaves_no_process(rig):
    seen = rig.begin("trap '' TERM; touch there; while :; do sleep 1000; done")
    rig.until(lambda: rig.there("there"))
    pid = rig.runner.pid
    rig.runner.close()
    rig.until(lambda: not alive(seen.pid))
    assert not alive(pid)
    assert not seen.told


def test_message_that_the_runner_does_not_understand_ends_it_and_nobody_else(rig):
    rig.run("true")
    rig.runner._control.send(b"nonsense")
    rig.until(lambda: not rig.runner.pid)
    assert rig.run("true").status == 0


def execute(place, runner, prepare=""):
    """Be `touch made` in a process that `runner` has forked; its exit status, 17 if that was refused."""
    script = f"""
import encodings.idna, os, pwd, sys
from aemd.deputy.orders import Start
from aemd.deputy import run
{prepare}
order = Start(1, 1, 1, [], False, ["touch", "{place}/made"], {{}}, "/", 1000, "job-1", "test")
os.pipe()
try:
    run.execute(order, runner={runner}, stdin=0, stdout=1, says=4, subtree=None)
except run.NotExecutedError as error:
    assert (error.error, error.call) == ({int(Fault.ANOTHER)}, "{BECOMING}")
    sys.exit(17)
"""
    return subprocess.run([sys.executable, "-c", script], check=False, stdin=subprocess.DEVNULL).returncode


def test_runner_that_is_not_root_has_one_user(place):
    switch = f"os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)"
    assert execute(place, "os.getppid()", switch) == 17
    assert not (place / "made").exists()
    assert execute(place, "os.getppid()") == 0
    assert (place / "made").exists()


def test_command_whose_runner_is_gone_already_is_not_run(place):
    assert execute(place, "os.getpid()") == 1
    assert not (place / "made").exists()
