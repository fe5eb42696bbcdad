"""Commands of jobs in the service: a control group for each run, and output in the journal."""

import json

import pytest

from tests.system.conftest import UNITS

OWNER, GROUP = 4242, 4243
AS_OWNER = ("setpriv", f"--reuid={OWNER}", f"--regid={GROUP}", "--clear-groups", "/opt/aemd/bin/aemctl")
ESCAPE = "(setsid sh -c 'exec sleep 1000' &); "
FACTS = (
    "grep ^0:: /proc/self/cgroup; cat /proc/self/oom_score_adj; id -u;"
    " grep -E '^(NoNewPrivs|CapEff)' /proc/self/status; "
)


@pytest.fixture
def make(aemd):
    """Makes a command job, which is gone at the end."""
    made = []

    def create(name, script):
        aemd.box.run(*AS_OWNER, "create-job", name, "user", f"channel={name}", "--", "sh", "-c", script)
        made.append(name)

    yield create
    aemd.box.run("systemctl", "start", *UNITS)
    for name in made:
        aemd.box.run(*AS_OWNER, "shutdown-job", name, "--deadline", "1ms")


def fire(aemd, name, payload="x"):
    aemd.box.run(*AS_OWNER, "raise", name, payload)


def state(aemd, name):
    return json.loads(aemd.box.run(*AS_OWNER, "show-job", name, "-o", "json").stdout)


def journal(aemd, name):
    """The entries of what commands of that job have written."""
    shown = aemd.box.run("journalctl", "--identifier", f"aemd-job-{name}", "--output", "json")
    return [json.loads(line) for line in shown.stdout.splitlines()]


def sleepers(aemd):
    return aemd.box.run("pgrep", "-x", "sleep", check=False).stdout.split()


def groups(aemd):
    return aemd.box.run("ls", "/sys/fs/cgroup/system.slice/aemd-runner.service").stdout.split()


def ended(aemd, name):
    return state(aemd, name)["exec_state"]["last_time_ns"]


def test_output_is_in_the_journal_as_its_owners(aemd, make):
    make("talk", "echo out; echo $AEM_PAYLOAD >&2")
    fire(aemd, "talk", "err")
    aemd.box.until(lambda: len(journal(aemd, "talk")) == 2, "the output")
    found = journal(aemd, "talk")
    assert [line["MESSAGE"] for line in found] == ["out", "err"]
    assert {(line["_UID"], line["_GID"], line["PRIORITY"]) for line in found} == {
        (str(OWNER), str(GROUP), "6")
    }


def test_run_has_a_control_group_and_ends_with_all_that_it_has_started(aemd, make):
    make("facts", FACTS + ESCAPE)
    number = state(aemd, "facts")["id"]
    fire(aemd, "facts")
    aemd.box.until(lambda: ended(aemd, "facts"), "the run")
    aemd.box.until(lambda: len(journal(aemd, "facts")) == 5, "its output")
    group, score, uid, capabilities, privileges = [line["MESSAGE"] for line in journal(aemd, "facts")]
    assert group == f"0::/system.slice/aemd-runner.service/job-{number}"
    assert (score, uid) == ("0", str(OWNER))
    assert (capabilities.split()[1], privileges.split()[1]) == ("0" * 16, "1")
    assert sleepers(aemd) == []
    assert [name for name in groups(aemd) if name.startswith("job-")] == []


def test_restart_ends_a_run_and_the_next_daemon_makes_it_again(aemd, make):
    make("long", f"{ESCAPE} echo begun; trap 'echo told; exit 0' TERM; while :; do sleep 0.1; done")
    fire(aemd, "long")
    aemd.box.until(lambda: "begun" in [line["MESSAGE"] for line in journal(aemd, "long")], "the run")
    aemd.box.run("systemctl", "restart", "aemd.service")
    assert "told" in [line["MESSAGE"] for line in journal(aemd, "long")]
    aemd.box.until(lambda: state(aemd, "long")["exec_state"]["phase"] == "running", "the second run")
    aemd.box.run("systemctl", "stop", *UNITS)
    assert sleepers(aemd) == []


def test_killed_service_leaves_nothing_of_a_run(aemd, make):
    make("held", f"{ESCAPE} echo begun; while :; do sleep 1000; done")
    fire(aemd, "held")
    aemd.box.until(lambda: journal(aemd, "held"), "the run")
    before = sleepers(aemd)
    assert before
    aemd.box.run("kill", "-KILL", str(aemd.pid))
    aemd.box.until(lambda: len(journal(aemd, "held")) == 2, "the second run")
    assert not set(before) & set(sleepers(aemd))
