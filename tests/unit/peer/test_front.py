"""One front as the core sees it, over real sockets; the test is the front."""

import os
import select
import socket

import pytest

from aemd import link
from aemd.core.accounts import Accounts
from aemd.core.principal import Owner, Principal
from aemd.link import Kind
from aemd.loop.loop import Loop
from aemd.peer import front, linkend, pulse
from aemd.peer.front import Connection, Front
from aemd.peer.processes import Process

PRINCIPAL = Principal(Owner(1000), 1000, (), 17, 4242, administrator=False)
TURN_NS = 10_000_000_000


class Handler:
    def __init__(self, owner, stream):
        self.owner = owner
        self.stream = stream
        self.calls = []

    def data(self, message):
        self.calls.append(message)
        if message == b"raise":
            raise RuntimeError("as the test wished")

    def half_closed(self):
        self.calls.append("half closed")

    def closed(self, reason):
        self.calls.append(f"closed: {reason}")

    def writable(self):
        self.calls.append("writable")


class TestFront:
    """The owner of the front, and the front's end of its sockets."""

    __test__ = False

    def __init__(self, loop):
        self.loop = loop
        self.handlers = []
        self.over = []
        self.cut = []
        self.reason = None
        self.pings = 0  # how often it was asked whether it lives
        self.before = []  # whether anything had left when it was about to
        self.front = Front(loop, self, number=1, message_bytes=1 << 20)
        self.link, self.descriptors = self.front.ends
        self.assembler = link.Assembler()

    def connect(self, number, principal=PRINCIPAL):
        client, server = socket.socketpair()
        connection = Connection(
            number=number,
            principal=principal,
            charge=Accounts().charge(principal, "connections"),
            process=Process(principal, -1),
            front=self.front,
        )
        assert self.front.hand_over(connection, server)
        client.close()
        return connection

    def open_stream(self, stream):
        self.handlers.append(Handler(self, stream))
        if stream.method == "/refuse":
            stream.end(12, "no")
        if stream.method == "/raise":
            raise RuntimeError("as the test wished")
        return self.handlers[-1]

    def before_sending(self):
        self.before.append(bool(select.select([self.link], [], [], 0)[0]))

    def connection_cut(self, connection, cut):
        self.cut.append((connection.number, cut))

    def connection_over(self, connection):
        self.over.append(connection.number)

    def front_full(self, front):
        self.blamed = sorted(front.connections)

    def front_ready(self, front):
        self.ready = True

    def front_lost(self, front, reason):
        self.reason = reason

    def say(self, *frames):
        left = b"".join(frames)
        while left:
            left = left[self.link.send(left) :]
            self.loop.turn(TURN_NS)

    def heard(self):
        """The frames that the core has sent, but for its questions."""
        self.loop.turn(0)
        frames = []
        while select.select([self.link], [], [], 0)[0]:
            frames += self.assembler.feed(self.link.recv(1 << 20))
        told = [(frame.kind, frame.connection, frame.stream) for frame in frames if frame.kind != Kind.PING]
        self.pings += len(frames) - len(told)
        return told


@pytest.fixture
def test():
    loop = Loop()
    test = TestFront(loop)
    yield test
    test.front.lose("the test is over")
    for sock in (test.link, test.descriptors):
        sock.close()
    loop.close()


def test_connection_is_handed_over_with_its_number(test):
    test.connect(77)
    message, fds, _, _ = socket.recv_fds(test.descriptors, 100, 4)
    assert link.DESCRIPTOR.unpack(message) == (link.HAND_OVER, 77)
    (fd,) = fds
    with socket.socket(fileno=fd) as sock:
        assert sock.recv(1) == b""


def test_handovers_wait_for_a_front_that_does_not_take_them(test):
    numbers = list(range(1, 401))
    for number in numbers:
        test.connect(number)
    taken = []
    while len(taken) < len(numbers):
        assert select.select([test.descriptors], [], [], 10)[0]
        message, fds, _, _ = socket.recv_fds(test.descriptors, 100, 4)
        taken.append(link.DESCRIPTOR.unpack(message)[1])
        for fd in fds:
            os.close(fd)
        test.loop.turn(0)
    assert taken == numbers


