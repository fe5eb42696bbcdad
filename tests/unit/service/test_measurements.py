"""GetMetrics over a real daemon: what is told, and to whom."""

import pytest

from aemd.core.errors import Code
from aemd.core.quota import Quota
from aemd.service.catalogue import BY_NAME, METRICS, Audience
from aemd.service.measurements import JOBS_MAX, _Samples
from aemd.v1 import admin_pb2, job_pb2, session_pb2
from tests.unit.service.conftest import principal

MINE, THEIRS = principal(7), principal(8)


@pytest.fixture
def measure(bench):
    """Asks; the samples by metric and labels, or the Code of the refusal."""

    def do(caller, jobs=0):
        wire = bench.wire("/aem.v1.AdminService/GetMetrics", caller)
        kept = []
        wire.take = kept.append
        wire.handler.data(admin_pb2.GetMetricsRequest(jobs=jobs).SerializeToString())
        wire.handler.half_closed()
        if not kept:
            return Code(wire.status[0])
        answer = admin_pb2.GetMetricsResponse.FromString(kept[0])
        return {
            (metric.name, *sample.labels): sample.distribution
            if metric.kind == admin_pb2.METRIC_KIND_HISTOGRAM
            else sample.value
            for metric in answer.metrics
            for sample in metric.samples
        }

    return do


def raised(wire, times):
    wire.say(**{"raise": session_pb2.Raise(channel="c", payloads=[b"{}"] * times)})


def test_what_an_event_goes_through_is_counted_at_every_hop(bench, measure):
    wire = bench.session(MINE)
    job = wire.register("user", channel="c")
    raised(wire, 3)
    bench.turn()
    cursor = job_pb2.Cursor(epoch=1, seq=3)
    wire.say(ack=session_pb2.Ack(binding=job.binding, cursor=cursor))
    told = measure(MINE)
    assert told["aemd_jobs", "user"] == 1
    assert told["aemd_job_fires", "user"] == 3
    assert told["aemd_session_delivered", "user"] == 3
    assert told["aemd_session_acknowledged", "user"] == 3
    assert told["aemd_session_event_bytes", "user"] > 0
    assert sum(told["aemd_session_delivery_seconds", "user"].counts) == 3
    assert told["aemd_session_delivery_seconds", "user"].sum > 0
    assert sum(told["aemd_session_acknowledgement_seconds", "user"].counts) == 3
    assert told["aemd_sessions", "yes"] == 1
    assert told["aemd_session_frames", "in"] == 3  # Register, Raise, Ack
    assert told["aemd_session_frames", "out"] == 2  # Registered, the events
    assert told["aemd_job_fires", "timer"] == 0
    assert told["aemd_quota_used", "7", "jobs"] == 1
    assert told["aemd_quota_limit", "7", "jobs"] == Quota().jobs


def test_losses_have_the_names_of_the_stages(bench, measure, prop):
    wire = bench.session(MINE)
    job_id = wire.register("prop", options=job_pb2.Options(queue_depth=1)).job
    job = bench.daemon.engine.find_job(MINE, job_id)
    wire.handler.closed("lost")
    for _ in range(3):
        prop.host.fire(job, b"")
    prop.host.gap(job, stage=session_pb2.STAGE_KERNEL, cause=session_pb2.CAUSE_OVERFLOW, count=5)
    told = measure(MINE, jobs=10)
    assert told["aemd_lost", "prop", "job", "overflow"] == 2
    assert told["aemd_lost", "timer", "session", "stream-lost"] == 0  # there before the first loss
    assert told["aemd_lost", "prop", "kernel", "overflow"] == 5
    assert told["aemd_one_job_lost", str(job_id), "prop", "", "kernel"] == 5
    assert told["aemd_one_job_lag", str(job_id), "prop", ""] == 8
    assert (told["aemd_sessions", "no"], told["aemd_session_cut",]) == (1, 1)


def test_who_is_not_the_administrator_learns_nothing_of_others_nor_of_the_daemon(bench, measure):
    wire = bench.session(MINE)
    wire.register("user", channel="c")
    before = measure(MINE, jobs=JOBS_MAX)
    theirs = bench.session(THEIRS)
    theirs.register("user", channel="c")
    raised(theirs, 100)
    bench.turn()
    theirs.handler.closed("lost")
    after = measure(MINE, jobs=JOBS_MAX)
    timeless = {key: value for key, value in before.items() if not key[-1].endswith("_per_second")}
    assert {key: value for key, value in after.items() if not key[-1].endswith("_per_second")} == timeless
    assert after.keys() == before.keys()
    told = {BY_NAME[name].audience for name, *_ in before}
    assert told == {Audience.CALLER, Audience.JOB}


def test_the_administrator_is_told_of_everybody_and_of_the_daemon(bench, measure):
    for caller, times in ((MINE, 2), (THEIRS, 3)):
        wire = bench.session(caller)
        wire.register("user", channel="c")
        raised(wire, times)
    bench.turn()
    told = measure(principal(), jobs=JOBS_MAX)
    assert told["aemd_job_fires", "user"] == 5
    assert told["aemd_sessions", "yes"] == 2
    assert sum(name == "aemd_one_job_fires" for name, *_ in told) == 2
    assert told["aemd_loop_turns",] >= told["aemd_loop_wakeups",]
    assert sum(told["aemd_loop_turn_seconds",].counts) == told["aemd_loop_turns",]
    assert told["aemd_loop_turn_longest_seconds",] > 0
    assert told["aemd_calls", "/aem.v1.EventService/Session"] == 2
    assert told["aemd_resident_bytes",] > 0


def test_a_timer_that_fires_is_a_read_of_its_source(bench, measure):
    before = measure(principal())
    wire = bench.session()
    wire.register("timer", after="1ms")
    bench.turn_until(lambda: any(frame.HasField("batch") for frame in wire.frames))
    after = measure(principal())
    assert after["aemd_source_reads", "timerfd"] > before["aemd_source_reads", "timerfd"]
    assert after["aemd_source_events", "timerfd"] > before["aemd_source_events", "timerfd"]


def test_calls_of_methods_that_do_not_exist_have_one_name(bench, measure):
    for name in ("/made/up", "/and/another"):
        bench.wire(name, MINE)
    told = measure(principal())
    assert told["aemd_calls", "unknown"] == 2
    assert not any("made" in label for _, *labels in told for label in labels)


def test_only_so_many_jobs_are_told_one_by_one(bench, measure):
    wire = bench.session(MINE)
    jobs = [wire.register("timer", every="1h").job for _ in range(3)]
    told = measure(MINE, jobs=2)
    assert sorted(key[1] for key in told if key[0] == "aemd_one_job_fires") == [str(job) for job in jobs[:2]]
    assert not any(key[0] in ("aemd_one_job_fires", "aemd_one_job_lag") for key in measure(MINE))
    assert measure(MINE, jobs=JOBS_MAX + 1) is Code.INVALID_ARGUMENT
    assert measure(MINE, jobs=-1) is Code.INVALID_ARGUMENT


def test_metrics_have_names_of_their_own_and_all_labels():
    assert len(BY_NAME) == len(METRICS)
    assert all(metric.name.startswith("aemd_") and metric.help.endswith(".") for metric in METRICS[:-1])
    assert not any(metric.name.endswith("_total") for metric in METRICS)
    samples = _Samples(0)
    with pytest.raises(ValueError, match="has the labels module"):
        samples.put("aemd_jobs", 1)
    with pytest.raises(KeyError):
        samples.put("aemd_unheard_of", 1)
