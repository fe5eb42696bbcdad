"""A daemon without its public socket: real loop, engine and modules, and streams whose link is a list."""

import contextlib
import os

import pytest

from aemd import link
from aemd.core.limits import Limits
from aemd.core.principal import Owner, Principal
from aemd.modules.contract import Basic, Delivery, Description
from aemd.peer.stream import Stream
from aemd.service.config import Config
from aemd.service.daemon import SESSION_METHOD, Daemon
from aemd.service.registry import Loaded
from aemd.v1 import job_pb2, session_pb2


def principal(uid=0, *, pid=None, administrator=None):
    administrator = uid == 0 if administrator is None else administrator
    return Principal(
        owner=Owner(uid),
        gid=uid,
        groups=(),
        pid=os.getpid() if pid is None else pid,
        start_time_ticks=1,
        administrator=administrator,
    )


class Wire:
    """A client's end of one RPC: what it says goes to the handler, what it is told is kept."""

    def __init__(self, bench, method, caller):
        self._bench = bench
        self.stream = Stream(self, principal=caller, connection=1, number=1, method=method)
        self.frames = []
        self.status = None
        self.given_back = 0
        self.handler = bench.daemon.open_stream(self.stream)

    # What a Stream needs.

    def send(self, frame):
        (frame,), rest, _ = link.parse_frames(frame)
        assert rest == b""
        if frame.kind is link.Kind.DATA:
            self.take(frame.payload)
        elif frame.kind is link.Kind.WINDOW:
            self.given_back += link.parse_window(frame.payload)
        else:
            code, message, _ = link.parse_status(frame.payload)
            self.status = (code, message)

    def forget(self, stream):
        pass

    # What a test needs.

    def take(self, payload):
        frame = session_pb2.ServerFrame.FromString(payload)
        self.frames += frame.bundle.frames if frame.HasField("bundle") else [frame]

    def say_bytes(self, message):
        if self.status is None:
            self.handler.data(message)

    def say(self, request_id=0, **frame):
        self.say_bytes(session_pb2.ClientFrame(request_id=request_id, **frame).SerializeToString())

    def say_bundle(self, frames):
        bundle = session_pb2.ClientBundle(frames=frames)
        self.say_bytes(session_pb2.ClientFrame(bundle=bundle).SerializeToString())

    def hello(self, **hello):
        self.say(hello=session_pb2.Hello(version_min=1, version_max=1, **hello))
        self._bench.turn()
        return self.told()[0].welcome

    def register(self, module, *, start=True, options=None, **params):
        register = session_pb2.Register(
            module=module,
            params={name: job_pb2.Value(text=text) for name, text in params.items()},
            options=options,
            start=start,
        )
        return self.ask(register=register)

    def ask(self, **frame):
        """Send a request; the frame that answers it, what came before it is dropped."""
        self.say(request_id=77, **frame)
        self._bench.turn()
        self._bench.turn_until(lambda: any(frame.request_id == 77 for frame in self.frames) or self.status)
        answer = next(frame for frame in self.told() if frame.request_id == 77)
        return answer.registered if answer.HasField("registered") else answer.result.status

    def told(self):
        """What came since the last time."""
        frames, self.frames = self.frames, []
        return frames

    def room(self, size):
        self.stream.room = size
        self.handler.writable()


class Bench:
    def __init__(self, folder, *, quotas=None, **limits):
        config = Config(socket=f"{folder}/never", state_dir=f"{folder}")
        self.daemon = Daemon(config, Limits(**limits), quotas)
        self.daemon.begin()
        self.daemon.peers._processes.hold(principal(), os.pidfd_open(os.getpid()))  # every caller is this one

    def turn(self, timeout_ns=0):
        self.daemon.loop.turn(timeout_ns)

    def turn_until(self, condition):
        """Turn, asleep until something happens, until `condition` holds."""
        while not condition():
            self.turn(10_000_000_000)

    def wire(self, method=SESSION_METHOD, caller=None):
        return Wire(self, method, caller or principal())

    def session(self, caller=None, **hello):
        wire = self.wire(caller=caller)
        wire.hello(**hello)
        return wire

    def install(self, module):
        """Put a module into the registry that no distribution has."""
        self.daemon.registry.install(Loaded(module, module.description.name, "test", "test"))


class Prop(Basic):
    """A module that fires when it is told to, and fails where it is told to."""

    description = Description(
        name="prop",
        summary="For tests.",
        description="For tests.",
        delivery=Delivery.QUEUE,
        parameters=(),
        events={"happened": "It did."},
        operations={"do": ("Does.", True)},
        replies=True,
        pausable=True,
    )

    def __init__(self, host):
        self.host = host
        self.calls = []
        self.failing = {}
        self.syncs = []

    def _called(self, name, job):
        self.calls.append((name, job.id))
        if name in self.failing:
            raise self.failing[name]

    def open(self, job):
        self._called("open", job)
        self.host.charge(job, 2)

    def start(self, job):
        self._called("start", job)

    def stop(self, job):
        self._called("stop", job)

    def close(self, job):
        self._called("close", job)

    def operate(self, job, key, name, data):
        self._called("operate", job)

    def pause(self, job):
        self._called("pause", job)

    def resume(self, job):
        self._called("resume", job)

    def details(self, job):
        self._called("details", job)
        return {"prop": "erty"}

    def sync(self, job, done):
        self._called("sync", job)
        self.syncs.append(done)


@pytest.fixture
def make_bench(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(**limits):
            bench = Bench(tmp_path, **limits)
            stack.callback(bench.daemon.end)
            return bench

        yield make


@pytest.fixture
def bench(make_bench):
    return make_bench()


@pytest.fixture
def prop(bench):
    module = Prop(bench.daemon.host)
    bench.install(module)
    return module
