"""Engine and modules in step: what a module refuses, and what it gets wrong."""

import pytest
from structlog.testing import capture_logs

from aemd.core.errors import AemError, Code, invalid
from aemd.v1 import job_pb2, session_pb2
from tests.unit.service.conftest import Prop


@pytest.fixture
def quiet():
    """The log of the test, out of the way."""
    with capture_logs() as logs:
        yield logs


def fire(bench, prop, job_id, *, key=b"k"):
    job = next(job for job in bench.daemon.engine.jobs_of_module("prop") if job.id == job_id)
    prop.host.fire(job, b"", key=key)
    bench.turn()


def complete(wire, registered, seq=1, operation="do"):
    return wire.ask(
        complete=session_pb2.Complete(
            binding=registered.binding,
            cursor=job_pb2.Cursor(epoch=1, seq=seq),
            reply=session_pb2.Operation(name=operation, data=b"x"),
        )
    )


def test_job_is_opened_started_stopped_and_closed_in_that_order(bench, prop):
    wire = bench.session()
    job = wire.register("prop").job
    wire.ask(stop=session_pb2.Stop(job=job))
    wire.ask(shutdown=session_pb2.Shutdown(job=job))
    assert prop.calls == [("open", job), ("start", job), ("stop", job), ("close", job)]
    assert bench.daemon.descriptors.charged == 0


def test_refusal_in_open_leaves_nothing(bench, prop):
    wire = bench.session()
    prop.failing["open"] = invalid("params.x", "is wrong")
    status = wire.register("prop")
    assert (status.code, status.message) == (Code.INVALID_ARGUMENT, "params.x: is wrong")
    assert [name for name, _ in prop.calls] == ["open"]
    assert bench.daemon.engine.job_count(wire.stream.principal) == 0
    assert bench.daemon.descriptors.charged == 0


def test_job_that_ends_while_it_starts_is_announced_before_its_end(bench):
    class Spent(Prop):
        def start(self, job):
            self.host.exhaust(job, "there is nothing")

    bench.install(Spent(bench.daemon.host))
    wire = bench.session()
    wire.say(request_id=1, register=session_pb2.Register(module="prop", start=True))
    bench.turn()
    registered, state = wire.told()
    assert registered.registered.state == job_pb2.STATE_GONE
    assert (state.job_state.job, state.job_state.reason) == (registered.registered.job, "there is nothing")


@pytest.mark.parametrize("one_shot", [False, True])
def test_refused_reply_is_told_also_where_the_job_ends_with_it(bench, prop, one_shot):
    wire = bench.session()
    registered = wire.register("prop", options=job_pb2.Options(one_shot=one_shot))
    fire(bench, prop, registered.job)
    prop.failing["operate"] = AemError(Code.NOT_FOUND, "NOT_FOUND", "the connection has closed")
    status = complete(wire, registered)
    assert (status.code, status.message) == (Code.NOT_FOUND, "the connection has closed")


def test_reply_is_not_refused_for_what_another_job_met(bench, prop):
    wire = bench.session()
    registered, other = wire.register("prop"), wire.register("prop")
    fire(bench, prop, registered.job)
    job = next(job for job in bench.daemon.engine.jobs_of_module("prop") if job.id == other.job)
    prop.failing["stop"] = AemError(Code.INTERNAL, "BROKEN", "the other one")
    bench.daemon.engine.stop(job, bench.daemon.engine.now)  # its effect is carried out with the reply
    assert complete(wire, registered).code == Code.OK


def test_refusal_in_start_closes_what_was_opened(bench, prop):
    wire = bench.session()
    prop.failing["start"] = AemError(Code.ALREADY_EXISTS, "TAKEN", "taken")
    assert wire.register("prop").code == Code.ALREADY_EXISTS
    assert [name for name, _ in prop.calls] == ["open", "start", "close"]
    assert bench.daemon.engine.job_count(wire.stream.principal) == 0
    assert bench.daemon.descriptors.charged == 0


def test_refusal_of_a_later_start_leaves_the_job_registered(bench, prop):
    wire = bench.session()
    job = wire.register("prop", start=False).job
    prop.failing["start"] = AemError(Code.ALREADY_EXISTS, "TAKEN", "taken")
    assert wire.ask(start=session_pb2.Start(job=job)).code == Code.ALREADY_EXISTS
    assert [job.state.wire for job in bench.daemon.engine.jobs_of_module("prop")] == [
        job_pb2.STATE_REGISTERED
    ]
    prop.failing.clear()
    assert wire.ask(start=session_pb2.Start(job=job)).code == 0


