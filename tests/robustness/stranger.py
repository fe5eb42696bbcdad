"""A client that becomes nobody: stranger.py SOCKET JOB SESSION ABSENT; prints what it is told, as JSON.

It begins as root: the interpreter may lie in a folder that nobody else can enter.
"""

import base64
import json
import os
import sys

import grpc
import grpc._channel

from aemd.v1 import admin_pb2, job_pb2, module_pb2, session_pb2

NOBODY = 65534
Frame = session_pb2.ClientFrame


def unary(channel, method, request):
    try:
        answer = channel.unary_unary(f"/aem.v1.{method}")(request.SerializeToString(), timeout=20)
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        details = base64.b64encode(trailers.get("grpc-status-details-bin", b"")).decode()
        return [error.code().name, error.details(), details]
    return ["OK", base64.b64encode(answer).decode(), ""]


def calls(channel, job, session):
    name = f"jobs/{job}"
    changed = job_pb2.Job(name=name, options=job_pb2.Options(priority=1))
    return {
        "GetJob": unary(channel, "JobService/GetJob", job_pb2.GetJobRequest(name=name)),
        "StartJob": unary(channel, "JobService/StartJob", job_pb2.StartJobRequest(name=name)),
        "StopJob": unary(channel, "JobService/StopJob", job_pb2.StopJobRequest(name=name)),
        "ShutdownJob": unary(channel, "JobService/ShutdownJob", job_pb2.ShutdownJobRequest(name=name)),
        "UpdateJob": unary(channel, "JobService/UpdateJob", job_pb2.UpdateJobRequest(job=changed)),
        "EndSession": unary(
            channel, "AdminService/EndSession", admin_pb2.EndSessionRequest(name=f"sessions/{session}")
        ),
    }


def frames(job):
    bodies = [
        {"start": session_pb2.Start(job=job)},
        {"stop": session_pb2.Stop(job=job)},
        {"shutdown": session_pb2.Shutdown(job=job, deadline_ns=-1)},
        {"set_priority": session_pb2.SetPriority(job=job, priority=99)},
        {"bind": session_pb2.Bind(job=job)},
        {"op": session_pb2.Op(job=job, operation=session_pb2.Operation(name="write"))},
        {"sync": session_pb2.Sync(jobs=[job])},
        {"grant": session_pb2.Grant(binding=job)},
        {"ack": session_pb2.Ack(binding=job)},
        {"complete": session_pb2.Complete(binding=job)},
        {"nack": session_pb2.Nack(binding=job)},
        {"unbind": session_pb2.Unbind(binding=job)},
    ]
    return [Frame(request_id=number, **body) for number, body in enumerate(bodies, 1)]


def results(channel, job):
    asked = frames(job)
    hello = Frame(hello=session_pb2.Hello(version_min=1, version_max=1))
    call = channel.stream_stream(
        "/aem.v1.EventService/Session",
        request_serializer=Frame.SerializeToString,
        response_deserializer=session_pb2.ServerFrame.FromString,
    )(iter([hello, *asked]))
    told = {}
    for frame in call:
        for each in frame.bundle.frames if frame.HasField("bundle") else (frame,):
            if each.HasField("result"):
                name = asked[each.request_id - 1].WhichOneof("frame")
                encoded = base64.b64encode(each.result.SerializeToString()).decode()
                told[name] = [each.result.status.code, each.result.status.message, encoded]
    return told


def main(path, job, session, absent):
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        told = {
            "others": {**calls(channel, job, session), **results(channel, job)},
            "absent": {**calls(channel, absent, absent), **results(channel, absent)},
            "lists": {
                "jobs": unary(channel, "JobService/ListJobs", job_pb2.ListJobsRequest()),
                "sessions": unary(channel, "AdminService/ListSessions", admin_pb2.ListSessionsRequest()),
            },
        }
        module = unary(channel, "ModuleService/GetModule", module_pb2.GetModuleRequest(name="modules/user"))
        told["module_jobs"] = module_pb2.Module.FromString(base64.b64decode(module[1])).jobs
        status = unary(channel, "AdminService/GetStatus", admin_pb2.GetStatusRequest())
        seen = admin_pb2.DaemonStatus.FromString(base64.b64decode(status[1]))
        told["counts"] = [seen.jobs, seen.sessions, seen.fires, seen.lost]
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
