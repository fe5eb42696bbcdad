"""The unary services, over a real engine."""

import time
from dataclasses import replace

import pytest

from aemd.core.errors import Code
from aemd.core.principal import Owner
from aemd.core.quota import RESOURCES, Quota
from aemd.service.unary import method
from aemd.v1 import admin_pb2, job_pb2, module_pb2
from tests.unit.service.conftest import principal

RESPONSES = {
    "JobService/ListJobs": job_pb2.ListJobsResponse,
    "ModuleService/GetModule": module_pb2.Module,
    "ModuleService/LoadModule": module_pb2.Module,
    "ModuleService/ListModules": module_pb2.ListModulesResponse,
    "ModuleService/UnloadModule": module_pb2.UnloadModuleResponse,
    "AdminService/GetStatus": admin_pb2.DaemonStatus,
    "AdminService/ListSessions": admin_pb2.ListSessionsResponse,
    "AdminService/EndSession": admin_pb2.EndSessionResponse,
    "AdminService/ListQuotas": admin_pb2.ListQuotasResponse,
}


@pytest.fixture
def call(bench):
    """Calls a method; its response, or the Code of its refusal."""

    def do(method, request, caller=None):
        wire = bench.wire(f"/aem.v1.{method}", caller)
        kept = []
        wire.take = kept.append
        wire.handler.data(request.SerializeToString())
        wire.handler.half_closed()
        code, _ = wire.status
        return RESPONSES.get(method, job_pb2.Job).FromString(kept[0]) if kept else Code(code)

    return do


