"""Durable jobs in a daemon, where several things happen at once to one that is closed, opening or ending."""

from __future__ import annotations

import pytest

from aemd.core.errors import Code
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

    def begin(self, *modules, **limits):
        bench = self.bench = Bench.__new__(Bench)
        config = Config(socket=f"{self.folder}/never", state_dir=f"{self.folder}")
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
