"""A pid that comes round: the new process inherits nothing of the one that had the number before.

The daemon is stopped while it happens, so that it sees both at once: the exit of the first and the connection
of the second.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: clone3(2) with set_tid")
REBORN = Path(__file__).parent / "reborn.py"
FIRST, OTHER = 1_234, 1_235

# Becomes a user and connects, opens a session, resuming the one of a token, and says what it has; stays until
# stdin ends.
CLIENT = """
import json, os, socket, sys
import grpc, grpc._channel
from aemd.v1 import admin_pb2, job_pb2, session_pb2
path, uid, token = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
first = socket.socket(socket.AF_UNIX)
first.connect(path)
print("connected", flush=True)
Frame = session_pb2.ClientFrame

def frames():
    yield Frame(hello=session_pb2.Hello(version_min=1, version_max=1, resume_token=token))
    if not token:
        register = session_pb2.Register(module="user", start=True)
        register.params["channel"].text = "c"
        register.options.lease_ns = 600_000_000_000
        yield Frame(request_id=1, register=register)
    yield Frame(request_id=2, sync=session_pb2.Sync())
    sys.stdin.read()

with grpc.insecure_channel(f"unix:{path}") as channel:
    call = channel.stream_stream(
        "/aem.v1.EventService/Session",
        request_serializer=Frame.SerializeToString,
        response_deserializer=session_pb2.ServerFrame.FromString,
    )(frames(), wait_for_ready=True)
    welcome = next(call).welcome
    next(call)
    jobs = channel.unary_unary("/aem.v1.JobService/ListJobs")(b"", timeout=20)
    sessions = channel.unary_unary("/aem.v1.AdminService/ListSessions")(b"", timeout=20)
    print(json.dumps({
        "pid": os.getpid(),
        "resumed": welcome.resumed,
        "token": welcome.resume_token.hex(),
        "jobs": len(job_pb2.ListJobsResponse.FromString(jobs).jobs),
        "sessions": len(admin_pb2.ListSessionsResponse.FromString(sessions).sessions),
        "start": welcome.principal.start_time_ticks,
    }), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def client(daemon, uid, token="", *before):
    command = [*before, sys.executable, "-c", CLIENT, daemon.path, str(uid), token]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process):
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("uid", [FIRST, OTHER], ids=["same user", "another user"])
def test_process_with_the_pid_of_one_that_exited_gets_nothing_of_it(daemon, client_status, uid):
    with client(daemon, FIRST) as first:
        assert first.stdout.readline() == b"connected\n"
        had = said(first)
        assert (had["pid"], had["jobs"], had["sessions"]) == (first.pid, 1, 1)
        daemon.signal(signal.SIGSTOP)
        first.kill()
        first.wait()
    with client(daemon, uid, had["token"], sys.executable, REBORN, str(had["pid"])) as reborn:
        assert reborn.stdout.readline() == b"connected\n"
        daemon.signal(signal.SIGCONT)
        has = said(reborn)
    assert has["pid"] == had["pid"]
    assert (has["resumed"], has["jobs"], has["sessions"]) == (False, 0, 1)
    assert has["token"] != had["token"]
    assert has["start"] >= had["start"]
    assert client_status().jobs == 0


@pytest.fixture
def client_status(daemon):
    with daemon.client() as root:
        yield root.status