def test_handover_beyond_what_may_wait_is_refused(test, monkeypatch):
    monkeypatch.setattr(linkend, "HANDOVERS_MAX", 0)
    client, server = socket.socketpair()
    connection = Connection(
        number=1,
        principal=PRINCIPAL,
        charge=Accounts().charge(PRINCIPAL, "connections"),
        process=Process(PRINCIPAL, -1),
        front=test.front,
    )
    with client:
        assert not test.front.hand_over(connection, server)
        assert client.recv(1) == b""
    assert test.front.connections == {}


def test_life_of_a_stream(test):
    test.connect(5)
    test.say(
        link.pack(Kind.READY, 0),
        link.pack(Kind.OPEN, 5, 1, b"/m"),
        link.pack(Kind.DATA, 5, 1, b"hello"),
        link.pack(Kind.END, 5, 1, b"", link.HALF_CLOSE),
    )
    (handler,) = test.handlers
    assert test.ready
    assert handler.calls == [b"hello", "half closed"]
    assert handler.stream.method == "/m"
    assert handler.stream.principal is PRINCIPAL
    handler.stream.send(b"answer")
    handler.stream.end(0)
    assert test.heard() == [(Kind.DATA, 5, 1), (Kind.END, 5, 1)]
    test.say(link.pack(Kind.END, 5, 1, b"", link.CANCELLED), link.pack_window(5, 1, 6))
    assert test.reason is None
    assert handler.calls == [b"hello", "half closed"]


def test_owner_is_asked_before_anything_leaves_and_not_else(test):
    test.connect(5)
    test.say(link.pack(Kind.OPEN, 5, 1, b"/m"))
    assert test.before == []
    test.handlers[0].stream.send(b"answer")
    test.handlers[0].stream.send(b"another")
    assert test.heard() == [(Kind.DATA, 5, 1), (Kind.DATA, 5, 1)]
    assert test.before == [False]


def test_cancelled_stream_is_closed(test):
    test.connect(5)
    test.say(link.pack(Kind.OPEN, 5, 1), link.pack(Kind.END, 5, 1, b"", link.CANCELLED))
    assert test.handlers[0].calls == ["closed: cancelled"]
    test.handlers[0].stream.send(b"too late")
    assert test.heard() == []


def test_user_with_too_many_streams_is_refused_and_nobody_else(test, monkeypatch):
    monkeypatch.setattr(front, "STREAMS_PER_USER_MAX", 2)
    test.connect(5)
    test.connect(6, Principal(Owner(1001), 1001, (), 18, 4243, administrator=False))
    test.say(*[link.pack(Kind.OPEN, 5, number) for number in (1, 2, 3)], link.pack(Kind.OPEN, 6, 4))
    assert test.heard() == [(Kind.END, 5, 3)]
    assert [handler.stream.number for handler in test.handlers] == [1, 2, 4]
    test.say(link.pack(Kind.END, 5, 1, b"", link.CANCELLED), link.pack(Kind.OPEN, 5, 5))
    assert test.handlers[-1].stream.number == 5
    assert test.reason is None


def test_closed_connection_closes_its_streams(test):
    test.connect(5)
    test.connect(6)
    test.say(
        link.pack(Kind.OPEN, 5, 1), link.pack(Kind.OPEN, 6, 2), link.pack(Kind.OPEN, 5, 3),
        link.pack(Kind.CLOSED, 5),
    )  # fmt: skip
    assert [handler.calls for handler in test.handlers] == [
        ["closed: connection gone"], [], ["closed: connection gone"],
    ]  # fmt: skip
    assert test.over == [5]


