"""A client that becomes somebody else and asks about what is not its own, by every method and every frame.

stranger.py SOCKET WHO JOB SESSION TOKEN PID: prints what it is told, as JSON: [name of the case, answer]
each. WHO is nobody or container-root. It begins as root: the interpreter may lie in a folder that nobody else
can enter.

`METHODS` and `FRAMES` have a case for each method and each frame that there is; a test holds them against the
descriptors. What differs by nature between two runs (times, tokens, the asker's own pid) is taken out of the
answers, everything else is compared byte for byte.
"""

import base64
import ctypes
import importlib
import json
import os
import pkgutil
import sys
from dataclasses import dataclass

import grpc
import grpc._channel
from google.protobuf import message_factory

import aemd.v1
from aemd.v1 import admin_pb2, job_pb2, module_pb2, session_pb2

NOBODY = 65534
CLONE_NEWUSER = 0x10000000
SESSION = "/aem.v1.EventService/Session"
VARIES = {  # by nature, from one run to the next
    "daemon_version", "pid", "resume_token", "socket", "start_time_ns", "start_time_ticks", "time_ns",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What is another's: its numbers, its session's token, a process; and a channel of root's, "c"."""

    job: int
    session: int
    token: bytes
    pid: int

    @property
    def job_name(self):
        return f"jobs/{self.job}"


def frame(**body):
    return session_pb2.ClientFrame(**body)


def text(value):
    return job_pb2.Value(text=value)


def channel_params(uid=None):
    found = {"channel": text("c")}
    if uid is not None:
        found["uid"] = job_pb2.Value(integer=uid)
    return found


def changed_job(target):
    return job_pb2.Job(name=target.job_name, options=job_pb2.Options(priority=1))


METHODS = {
    "/aem.v1.AdminService/EndSession": lambda target: [
        admin_pb2.EndSessionRequest(name=f"sessions/{target.session}")
    ],
    "/aem.v1.AdminService/ExplainPolicy": lambda _: [
        admin_pb2.ExplainPolicyRequest(module="user", params=channel_params(), uid=0),
        admin_pb2.ExplainPolicyRequest(module="user", params=channel_params(0)),
    ],
    "/aem.v1.AdminService/GetMetrics": lambda _: [admin_pb2.GetMetricsRequest(jobs=1000)],
    "/aem.v1.AdminService/GetStatus": lambda _: [admin_pb2.GetStatusRequest()],
    "/aem.v1.AdminService/ListQuotas": lambda _: [admin_pb2.ListQuotasRequest()],
    "/aem.v1.AdminService/ListSessions": lambda target: [
        admin_pb2.ListSessionsRequest(),
        admin_pb2.ListSessionsRequest(page_size=1, page_token=page_token(target.session - 1)),
    ],
    "/aem.v1.AdminService/ReloadConfiguration": lambda _: [admin_pb2.ReloadConfigurationRequest()],
    "/aem.v1.JobService/CreateJob": lambda _: [
        job_pb2.CreateJobRequest(name="kept", module="user", params=channel_params(0)),
        job_pb2.CreateJobRequest(name="17", module="user", params=channel_params()),
    ],
    "/aem.v1.JobService/GetJob": lambda target: [
        job_pb2.GetJobRequest(name=target.job_name),
        job_pb2.GetJobRequest(name="jobs/kept"),
    ],
    "/aem.v1.JobService/ListJobs": lambda target: [
        job_pb2.ListJobsRequest(),
        job_pb2.ListJobsRequest(module="user", state=job_pb2.STATE_ARMED),
        job_pb2.ListJobsRequest(page_size=1, page_token=page_token(target.job - 1)),
    ],
    "/aem.v1.JobService/ListParked": lambda target: [
        job_pb2.ListParkedRequest(name=target.job_name),
        job_pb2.ListParkedRequest(name="jobs/kept"),
    ],
    "/aem.v1.JobService/RetryParked": lambda target: [
        job_pb2.RetryParkedRequest(name=target.job_name),
        job_pb2.RetryParkedRequest(name="jobs/kept", cursors=[job_pb2.Cursor(epoch=1, seq=1)]),
    ],
    "/aem.v1.JobService/ShutdownJob": lambda target: [
        job_pb2.ShutdownJobRequest(name=target.job_name),
        job_pb2.ShutdownJobRequest(name="jobs/kept"),
    ],
    "/aem.v1.JobService/StartJob": lambda target: [job_pb2.StartJobRequest(name=target.job_name)],
    "/aem.v1.JobService/StopJob": lambda target: [job_pb2.StopJobRequest(name=target.job_name)],
    "/aem.v1.JobService/UpdateJob": lambda target: [
        job_pb2.UpdateJobRequest(job=changed_job(target)),
        job_pb2.UpdateJobRequest(job=job_pb2.Job(name=target.job_name)),
    ],
    "/aem.v1.ModuleService/GetModule": lambda _: [module_pb2.GetModuleRequest(name="modules/user")],
    "/aem.v1.ModuleService/ListModules": lambda _: [module_pb2.ListModulesRequest()],
    "/aem.v1.ModuleService/LoadModule": lambda _: [module_pb2.LoadModuleRequest(name="modules/user")],
    "/aem.v1.ModuleService/UnloadModule": lambda _: [module_pb2.UnloadModuleRequest(name="modules/user")],
}

# By field of ClientFrame. What belongs to a session is asked for in a session that has nothing yet.
FRAMES = {
    "hello": lambda target: [
        session_pb2.Hello(
            version_min=1,
            version_max=1,
            resume_token=target.token,
            received=[session_pb2.Position(binding=1, cursor=job_pb2.Cursor(epoch=1, seq=1))],
        )
    ],
    "bind": lambda target: [
        session_pb2.Bind(job=target.job),
        session_pb2.Bind(job=target.job, cursor=job_pb2.Cursor(epoch=1, seq=1)),
        session_pb2.Bind(name="kept"),
        session_pb2.Bind(name="kept", role=session_pb2.ROLE_FOLLOW, **{"from": session_pb2.FROM_OLDEST}),
    ],
    "unbind": lambda target: [session_pb2.Unbind(binding=target.job)],
    "start": lambda target: [session_pb2.Start(job=target.job)],
    "stop": lambda target: [session_pb2.Stop(job=target.job)],
    "shutdown": lambda target: [
        session_pb2.Shutdown(job=target.job),
        session_pb2.Shutdown(job=target.job, deadline_ns=-1),
    ],
    "set_priority": lambda target: [
        session_pb2.SetPriority(job=target.job, priority=7),
        session_pb2.SetPriority(job=target.job, priority=99),
    ],
    "grant": lambda target: [session_pb2.Grant(binding=target.job, credit=job_pb2.Credit(events=1, bytes=1))],
    "ack": lambda target: [session_pb2.Ack(binding=target.job, cursor=job_pb2.Cursor(epoch=1, seq=1))],
    "complete": lambda target: [
        session_pb2.Complete(binding=target.job, cursor=job_pb2.Cursor(epoch=1, seq=1))
    ],
    "nack": lambda target: [
        session_pb2.Nack(binding=target.job, cursor=job_pb2.Cursor(epoch=1, seq=1), park=True)
    ],
    "op": lambda target: [
        session_pb2.Op(job=target.job, operation=session_pb2.Operation(name=name)) for name in ("write", "")
    ],
    "raise": lambda _: [
        session_pb2.Raise(channel="c", payloads=[b"x"]),
        session_pb2.Raise(channel="c", payloads=[b"x"], uid=0),
        session_pb2.Raise(channel="c", payloads=[], uid=0),
    ],
    "sync": lambda target: [session_pb2.Sync(jobs=[target.job]), session_pb2.Sync()],
    "bundle": lambda target: [
        session_pb2.ClientBundle(frames=[frame(request_id=1 << 32, start=session_pb2.Start(job=target.job))])
    ],
    "register": lambda target: [
        session_pb2.Register(module="user", params=channel_params(0), start=True),
        session_pb2.Register(module="process", params={"pid": job_pb2.Value(integer=target.pid)}),
        session_pb2.Register(module="user", params=channel_params()),
    ],
}


def page_token(number):
    return base64.urlsafe_b64encode(b"%d" % number).decode()


def without(message):
    """`message` without what varies, all the way down."""
    for field, value in message.ListFields():
        if field.name in VARIES or field.name.endswith("_time_ns"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE and not is_map(field):
            for each in value if field.is_repeated else [value]:
                without(each)
    return message


def is_map(field):
    return field.message_type.GetOptions().map_entry


def shown(message):
    return base64.b64encode(without(message).SerializeToString(deterministic=True)).decode()


def services():
    """Every method of the API, by path."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(aemd.v1.__path__)):
        package = importlib.import_module(f"aemd.v1.{name}")
        for service in package.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found[f"/{service.full_name}/{method.name}"] = method
    return found


METHODS_THERE_ARE = services()


def unary(channel, path, request):
    try:
        answer = channel.unary_unary(path)(request.SerializeToString(), timeout=20)
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        details = base64.b64encode(trailers.get("grpc-status-details-bin", b"")).decode()
        return [error.code().name, error.details(), details]
    kind = message_factory.GetMessageClass(METHODS_THERE_ARE[path].output_type)
    return ["OK", shown(kind.FromString(answer)), ""]


def calls(channel, target):
    for path, requests in METHODS.items():
        for number, request in enumerate(requests(target)):
            yield f"{path} {number}", unary(channel, path, request)


def frames(channel, target):
    """One session with all frames, those that could make something of its own last."""
    asked, names = [], {}
    for name, bodies in FRAMES.items():
        for number, body in enumerate(bodies(target)):
            asked.append(frame(request_id=len(asked) + 1, **{name: body}))
            names[len(asked)] = f"{name} {number}"
    names[1 << 32] = "bundle's start"
    call = channel.stream_stream(
        SESSION,
        request_serializer=session_pb2.ClientFrame.SerializeToString,
        response_deserializer=session_pb2.ServerFrame.FromString,
    )(iter(asked))
    for answer in call:
        for each in answer.bundle.frames if answer.HasField("bundle") else (answer,):
            assert each.WhichOneof("frame") not in ("batch", "gap"), "an event of another's"
            yield names.get(each.request_id, str(each.request_id)), [each.WhichOneof("frame"), shown(each)]


def become(who):
    if who == "container-root":
        assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
        return
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def main(path, who, job, session, token, pid):
    target = Target(int(job), int(session), bytes.fromhex(token), int(pid))
    become(who)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        print(json.dumps([*calls(channel, target), *frames(channel, target)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