def test_every_method_of_the_proto_is_there(bench):
    files = (job_pb2, module_pb2, admin_pb2)
    described = {
        f"/{service.full_name}/{method.name}": method.input_type.full_name
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    served = {path: method.request.DESCRIPTOR.full_name for path, method in bench.daemon.methods.items()}
    assert served == described


def test_get_job_shows_it_as_it_was_registered(bench, call):
    wire = bench.session(label="client")
    job = wire.register("timer", every="1h", cookie="7").job
    shown = call("JobService/GetJob", job_pb2.GetJobRequest(name=f"jobs/{job}"))
    assert {name: value.text for name, value in shown.params.items()} == {"every": "1h", "cookie": "7"}
    assert (shown.module, shown.state, shown.uid) == ("timer", job_pb2.STATE_ARMED, 0)
    assert shown.options.queue_depth == 1_024
    assert shown.options.priority == 3
    assert shown.session == f"sessions/{wire.handler.session.id}"
    assert shown.details


def test_list_jobs_pages_and_filters(bench, call):
    wire = bench.session()
    timers = [wire.register("timer", every="1h").job for _ in range(5)]
    user = wire.register("user", channel="c", start=False).job

    def pages(size, **query):
        token = ""
        while True:
            request = job_pb2.ListJobsRequest(page_size=size, page_token=token, **query)
            page = call("JobService/ListJobs", request)
            yield [job.id for job in page.jobs]
            token = page.next_page_token
            if not token:
                return

    assert list(pages(4)) == [timers[:4], [timers[4], user]]
    assert list(pages(3)) == [timers[:3], [*timers[3:], user]]
    assert list(pages(2, module="timer")) == [timers[:2], timers[2:4], timers[4:]]
    assert list(pages(0, state=job_pb2.STATE_REGISTERED)) == [[user]]
    assert call("JobService/ListJobs", job_pb2.ListJobsRequest(page_token="§")) is Code.INVALID_ARGUMENT
    assert call("JobService/ListJobs", job_pb2.ListJobsRequest(page_size=-1)) is Code.INVALID_ARGUMENT


def test_job_is_stopped_started_and_shut_down(bench, call):
    name = f"jobs/{bench.session().register('user', channel='c').job}"
    assert call("JobService/StopJob", job_pb2.StopJobRequest(name=name)).state == job_pb2.STATE_REGISTERED
    assert call("JobService/StartJob", job_pb2.StartJobRequest(name=name)).state == job_pb2.STATE_ARMED
    far = job_pb2.ShutdownJobRequest(name=name, deadline_ns=10**18)
    assert call("JobService/ShutdownJob", far) is Code.INVALID_ARGUMENT
    ended = call("JobService/ShutdownJob", job_pb2.ShutdownJobRequest(name=name))
    assert (ended.state, ended.reason) == (job_pb2.STATE_GONE, "shut down by its owner")
    assert call("JobService/GetJob", job_pb2.GetJobRequest(name=name)) is Code.NOT_FOUND


def test_job_that_somebody_else_shut_down_says_who(bench, call):
    wire = bench.session(principal(7))
    request = job_pb2.ShutdownJobRequest(name=f"jobs/{wire.register('user', channel='c').job}")
    assert call("JobService/ShutdownJob", request).reason == "shut down by uid 0"


def test_update_changes_the_priority_and_nothing_else(bench, call):
    name = f"jobs/{bench.session().register('user', channel='c').job}"

    def update(*paths, **options):
        request = job_pb2.UpdateJobRequest(job=job_pb2.Job(name=name, options=job_pb2.Options(**options)))
        request.update_mask.paths.extend(paths)
        return call("JobService/UpdateJob", request)

    assert update(priority=6).options.priority == 6
    assert update("options.priority", priority=0).options.priority == 0
    assert update("*", priority=5).options.priority == 5
    assert update("options.priority", priority=8) is Code.INVALID_ARGUMENT
    assert update("options.priority") is Code.INVALID_ARGUMENT
    assert update("label", priority=1) is Code.INVALID_ARGUMENT


def test_modules_are_listed_and_described(bench, call):
    bench.session().register("timer", every="1h")
    listed = call("ModuleService/ListModules", module_pb2.ListModulesRequest(page_size=2))
    rest = module_pb2.ListModulesRequest(page_token=listed.next_page_token)
    names = [module.id for module in [*listed.modules, *call("ModuleService/ListModules", rest).modules]]
    assert names == ["process", "socket", "timer", "user"]
    timer = call("ModuleService/GetModule", module_pb2.GetModuleRequest(name="modules/timer"))
    assert (timer.jobs, timer.delivery) == (1, module_pb2.DELIVERY_COALESCE)
    assert call("ModuleService/GetModule", module_pb2.GetModuleRequest(name="modules/x")) is Code.NOT_FOUND


def test_modules_are_changed_by_the_administrator_only(bench, call):
    wire = bench.session()
    wire.register("timer", every="1h")
    load = module_pb2.LoadModuleRequest(name="modules/timer")
    unload = module_pb2.UnloadModuleRequest(name="modules/timer")
    somebody = principal(7)
    assert call("ModuleService/LoadModule", load, somebody) is Code.PERMISSION_DENIED
    assert call("ModuleService/UnloadModule", unload, somebody) is Code.PERMISSION_DENIED
    assert call("ModuleService/LoadModule", load).id == "timer"
    bench.turn()
    assert "loaded anew" in wire.told()[-1].job_state.reason
    wire.register("timer", every="1h")
    assert call("ModuleService/UnloadModule", unload).jobs == 1
    assert wire.register("timer", every="1h").code == Code.NOT_FOUND
    assert call("ModuleService/UnloadModule", unload) is Code.NOT_FOUND


def test_everybody_sees_his_own_and_the_administrator_everything(bench, call):
    mine, theirs = principal(7), principal(8)
    wire = bench.session(mine)
    job = wire.register("user", channel="c").job
    bench.session(theirs).register("user", channel="c")
    sizes = {}
    for caller in (mine, theirs, principal()):
        status = call("AdminService/GetStatus", admin_pb2.GetStatusRequest(), caller)
        listed = call("AdminService/ListSessions", admin_pb2.ListSessionsRequest(), caller).sessions
        jobs = call("JobService/ListJobs", job_pb2.ListJobsRequest(), caller).jobs
        assert (status.jobs, status.sessions) == (len(jobs), len(listed))
        assert bool(status.descriptors_open) is caller.administrator
        assert bool(status.resident_bytes) is caller.administrator
        sizes[caller.uid] = len(jobs)
    assert sizes == {7: 1, 8: 1, 0: 2}
    name = f"jobs/{job}"
    end = admin_pb2.EndSessionRequest(name=f"sessions/{wire.handler.session.id}")
    refusals = [
        call("JobService/GetJob", job_pb2.GetJobRequest(name=name), theirs),
        call("JobService/GetJob", job_pb2.GetJobRequest(name="jobs/999"), theirs),
        call("JobService/StopJob", job_pb2.StopJobRequest(name=name), theirs),
        call("AdminService/EndSession", end, theirs),
    ]
    assert set(refusals) == {Code.NOT_FOUND}
    assert call("AdminService/EndSession", end, mine).jobs == 1
    assert wire.status[0] == Code.ABORTED


def test_sessions_are_listed_by_pages(bench, call):
    wires = [bench.session(label=f"{n}") for n in range(5)]
    wires[0].handler.closed("lost")
    first = call("AdminService/ListSessions", admin_pb2.ListSessionsRequest(page_size=3))
    rest = admin_pb2.ListSessionsRequest(page_size=3, page_token=first.next_page_token)
    second = call("AdminService/ListSessions", rest)
    assert [session.label for session in [*first.sessions, *second.sessions]] == list("01234")
    assert [session.connected for session in first.sessions] == [False, True, True]
    assert second.next_page_token == ""


def test_calls_of_one_user_that_are_much_work_leave_the_others_a_turn(bench):
    answered = []

    def answer(principal, request):
        answered.append((bench.daemon.loop.turns, principal.uid))
        until_ns = time.monotonic_ns() + bench.daemon.limits.turn_ns
        while time.monotonic_ns() <= until_ns:
            pass
        return job_pb2.Job()

    bench.daemon.methods["/slow"] = method(job_pb2.GetJobRequest, answer)
    wires = [bench.wire("/slow", principal(uid)) for uid in (1000, 1000, 1000, 1001)]
    for wire in wires:
        bench.daemon.loop.defer(wire.handler.half_closed)
    bench.turn_until(lambda: len(answered) == len(wires))
    assert [uid for _, uid in answered] == [1000, 1001, 1000, 1000]
    turns = [turn for turn, uid in answered if uid == 1000]
    assert len(set(turns)) == len(turns)
    assert {wire.status for wire in wires} == {(Code.OK, "")}


def test_quotas_are_those_of_the_caller_and_for_the_administrator_of_all_by_page(bench, call):
    mine, theirs, root = principal(7), principal(8), principal()
    bench.session(mine).register("user", channel="c")
    bench.session(theirs).register("user", channel="c")

    def quotas(caller, **request):
        return call("AdminService/ListQuotas", admin_pb2.ListQuotasRequest(**request), caller)

    (own,) = quotas(mine).users
    assert own.name == "users/7"
    uses = {use.resource: use for use in own.uses}
    assert list(uses) == list(RESOURCES)
    assert [uses[name].used for name in ("sessions", "jobs", "channels", "children")] == [1, 1, 1, 0]
    assert (uses["jobs"].limit, uses["jobs"].origin) == (Quota().jobs, "default")
    assert [user.uid for user in quotas(root).users] == [7, 8]
    first = quotas(root, page_size=1)
    second = quotas(root, page_size=1, page_token=first.next_page_token)
    assert [user.uid for user in (*first.users, *second.users)] == [7, 8]
    assert not second.next_page_token
    inside = replace(mine, owner=Owner(7, user_namespace=9))
    assert not quotas(inside).users
