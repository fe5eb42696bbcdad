"""A front that was taken over, with a real core: it reaches its own user's, is ended, and others go on.

The hostile front (hostile_front/) is a real process in the real place, as locked up as the real one. It sends
what this test gives it: whatever its own user could have made it say.
"""

import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aemd import link
from aemd.link import Kind
from aemd.v1 import admin_pb2, job_pb2, module_pb2, session_pb2
from tests.robustness.hostile_front.hostile_front import ATTACKER, CONNECT, NUMBER

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
HERE = Path(__file__).parent
BYSTANDER = 1_234
SESSION = b"/aem.v1.EventService/Session"
GARBAGE = b"\xff" * link.HEADER.size
READY = link.pack(Kind.READY, 0, 0, b"as honest as the day is long")

# A client of another user: raises what it reads, and prints what it is told.
BYSTANDER_CODE = """
import os, sys
import aem, grpc._channel
uid = int(sys.argv[1])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
with aem.Client() as client:
    heard = iter(client.events("user", channel="c"))
    print("ready", flush=True)
    for line in sys.stdin:
        client.raise_event("c", line.encode())
        print(next(heard).data.decode(), end="", flush=True)
    client.close()
"""


ATTACKER_CODE = """
import os, socket, sys
path, uid, fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
with socket.socket(fileno=fd) as orders:
    while orders.recv(1):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            socket.send_fds(orders, [b"x"], [sock.fileno()])
"""


@pytest.fixture
def daemon(launch, monkeypatch):
    """All its fronts but those of the attacker are the real ones. Losing a front is an error in the log, and
    the only one.
    """
    monkeypatch.setenv("PYTHONPATH", str(HERE / "hostile_front"))
    running = launch()
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("AEMD_ADDRESS", running.address)
    yield running
    running.stop()
    errors = [line for line in running.log().splitlines() if '"level": "error"' in line]
    assert [line for line in errors if "front lost" not in line] == []


