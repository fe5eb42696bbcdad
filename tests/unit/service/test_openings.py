"""Registrations and starts that wait for the deputy: whatever happens meanwhile, nothing of them is left."""

import os

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.job import JobState
from aemd.modules.need import OpenPath
from aemd.v1 import session_pb2
from tests.unit.service.conftest import Prop, principal


class Needy(Prop):
    """Needs a path before open(), and again before a start."""

    def __init__(self, host):
        super().__init__(host)
        self.path = b"/etc/passwd"
        self.given = []
        self.asked = 0

    def needs(self, job, *, opening, starting):
        self._called("needs", job)
        self.asked += 1
        if opening:
            self.host.charge(job, 1)
        return (OpenPath(self.path),)

    def open(self, job):
        self.calls.append(("open", job.id))
        if "open" in self.failing:
            raise self.failing["open"]
        self.given += self.host.given(job)

    def start(self, job):
        self._called("start", job)
        self.given += self.host.given(job)


@pytest.fixture
def needy(bench):
    module = Needy(bench.daemon.host)
    bench.install(module)
    yield module
    for opened in module.given:
        opened.close()
    bench.turn_until(lambda: not bench.daemon.deputy.busy)
    assert bench.daemon.descriptors.charged == 0 or any(name == "open" for name, _ in module.calls)


def register(wire, request_id=5, *, start=True):
    wire.say(request_id=request_id, register=session_pb2.Register(module="prop", start=start))


def answers(wire):
    return {frame.request_id: frame for frame in wire.frames if frame.request_id}


def descriptors(bench):
    return bench.daemon.descriptors.charged


def test_other_frames_are_answered_while_a_registration_waits(bench, needy):
    wire = bench.session()
    register(wire)
    wire.say(request_id=6, register=session_pb2.Register(module="user"))
    wire.say(request_id=7, sync=session_pb2.Sync())
    bench.turn()
    assert 5 not in answers(wire)
    assert 6 in answers(wire)
    bench.turn_until(lambda: 5 in answers(wire))
    assert answers(wire)[5].registered.job == 1
    assert [name for name, _ in needy.calls] == ["needs", "open", "start"]
    assert len(needy.given) == 1


def test_refused_need_refuses_the_registration_and_nothing_else_is_called(bench, needy):
    needy.path = b"/nowhere/at/all"
    wire = bench.session()
    register(wire)
    bench.turn_until(lambda: 5 in answers(wire))
    status = answers(wire)[5].result.status
    assert status.code == Code.INVALID_ARGUMENT
    assert "/nowhere/at/all" in status.message
    assert [name for name, _ in needy.calls] == ["needs"]
    assert descriptors(bench) == 0
    assert list(wire.handler.session.bindings) == []


def test_module_that_refuses_what_it_needed_leaves_nothing_open(bench, needy):
    needy.failing["open"] = AemError(Code.FAILED_PRECONDITION, "NOT_TODAY", "not today")
    wire = bench.session()
    bench.daemon.deputy._run()
    register(wire)
    bench.turn_until(lambda: 5 in answers(wire))
    assert answers(wire)[5].result.status.message == "not today"
    assert descriptors(bench) == 0
    bench.turn_until(lambda: not bench.daemon.deputy.busy)
    held = [os.readlink(f"/proc/self/fd/{fd}") for fd in open_descriptors()]
    assert "/etc/passwd" not in held


def open_descriptors():
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        found.append(fd)
    return found


ENDS = {
    "stream lost": lambda bench, wire: wire.handler.closed("lost"),
    "malformed frame": lambda bench, wire: wire.say_bytes(b"\xff\xff"),
    "process gone": lambda bench, wire: bench.daemon.process_gone(wire.stream.principal),
    "module unloaded": lambda bench, wire: bench.daemon.conductor.unload_module("prop"),
    "shut down": lambda bench, wire: wire.say(shutdown=session_pb2.Shutdown(job=1)),
    "unbound": lambda bench, wire: wire.say(unbind=session_pb2.Unbind(binding=1)),
}


