"""The life of a job: every state meets every event, through the engine's commands."""

from __future__ import annotations

import itertools

import pytest

from aemd.core import job as job_module
from aemd.core.errors import AemError
from aemd.core.job import TABLE, Action, Job, JobEvent, JobState
from aemd.v1 import job_pb2

EFFECT = {Action.NONE: [], Action.ARM: ["Arm"], Action.DISARM: ["Disarm"], Action.RELEASE: ["Release"]}


def bring(bench, state: JobState) -> Job:
    """A job in `state`, with a handler that runs."""
    engine = bench.engine
    job = bench.job()
    engine.fire(job, b"running")
    bench.frames()
    if state is JobState.REGISTERED:
        engine.stop(job, bench.now)
    elif state is JobState.DEGRADED:
        engine.fail_source(job, "broken")
    elif state is JobState.DRAINING:
        engine.exhaust(job, "exhausted")
    elif state is JobState.CLOSING:
        engine.shutdown(job, reason="enough", deadline_ns=0, now=bench.now)
    elif state is JobState.GONE:
        engine.unbind(bench.session, job.binding.id, bench.now)
    assert job.state is state
    bench.effects()
    return job


def happen(bench, job: Job, event: JobEvent) -> None:
    engine = bench.engine
    if event is JobEvent.START:
        engine.start(job, bench.now)
    elif event is JobEvent.START_FAILED:
        engine.start_failed(job)
    elif event is JobEvent.STOP:
        engine.stop(job, bench.now)
    elif event is JobEvent.SOURCE_FAILED:
        engine.fail_source(job, "broken")
    elif event is JobEvent.SOURCE_BACK:
        engine.restore_source(job)
    elif event is JobEvent.SPENT:
        engine.exhaust(job, "exhausted")
    elif event is JobEvent.SHUTDOWN:
        engine.shutdown(job, reason="enough", deadline_ns=0, now=bench.now)
    else:
        engine.end_job(job, "gone", bench.now)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(JobState, JobEvent)))
def test_engine_follows_the_table(bench, state, event):
    job = bring(bench, state)
    step = TABLE.get((state, event))
    if step is not None:
        happen(bench, job, event)
        assert job.state is step[0]
        assert bench.effects() == EFFECT[step[1]]
    elif state is JobState.GONE and event not in (JobEvent.START, JobEvent.STOP):
        happen(bench, job, event)
        assert job.state is state
        assert bench.effects() == []
    else:
        with pytest.raises(AemError) as raised:
            happen(bench, job, event)
        assert raised.value.reason == "JOB_ENDING"
        assert job.state is state


def test_every_row_of_the_table_is_reached(bench, monkeypatch):
    used = set()

    class Recorder(dict):
        def get(self, row, default=None):
            used.add(row)
            return super().get(row, default)

    monkeypatch.setattr(job_module, "TABLE", Recorder(TABLE))
    for state, event in TABLE:
        happen(bench, bring(bench, state), event)
    assert used == set(TABLE)


def test_wire_knows_every_state():
    assert {state.wire for state in JobState} == set(job_pb2.State.values()) - {0}
    assert JobState.DRAINING.wire == job_pb2.STATE_CLOSING


def test_million_idle_jobs_hold_no_containers(bench):
    job = bench.job(start=False)
    binding = job.binding
    assert not hasattr(job, "__dict__")
    assert not hasattr(binding, "__dict__")
    assert [binding.queue, binding.unacked, binding.again, binding.timers, binding.stats] == [None] * 5


def test_job_that_is_idle_again_holds_no_containers(bench):
    job = bench.job()
    bench.engine.fire(job, b"event")
    bench.frames()
    bench.ack(job, 1)
    assert [job.binding.queue, job.binding.unacked, job.binding.again] == [None] * 3
