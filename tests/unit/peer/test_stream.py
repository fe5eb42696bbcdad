from aemd import link
from aemd.core.principal import Owner, Principal
from aemd.link import Kind
from aemd.peer.stream import Stream

PRINCIPAL = Principal(Owner(1000), 1000, (), 17, 4242, administrator=False)


class Sender:
    """Keeps the frames."""

    def __init__(self):
        self.sent = b""
        self.forgotten = []

    def send(self, frame):
        self.sent += frame

    def forget(self, stream):
        self.forgotten.append(stream)

    def frames(self):
        frames, rest, _ = link.parse_frames(self.sent)
        assert rest == b""
        self.sent = b""
        return [(frame.kind, frame.payload) for frame in frames]


def make():
    sender = Sender()
    return sender, Stream(sender, principal=PRINCIPAL, connection=5, number=9, method="/a/B")


def test_what_is_sent_takes_room():
    sender, stream = make()
    stream.send(b"x" * 1000)
    assert stream.room == link.WINDOW_BYTES - 1000
    assert sender.frames() == [(Kind.DATA, b"x" * 1000)]


def test_room_falls_below_zero_by_one_message():
    _, stream = make()
    stream.send(b"x" * (link.WINDOW_BYTES - 1))
    assert stream.room == 1
    stream.send(b"x" * 1000)
    assert stream.room == -999


def test_window_is_given_back_in_steps():
    sender, stream = make()
    stream.outstanding = link.WINDOW_BYTES
    stream.consumed(link.WINDOW_STEP_BYTES - 1)
    assert sender.frames() == []
    stream.consumed(1)
    ((kind, payload),) = sender.frames()
    assert kind == Kind.WINDOW
    assert link.parse_window(payload) == link.WINDOW_STEP_BYTES
    assert stream.outstanding == link.WINDOW_BYTES - link.WINDOW_STEP_BYTES


def test_end_is_said_once_and_nothing_after_it():
    sender, stream = make()
    stream.end(5, "gone", b"details")
    assert sender.forgotten == [stream]
    ((kind, payload),) = sender.frames()
    assert kind == Kind.END
    assert link.parse_status(payload) == (5, "gone", b"details")
    stream.end(0)
    stream.send(b"x")
    stream.consumed(1 << 20)
    assert sender.frames() == []


def test_what_is_too_long_for_trailers_is_cut():
    sender, stream = make()
    stream.end(13, "m" * 10_000, b"s" * 10_000)
    ((_, payload),) = sender.frames()
    code, message, status = link.parse_status(payload)
    assert code == 13
    assert len(message) == 2048
    assert message.endswith("m...")
    assert status == b""
