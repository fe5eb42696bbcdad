"""Whoever floods the daemon, in whatever way, is cut off, and nobody else loses an event.

flooder.py does it, as an unprivileged user with bytes made by hand; a user of his own each time, because
offences are remembered. Meanwhile root's sessions are told of user events and timers, each of which is
checked. What exactly the budgets are is tried in tests/unit/front and tests/unit/peer.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from aemd.core.limits import SECOND, Limits
from aemd.core.quota import Quota
from aemd.front.accountant import BUDGETS
from aemd.front.unread import BYTES_MAX as UNREAD_BYTES_MAX
from aemd.front.unread import CALL_BYTES as UNREAD_CALL_BYTES
from aemd.peer.gate import BURST_NS
from aemd.v1 import admin_pb2, job_pb2, session_pb2
from tests.integration.conftest import entries
from tests.robustness.conftest import Footprint

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: programs of other users are started")

FLOODER = Path(__file__).parent / "flooder.py"
FIRST_UID = 60_000
SECONDS = 1.5
HANDSHAKE_SECONDS = 11  # longer than a front waits for one
MIB = 1 << 20
CORE_BYTES = 32 * MIB  # what the core may grow by; its allocator's slack included
FRONT_BYTES = 256 * MIB  # a front whose clients stay within their budgets, or are cut off
FULL_FRONT_BYTES = Limits().front_bytes + 128 * MIB  # one that is replaced; it looks every 256 KiB
CONNECTIONS = Quota().connections_per_second

ATTACKS = {
    "connections_and_nothing": "CONNECTIONS_PER_SECOND",
    "connect_and_close": "CONNECTIONS_PER_SECOND",
    "half_handshake": "CONNECTIONS_PER_SECOND",
    "garbage": "CONNECTIONS_PER_SECOND",
    "no_http2": "NOT_HTTP2",
    "huge_headers": "HEADER_BYTES",
    "endless_header": "HEADER_BYTES",
    "continuations": "CONTINUATION",
    "pings": "PING",
    "settings": "SETTINGS",
    "priorities": "PRIORITY",
    "window_updates": "WINDOW_UPDATE",
    "empty_data": "EMPTY_DATA",
    "unknown_frames": "OTHER_FRAMES",
    "rapid_reset": "RST_STREAM",
    "streams": "HEADERS",
}
PIECES = {  # frames in each piece that the flooder sends, and the bytes of one; of headers the bytes
    "huge_headers": (60_000, 1),
    "pings": (3_000, 17),
    "priorities": (3_000, 14),
    "window_updates": (3_000, 13),
    "empty_data": (3_000, 9),
    "rapid_reset": (100, 120),
    "streams": (100, 120),
}
SOCKET_BYTES = 1 * MIB  # that may lie between the two: two sockets' buffers
HEAVY = ("half_messages", "hpack_bomb", "never_reads")


class Witness:
    """Sessions of somebody else: a user event is raised, and the next only when it has come."""

    def __init__(self, client):
        self.speaker, self.listener = client.session(), client.session()
        credit = job_pb2.Credit(events=1 << 30, bytes=1 << 40)
        self.listener.send(grant=session_pb2.Grant(credit=credit))
        self.user = self.listener.register("user", channel="witness", credit=credit).binding
        self.timer = self.listener.register("timer", every="10ms", credit=credit).binding
        self.seen = {self.user: 0, self.timer: 0}

    def watch(self, until):
        """Raise and hear until it is time; every number of both jobs, none missing, none twice."""
        while time.monotonic() < until:
            payload = b"%d" % (self.seen[self.user] + 1)
            self.speaker.send(**{"raise": session_pb2.Raise(channel="witness", payloads=[payload])})
            while not self._hear(payload):
                pass

    def _hear(self, payload):
        frame = self.listener.next()
        assert frame.WhichOneof("frame") == "batch", frame
        come = False
        for run, last, event in entries(frame.batch):
            first = self.seen[run.binding] + 1
            assert run.first_seq <= first <= last
            if run.binding == self.user:
                assert (last, event.user.payload) == (first, payload)
                come = True
            self.seen[run.binding] = last
        for binding, seq in self.seen.items():
            if seq:
                self.listener.send(
                    ack=session_pb2.Ack(binding=binding, cursor=job_pb2.Cursor(epoch=1, seq=seq))
                )
        return come


class Scene:
    """A daemon, a witness, and flooders one after the other."""

    def __init__(self, daemon, client):
        self.daemon = daemon
        self.client = client
        self.witness = Witness(client)
        self.footprint = Footprint(daemon)
        self._uid = FIRST_UID

    def flood(self, what, seconds):
        """Let somebody flood while the witness watches: what he says, and what the log says of him."""
        self._uid += 1
        core_before, _ = self.footprint.resident_bytes()
        descriptors = self.own_descriptors()
        known = set(self.daemon.fronts())
        command = [sys.executable, FLOODER, what, self.daemon.path, str(self._uid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as flooder:
            assert flooder.stdout.readline() == "begun\n"
            until = time.monotonic() + seconds
            heard = self.witness.seen[self.witness.user]
            self.front_bytes = 0
            while time.monotonic() < until:
                self.witness.watch(time.monotonic() + 0.1)
                with self.daemon.client() as newcomer:
                    assert newcomer.status().pid == self.daemon.pid
                self.front_bytes = max(self.front_bytes, self._largest_front(known))
            said = json.loads(flooder.communicate()[0])
        assert self.witness.seen[self.witness.user] > heard
        assert self.witness.seen[self.witness.timer] > 0
        core, _ = self.footprint.resident_bytes()
        assert core < core_before + CORE_BYTES
        self._wait_for_rest(descriptors)
        return said, self._reasons()

    def calls(self, method):
        """How many calls of a method have reached the core."""
        metrics = self.client.call(
            "AdminService/GetMetrics", admin_pb2.GetMetricsRequest(), admin_pb2.GetMetricsResponse
        ).metrics
        (calls,) = [metric for metric in metrics if metric.name == "aemd_calls"]
        return sum(sample.value for sample in calls.samples if sample.labels[0].endswith(method))

    def own_descriptors(self):
        """Of the core, but for those of its fronts, which may come and go."""
        return self.footprint.descriptors()[self.daemon.pid] - 3 * self.client.status().fronts

    def _wait_for_rest(self, descriptors):
        """Until nothing of the flooder is left."""
        self.witness.watch(0)
        until = time.monotonic() + 20
        while self.client.status().connections > 1 or self.own_descriptors() > descriptors:
            assert time.monotonic() < until, (self.client.status(), descriptors)

    def _largest_front(self, known):
        """Of those that have come since."""
        sizes = [0]
        for pid in set(self.daemon.fronts()) - known:
            with contextlib.suppress(FileNotFoundError):  # it has ended
                sizes.append(self.footprint.resident([pid]))
        return max(sizes)

    def _reasons(self):
        lines = [json.loads(line) for line in self.daemon.log().splitlines()]
        return {line["reason"] for line in lines if line.get("uid") == self._uid}


@pytest.fixture(scope="module")
def scene(shared_daemon):
    with shared_daemon.client() as client:
        yield Scene(shared_daemon, client)


@pytest.mark.parametrize(("attack", "reason"), ATTACKS.items(), ids=ATTACKS.keys())
def test_flooder_is_cut_off_at_his_budget_and_every_event_of_others_arrives(scene, attack, reason):
    begin = time.monotonic()
    said, reasons = scene.flood(attack, SECONDS)
    seconds = time.monotonic() - begin
    assert scene.front_bytes < FRONT_BYTES
    if reason == "CONNECTIONS_PER_SECOND":
        budget = CONNECTIONS * (BURST_NS / SECOND + seconds)
        assert reason in reasons or said["connections"] <= budget  # on a machine that is busy otherwise
        if attack in ("connections_and_nothing", "half_handshake"):
            assert 0 < said["connections"] - said["refused"] <= budget
    elif attack in PIECES:
        frames, frame_bytes = PIECES[attack]
        (budget,) = [each for each in BUDGETS if each.cut.name == reason and each.burst > 1_000]
        budget = budget.burst + budget.per_second * seconds
        on_their_way = SOCKET_BYTES / frame_bytes + 2 * frames
        assert said["pieces"] * frames < budget + on_their_way
        assert reason in reasons or said["pieces"] * frames <= budget
    else:
        assert reason in reasons
        assert said["cut"] + said["refused"]


@pytest.mark.parametrize("attack", HEAVY)
def test_flooder_who_fills_the_memory_of_a_front_has_it_replaced_and_nobody_else_notices(scene, attack):
    replaced = scene.client.status().fronts_replaced
    calls = scene.calls("ModuleService/ListModules")
    _, reasons = scene.flood(attack, 2 * SECONDS)
    assert scene.front_bytes < FULL_FRONT_BYTES
    if attack == "never_reads":
        answered = scene.calls("ModuleService/ListModules") - calls
        assert 0 < answered < 2 * UNREAD_BYTES_MAX / UNREAD_CALL_BYTES  # of thousands
    if scene.client.status().fronts_replaced > replaced:
        assert "FRONT_BYTES" in reasons


def test_client_who_calls_as_fast_as_he_can_is_no_flooder(shared_daemon):
    options = [("grpc.keepalive_time_ms", 1_000), ("grpc.keepalive_permit_without_calls", 1)]
    options += [("grpc.http2.max_pings_without_data", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(shared_daemon.address, options=options) as channel:
        status = channel.unary_unary("/aem.v1.AdminService/GetStatus")
        late = channel.unary_unary("/aem.v1.ModuleService/ListModules")
        for _ in range(10):
            calls = [status.future(b"", timeout=20) for _ in range(400)]
            given_up = [late.future(b"", timeout=20) for _ in range(100)]
            for call in given_up:
                call.cancel()
            assert all(call.result() for call in calls)
    warned = [json.loads(line) for line in shared_daemon.log().splitlines()]
    assert [line for line in warned if line.get("uid") == os.geteuid() and line["level"] != "info"] == []


def test_handshakes_byte_by_byte_are_ended_in_time(scene):
    said, reasons = scene.flood("byte_by_byte", HANDSHAKE_SECONDS)
    assert "HANDSHAKE" in reasons
    assert said["refused"] == said["connections"]
