"""The Session, frame by frame: whatever a client says, the daemon has no fault and everybody else goes on.

Everything but the sockets to the clients is real: engine, modules, loop and services are those of a daemon,
and the test stands where a front's end of a stream would be.
"""

from __future__ import annotations

import gc
import random

import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aemd import link
from aemd.core.errors import Code
from aemd.core.limits import MS, Limits
from aemd.core.principal import Owner, Principal
from aemd.core.quota import DefaultQuotas, Quota
from aemd.modules.process import Process
from aemd.modules.socket import Socket
from aemd.modules.timer import Timer
from aemd.modules.user import User
from aemd.peer.stream import Stream
from aemd.service.config import Config
from aemd.service.daemon import SESSION_METHOD, Daemon
from aemd.service.registry import Loaded
from aemd.v1 import session_pb2
from tests.fuzz import session_frames as frames

STRANGER = Principal(Owner(1000), 1000, (), 4242, 99, administrator=False)
WITNESS = Principal(Owner(1001), 1001, (), 4243, 99, administrator=False)
ENDINGS = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.ABORTED,
    Code.CANCELLED,
    Code.NOT_FOUND,
}


class Client:
    """The other end of one stream, in the place of a front: a Sender."""

    def __init__(self, daemon, principal, number):
        self.daemon = daemon
        self.frames = []
        self.status = None
        self.reads = True
        self._windows = 0
        self.stream = Stream(
            self, principal=principal, connection=number, number=number, method=SESSION_METHOD
        )
        self.handler = daemon.open_stream(self.stream)

    @property
    def over(self):
        return self.stream.ended

    def send(self, frame):
        """From the core."""
        ((kind, _, _, _, payload),), rest, _ = link.parse_frames(frame)
        assert rest == b""
        if kind == link.Kind.DATA:
            decoded = session_pb2.ServerFrame.FromString(payload)
            assert decoded.WhichOneof("frame"), payload
            self.frames += decoded.bundle.frames if decoded.HasField("bundle") else [decoded]
            self._windows += len(payload)
        elif kind == link.Kind.END:
            self.status = link.parse_status(payload)

    def forget(self, stream):
        """From the core: the stream has ended."""

    def say(self, message):
        """To the core, as a front would."""
        if self.over:
            return
        self.stream.outstanding += len(message)
        self.handler.data(message)
        self.turn()

    def turn(self):
        """One turn of the daemon; then everything it has sent is read, if the client reads."""
        self.daemon.loop.turn(0)
        while self._windows and self.reads and not self.over:
            self.stream.room += self._windows
            self._windows = 0
            self.handler.writable()
            self.daemon.loop.turn(0)

    def half_close(self):
        if not self.over:
            self.handler.half_closed()
            self.turn()

    def lose(self):
        if not self.over:
            self.stream.ended = True
            self.handler.closed("cancelled")
            self.daemon.loop.turn(0)

    def answers(self, request_id):
        return [frame for frame in self.frames if frame.request_id == request_id]

    def payloads(self):
        """All user payloads it was sent."""
        return [
            event
            for frame in self.frames
            if frame.HasField("batch")
            for run in frame.batch.runs
            for event in run.events
        ]


class World:
    """A daemon with its modules and no sockets of its own, and a client that must never be disturbed."""

    def __init__(self, folder, channels=65_536, **limits):
        limits = Limits(**{"lease_ns": 60_000 * MS, **limits})
        quotas = DefaultQuotas(Quota(channels=channels))
        self.daemon = daemon = Daemon(Config(f"{folder}/s", str(folder)), limits, quotas)
        daemon.loop.on_fault = None  # raise it
        for module in (User, Timer, Process, Socket):
            made = module(daemon.host)
            daemon.registry.install(Loaded(made, made.description.name, "test", "none"))
        self.streams = 0
        self.witness = self.open(WITNESS)
        self.witness.say(frames.hello())
        register = session_pb2.Register(module="user", start=True)
        register.params["channel"].text = "c"
        self.say(self.witness, 1, register=register)
        assert self.witness.frames[-1].HasField("registered")

    def open(self, principal=STRANGER):
        self.streams += 1
        return Client(self.daemon, principal, self.streams)

    def say(self, client, request_id, **frame):
        client.say(session_pb2.ClientFrame(request_id=request_id, **frame).SerializeToString())

    def assert_serves(self):
        """The witness is served as if nobody else were there."""
        witness = self.witness
        before = len(witness.payloads())
        for binding in (0, 1):
            self.say(witness, 0, grant={"binding": binding, "credit": {"events": 1, "bytes": 1_000}})
        self.say(witness, 0, **{"raise": {"channel": "c", "payloads": [b"still here"]}})
        assert len(witness.payloads()) == before + 1
        self.say(witness, 0, ack={"binding": 1, "cursor": {"epoch": 1, "seq": before + 1}})
        assert not witness.over

    def assert_clean(self):
        """Nothing of the stranger is left."""
        daemon = self.daemon
        engine = daemon.engine
        assert [session.principal for session in engine.sessions_of(WITNESS)] == [WITNESS]
        assert list(engine.sessions_of(STRANGER)) == []
        assert engine.job_count(STRANGER) == 0
        assert engine.job_count(WITNESS) == 1
        assert daemon.descriptors.charged == 0
        assert len(daemon.sessions) == 1
        assert daemon.sessions._held == set()
        assert daemon.sessions._holds.keys() == daemon.sessions._streams.keys()
        syncs = daemon.conductor._syncs
        assert (syncs._of_session, syncs._of_job) == ({}, {})
        assert engine.next_deadline_ns() is None

    def close(self):
        self.daemon.end()


