"""The life of a daemon process: start, signals, those who die, and what it costs to stand still."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

from aemd.v1 import job_pb2, session_pb2
from tests.integration.conftest import DaemonProcess

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's process is started")


def run_aemd(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "aemd", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


# Start.


def test_second_daemon_says_who_holds_the_socket_and_exits(daemon):
    again = run_aemd(*daemon.command()[3:])
    assert again.returncode == 3
    assert str(daemon.pid) in again.stderr
    assert daemon.path in again.stderr
    with daemon.client() as client:
        assert client.status().pid == daemon.pid


def test_stale_socket_is_no_obstacle(launch, folder):
    first = launch()
    first.kill()
    assert os.path.exists(first.path)
    second = launch()
    with second.client() as client:
        assert client.status().pid == second.pid


def test_file_in_the_place_of_the_socket_is_left_alone(folder):
    path = f"{folder}/aemd.sock"
    Path(path).write_text("precious")
    refused = run_aemd("--user", "--socket", path, "--state-dir", folder)
    assert refused.returncode != 0
    assert "not a socket" in refused.stderr
    assert Path(path).read_text() == "precious"


def test_socket_is_open_to_everybody_and_its_state_is_not(daemon):
    expected = 0o666 if os.geteuid() == 0 else 0o600
    assert os.stat(daemon.path).st_mode & 0o777 == expected
    assert os.stat(f"{daemon.folder}/state").st_mode & 0o777 == 0o700


# Programs of another user begin as root: the interpreter may lie in a home that only root can enter.
_BECOME_NOBODY = """
import os
def become_nobody():
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
"""


def run_program(program, *arguments, **how):
    return subprocess.run(
        [sys.executable, "-c", _BECOME_NOBODY + program, *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        **how,
    )


@needs_root
def test_without_root_the_way_out_is_named(folder):
    program = """
import gettext, shutil, sys, textwrap  # click loads them late
from aemd.cli.daemon import main
become_nobody()
sys.argv[1:] = ["--socket", "/tmp/never"]
main()
"""
    refused = run_program(program)
    assert refused.returncode == 2
    assert "aemd --user" in refused.stderr


def test_version_and_help_need_no_daemon():
    assert run_aemd("--version").stdout.startswith("aemd, version ")
    text = run_aemd("--help").stdout
    assert "Examples:" in text
    assert "Exit codes:" in text


def test_healthy_daemon_says_that_it_serves_and_nothing_else(daemon):
    with daemon.client() as client:
        client.session().register("timer", every="10ms")
    assert daemon.log().count("\n") == 1
    assert "serving" in daemon.log()


def nobody_can_run_python():
    try:
        return run_aemd("--version", user=NOBODY, group=NOBODY, cwd="/").returncode == 0
    except PermissionError:
        return False


@needs_root
def test_user_instance_of_an_ordinary_user_serves_that_user(launch, folder):
    if not nobody_can_run_python():
        pytest.skip("needs an interpreter that an ordinary user can execute")
    os.chmod(folder, 0o777)
    daemon = launch("--user", user=NOBODY)
    program = """
import sys, grpc
from aemd.v1 import admin_pb2
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    answer = channel.unary_unary("/aem.v1.AdminService/GetStatus")(b"", timeout=20)
status = admin_pb2.DaemonStatus.FromString(answer)
print(status.caller.uid, status.caller.administrator, status.user_instance)
"""
    # Begun as that user: what has changed its user id is not dumpable, and its namespaces cannot be read.
    served = run_program(program, daemon.path, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
    assert served.stdout.split() == ["65534", "True", "True"], served.stderr


def test_user_instance_serves_its_user_and_says_so(launch):
    daemon = launch("--user")
    with daemon.client() as client:
        status = client.status()
        assert status.user_instance
        assert status.caller.administrator
        assert client.session().register("user", channel="c").job


class Neighbour(DaemonProcess):
    """Serves another path of the same folder, without a network namespace for its fronts."""

    def __init__(self, folder, name):
        super().__init__(folder, "--user", user=NOBODY)
        self.path = f"{folder}/{name}.sock"
        self.address = f"unix:{self.path}"


@needs_root
def test_daemons_in_one_folder_leave_each_others_things_alone(folder):
    if not nobody_can_run_python():
        pytest.skip("needs an interpreter that an ordinary user can execute")
    os.chmod(folder, 0o777)
    os.mkdir(f"{folder}/front-1")
    program = """