@pytest.mark.parametrize("end", ENDS)
def test_registration_that_ends_while_it_waits_leaves_nothing(bench, needy, end):
    wire = bench.session()
    register(wire)
    bench.turn()
    assert descriptors(bench) == 1
    ENDS[end](bench, wire)
    bench.turn()
    bench.turn_until(lambda: not bench.daemon.deputy.busy)
    assert [name for name, _ in needy.calls] == ["needs"], "its module has nothing to close"
    assert descriptors(bench) == 0
    assert bench.daemon.engine.job_count(principal()) == 0
    assert needy.given == []
    told = [frame.WhichOneof("frame") for frame in wire.frames]
    assert "job_state" not in told, "of a job that nobody was told of nothing is told"
    if end in ("module unloaded", "shut down", "unbound"):
        assert answers(wire)[5].result.status.code == Code.ABORTED


def test_registration_counts_as_unanswered(make_bench):
    bench = make_bench(unanswered=3)
    module = Needy(bench.daemon.host)
    bench.install(module)
    wire = bench.session()
    for number in range(5):
        register(wire, request_id=10 + number)
    bench.turn()
    assert module.asked == 3
    bench.turn_until(lambda: len(answers(wire)) == 5)
    assert module.asked == 5
    for opened in module.given:
        opened.close()


def test_client_that_says_goodbye_is_answered_first(bench, needy):
    wire = bench.session()
    register(wire)
    wire.handler.half_closed()
    bench.turn()
    assert wire.status is None
    bench.turn_until(lambda: wire.status)
    assert wire.status[0] == Code.OK
    assert answers(wire)[5].registered.job == 1


def test_job_that_is_not_open_yet_answers_as_if_it_were_not_there(bench, needy):
    wire = bench.session()
    register(wire)
    wire.say(request_id=6, start=session_pb2.Start(job=1))
    wire.say(request_id=7, op=session_pb2.Op(job=1))
    wire.say(request_id=8, stop=session_pb2.Stop(job=1))
    bench.turn()
    told = answers(wire)
    assert [told[number].result.status.code for number in (6, 7, 8)] == [Code.NOT_FOUND, Code.NOT_FOUND, 0]
    job = bench.daemon.engine.find_job(principal(), 1)
    assert bench.daemon.conductor.details(job) == {}
    assert not bench.daemon.conductor.busy(job)
    bench.turn_until(lambda: 5 in answers(wire))
    assert needy.calls[-1][0] == "start"


def test_start_asks_again_and_is_refused_once_the_path_is_forbidden(bench, needy):
    wire = bench.session()
    job = wire.register("prop", start=False).job
    assert wire.ask(start=session_pb2.Start(job=job)).code == 0
    assert wire.ask(stop=session_pb2.Stop(job=job)).code == 0
    needy.path = b"/nowhere/at/all"
    assert wire.ask(start=session_pb2.Start(job=job)).code == Code.INVALID_ARGUMENT
    assert [name for name, _ in needy.calls] == ["needs", "open", "needs", "start", "stop", "needs"]
    assert bench.daemon.engine.find_job(principal(), job).state.name == "REGISTERED"


def test_stop_while_a_start_waits_answers_both(bench, needy):
    wire = bench.session()
    job = wire.register("prop", start=False).job
    wire.say(request_id=6, start=session_pb2.Start(job=job))
    wire.say(request_id=7, stop=session_pb2.Stop(job=job))
    bench.turn()
    told = answers(wire)
    assert (told[6].result.status.code, told[7].result.status.code) == (Code.ABORTED, 0)
    bench.turn_until(lambda: not bench.daemon.deputy.busy)
    assert needy.calls[-1][0] == "needs"


