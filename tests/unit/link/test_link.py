import pytest

from aemd import link
from aemd.core import limits
from aemd.link import Assembler, Frame, Kind, LinkError


def test_window_is_the_one_of_the_limits():
    assert link.WINDOW_BYTES == limits.WINDOW_BYTES


def test_header_has_the_layout_of_the_protocol():
    packed = link.pack(Kind.END, 0x0102030405060708, 0x1112131415161718, b"xyz", link.CANCELLED)
    assert packed == (b"\3\0\0\0\3\2\0\0\x08\7\6\5\4\3\2\1\x18\x17\x16\x15\x14\x13\x12\x11xyz")


def test_frames_come_out_as_they_went_in():
    frames = [
        Frame(Kind.OPEN, 0, 7, 1, b"/aem.v1.EventService/Session"),
        Frame(Kind.DATA, 0, 7, 1, b""),
        Frame(Kind.END, link.HALF_CLOSE, 7, 1, b""),
        Frame(Kind.CLOSED, 0, (1 << 64) - 1, 0, b""),
    ]
    buffer = b"".join(link.pack(f.kind, f.connection, f.stream, f.payload, f.flags) for f in frames)
    assert link.parse_frames(buffer + b"\1\2") == (frames, b"\1\2", link.HEADER.size)


def test_unfinished_frame_says_how_much_it_needs():
    packed = link.pack(Kind.DATA, 1, 1, b"x" * 100)
    assert link.parse_frames(packed[:50]) == ([], packed[:50], 124)


def test_frames_cut_anywhere_are_assembled():
    buffer = b"".join(link.pack(Kind.DATA, 1, number, b"x" * number) for number in range(50))
    for size in (1, 7, 24, 25, 1000):
        assembler = Assembler()
        frames = [
            frame
            for start in range(0, len(buffer), size)
            for frame in assembler.feed(buffer[start : start + size])
        ]
        assert [(frame.stream, len(frame.payload)) for frame in frames] == [(n, n) for n in range(50)]


@pytest.mark.parametrize("kind", [0, max(Kind) + 1, 255])
def test_unknown_kind_is_refused(kind):
    with pytest.raises(LinkError, match="kind"):
        link.parse_frames(link.HEADER.pack(0, kind, 0, 0, 1, 1))


def test_reserved_field_must_be_zero():
    with pytest.raises(LinkError, match="reserved"):
        link.parse_frames(link.HEADER.pack(0, Kind.DATA, 0, 1, 1, 1))


def test_payload_above_the_limit_is_refused_before_it_is_there():
    assembler = Assembler(1000)
    assert assembler.feed(link.pack(Kind.DATA, 1, 1, b"x" * 1000)) != []
    with pytest.raises(LinkError, match="1001"):
        assembler.feed(link.HEADER.pack(1001, Kind.DATA, 0, 0, 1, 1))


@pytest.mark.parametrize("size", [1, 0xFFFFFFFF, 0x1_0000_0005])
def test_window_frames_add_up(size):
    frames, rest, _ = link.parse_frames(link.pack_window(3, 4, size))
    assert rest == b""
    assert sum(link.parse_window(frame.payload) for frame in frames) == size
    assert {(frame.kind, frame.connection, frame.stream) for frame in frames} == {(Kind.WINDOW, 3, 4)}


@pytest.mark.parametrize("status", [(0, "", b""), (13, "größer", b"\1\2\3"), (99, "x" * 3000, b"")])
def test_status_comes_out_as_it_went_in(status):
    assert link.parse_status(link.pack_status(*status)) == status


@pytest.mark.parametrize("payload", [b"", b"\0" * 7, b"\0\0\0\0\5\0\0\0abcd"])
def test_cut_status_is_refused(payload):
    with pytest.raises(LinkError, match="END"):
        link.parse_status(payload)


@pytest.mark.parametrize("payload", [b"", b"\0\0\0", b"\0\0\0\0\0"])
def test_cut_window_is_refused(payload):
    with pytest.raises(LinkError, match="WINDOW"):
        link.parse_window(payload)