import sys, grpc
become_nobody()
for path in sys.argv[1:]:
    with grpc.insecure_channel("unix:" + path) as channel:
        channel.unary_unary("/aem.v1.AdminService/GetStatus")(b"", timeout=20)
"""
    first, second = Neighbour(folder, "first"), Neighbour(folder, "second")
    for daemon in (first, second):
        daemon.start()
    served = run_program(program, first.path, second.path, first.path)
    assert served.returncode == 0, served.stderr
    second.stop()
    served = run_program(program, first.path)
    assert served.returncode == 0, served.stderr
    first.stop()
    assert os.path.isdir(f"{folder}/front-1")


# The core.


def test_core_has_no_grpc_in_it(daemon):
    with daemon.client() as client:
        client.session().register("timer", every="1s")
        maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "grpc" not in maps
    assert "libpython" in maps or "python" in maps


def switches(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])


def at_rest(pid):
    """The count once the core has dealt with what was under way, such as a window of the link."""
    for _ in range(100):
        count = switches(pid)
        threading.Event().wait(0.2)
        if switches(pid) == count:
            return count
    raise AssertionError("the core does not come to rest")


def test_idle_core_does_not_wake_up(daemon):
    with daemon.client() as client:
        session = client.session()
        for _ in range(100):
            session.register("timer", every="1h")
            session.register("user", channel="c")
        before = client.status().wakeups
        switched = at_rest(daemon.pid)
        threading.Event().wait(10)  # the test is about time in which nothing happens
        assert switches(daemon.pid) == switched
        # The call itself: the request, and at most a window or two of the link.
        assert client.status().wakeups - before <= 4


# The end.


def test_sigterm_drains_and_ends_with_code_0(daemon):
    with daemon.client() as client:
        session = client.session()
        session.register("user", channel="c")
        daemon.signal(signal.SIGTERM)
        drain = session.skip_to("drain")
        assert drain.deadline_ns > 0
        assert session.end()[0] == grpc.StatusCode.UNAVAILABLE
        assert daemon.process.wait(5) == 0


def test_answer_of_a_handler_that_runs_is_still_taken_while_draining(daemon, folder):
    path = f"{folder}/web"
    with daemon.client() as client:
        session = client.session()
        session.register("socket", listen=f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(path)
            peer.sendall(b"question")
            run, seq = complete_until_data(session)
            daemon.signal(signal.SIGTERM)
            session.skip_to("drain")
            answer = session_pb2.Complete(
                binding=run.binding,
                cursor=job_pb2.Cursor(epoch=run.epoch, seq=seq),
                reply=session_pb2.Operation(name="write-close", data=b"answer"),
            )
            session.send(complete=answer)
            received = b""
            while chunk := peer.recv(100):
                received += chunk
        assert received == b"answer"
        assert session.end()[0] == grpc.StatusCode.UNAVAILABLE
    assert daemon.process.wait(5) == 0


def test_answer_that_its_peer_reads_slowly_still_arrives_whole(daemon, folder):
    path = f"{folder}/web"
    payload = os.urandom(250_000)
    with daemon.client() as client:
        session = client.session()
        session.register("socket", listen=f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(path)
            peer.sendall(b"question")
            run, seq = complete_until_data(session)
            answer = session_pb2.Complete(
                binding=run.binding,
                cursor=job_pb2.Cursor(epoch=run.epoch, seq=seq),
                reply=session_pb2.Operation(name="write-close", data=payload),
            )
            assert session.ask(complete=answer).result.status.code == 0
            daemon.signal(signal.SIGTERM)
            session.skip_to("drain")
            received = b""
            while chunk := peer.recv(10_000):
                received += chunk
        assert received == payload
    assert daemon.process.wait(5) == 0


def complete_until_data(session):
    """Complete what comes before the first data, and return that one's run and number."""
    while True:
        for run, seq, event in session.events():
            if event.type == "data":
                return run, seq
            cursor = job_pb2.Cursor(epoch=run.epoch, seq=seq)
            session.send(complete=session_pb2.Complete(binding=run.binding, cursor=cursor))