@pytest.mark.parametrize("where", ["open", "start"])
def test_fault_in_a_registration_is_internal_and_leaves_nothing(bench, prop, quiet, where):
    wire = bench.session()
    prop.failing[where] = ZeroDivisionError("/secret")
    status = wire.register("prop")
    assert status.code == Code.INTERNAL
    assert "secret" not in str(status)
    assert bench.daemon.engine.job_count(wire.stream.principal) == 0
    assert quiet[0]["module"] == "prop"


@pytest.mark.parametrize("where", ["stop", "operate"])
def test_fault_in_a_job_ends_that_job_only(bench, prop, quiet, where):
    wire = bench.session()
    good = wire.register("prop").job
    bad = wire.register("prop").job
    prop.failing[where] = ZeroDivisionError()
    if where == "stop":
        wire.say(stop=session_pb2.Stop(job=bad))
    else:
        wire.say(op=session_pb2.Op(job=bad, key=b"k", operation=session_pb2.Operation(name="do")))
    bench.turn()
    gone = [frame.job_state for frame in wire.told() if frame.HasField("job_state")]
    assert [(each.job, each.state) for each in gone] == [(bad, job_pb2.STATE_GONE)]
    assert "module prop met a fault" in gone[0].reason
    assert [job.id for job in bench.daemon.engine.jobs_of_module("prop")] == [good]
    assert wire.status is None


def test_fault_in_close_still_gives_descriptors_back(bench, prop, quiet):
    wire = bench.session()
    registered = wire.register("prop")
    prop.failing["close"] = ZeroDivisionError()
    assert wire.ask(unbind=session_pb2.Unbind(binding=registered.binding)).code == 0
    assert bench.daemon.descriptors.charged == 0
    assert len(quiet) == 1


def test_fault_in_details_shows_a_job_without_them(bench, prop, quiet):
    wire = bench.session()
    wire.register("prop")
    prop.failing["details"] = ZeroDivisionError()
    (job,) = bench.daemon.engine.jobs_of_module("prop")
    assert bench.daemon.conductor.details(job) == {}


def test_reply_reaches_the_module_and_its_refusal_the_client(bench, prop):
    wire = bench.session()
    registered = wire.register("prop")
    for _ in range(3):
        fire(bench, prop, registered.job)
    assert complete(wire, registered, 1).code == 0
    assert prop.calls[-1] == ("operate", registered.job)
    prop.failing["operate"] = AemError(Code.NOT_FOUND, "CONNECTION_GONE", "gone")
    assert complete(wire, registered, 2).code == Code.NOT_FOUND
    assert complete(wire, registered, 3, operation="dance").code == Code.INVALID_ARGUMENT


def test_unknown_operation_names_those_that_there_are(bench, prop):
    wire = bench.session()
    job = wire.register("prop").job
    operation = session_pb2.Operation(name="dance")
    status = wire.ask(op=session_pb2.Op(job=job, key=b"k", operation=operation))
    assert (status.code, "it has: do" in status.message) == (Code.INVALID_ARGUMENT, True)


def test_full_queue_pauses_the_source_and_room_resumes_it(bench, prop):
    wire = bench.session(credit=job_pb2.Credit(events=100, bytes=1 << 20))
    options = job_pb2.Options(queue_depth=2, overflow=job_pb2.OVERFLOW_PAUSE_SOURCE)
    registered = wire.register("prop", options=options)
    fire(bench, prop, registered.job)
    fire(bench, prop, registered.job)
    assert prop.calls[-1] == ("pause", registered.job)
    complete(wire, registered, 1)
    assert ("resume", registered.job) in prop.calls


def test_unload_ends_the_jobs_with_that_reason(bench, prop):
    wire = bench.session()
    wire.register("prop")
    wire.register("user", channel="c")
    bench.turn()
    wire.told()
    assert bench.daemon.conductor.unload_module("prop") == 1
    bench.turn()
    (state,) = [frame.job_state for frame in wire.told()]
    assert (state.state, state.reason) == (job_pb2.STATE_GONE, "module prop was unloaded")
    assert wire.register("prop").code == Code.NOT_FOUND
    assert bench.daemon.engine.job_count(wire.stream.principal) == 1


def test_equal_parameters_are_kept_once(bench):
    wire = bench.session()
    for every in ("1h", "1h", "2h"):
        wire.register("timer", every=every)
    first, second, third = bench.daemon.engine.jobs_of_module("timer")
    assert first.values is second.values
    assert first.params is second.params
    assert third.values["every"] == 2 * first.values["every"]


def test_sync_of_a_lost_stream_is_not_answered_on_the_next(bench, prop):
    lost = bench.session()
    job = lost.register("prop").job
    lost.say(request_id=5, sync=session_pb2.Sync(jobs=[job]))
    bench.turn()
    lost.handler.closed("cancelled")
    back = bench.wire()
    assert back.hello(resume_token=lost.handler.session.token).resumed
    (done,) = prop.syncs
    done()
    bench.turn()
    assert not back.told()