def test_end_of_the_daemon_while_registrations_wait_leaves_nothing(make_bench):
    bench = make_bench()
    module = Needy(bench.daemon.host)
    bench.install(module)
    wire = bench.session()
    for number in range(100):
        register(wire, request_id=10 + number)
    bench.turn()
    assert descriptors(bench) == 100
    bench.daemon.sessions.leave()
    bench.daemon.engine.end_all("the daemon ends", bench.daemon.conductor.now())
    bench.daemon.conductor.settle()
    assert descriptors(bench) == 0
    assert [name for name, _ in module.calls] == ["needs"] * 100


def test_module_asks_while_its_job_runs_and_is_not_told_after_its_end(bench, needy):
    wire = bench.session()
    job = bench.daemon.engine.find_job(principal(), wire.register("prop").job)
    told = []
    needy.host.ask(job, OpenPath(b"/nowhere/at/all"), told.append)
    bench.turn_until(lambda: told)
    assert isinstance(told[0], AemError)
    needy.host.ask(job, OpenPath(b"/etc/passwd"), told.append)
    assert wire.ask(shutdown=session_pb2.Shutdown(job=job.id)).code == 0
    bench.turn_until(lambda: not bench.daemon.deputy.busy)
    assert len(told) == 1


def test_fault_of_who_is_answered_does_not_reach_the_deputy(bench, needy):
    wire = bench.session()
    needy.failing["open"] = ZeroDivisionError()
    register(wire)
    bench.turn_until(lambda: 5 in answers(wire))
    assert answers(wire)[5].result.status.code == Code.INTERNAL
    del needy.failing["open"]
    assert wire.register("prop").job


def test_registration_without_paths_does_not_start_a_deputy(bench, prop):
    wire = bench.session()
    assert wire.register("socket", listen="tcp:127.0.0.1:0").job
    assert wire.register("prop").job
    assert bench.daemon.deputy.pid == 0


def test_a_job_that_was_handed_over_is_not_lost_with_a_stream_while_it_opens(bench, needy):
    wire = bench.session()
    register(wire, start=False)
    bench.turn_until(lambda: 5 in answers(wire))
    assert answers(wire)[5].HasField("registered"), answers(wire)[5]
    job = bench.daemon.engine.find_job(principal(), 1)
    conductor = bench.daemon.conductor
    bench.daemon.conductor._close(job)  # as if a daemon had just begun
    taken = []
    conductor.take_up_job(job, start=True, taken=taken.append)
    wire.handler.closed("lost")
    bench.turn_until(lambda: taken)
    assert taken == [None]
    assert job.state is JobState.ARMED


def test_a_job_that_was_handed_over_says_while_it_opens_that_it_does(bench, needy):
    wire = bench.session()
    register(wire, start=False)
    bench.turn_until(lambda: 5 in answers(wire))
    assert answers(wire)[5].HasField("registered"), answers(wire)[5]
    job = bench.daemon.engine.find_job(principal(), 1)
    bench.daemon.conductor._close(job)
    taken = []
    bench.daemon.conductor.take_up_job(job, start=True, taken=taken.append)
    for asked in ("start", "stop"):
        request = session_pb2.Start(job=1) if asked == "start" else session_pb2.Stop(job=1)
        wire.say(request_id=8, **{asked: request})
        assert not taken
    bench.turn()
    assert {frame.result.status.code for frame in wire.told() if frame.request_id == 8} == {Code.ABORTED}
    bench.turn_until(lambda: taken)
    assert job.state is JobState.ARMED, "the stop was refused, so it counts for nothing"


def test_a_registration_that_waits_is_not_handed_over(bench, needy):
    wire = bench.session()
    wire.register("timer", every="1h")
    register(wire)
    bench.turn()
    assert bench.daemon.handover.write(frozenset())
    (session,) = bench.daemon.handover._read().sessions
    assert [job.module for job in session.jobs] == ["timer"], "nobody was told of the other one"