def test_client_that_ignores_drain_is_ended_in_time(daemon):
    with daemon.client() as client:
        session = client.session()
        session.register("user", channel="c")
        session.ask(**{"raise": session_pb2.Raise(channel="c", payloads=[b"x"])})
        session.events()  # and never acknowledged
        daemon.signal(signal.SIGTERM)
        assert session.end()[0] == grpc.StatusCode.UNAVAILABLE
        assert daemon.process.wait(5) == 0


def test_second_sigterm_ends_at_once(daemon):
    with daemon.client() as client:
        session = client.session()
        session.register("user", channel="c")
        session.ask(**{"raise": session_pb2.Raise(channel="c", payloads=[b"x"])})
        session.events()
        daemon.signal(signal.SIGTERM)
        session.skip_to("drain")
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(2) == 0


def test_sighup_is_survived(daemon):
    daemon.signal(signal.SIGHUP)
    with daemon.client() as client:
        assert client.status().pid == daemon.pid


def test_new_session_is_refused_while_draining(daemon):
    with daemon.client() as client:
        session = client.session()
        session.register("user", channel="c")
        session.ask(**{"raise": session_pb2.Raise(channel="c", payloads=[b"x"])})
        session.events()
        late = client.raw()
        daemon.signal(signal.SIGTERM)
        session.skip_to("drain")
        late.send(hello=session_pb2.Hello(version_min=1, version_max=1))
        assert late.end()[0] == grpc.StatusCode.UNAVAILABLE
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(5) == 0


# Those who die.


_VICTIM = """
import sys, threading, grpc
from aemd.v1 import session_pb2, job_pb2
def frames():
    yield session_pb2.ClientFrame(hello=session_pb2.Hello(version_min=1, version_max=1))
    for n, (module, name, text) in enumerate(JOBS, 1):
        params = {name: job_pb2.Value(text=text)}
        register = session_pb2.Register(module=module, params=params, start=True)
        yield session_pb2.ClientFrame(request_id=n, register=register)
    threading.Event().wait()
channel = grpc.insecure_channel("unix:" + sys.argv[1])
call = channel.stream_stream("/aem.v1.EventService/Session",
    request_serializer=session_pb2.ClientFrame.SerializeToString,
    response_deserializer=session_pb2.ServerFrame.FromString)(frames())
left = len(JOBS)
for frame in call:
    for each in frame.bundle.frames if frame.HasField("bundle") else (frame,):
        if each.HasField("result"):
            sys.exit(str(each))
        left -= each.HasField("registered")
    if not left:
        print("ready", flush=True)
"""


