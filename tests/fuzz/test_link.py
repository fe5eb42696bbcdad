"""The link, as bytes and as what they mean.

Whatever the bytes, parse_frames gives frames that are the bytes, packed again, or raises LinkError. Whatever
a front says, the core raises nothing and calls no handler after its end or for the connection of another.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from aemd import link
from aemd.core.accounts import Accounts
from aemd.core.principal import Owner, Principal
from aemd.link import Assembler, Kind, LinkError
from aemd.loop.loop import Loop
from aemd.peer.front import Connection, Front
from aemd.peer.processes import Process
from aemd.peer.stream import Stream

numbers = st.integers(0, (1 << 64) - 1)
headers = st.builds(
    link.HEADER.pack,
    st.one_of(st.integers(0, 64), st.integers(0, (1 << 32) - 1)),
    st.integers(0, 9),
    st.integers(0, 255),
    st.sampled_from([0, 0, 0, 1]),
    numbers,
    numbers,
)
whole = st.builds(
    link.pack, st.sampled_from(list(Kind)), numbers, numbers, st.binary(max_size=80), st.integers(0, 255)
)
streams = st.lists(st.one_of(whole, whole, headers, st.binary(max_size=40)), max_size=12).map(b"".join)


@given(streams)
@settings(max_examples=500, deadline=None)
def test_frames_and_rest_are_the_buffer(buffer: bytes) -> None:
    try:
        frames, rest, need = link.parse_frames(buffer, 4096)
    except LinkError:
        return
    packed = b"".join(link.pack(f.kind, f.connection, f.stream, f.payload, f.flags) for f in frames)
    assert packed + rest == buffer
    assert need > len(rest)
    assert all(len(frame.payload) <= 4096 for frame in frames)


@given(streams, st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_cuts_change_nothing(buffer: bytes, cuts: list[int]) -> None:
    def assembled(sizes: Callable[[int], int]) -> tuple[list[link.Frame], bool]:
        assembler, frames, start, count = Assembler(4096), [], 0, 0
        try:
            while start < len(buffer):
                size = sizes(count)
                frames += assembler.feed(buffer[start : start + size])
                start, count = start + size, count + 1
        except LinkError:
            return frames, True
        return frames, False

    at_once, refused = assembled(lambda _: len(buffer))
    in_pieces, refused_too = assembled(lambda count: cuts[count % len(cuts)])
    assert refused == refused_too
    # At once, what precedes the fault in the same piece is not looked at.
    assert in_pieces == at_once or refused


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_payloads_parse_or_are_refused(payload: bytes) -> None:
    for parse in (link.parse_window, link.parse_status):
        try:
            parse(payload)
        except LinkError:
            pass


class Handler:
    """Consumes at once, and remembers what it was told."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.over = False

    def data(self, message: bytes) -> None:
        assert not self.over
        self.stream.consumed(len(message))
        if message == b"end":
            self.over = True
            self.stream.end(0)

    def half_closed(self) -> None:
        assert not self.over

    def writable(self) -> None:
        assert not self.over
        assert self.stream.room <= link.WINDOW_BYTES

    def closed(self, reason: str) -> None:
        assert not self.over
        self.over = True


class Owned:
    """The owner of a front; keeps what a front may never make it do wrong."""

    def __init__(self) -> None:
        self.handlers: list[Handler] = []
        self.connections = {1, 2}
        self.lost = False

    def open_stream(self, stream: Stream) -> Handler:
        assert stream.connection in self.connections
        assert not self.lost
        self.handlers.append(Handler(stream))
        return self.handlers[-1]

    def before_sending(self) -> None:
        assert not self.lost

    def front_full(self, front: Front) -> None:
        assert not self.lost

    def connection_cut(self, connection: Connection, cut: link.Cut) -> None:
        assert connection.number in self.connections

    def connection_over(self, connection: Connection) -> None:
        self.connections.remove(connection.number)

    def front_ready(self, front: Front) -> None:
        assert not self.lost

    def front_lost(self, front: Front, reason: str) -> None:
        assert not self.lost
        self.lost = True


few = st.integers(0, 3)
likely = st.one_of(
    st.builds(link.pack, st.sampled_from(list(Kind)), few, few, st.sampled_from([b"", b"end", b"x" * 9])),
    st.builds(link.pack, st.just(Kind.OPEN), st.integers(1, 2), st.integers(1, 6)),
    st.builds(link.pack, st.just(Kind.DATA), st.integers(1, 2), st.integers(1, 6), st.binary(max_size=9)),
    st.builds(link.pack, st.just(Kind.END), few, few, st.just(b""), st.integers(0, 3)),
    st.builds(
        link.pack,
        st.just(Kind.CLOSED),
        few,
        st.just(0),
        st.sampled_from([b"", b"\1", b"\13", b"\xff", b"no"]),
    ),
    st.builds(link.pack_window, few, few, st.integers(0, 1 << 20)),
)


@given(st.lists(likely, max_size=20), streams)
@settings(max_examples=400, deadline=None)
def test_front_that_says_anything_harms_nobody(said: list[bytes], junk: bytes) -> None:
    loop, owned = Loop(), Owned()
    principal = Principal(Owner(1000), 1000, (), 1, 1, administrator=False)
    front = Front(loop, owned, number=1, message_bytes=4096)
    try:
        for number in (1, 2):
            client, server = socket.socketpair()
            client.close()
            process = Process(principal, -1)
            charge = Accounts().charge(principal, "connections")
            connection = Connection(
                number=number, principal=principal, charge=charge, process=process, front=front
            )
            assert front.hand_over(connection, server)
        end = front.ends[0]
        end.send(b"".join(said) + junk)
        end.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(end, select.POLLIN)
        while not owned.lost:
            loop.turn()
        assert owned.connections == set()
        assert all(handler.over for handler in owned.handlers)
    finally:
        for sock in front.ends:
            sock.close()
        loop.close()
