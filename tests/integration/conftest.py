"""A real daemon process for each test, and a client that speaks the protocol by hand over plain grpc."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import pytest

from aemd.v1 import admin_pb2, event_pb2, job_pb2, session_pb2

PATIENCE = 20  # seconds until what should happen at once counts as not happening
CHANNEL_OPTIONS = [("grpc.max_receive_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1)]


def descendants(pid):
    """The pids of the children of `pid`, and theirs."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class DaemonProcess:
    """An aemd of the test's own."""

    def __init__(self, folder, *options, user=None):
        self.folder = folder
        self.path = f"{folder}/aemd.sock"
        self.address = f"unix:{self.path}"
        self.log_path = f"{folder}/log"
        self.user = user
        self.options = options
        self.process = None

    def command(self):
        state = f"{self.folder}/state"
        command = [sys.executable, "-m", "aemd", "--socket", self.path, "--state-dir", state]
        return [*command, "--config-dir", f"{self.folder}/etc", *self.options]

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stderr=log, stdout=log, cwd="/", user=self.user, group=self.user
            )
        self.wait_until_serving()
        return self

    def wait_until_serving(self):
        """Until it says so; a call made earlier would only wait in the socket's backlog."""
        channel = grpc.insecure_channel(f"unix:{self.path}", options=CHANNEL_OPTIONS)
        ready = grpc.channel_ready_future(channel)
        while self.process.poll() is None:
            with contextlib.suppress(grpc.FutureTimeoutError):
                ready.result(timeout=0.2)
                break
        channel.close()
        assert self.process.poll() is None, self.log()

    @property
    def pid(self):
        return self.process.pid

    def child(self, name):
        """The pid of a child of the core, by its name."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        (pid,) = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"]
        return pid

    def zygote(self):
        """The pid of its zygote."""
        return self.child("aemd-zygote")

    def fronts(self):
        """The pids of its fronts."""
        return descendants(self.zygote())

    def log(self):
        return Path(self.log_path).read_text()

    def assert_healthy(self):
        assert '"level": "error"' not in self.log(), self.log()

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        """SIGTERM; exit code 0, and nothing left behind."""
        children = descendants(self.pid)
        self.signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.log()
        assert not os.path.exists(self.path)
        assert [pid for pid in children if alive(pid)] == []

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)

    def client(self, **options):
        return Client(self.path, **options)


class Client:
    """A channel to a daemon."""

    def __init__(self, path):
        self.address = f"unix:{path}"
        self.channel = grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        self._session = self.channel.stream_stream("/aem.v1.EventService/Session")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.channel.close()

    def call(self, method, request, response):
        """A unary call, `method` as in JobService/GetJob."""
        rpc = self.channel.unary_unary(
            f"/aem.v1.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return rpc(request, timeout=PATIENCE, wait_for_ready=True)

    def status(self):
        return self.call("AdminService/GetStatus", admin_pb2.GetStatusRequest(), admin_pb2.DaemonStatus)

    def jobs(self, **query):
        listed, token = [], ""
        while True:
            request = job_pb2.ListJobsRequest(page_size=1000, page_token=token, **query)
            page = self.call("JobService/ListJobs", request, job_pb2.ListJobsResponse)
            listed += page.jobs
            token = page.next_page_token
            if not token:
                return listed

    def end_sessions(self):
        """End every session that the caller may see."""
        request = admin_pb2.ListSessionsRequest(page_size=1000)
        listed = self.call("AdminService/ListSessions", request, admin_pb2.ListSessionsResponse)
        for session in listed.sessions:
            request = admin_pb2.EndSessionRequest(name=session.name)
            with contextlib.suppress(grpc.RpcError):  # it ended by itself meanwhile
                self.call("AdminService/EndSession", request, admin_pb2.EndSessionResponse)

    def raw(self):
        """A Session stream without Hello."""
        return RawSession(self._session)

    def session(self, **hello):
        """A Session stream that has been welcomed."""
        session = self.raw()
        session.hello(**hello)
        return session


class RawSession:
    """A Session stream: frames as messages, one at a time, bundles opened."""

    def __init__(self, rpc):
        self._out = queue.SimpleQueue()
        self._in = queue.SimpleQueue()
        self._call = rpc(iter(self._out.get, None), wait_for_ready=True)
        self._requests = 0
        self.welcome = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        try:
            for message in self._call:
                frame = session_pb2.ServerFrame.FromString(message)
                for each in frame.bundle.frames if frame.HasField("bundle") else (frame,):
                    self._in.put(each)
            self._in.put(None)
        except grpc.RpcError as error:
            self._in.put(error)

    def send_bytes(self, message):
        self._out.put(message)

    def send(self, request_id=0, **frame):
        self.send_bytes(session_pb2.ClientFrame(request_id=request_id, **frame).SerializeToString())

    def send_bundle(self, frames):
        bundle = session_pb2.ClientBundle(frames=frames)
        self.send_bytes(session_pb2.ClientFrame(bundle=bundle).SerializeToString())

    def half_close(self):
        self._out.put(None)

    def cancel(self):
        self._call.cancel()
        self._reader.join(PATIENCE)

    def next(self, timeout=PATIENCE):
        """The next ServerFrame; None at the end, raises what ended it otherwise."""
        item = self._in.get(timeout=timeout)
        if isinstance(item, Exception):
            raise item
        return item

    def expect(self, kind):
        """The next frame, which is a `kind`."""
        frame = self.next()
        assert frame is not None, f"the stream ended, expected {kind}"
        assert frame.WhichOneof("frame") == kind, frame
        return getattr(frame, kind)

    def skip_to(self, kind):
        """The next frame that is a `kind`."""
        while True:
            frame = self.next()
            assert frame is not None, f"the stream ended, expected {kind}"
            if frame.WhichOneof("frame") == kind:
                return getattr(frame, kind)

    def end(self):
        """The status that the stream ends with, whatever comes before it."""
        try:
            while self.next() is not None:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def hello(self, **hello):
        self.send(hello=session_pb2.Hello(version_min=1, version_max=1, **hello))
        self.welcome = self.expect("welcome")
        return self.welcome

    def ask(self, **frame):
        """Send a request and return the frame that answers it; events that come before are dropped."""
        self._requests += 1
        self.send(self._requests, **frame)
        while True:
            answer = self.next()
            assert answer is not None
            if answer.request_id == self._requests:
                return answer

    def register(self, module, *, options=None, start=True, credit=None, **params):
        """Register a job; the Registered frame, or the Status of the refusal."""
        answer = self.ask(
            register=register_frame(module, options=options, start=start, credit=credit, **params)
        )
        return answer.registered if answer.HasField("registered") else answer.result.status

    def events(self):
        """The entries of the next Batch: (run, last number, Event)."""
        return entries(self.skip_to("batch"))


def register_frame(module, *, options=None, start=True, credit=None, **params):
    return session_pb2.Register(
        module=module,
        params={name: as_value(value) for name, value in params.items()},
        options=job_pb2.Options(**(options or {})),
        start=start,
        credit=credit,
        label="test",
    )


def as_value(value):
    return job_pb2.Value(integer=value) if isinstance(value, int) else job_pb2.Value(text=value)


def entries(batch):
    found = []
    for run in batch.runs:
        seq = run.first_seq - 1
        for index, event in enumerate(run.events):
            seq += run.counts[index] if run.counts else 1
            found.append((run, seq, event_pb2.Event.FromString(event)))
    return found


@contextlib.contextmanager
def new_folder():
    """A directory that any user may enter; below it nothing is longer than a socket's path may be."""
    path = tempfile.mkdtemp(prefix="aemd-")
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def launcher(folder):
    """Starts daemons, and stops those that still run; a healthy one has logged no error."""
    running = []

    def start(*options, user=None):
        if os.geteuid() != 0:
            options = ("--user", *options)
        daemon = DaemonProcess(folder, *options, user=user)
        running.append(daemon)
        return daemon.start()

    yield start
    for daemon in running:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop()


@pytest.fixture
def eventually():
    """Waits for what the daemon does by itself. Each look is a question to it, so this is no busy waiting."""

    def wait(condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE} s"

    return wait


@pytest.fixture
def folder():
    with new_folder() as path:
        yield path


@pytest.fixture
def launch(folder):
    with launcher(folder) as start:
        yield start


@pytest.fixture
def daemon(launch, monkeypatch):
    """A daemon that serves, and must end as a healthy one does. Clients of any kind find it."""
    running = launch()
    monkeypatch.setenv("AEMD_ADDRESS", running.address)
    yield running
    if running.process.poll() is None:
        running.stop()
    running.assert_healthy()


@pytest.fixture(scope="module")
def shared_daemon():
    """One daemon for the tests of a file, for those that leave nothing behind in it."""
    with new_folder() as folder, launcher(folder) as launch:
        running = launch()
        yield running
        running.stop()
        running.assert_healthy()


@pytest.fixture
def client(daemon):
    with daemon.client() as client:
        yield client


@pytest.fixture
def session(client):
    return client.session()