@contextlib.contextmanager
def victim(daemon, jobs, **options):
    """A client process with these jobs, that waits to be killed."""
    program = f"JOBS = {jobs!r}\n{_VICTIM}"
    command = [sys.executable, "-c", program, daemon.path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/", text=True, **options)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_killed_client_leaves_no_job_and_no_descriptor(daemon, eventually, folder):
    jobs = [("timer", "every", "10ms")] * 10 + [
        ("socket", "listen", f"unix:{folder}/s"),
        ("process", "pid", str(os.getpid())),
        ("user", "channel", "c"),
    ]
    with daemon.client() as client:
        with victim(daemon, jobs):
            pass  # what is opened once for all, such as the timerfd of a clock, is open now
        eventually(lambda: client.status().sessions == 0, "the end of the first session")
        before = client.status()
        with victim(daemon, jobs) as process:
            assert len(client.jobs()) == 13
            assert client.status().descriptors_open > before.descriptors_open
            process.kill()
        eventually(lambda: client.status().sessions == before.sessions, "the end of the session")
        assert client.jobs() == []
        eventually(
            lambda: client.status().descriptors_open <= before.descriptors_open, "the descriptors' return"
        )
        eventually(lambda: not os.path.exists(f"{folder}/s"), "the end of the listener's path")


def test_killed_front_costs_a_reconnect_and_no_job(launch):
    daemon = launch()
    with daemon.client() as client:
        session = client.session()
        binding = session.register("user", channel="c").binding
        fronts = [pid for pid in daemon.fronts() if pid != daemon.zygote()]
        assert fronts
        for pid in fronts:
            os.kill(pid, signal.SIGKILL)
        assert session.end()[0] == grpc.StatusCode.UNAVAILABLE
    with daemon.client() as client:
        back = client.raw()
        welcome = back.hello(resume_token=session.welcome.resume_token)
        assert welcome.resumed
        assert list(welcome.bindings) == [binding]
        back.send(grant=session_pb2.Grant(binding=binding, credit=job_pb2.Credit(events=9, bytes=9999)))
        back.ask(**{"raise": session_pb2.Raise(channel="c", payloads=[b"x"])})
        assert client.status().fronts_replaced >= 1
    assert "front" in daemon.log()


# Others.


_OTHER = """
import sys, grpc
from aemd.v1 import admin_pb2, job_pb2, module_pb2, session_pb2
become_nobody()
path, job, session = sys.argv[1], "jobs/" + sys.argv[2], "sessions/" + sys.argv[3]
channel = grpc.insecure_channel("unix:" + path)
def ask(method, request=None):
    encoded = request.SerializeToString() if request else b""
    return channel.unary_unary("/aem.v1." + method)(encoded, timeout=20)
def refusal(method, request):
    try:
        ask(method, request)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"
changed = job_pb2.Job(name=job, options=job_pb2.Options(priority=1))
for method, request in [
    ("JobService/GetJob", job_pb2.GetJobRequest(name=job)),
    ("JobService/StartJob", job_pb2.StartJobRequest(name=job)),
    ("JobService/StopJob", job_pb2.StopJobRequest(name=job)),
    ("JobService/ShutdownJob", job_pb2.ShutdownJobRequest(name=job)),
    ("JobService/UpdateJob", job_pb2.UpdateJobRequest(job=changed)),
    ("AdminService/EndSession", admin_pb2.EndSessionRequest(name=session)),
    ("ModuleService/LoadModule", module_pb2.LoadModuleRequest(name="modules/timer")),
    ("ModuleService/UnloadModule", module_pb2.UnloadModuleRequest(name="modules/timer")),
]:
    print(method, refusal(method, request))
print("ListJobs", len(job_pb2.ListJobsResponse.FromString(ask("JobService/ListJobs")).jobs))
listed = admin_pb2.ListSessionsResponse.FromString(ask("AdminService/ListSessions"))
print("ListSessions", len(listed.sessions))
F, number = session_pb2.ClientFrame, int(sys.argv[2])
frames = [
    F(request_id=1, start=session_pb2.Start(job=number)),
    F(request_id=2, stop=session_pb2.Stop(job=number)),
    F(request_id=3, shutdown=session_pb2.Shutdown(job=number)),
    F(request_id=4, set_priority=session_pb2.SetPriority(job=number, priority=1)),
    F(request_id=5, bind=session_pb2.Bind(job=number)),
    F(request_id=6, op=session_pb2.Op(job=number)),
    F(request_id=7, sync=session_pb2.Sync(jobs=[number])),
    F(request_id=8, grant=session_pb2.Grant(binding=1)),
    F(request_id=9, ack=session_pb2.Ack(binding=1)),
    F(request_id=10, unbind=session_pb2.Unbind(binding=1)),
]
hello = F(hello=session_pb2.Hello(version_min=1, version_max=1, resume_token=b"guess"))
call = channel.stream_stream(
    "/aem.v1.EventService/Session",
    request_serializer=F.SerializeToString,
    response_deserializer=session_pb2.ServerFrame.FromString,
)(iter([hello, *frames]))
for frame in call:
    for each in frame.bundle.frames if frame.HasField("bundle") else (frame,):
        if each.HasField("result"):
            print(frames[each.request_id - 1].WhichOneof("frame"), each.result.status.code)
status = admin_pb2.DaemonStatus.FromString(ask("AdminService/GetStatus"))
print("status", status.jobs, status.descriptors_open, status.wakeups, status.resident_bytes)
"""


@needs_root
def test_what_is_anothers_is_not_found_in_every_method(daemon):
    with daemon.client() as client:
        session = client.session()
        job = session.register("user", channel="c").job
        other = run_program(_OTHER, daemon.path, str(job), str(session.welcome.session))
        assert other.returncode == 0, other.stderr
        said = dict(line.split(maxsplit=1) for line in other.stdout.splitlines())
        unary = ["GetJob", "StartJob", "StopJob", "ShutdownJob", "UpdateJob"]
        assert {said[f"JobService/{name}"] for name in unary} == {"NOT_FOUND"}
        assert said["AdminService/EndSession"] == "NOT_FOUND"
        assert (said["ListJobs"], said["ListSessions"]) == ("0", "0")
        assert said["ModuleService/LoadModule"] == said["ModuleService/UnloadModule"] == "PERMISSION_DENIED"
        frames = ["start", "stop", "shutdown", "set_priority", "bind", "op", "sync", "grant", "ack", "unbind"]
        assert {name: said[name] for name in frames} == dict.fromkeys(frames, "5")
        assert said["status"] == "0 0 0 0", "counts of others, or of the machine"
        assert [each.state for each in client.jobs()] == [job_pb2.STATE_ARMED]


# Many.


def registrations(first, count, **frame):
    register = session_pb2.Register(**frame)
    return [session_pb2.ClientFrame(request_id=n, register=register) for n in range(first, first + count)]


def test_hundred_thousand_jobs_in_one_session(daemon):
    params = {"every": job_pb2.Value(text="1h")}
    with daemon.client() as client:
        session = client.session()
        for first in range(1, 100_001, 1_000):
            session.send_bundle(registrations(first, 1_000, module="timer", params=params, start=True))
        jobs = [session.expect("registered").job for _ in range(100_000)]
        assert len(set(jobs)) == 100_000
        status = client.status()
        assert status.jobs == 100_000
        assert status.descriptors_open < 100
        session.half_close()
        assert session.end()[0] == grpc.StatusCode.OK
        assert client.status().jobs == 0


def test_five_thousand_silent_connections_hinder_nobody(daemon, eventually):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        client = stack.enter_context(daemon.client())
        before = client.status()
        for _ in range(5_000):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(daemon.path)
        eventually(lambda: client.status().connections >= 5_000, "the connections")
        with daemon.client() as late:
            assert late.session().register("timer", every="1h").job
        assert client.status().descriptors_open < before.descriptors_open + 10
    with daemon.client() as client:
        eventually(lambda: client.status().connections < 10, "their end")


class Crowd:
    """One of many sessions in one thread."""

    def __init__(self, channel):
        self._call = channel.stream_stream("/aem.v1.EventService/Session")()
        self._waiting = []

    async def say(self, **frame):
        await self._call.write(session_pb2.ClientFrame(**frame).SerializeToString())

    async def next(self):
        while not self._waiting:
            frame = session_pb2.ServerFrame.FromString(await self._call.read())
            self._waiting += frame.bundle.frames if frame.HasField("bundle") else [frame]
        return self._waiting.pop(0)

    async def register(self):
        await self.say(hello=session_pb2.Hello(version_min=1, version_max=1))
        params = {"channel": job_pb2.Value(text="all")}
        frames = registrations(1, 10, module="user", params=params, start=True)
        await self.say(bundle=session_pb2.ClientBundle(frames=frames))
        assert (await self.next()).HasField("welcome")
        for _ in range(10):
            assert (await self.next()).HasField("registered")

    async def take(self, count):
        while count:
            count -= sum(len(run.events) for run in (await self.next()).batch.runs)


async def test_thousand_sessions_with_ten_jobs_each(daemon):
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(daemon.address, options=options) for _ in range(10)]
        for channel in channels:
            await stack.enter_async_context(channel)
        sessions = [Crowd(channel) for channel in channels for _ in range(100)]
        await asyncio.gather(*(session.register() for session in sessions))
        with daemon.client() as client:
            status = client.status()
            assert (status.sessions, status.jobs) == (1_000, 10_000)
        await sessions[0].say(**{"raise": session_pb2.Raise(channel="all", payloads=[b"to everybody"])})
        await asyncio.gather(*(session.take(10) for session in sessions))
    with daemon.client() as client:
        client.end_sessions()
        assert client.status().jobs == 0