def test_connection_closed_by_the_core_stays_until_the_front_confirms(test):
    connection = test.connect(5)
    test.say(link.pack(Kind.OPEN, 5, 1))
    test.front.close_connection(connection, "process gone")
    assert test.handlers[0].calls == ["closed: process gone"]
    assert test.heard() == [(Kind.CLOSED, 5, 0)]
    test.say(link.pack(Kind.OPEN, 5, 2), link.pack(Kind.DATA, 5, 1, b"crossed"))
    assert test.heard() == [(Kind.END, 5, 2)]
    assert len(test.handlers) == 1
    assert test.over == []
    test.say(link.pack(Kind.CLOSED, 5))
    assert test.over == [5]
    assert test.reason is None


def test_connection_that_the_front_cut_off_is_over_and_the_reason_is_passed_on(test):
    test.connect(5)
    test.say(OPENED)
    test.say(link.pack(Kind.CLOSED, 5, 0, bytes((link.Cut.PING,))))
    assert test.cut == [(5, link.Cut.PING)]
    assert test.over == [5]
    assert test.handlers[0].calls == ["closed: connection closed: PING"]
    assert test.reason is None


def test_window_makes_room_and_says_so(test):
    test.connect(5)
    test.say(link.pack(Kind.OPEN, 5, 1))
    (handler,) = test.handlers
    handler.stream.send(b"x" * 100_000)
    test.say(link.pack_window(5, 1, 70_000))
    assert handler.calls == ["writable"]
    assert handler.stream.room == link.WINDOW_BYTES - 30_000


def test_stream_refused_when_it_opens_gets_nothing(test):
    test.connect(5)
    test.say(link.pack(Kind.OPEN, 5, 1, b"/refuse"), link.pack(Kind.DATA, 5, 1, b"x"))
    assert test.heard() == [(Kind.END, 5, 1)]
    assert test.handlers[0].calls == []


def test_handler_that_raises_ends_its_stream(test):
    test.connect(5)
    test.say(link.pack(Kind.OPEN, 5, 1), link.pack(Kind.DATA, 5, 1, b"raise"), link.pack(Kind.OPEN, 5, 2))
    assert test.handlers[0].calls == [b"raise", "closed: internal error"]
    assert test.heard() == [(Kind.END, 5, 1)]
    test.say(link.pack(Kind.OPEN, 5, 3, b"/raise"), link.pack(Kind.DATA, 5, 2, b"x"))
    assert test.heard() == [(Kind.END, 5, 3)]
    assert test.handlers[1].calls == [b"x"]
    assert test.reason is None


OPENED = link.pack(Kind.OPEN, 5, 4)
VIOLATIONS = {
    "open for a foreign connection": link.pack(Kind.OPEN, 9, 5),
    "stream number twice": link.pack(Kind.OPEN, 5, 4),
    "stream number going back": link.pack(Kind.OPEN, 5, 3),
    "data for an unknown stream": link.pack(Kind.DATA, 5, 99, b"x"),
    "data for stream 0": link.pack(Kind.DATA, 5, 0, b"x"),
    "data for a stream under another connection": link.pack(Kind.DATA, 6, 4, b"x"),
    "data after half-close": link.pack(Kind.END, 5, 4, b"", 1) + link.pack(Kind.DATA, 5, 4, b"x"),
    "half-close twice": link.pack(Kind.END, 5, 4, b"", 1) * 2,
    "end without a flag": link.pack(Kind.END, 5, 4),
    "data beyond the window": link.pack(Kind.DATA, 5, 4, b"x" * link.WINDOW_BYTES)
    + link.pack(Kind.DATA, 5, 4, b"x"),
    "window for more than was sent": link.pack_window(5, 4, 1),
    "window that is none": link.pack(Kind.WINDOW, 5, 4, b"xyz"),
    "closed for a foreign connection": link.pack(Kind.CLOSED, 9),
    "closed for a reason that is none": link.pack(Kind.CLOSED, 5, 0, b"\xff"),
    "ready twice": link.pack(Kind.READY, 0) * 2,
    "drain": link.pack(Kind.DRAIN, 0),
    "answer that nobody asked for": link.pack(Kind.PING, 0),
    "no frame": b"\xff" * 24,
    "too long": link.HEADER.pack((1 << 20) + 1, Kind.DATA, 0, 0, 5, 4),
}


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_front_that_breaks_the_protocol_is_lost(test, violation):
    test.connect(5)
    test.connect(6)
    test.say(OPENED)
    test.say(violation)
    while test.reason is None:
        test.loop.turn(TURN_NS)
    assert test.reason.startswith("it broke the protocol: ")
    assert test.handlers[0].calls[-1] == "closed: front gone"
    assert len(test.handlers) == 1
    assert sorted(test.over) == [5, 6]
    assert test.link.recv(100) == b""


