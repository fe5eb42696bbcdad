"""A daemon that has peers and fronts, and no service (echo.py)."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import grpc
import pytest

HERE = Path(__file__).parent
PATIENCE = 20  # seconds until what should happen at once counts as not happening
SESSION = "/aem.v1.EventService/Session"
STATUS = "/aem.v1.AdminService/GetStatus"
ECHO = "/aem.v1.JobService/GetJob"


class Echo:
    """One daemon process, and what it says."""

    def __init__(self, path, *, public=True, peer_pidfd=True, before=None, quota=None, **limits):
        self.path = path
        self.heard = queue.Queue()
        options = ["public" if public else "private", "peer_pidfd" if peer_pidfd else "pidfd"]
        self.process = subprocess.Popen(
            [sys.executable, HERE / "echo.py", path, json.dumps(limits), *options, json.dumps(quota or {})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=before,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.heard.put(json.loads(line))

    def wait(self, event, **fields):
        """The next thing it says that is this event with these fields; what came before is dropped."""
        while True:
            said = self.heard.get(timeout=PATIENCE)
            if said["event"] == event and fields.items() <= said.items():
                return said

    @contextlib.contextmanager
    def channel(self):
        with grpc.insecure_channel(f"unix:{self.path}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield channel

    def counters(self, channel=None):
        if channel is None:
            with self.channel() as channel:
                return self.counters(channel)
        return json.loads(channel.unary_unary(STATUS)(b"", timeout=PATIENCE, wait_for_ready=True))

    def echo(self, channel, message, **options):
        """A unary call that answers what it was asked."""
        return channel.unary_unary(ECHO)(message, timeout=PATIENCE, **options)

    def session(self, channel):
        return Talk(channel)

    @contextlib.contextmanager
    def client(self, identity):
        """A client process; its first line on stdout says who the daemon takes it for."""
        with subprocess.Popen(
            [sys.executable, HERE / "client.py", self.path, str(identity)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as client:
            try:
                yield client
            finally:
                client.communicate(timeout=PATIENCE)

    def stop(self):
        """End it in order: (exit status, what it said on stderr)."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE), self._rest()

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)
        self._rest()

    def _rest(self):
        self._reader.join(PATIENCE)
        said = self.process.stderr.read().decode()
        self.process.stderr.close()
        self.process.stdout.close()
        return said


class Talk:
    """A Session by hand."""

    def __init__(self, channel):
        self._out = queue.SimpleQueue()
        self.call = channel.stream_stream(SESSION)(iter(self._out.get, None), wait_for_ready=True)

    def say(self, do, **fields):
        self._out.put(json.dumps({"do": do, **fields}).encode())

    def send(self, message):
        self._out.put(message)

    def ask(self, do, **fields):
        self.say(do, **fields)
        return next(self.call)

    def who(self):
        return json.loads(self.ask("who"))

    def half_close(self):
        self._out.put(None)

    def cancel(self):
        self.call.cancel()
        self._out.put(None)


@contextlib.contextmanager
def open_folder():
    """A folder that every user can reach; pytest's own are private."""
    path = tempfile.mkdtemp(prefix="aemd-")
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def running(path, **options):
    """A daemon, which must end well and say nothing on stderr if it still runs then."""
    echo = Echo(path, **options)
    echo.wait("serving")
    yield echo
    if echo.process.poll() is None:
        assert echo.stop() == (0, "")


@pytest.fixture
def start():
    """Starts daemons of the test's own, one after the other, on one path."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(open_folder())
        yield lambda **options: stack.enter_context(running(f"{folder}/sock", **options))


@pytest.fixture(scope="module")
def echo():
    """One daemon for all tests that leave it as it was."""
    with open_folder() as folder, running(f"{folder}/sock") as echo:
        yield echo