class Attacker:
    """A process of the attacker's that connects and passes the connections on to this one."""

    def __init__(self, path):
        self._sock, theirs = socket.socketpair()
        command = [sys.executable, "-I", "-c", ATTACKER_CODE, path, str(ATTACKER), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()

    def connect(self):
        self._sock.send(b"x")
        _, (fd,), _, _ = socket.recv_fds(self._sock, 1, 1)
        sock = socket.socket(fileno=fd)
        sock.settimeout(20)
        return sock

    def end(self):
        self._sock.close()
        assert self._process.wait(20) == 0


@pytest.fixture
def attack(daemon):
    """Makes tunnels."""
    attacker = Attacker(daemon.path)
    with contextlib.ExitStack() as stack:
        yield lambda: tunnel(stack, attacker)
    attacker.end()


def tunnel(stack, attacker):
    """A tunnel. Offences cost their user connections for a while, and so does the end of a front."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(struct.error):
            return Tunnel(stack.enter_context(attacker.connect()))
        threading.Event().wait(0.05)
    raise AssertionError("no connection was taken for 20 s")


class Tunnel:
    """A connection of the attacker's, and through its front the link itself."""

    def __init__(self, sock):
        self.sock = sock
        self._assembler = link.Assembler()
        self._frames = []
        self._streams = 0
        self.number = NUMBER.unpack(sock.recv(NUMBER.size, socket.MSG_WAITALL))[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Its front is ended with it: the next tunnel has one of its own."""
        self.say(GARBAGE * 100_000)  # more than the payload that a frame before may have announced
        assert self.is_ended()

    def say(self, *frames):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the front is gone already
            self.sock.sendall(b"".join(frames))

    def hear(self):
        """The next frame of the core; None when the front has been ended."""
        while not self._frames:
            try:
                piece = self.sock.recv(1 << 18)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return None
            self._frames = self._assembler.feed(piece)
        return self._frames.pop(0)

    def is_ended(self):
        """Whether the core ends the front, whatever it says before."""
        while (frame := self.hear()) is not None:
            assert frame.kind != Kind.OPEN
        return True

    def begin(self):
        """Serve, as far as the core can tell. One that never did is not asked for again at once."""
        self.say(READY)
        assert self.call(b"/nowhere", admin_pb2.GetStatusRequest())[0] == 12
        return self

    def open(self, method):
        self._streams += 1
        self.say(link.pack(Kind.OPEN, self.number, self._streams, method))
        return self._streams

    def call(self, method, request):
        """A unary call: (code, answer)."""
        stream = self.open(method)
        self.say(
            link.pack(Kind.DATA, self.number, stream, request.SerializeToString()),
            link.pack(Kind.END, self.number, stream, b"", link.HALF_CLOSE),
        )
        answer = b""
        while True:
            frame = self.hear()
            if frame.kind == Kind.DATA:
                answer = frame.payload
            elif frame.kind == Kind.END:
                return link.parse_status(frame.payload)[0], answer


class Others:
    """Root's session and another user's process: both must notice nothing."""

    def __init__(self, daemon, client):
        self.client = client
        self.session = client.session(label="root's")
        self.job = self.session.register("user", channel="c").job
        self._count = 0
        self._bystander = subprocess.Popen(
            [sys.executable, "-c", BYSTANDER_CODE, str(BYSTANDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._bystander.stdout.readline() == "ready\n"
        self._replaced = client.status().fronts_replaced

    def go_on(self):
        """Both raise an event and get it, on the connections that they had."""
        self._count += 1
        text = f"event {self._count}"
        self.session.send(**{"raise": session_pb2.Raise(channel="c", payloads=[text.encode()])})
        ((_, seq, event),) = self.session.events()
        assert (seq, event.user.payload) == (self._count, text.encode())
        self._bystander.stdin.write(text + "\n")
        self._bystander.stdin.flush()
        assert self._bystander.stdout.readline() == text + "\n"

    def replaced(self):
        """How many fronts have been ended since the last time."""
        before, self._replaced = self._replaced, self.client.status().fronts_replaced
        return self._replaced - before

    def end(self):
        self._bystander.communicate(timeout=20)
        assert self._bystander.returncode == 0


@pytest.fixture
def others(daemon, client):
    others = Others(daemon, client)
    yield others
    others.go_on()
    others.end()


def test_by_the_rules_it_is_its_own_user_and_nobody_else(attack, others):
    """The tunnel works, so what is refused below is refused for what it is."""
    with attack() as tunnel:
        tunnel.begin()
        code, answer = tunnel.call(b"/aem.v1.AdminService/GetStatus", admin_pb2.GetStatusRequest())
        status = admin_pb2.DaemonStatus.FromString(answer)
        assert (code, status.caller.uid, status.caller.administrator) == (0, ATTACKER, False)
        assert (status.jobs, status.sessions) == (0, 0)
        name = f"sessions/{others.session.welcome.session}"
        request = admin_pb2.EndSessionRequest(name=name)
        assert tunnel.call(b"/aem.v1.AdminService/EndSession", request)[0] == 5
        request = job_pb2.GetJobRequest(name=f"jobs/{others.job}")
        assert tunnel.call(b"/aem.v1.JobService/GetJob", request)[0] == 5
        request = module_pb2.UnloadModuleRequest(name="modules/user")
        assert tunnel.call(b"/aem.v1.ModuleService/UnloadModule", request)[0] == 7
        stream = tunnel.open(SESSION)
        token = others.session.welcome.resume_token
        hello = session_pb2.Hello(version_min=1, version_max=1, resume_token=token)
        frame = session_pb2.ClientFrame(hello=hello)
        tunnel.say(link.pack(Kind.DATA, tunnel.number, stream, frame.SerializeToString()))
        while (answer := tunnel.hear()).kind != Kind.DATA:
            pass
        welcome = session_pb2.ServerFrame.FromString(answer.payload).welcome
        assert not welcome.resumed
        assert welcome.principal.uid == ATTACKER
        others.go_on()
    assert others.replaced() <= 1  # it ends itself with its tunnel


def about(connection, stream):
    """Everything that can be said of a connection and a stream."""
    hello = session_pb2.ClientFrame(hello=session_pb2.Hello(version_min=1, version_max=1))
    return {
        "OPEN": link.pack(Kind.OPEN, connection, stream + 1, SESSION),
        "DATA": link.pack(Kind.DATA, connection, stream, hello.SerializeToString()),
        "END": link.pack(Kind.END, connection, stream, b"", link.HALF_CLOSE),
        "cancel": link.pack(Kind.END, connection, stream, b"", link.CANCELLED),
        "WINDOW": link.pack_window(connection, stream, 1),
        "CLOSED": link.pack(Kind.CLOSED, connection),
    }


@pytest.mark.parametrize("what", about(1, 1))
def test_speaking_for_a_connection_of_anothers_ends_the_front_and_nothing_else(attack, others, what):
    """For all numbers that connections can have here, with a stream of its own."""
    with attack() as tunnel:
        highest = tunnel.begin().number
    others.replaced()
    ended = 0
    for number in [0, *range(1, highest), highest + 1_000, (1 << 64) - 1]:
        with attack() as tunnel:
            stream = tunnel.begin().open(SESSION)
            tunnel.say(about(number, stream)[what])
            assert tunnel.is_ended()
            ended += 1
        others.go_on()
    assert others.replaced() >= ended
    assert ended > 4


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 4096,
        b"\0" * link.HEADER.size,
        link.HEADER.pack((1 << 32) - 1, Kind.DATA, 0, 0, 1, 1),
        READY + READY,
        READY + link.pack(Kind.DRAIN, 0),
        READY + link.pack(Kind.DATA, 1, 1, b"x"),
    ],
    ids=["ones", "zeros", "endless", "ready-twice", "drain", "no-stream"],
)
def test_garbage_ends_the_front(attack, others, garbage):
    with attack() as tunnel:
        tunnel.say(garbage)
        assert tunnel.is_ended()
    others.go_on()


def random_frame(rng, tunnel, highest):
    """A frame that is well-formed more often than not, about anything."""
    kind = rng.choice(list(Kind))
    connection = rng.choice([tunnel.number] * 4 + [rng.randrange(highest + 2), rng.getrandbits(64)])
    stream = rng.choice([rng.randrange(8), tunnel.number, rng.getrandbits(64)])
    messages = [
        b"",
        rng.randbytes(rng.randrange(2, 200)),  # one byte would say that the client offended, and delay it
        session_pb2.ClientFrame(hello=session_pb2.Hello(version_min=1, version_max=1)).SerializeToString(),
        session_pb2.ClientFrame(stop=session_pb2.Stop(job=rng.randrange(9))).SerializeToString(),
        SESSION,
        b"/aem.v1.JobService/StopJob",
        rng.randbytes(4),
    ]
    frame = link.pack(kind, connection, stream, rng.choice(messages), rng.choice([0, 0, 1, 2, 3, 255]))
    if rng.random() < 0.05:
        broken = bytearray(frame)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        frame = bytes(broken)
    return frame


@pytest.mark.parametrize("seed", range(4))
def test_whatever_it_says_at_random_disturbs_nobody(attack, others, seed):
    rng = random.Random(seed)
    before = [job.SerializeToString(deterministic=True) for job in others.client.jobs()]
    for _ in range(25):
        with attack() as tunnel:
            tunnel.begin()
            for _ in range(rng.randrange(1, 40)):
                tunnel.say(random_frame(rng, tunnel, tunnel.number))
    assert [job.SerializeToString(deterministic=True) for job in others.client.jobs()] == before
    assert others.client.status().fronts <= 3


def test_flood_of_calls_from_it_delays_the_others_and_loses_them_nothing(attack, others):
    with attack() as tunnel:
        tunnel.begin()
        opens = [
            link.pack(Kind.OPEN, tunnel.number, number, b"/aem.v1.AdminService/GetStatus")
            for number in range(2, 40_002)
        ]
        threads = [threading.Thread(target=tunnel.say, args=opens), threading.Thread(target=tunnel.is_ended)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            others.go_on()
        tunnel.say(GARBAGE)
        for thread in threads:
            thread.join(40)
            assert not thread.is_alive()


def test_front_cannot_become_a_client(daemon, attack, others):
    """It would be the user that fronts run as, whose jobs are not its own."""
    with attack() as tunnel:
        tunnel.say(CONNECT + daemon.path.encode())
        assert tunnel.sock.recv(100) == b"closed"
        others.go_on()
    assert "A_FRONT" in daemon.log()