@pytest.fixture
def logged():
    with structlog.testing.capture_logs() as entries:
        yield entries


def run(folder, logged, plan, *, good_hello=True, reads=True, ending="lose", **limits):
    """Play `plan`, a number for each message, and hold the daemon to its promises."""
    logged.clear()
    world = World(folder, **limits)
    try:
        client = world.open()
        client.reads = reads
        client.say(frames.hello(None if good_hello else random.Random(plan[0] if plan else 0)))
        asked = []
        for index, number in enumerate(plan):
            rng = random.Random(number)
            request_id = 1_000 + index
            message, must = frames.message(rng, request_id)
            client.say(message)
            if must and not client.over and not message.startswith(b"\x0a"):
                asked.append((request_id, message))
            if rng.random() < 0.1:
                world.assert_serves()
            if rng.random() < 0.1:
                client.turn()
            if client.over:
                client = world.open()
                client.reads = reads
                client.say(frames.hello())
                asked.clear()
            elif rng.random() < 0.03:
                client = resumed(world, client)
                asked.clear()
        check_answers(client, asked)
        finish(world, client, ending)
        world.assert_serves()
        world.assert_clean()
    finally:
        world.close()
    assert [entry for entry in logged if entry["log_level"] in ("error", "critical")] == []


def resumed(world, client):
    """The client comes back with its token on another stream, having lost the first or not."""
    welcome = next((frame.welcome for frame in client.frames if frame.HasField("welcome")), None)
    if welcome is None or client.over:
        return client
    lost = welcome.session % 2 == 1
    if lost:
        client.lose()
    back = world.open()
    back.reads = client.reads
    hello = session_pb2.Hello(version_min=1, version_max=1, resume_token=welcome.resume_token)
    hello.received.add(binding=1).cursor.epoch = 1
    back.say(session_pb2.ClientFrame(hello=hello).SerializeToString())
    assert (
        not back.frames or back.frames[0].welcome.resumed or lost
    )  # the lease of its jobs may be a nanosecond
    assert client.over
    return back


def check_answers(client, asked):
    """Every request has its one answer; only Sync waits for events, and answers for each job."""
    if client.over or not client.reads:
        return
    for request_id, message in asked:
        sync = session_pb2.ClientFrame.FromString(message).WhichOneof("frame") == "sync"
        count = len(client.answers(request_id))
        assert sync or count == 1, session_pb2.ClientFrame.FromString(message)


def finish(world, client, ending):
    """End the client's stream in one of the ways there are, and then its process."""
    if ending == "half-close":
        client.half_close()
    elif ending == "lose":
        client.lose()
    world.daemon.process_gone(STRANGER)
    client.turn()
    client.turn()
    if client.status is not None:
        code, _, status = client.status
        assert code in ENDINGS, client.status
        if code:
            info = error_details_pb2.ErrorInfo()
            assert status_pb2.Status.FromString(status).details[0].Unpack(info)
            assert info.reason
            assert info.domain == "aemd"


plans = st.lists(st.integers(0, (1 << 32) - 1), max_size=100)
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(plan=plans, good_hello=st.booleans(), ending=st.sampled_from(("half-close", "lose", "exit")))
def test_any_hundred_frames(tmp_path, logged, plan, good_hello, ending):
    run(tmp_path, logged, plan, good_hello=good_hello, ending=ending)


# What is tight in a daemon whose limits have been set low: windows, answers, queues.
TIGHT = {
    "unanswered": 4,
    "control_bytes": 4_000,
    "queue_depth": 2,
    "queue_bytes": 200,
    "session_events": 3,
    "binding_events": 2,
    "jobs_per_session": 12,
    "channels": 2,
}


@pytest.mark.parametrize("seed", range(60))
def test_hundred_frames_after_a_good_hello(tmp_path, logged, seed):
    plan = [random.Random(seed).getrandbits(32) + index for index in range(100)]
    ending = ("half-close", "lose", "exit")[seed % 3]
    run(tmp_path, logged, plan, reads=seed % 5 != 0, ending=ending, **(TIGHT if seed % 2 else {}))


@relaxed
@given(messages=st.lists(st.binary(max_size=200), min_size=1, max_size=5), hello=st.booleans())
@example(messages=[b""], hello=False)
def test_any_bytes(tmp_path, logged, messages, hello):
    logged.clear()
    world = World(tmp_path)
    try:
        client = world.open()
        if hello:
            client.say(frames.hello())
        for message in messages:
            client.say(message)
        finish(world, client, "lose")
        world.assert_serves()
        world.assert_clean()
    finally:
        world.close()
    assert logged == [] or all(entry["log_level"] not in ("error", "critical") for entry in logged)
    gc.collect()
