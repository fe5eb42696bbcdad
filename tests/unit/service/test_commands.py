"""Command jobs in a daemon, with a runner that runs nothing: what is ordered, what comes of what it says."""

from __future__ import annotations

import json
import signal

import pytest

from aemd.core.job import JobState
from aemd.core.limits import SECOND
from aemd.deputy.orders import Ended
from aemd.deputy.protocol import BECOMING
from aemd.service import commands
from aemd.service.execution import DIRTY_EVENTS_MAX
from aemd.v1 import event_pb2, job_pb2
from tests.unit.service.conftest import Prop, principal

EXITED_3 = 3 << 8


class Runner:
    """Keeps what is ordered until the test says how it ended."""

    def __init__(self):
        self.orders = []
        self.ends = []
        self.refusal = None
        self.closed = False

    pid = descriptors = 0

    def next_number(self):
        return len(self.orders) + 1

    def start(self, order, stdin, watch):
        if self.refusal is not None:
            raise self.refusal
        self.orders.append((order, stdin, watch))
        watch.begun(4711)

    def end(self, number, grace_ms):
        self.ends.append((number, grace_ms))

    def close(self):
        self.closed = True

    def finish(self, status=0, **how):
        """The run that was ordered last ends."""
        order, _, watch = self.orders[-1]
        watch.ended(Ended(order.number, status, **how))

    def lose(self):
        self.orders[-1][2].ended(None)

    @property
    def payloads(self):
        return [[json.loads(line)["first"] for line in stdin.splitlines()] for _, stdin, _ in self.orders]


class Rig:
    def __init__(self, bench):
        self.bench = bench
        self.daemon = bench.daemon
        self.commands = self.daemon.commands
        self.runner = self.commands._runner = Runner()
        bench.install(Prop(self.daemon.host))

    def make(self, name="backup", *, options=None, **how):
        request = job_pb2.CreateJobRequest(
            name=name, module="prop", options=options, exec=job_pb2.Exec(command=["true"], **how)
        )
        job = self.daemon.durables.create(principal(pid=0), request, lambda _made: None)
        self.bench.turn()
        return job

    def fire(self, job, count=1):
        for _ in range(count):
            self.daemon.engine.fire(job, event_pb2.Event(type="t").SerializeToString())
        self.bench.turn()

    def finish(self, *arguments, **how):
        self.runner.finish(*arguments, **how)
        self.bench.turn()

    def state(self, job):
        return self.commands.state_of(job, principal())

    def used(self):
        return self.daemon.accounts.find(0).used("children")


@pytest.fixture
def rig(bench):
    return Rig(bench)


def test_order_says_who_what_and_for_how_long(rig):
    job = rig.make(timeout_ns=7 * SECOND, environment={"A": "b"}, directory="/srv")
    rig.fire(job)
    ((order, stdin, _),) = rig.runner.orders
    assert (order.uid, order.gid, order.groups, order.capable) == (0, 0, [], True)
    assert (order.command, order.directory, order.timeout_ms) == (["true"], "/srv", 7_000)
    assert (order.place, order.name) == (f"job-{job.id}", "aemd-job-backup")
    assert order.environment["A"] == "b"
    assert order.environment["AEM_JOB"] == str(job.id)
    assert json.loads(stdin)["type"] == "t"


def test_children_are_charged_while_it_runs(rig):
    job = rig.make()
    rig.fire(job)
    assert rig.used() == 1
    assert rig.state(job).phase == job_pb2.EXEC_PHASE_RUNNING
    assert rig.state(job).pid == 4711
    rig.finish()
    assert rig.used() == 0


def test_dirty_takes_as_much_as_one_run_may_have_and_the_rest_next(rig):
    job = rig.make(mode=job_pb2.EXEC_MODE_DIRTY)
    rig.fire(job)
    rig.fire(job, DIRTY_EVENTS_MAX + 2)
    rig.finish()
    rig.finish()
    assert [len(found) for found in rig.runner.payloads] == [1, DIRTY_EVENTS_MAX, 2]


def test_dirty_that_fails_gets_all_of_it_again_with_what_is_new(rig):
    job = rig.make(mode=job_pb2.EXEC_MODE_DIRTY, backoff_min_ns=1_000_000)
    rig.fire(job, 1)
    rig.fire(job, 2)
    rig.finish(EXITED_3)
    rig.bench.turn_until(lambda: len(rig.runner.orders) == 2)
    assert rig.runner.payloads == [[1], [1, 2, 3]]


