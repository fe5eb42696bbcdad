"""Durable jobs in a daemon, where several things happen at once to one that is closed, opening or ending."""

from __future__ import annotations

import shutil

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.job import JobState
from aemd.core.limits import Limits
from aemd.modules.need import OpenPath
from aemd.service.config import Config
from aemd.service.daemon import Daemon
from aemd.v1 import job_pb2, session_pb2
from tests.unit.service.conftest import Bench, Prop, principal


def create(bench, module="prop", *, name="backup", caller=None, answer=None, **options):
    request = job_pb2.CreateJobRequest(name=name, module=module, options=job_pb2.Options(**options))
    return bench.daemon.durables.create(caller or principal(), request, answer or _ignored)


def _ignored(_made):
    """Nobody waits for it."""


def bind(wire, name="backup", *, follow=False):
    role = session_pb2.ROLE_FOLLOW if follow else session_pb2.ROLE_UNSPECIFIED
    return wire.ask(bind=session_pb2.Bind(name=name, role=role))


class Needy(Prop):
    """Needs a path as its job's owner before open()."""

    def __init__(self, host):
        super().__init__(host)
        self.taken = []

    def needs(self, job, *, opening, starting):
        return (OpenPath(b"/etc/passwd"),) if opening else ()

    def open(self, job):
        super().open(job)
        self.taken += self.host.given(job)


@pytest.fixture
def needy(bench):
    module = Needy(bench.daemon.host)
    bench.install(module)
    yield module
    bench.turn_until(lambda: not bench.daemon.deputy.busy)
    for taken in module.taken:
        taken.close()


class Line:
    """Daemons one after the other, on the same state."""

    def __init__(self, folder):
        self.folder = folder
        self.bench = None

    def begin(self, *modules, folder=None, **limits):
        bench = self.bench = Bench.__new__(Bench)
        folder = folder or self.folder
        config = Config(socket=f"{folder}/never", state_dir=f"{folder}")
        bench.daemon = Daemon(config, Limits(**limits))
        for make in modules:
            bench.install(make(bench.daemon.host))
        bench.daemon.begin()
        return bench

    def end(self):
        if self.bench is not None:
            bench, self.bench = self.bench, None
            bench.daemon.end()


@pytest.fixture
def line(tmp_path):
    made = Line(tmp_path)
    yield made
    made.end()


def test_a_daemon_begins_with_jobs_whose_options_are_no_longer_possible(line):
    bench = line.begin(Prop)
    kept = create(bench, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE).id
    deep = create(bench, name="deep", queue_depth=5_000).id
    line.end()
    bench = line.begin(queue_depth_max=4_000, queue_depth=1_000)
    jobs = [bench.daemon.durables.job(number) for number in (kept, deep)]
    assert [job.state for job in jobs] == [JobState.REGISTERED] * 2
    assert "prop" in jobs[0].reason


def test_a_job_with_a_longer_queue_than_there_may_be_now_is_closed_and_says_so(line):
    bench = line.begin(Prop)
    number = create(bench, queue_depth=5_000).id
    line.end()
    bench = line.begin(Prop, queue_depth_max=4_000, queue_depth=1_000)
    job = bench.daemon.durables.job(number)
    assert "queue_depth" in job.reason
    with pytest.raises(AemError, match="queue_depth"):
        bench.daemon.conductor.start(job, _ignored)


def test_sync_of_a_session_that_reads_a_durable_job_is_answered_when_that_ends(bench, prop):
    job = create(bench)
    wire = bench.session()
    bind(wire)
    wire.say(request_id=5, sync=session_pb2.Sync())
    bench.turn()
    assert len(prop.syncs) == 1
    bench.daemon.conductor.shutdown(job, by=principal(), deadline_ns=0)
    bench.turn()
    assert 5 in {frame.request_id for frame in wire.told()}
    assert bench.daemon.conductor.unanswered(wire.handler.session) == 0


def test_sync_of_a_session_that_reads_a_durable_job_is_answered_when_that_is_closed(bench, prop):
    job = create(bench)
    wire = bench.session()
    bind(wire)
    wire.say(request_id=5, sync=session_pb2.Sync())
    bench.turn()
    bench.daemon.conductor.close_job(job, "for now")
    bench.turn()
    assert bench.daemon.conductor.unanswered(wire.handler.session) == 0
    assert wire.told()


def test_a_reply_to_a_closed_job_is_refused_and_its_module_not_asked(bench, prop):
    job = create(bench)
    wire = bench.session()
    binding = bind(wire).binding
    bench.daemon.engine.fire(job, b"event")
    bench.turn()
    bench.daemon.conductor.close_job(job, "for now")
    operation = session_pb2.Operation(name="do")
    cursor = job_pb2.Cursor(epoch=1, seq=1)
    answer = wire.ask(complete=session_pb2.Complete(binding=binding, cursor=cursor, reply=operation))
    assert ("operate", job.id) not in prop.calls
    assert (answer.code, "for now" in answer.message) == (Code.FAILED_PRECONDITION, True)