def test_front_that_has_too_much_memory_is_replaced_and_its_connections_are_known_until_then(test):
    test.connect(5)
    test.connect(6)
    test.say(link.pack(Kind.FULL, 0))
    assert test.blamed == [5, 6]
    assert test.over == [5, 6]
    assert test.front.full
    assert test.reason == "it has more memory than it may have"


def test_front_that_is_gone_is_lost(test):
    test.connect(5)
    test.say(OPENED)
    test.link.shutdown(socket.SHUT_RDWR)
    test.loop.turn(TURN_NS)
    assert test.reason == "it is gone"
    assert test.over == [5]


def test_front_that_reads_nothing_is_lost_after_a_while(test, monkeypatch):
    monkeypatch.setattr(linkend, "STALL_NS", 1)
    test.connect(5)
    test.say(OPENED)
    for _ in range(8):
        test.handlers[0].stream.send(b"x" * 200_000)
    while test.reason is None:
        test.loop.turn(TURN_NS)
    assert test.reason == "it reads nothing"


def pings(test):
    """How often it was asked whether it lives, since the last time."""
    test.heard()
    count, test.pings = test.pings, 0
    return count


def test_front_that_does_not_answer_is_lost(test, monkeypatch):
    monkeypatch.setattr(pulse, "LATE_NS", 1)
    test.say(link.pack(Kind.READY, 0))
    test.connect(5)
    test.say(OPENED)
    test.handlers[0].stream.send(b"x")
    while test.reason is None:
        test.loop.turn(TURN_NS)
    assert test.reason == "it does not answer"
    assert test.over == [5]


def test_front_is_asked_with_what_is_sent_and_not_too_often(test, monkeypatch):
    test.say(link.pack(Kind.READY, 0))
    test.connect(5)
    test.say(OPENED)
    assert not pings(test)
    for _ in range(3):
        test.handlers[0].stream.send(b"x")
    assert pings(test) == 1
    test.say(link.pack(Kind.PING, 0))
    test.handlers[0].stream.send(b"x")
    assert not pings(test)
    monkeypatch.setattr(pulse, "BEAT_NS", 0)
    test.front._pulse.answered()
    test.handlers[0].stream.send(b"x")
    assert pings(test) == 1
    test.say(link.pack(Kind.PING, 0))
    before = test.loop.wakeups
    test.loop.turn(100_000_000)  # nothing is waited for
    assert test.loop.wakeups == before + 1
    assert test.reason is None


def test_front_that_takes_no_connections_is_lost_after_a_while(test, monkeypatch):
    monkeypatch.setattr(linkend, "STALL_NS", 1)
    for number in range(1, 401):
        test.connect(number)
    while test.reason is None:
        test.loop.turn(TURN_NS)
    assert test.reason == "it takes no connections"
    assert len(test.over) == 400


def test_output_that_does_not_fit_at_once_arrives_in_order(test):
    test.connect(5)
    test.say(OPENED)
    messages = [bytes([number]) * 50_000 for number in range(40)]
    for message in messages:
        test.handlers[0].stream.send(message)
    got = []
    while len(got) < len(messages):
        test.loop.turn(0)
        got += test.assembler.feed(test.link.recv(100_000))
    assert [frame.payload for frame in got] == messages
    wakeups = test.loop.turns
    assert test.heard() == []
    assert test.loop.turns == wakeups + 1