def test_so_many_of_all_users_run_and_the_next_waits(rig, monkeypatch):
    monkeypatch.setattr(commands, "RUNS_MAX", 1)
    first, second = rig.make("first"), rig.make("second", backoff_min_ns=1_000_000)
    rig.fire(first)
    rig.fire(second)
    assert len(rig.runner.orders) == 1
    assert rig.state(second).phase == job_pb2.EXEC_PHASE_WAITING
    assert "commands of all users run" in rig.state(second).waiting_for
    rig.finish()
    rig.bench.turn_until(lambda: len(rig.runner.orders) == 2)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"error": 11, "call": "fork"}, "not begun: fork: Resource temporarily unavailable (EAGAIN)"),
        ({"error": 10_006, "call": BECOMING}, "not begun: the daemon cannot act as the job's owner"),
    ],
)
def test_what_the_daemon_cannot_do_is_no_failure_of_the_command(rig, how, said):
    job = rig.make(options=job_pb2.Options(attempts_max=1))
    rig.fire(job)
    rig.finish(**how)
    state = rig.state(job)
    assert (state.phase, state.waiting_for, state.failures) == (job_pb2.EXEC_PHASE_WAITING, said, 0)
    assert job.stats.failed == job.stats.parked == 0
    assert rig.used() == 0


def test_runner_that_is_lost_or_cannot_be_started_is_waited_for(rig):
    job = rig.make(backoff_min_ns=1_000_000, options=job_pb2.Options(attempts_max=1))
    rig.fire(job)
    rig.runner.lose()
    rig.runner.refusal = OSError(12, "Cannot allocate memory")
    rig.bench.turn_until(lambda: "Cannot allocate" in rig.state(job).waiting_for)
    assert rig.used() == 0
    rig.runner.refusal = None
    rig.bench.turn_until(lambda: len(rig.runner.orders) == 2)
    assert job.stats.parked == 0


def test_run_that_ended_by_itself_before_it_could_be_ended_counts(rig):
    job = rig.make()
    rig.fire(job)
    rig.daemon.conductor.stop(job)
    rig.bench.turn()
    assert rig.runner.ends == [(1, 5_000)]
    rig.finish()
    assert job.durable.acked.seq == 1


def test_late_end_of_a_job_that_is_gone_is_for_nobody(rig):
    job = rig.make()
    rig.fire(job)
    rig.daemon.engine.end_job(job, "test", rig.daemon.conductor.now())
    rig.bench.turn()
    assert rig.runner.ends == [(1, 5_000)]
    assert rig.commands.state_of(job, principal()) is None
    rig.finish(signal.SIGTERM, told=True)
    assert job.state is JobState.GONE
    assert rig.used() == 0
    assert rig.commands.idle


def test_daemon_that_ends_begins_nothing_and_ends_what_runs(rig):
    job, other = rig.make(), rig.make("other")
    rig.fire(job)
    rig.commands.drain(3 * SECOND)
    rig.fire(other)
    assert (len(rig.runner.orders), rig.runner.ends) == (1, [(1, 3_000)])
    assert not rig.commands.idle
    rig.finish(signal.SIGTERM, told=True)
    assert rig.commands.idle
    assert job.durable.acked.seq == 0
    assert len(rig.runner.orders) == 1


def test_what_waits_for_quota_or_place_was_not_attempted(rig, monkeypatch):
    monkeypatch.setattr(commands, "RUNS_MAX", 0)
    job = rig.make(backoff_min_ns=1_000_000)
    rig.fire(job)
    rig.bench.turn_until(lambda: rig.state(job).phase == job_pb2.EXEC_PHASE_WAITING)
    for _ in range(3):
        rig.commands.hurry(job)
        rig.bench.turn()
    monkeypatch.setattr(commands, "RUNS_MAX", 1)
    rig.bench.turn_until(lambda: rig.runner.orders)
    assert json.loads(rig.runner.orders[0][1])["attempts"] == 1


def test_what_is_no_event_is_parked_and_holds_up_nothing(rig, capfd):
    job = rig.make(options=job_pb2.Options(attempts_max=1), backoff_min_ns=1_000_000)
    rig.daemon.engine.fire(job, b"\xff")
    rig.fire(job)
    rig.bench.turn_until(lambda: rig.runner.orders)
    assert rig.runner.payloads == [[2]]
    (parked,) = rig.daemon.engine.parked_of(job)
    assert parked.reason == "module prop gave what cannot be shown to a command"
    assert rig.used() == 1
    assert "module failed" in "".join(capfd.readouterr())


def test_pid_is_for_those_who_know_pids_of_the_daemon(rig):
    job = rig.make()
    rig.fire(job)
    inside = principal()
    object.__setattr__(inside, "owner", type(inside.owner)(0, pid_namespace=4711))
    assert rig.commands.state_of(job, inside).pid == 0


def test_failures_and_runs_are_counted_by_how_they_ended(rig):
    job = rig.make(options=job_pb2.Options(attempts_max=1), backoff_min_ns=1_000_000)
    ends = [{}, {"status": EXITED_3}, {"late": True}, {"error": 2, "call": "execve"}]
    for number, end in enumerate(ends, 1):
        rig.fire(job)
        rig.bench.turn_until(lambda number=number: len(rig.runner.orders) == number)
        rig.finish(**end)
    counted = rig.daemon.engine.sheet(None)["prop"].runs
    assert counted == {"done": 1, "failed": 1, "late": 1, "not-executed": 1}
    assert (rig.state(job).runs, rig.state(job).failures) == (4, 3)