def test_a_stop_while_the_job_is_opening_is_not_lost(bench, needy):
    told = []
    create(bench, answer=told.append)
    bench.turn_until(lambda: told)
    (job,) = told
    conductor = bench.daemon.conductor
    conductor.close_job(job, "for now")
    assert not conductor.start(job, _ignored)
    with pytest.raises(AemError) as caught:
        conductor.stop(job)
    assert caught.value.reason == "JOB_OPENING"


def test_readers_of_a_session_are_bounded_and_cost_as_much_as_jobs(make_bench):
    bench = make_bench(jobs_per_session=3)
    prop = Prop(bench.daemon.host)
    bench.install(prop)
    create(bench)
    wire = bench.session()
    account = bench.daemon.engine.accounts.find(0)
    before = account.used("jobs")
    bindings = [bind(wire, follow=True).binding for _ in range(3)]
    assert account.used("jobs") == before + 3
    refused = bind(wire, follow=True)
    assert refused.code == Code.RESOURCE_EXHAUSTED
    assert "limits.jobs_per_session" in refused.message
    for binding in bindings:
        wire.ask(unbind=session_pb2.Unbind(binding=binding))
    assert account.used("jobs") == before


def test_a_name_is_free_as_soon_as_its_job_has_ended(bench, prop):
    first = create(bench)
    bench.daemon.conductor.shutdown(first, by=principal(), deadline_ns=0)
    second = create(bench)  # in the same turn
    assert second is not first
    bench.turn()
    assert bench.daemon.durables.find(principal(), "backup") is second
    assert bench.daemon.durables.job(second.id) is second


def test_what_is_unloaded_while_it_is_being_made_leaves_nothing(bench, needy):
    told = []
    assert create(bench, answer=told.append) is None
    bench.daemon.conductor.unload_module("prop")
    assert isinstance(told[0], AemError)
    assert not bench.daemon.conductor._closed
    assert bench.daemon.engine.job_count(principal()) == 0


def test_a_spent_job_is_refused_before_its_module_is_asked(bench, prop):
    job = create(bench, one_shot=True)
    bench.daemon.engine.fire(job, b"event")
    bench.turn()
    assert job.state is JobState.DRAINING
    bench.daemon.conductor.close_job(job, "for now")
    prop.calls.clear()
    with pytest.raises(AemError) as caught:
        bench.daemon.conductor.start(job, _ignored)
    assert caught.value.reason == "JOB_ENDING"
    assert prop.calls == []


def test_a_module_that_keeps_nothing_with_the_job_is_told_that_it_is_closed(bench, prop):
    job = create(bench)
    bench.daemon.conductor.close_job(job, "for now")
    assert prop.calls[-1] == ("close", job.id)
    assert bench.daemon.descriptors.charged == 0
    assert bench.daemon.conductor.start(job, _ignored)
    assert job.state is JobState.ARMED


def test_what_is_let_go_while_a_sync_waits_is_answered(bench, prop):
    create(bench)
    wire = bench.session()
    binding = bind(wire).binding
    wire.say(request_id=5, sync=session_pb2.Sync())
    wire.say(unbind=session_pb2.Unbind(binding=binding))
    prop.syncs[0]()
    bench.turn()
    assert [frame.result.status.code for frame in wire.told() if frame.request_id == 5] == [Code.NOT_FOUND]


def test_a_closed_job_is_opened_by_the_options_that_it_was_made_with(line):
    bench = line.begin(Prop)
    number = create(bench, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE, queue_depth=7).id
    line.end()
    bench = line.begin()
    job = bench.daemon.durables.job(number)
    bench.install(Prop(bench.daemon.host))
    assert bench.daemon.conductor.start(job, _ignored)
    assert job.options.overflow == job_pb2.OVERFLOW_PAUSE_SOURCE
    assert job.options.queue_depth == 7
    assert job.options.acknowledgement == job_pb2.ACKNOWLEDGEMENT_EXPLICIT, "its handlers reply"


def test_the_end_writes_once_what_waits_behind_a_write(line, capsys):
    bench = line.begin(Prop)
    job = create(bench)
    store = bench.daemon.durables._store
    for _ in range(3):
        bench.daemon.engine.fire(job, b"event")
        bench.daemon.durables.keep()
    assert store.pending_bytes
    line.end()
    assert "cannot be written" not in capsys.readouterr().out
    bench = line.begin(Prop)
    assert bench.daemon.durables._store.clean


def test_a_job_that_was_shut_down_does_not_come_back_after_a_kill(bench, prop, line):
    job = create(bench)
    wire = bench.session()
    bind(wire)
    bench.daemon.engine.fire(job, b"event")
    bench.turn()
    bench.daemon.conductor.shutdown(job, by=principal(), deadline_ns=0)
    assert job.state is JobState.CLOSING, "its handler runs"
    store = bench.daemon.durables._store
    bench.turn()
    bench.turn_until(lambda: store._sent is None)
    (line.folder / "killed").mkdir(mode=0o700)
    for file in line.folder.glob("aemd.db*"):  # what is on the disk at this moment
        shutil.copy(file, line.folder / "killed")
    follower = line.begin(Prop, folder=line.folder / "killed")
    assert follower.daemon.durables.job(job.id) is None
    line.end()
    assert line.begin(Prop, folder=line.folder / "killed").daemon.durables._store.jobs == []
