"""The public socket: who may take it, and how it accepts when descriptors are short."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aemd.core.limits import Limits
from aemd.loop.loop import Loop
from aemd.peer import accept
from aemd.peer.accept import Acceptor, SocketTaken, UnfitListenerError, take
from aemd.peer.peers import Peers

TURN_NS = 10_000_000_000
HOLDER = """
import sys, os
sys.path.insert(0, sys.argv[2])
from aemd.peer.accept import take
place = take(os.fsencode(sys.argv[1]), public=True)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.chdir(tmp_path)  # pytest's paths are longer than a socket's may be
    return b"sock"


@contextlib.contextmanager
def holder(path: bytes) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLDER, path, str(Path(accept.__file__).parents[2])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize(("public", "mode"), [(True, 0o666), (False, 0o600)])
def test_mode_says_who_may_connect(path: bytes, public: bool, mode: int) -> None:
    place = take(path, public=public)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    place.give_back()
    assert not os.path.exists(path)


def test_path_that_is_served_names_its_server(path: bytes) -> None:
    with holder(path) as process:
        with pytest.raises(SocketTaken) as taken:
            take(path, public=True)
        assert str(taken.value) == f"aemd already serves sock: pid {process.pid}"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)


def test_lock_that_is_a_link_to_another_file_is_not_written_to(path: bytes) -> None:
    Path("precious").write_text("precious")
    os.link("precious", "sock.lock")
    with pytest.raises(SocketTaken, match=r"sock\.lock is not ours"):
        take(path, public=True)
    assert Path("precious").read_text() == "precious"


def test_lock_that_is_no_file_is_refused(path: bytes) -> None:
    os.mkfifo("sock.lock")
    with pytest.raises(SocketTaken, match="is not ours"):
        take(path, public=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a file is given to another user")
def test_lock_of_another_user_is_refused(path: bytes) -> None:
    Path("sock.lock").touch()
    os.chown("sock.lock", 65534, 65534)
    with pytest.raises(SocketTaken, match="uid 65534"):
        take(path, public=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a file is given to another user")
def test_lock_of_whose_the_folder_is_is_taken(path: bytes) -> None:
    Path("sock.lock").touch()
    for name in (".", "sock.lock"):
        os.chown(name, 65534, 65534)
    take(path, public=True).give_back()


def test_start_without_a_zygote_names_the_program_and_leaves_no_socket(path: bytes) -> None:
    loop = Loop(on_fault=lambda _fault: None)
    peers = Peers(
        loop,
        Limits(),
        socket_path=path,
        public=True,
        open_stream=lambda _stream: pytest.fail("nobody connects"),
        process_gone=lambda _principal: None,
        command=["/nowhere/python"],
    )
    with pytest.raises(FileNotFoundError) as error:
        peers.start()
    assert error.value.filename == "/nowhere/python"
    assert not os.path.exists(path)
    take(path, public=True).give_back()
    loop.close()


def test_path_of_a_killed_daemon_is_free(path: bytes) -> None:
    with holder(path) as process:
        process.kill()
        process.wait()
    assert os.path.exists(path)
    take(path, public=True).give_back()


def test_daemon_that_drains_keeps_the_path_but_not_the_file(path: bytes) -> None:
    place = take(path, public=True)
    place.stop_listening()
    assert not os.path.exists(path)
    with pytest.raises(SocketTaken, match=f"pid {os.getpid()}"):
        take(path, public=True)
    place.give_back()
    take(path, public=True).give_back()


def test_server_that_knows_no_lock_is_left_alone(path: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(SocketTaken, match=f"pid {os.getpid()}"):
            take(path, public=True)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)


def test_file_that_is_no_socket_is_left_alone(path: bytes) -> None:
    Path(os.fsdecode(path)).write_text("precious")
    with pytest.raises(SocketTaken, match="not a socket"):
        take(path, public=True)
    assert Path(os.fsdecode(path)).read_text() == "precious"


def test_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(SocketTaken, match="107"):
        take(b"/tmp/" + b"x" * 103, public=True)


def test_lock_that_is_a_link_is_not_followed(path: bytes, tmp_path: Path) -> None:
    (tmp_path / "sock.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        take(path, public=True)
    assert not (tmp_path / "elsewhere").exists()


def test_socket_file_of_a_successor_is_not_removed(path: bytes) -> None:
    place = take(path, public=True)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        place.give_back()
        assert os.path.exists(path)


@contextlib.contextmanager
def passed_on(path: bytes, mode: int = 0o666, *, listens: bool = True) -> Iterator[socket.socket]:
    """A listener as a service manager makes it, and the manager's own copy."""
    with socket.socket(socket.AF_UNIX) as manager:
        manager.bind(path)
        os.chmod(path, mode)
        if listens:
            manager.listen()
        with manager.dup() as given:
            yield given


def test_listener_that_was_passed_on_outlives_the_daemon(path: bytes) -> None:
    with passed_on(path) as given:
        place = take(path, public=True, given=given)
        place.give_back()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)  # and waits in the backlog


def test_listener_that_was_passed_on_is_served_by_one_daemon_only(path: bytes) -> None:
    with passed_on(path) as given:
        place = take(path, public=True, given=given)
        with given.dup() as again, pytest.raises(SocketTaken):
            take(path, public=True, given=again)
        place.give_back()


def test_passed_on_listener_for_another_path_is_refused(path: bytes) -> None:
    with passed_on(b"other") as given, pytest.raises(UnfitListenerError, match=r"'other'.*sock.*--socket"):
        take(path, public=True, given=given)
    take(path, public=True).give_back()  # and the lock is free


def test_passed_on_socket_that_does_not_listen_is_refused(path: bytes) -> None:
    with passed_on(path, listens=False) as given, pytest.raises(UnfitListenerError, match="does not listen"):
        take(path, public=True, given=given)


def test_passed_on_socket_of_another_kind_is_refused(path: bytes) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        pytest.raises(UnfitListenerError, match="ListenStream"),
    ):
        take(path, public=True, given=given)


def test_passed_on_listener_of_one_user_that_lets_others_in_is_refused(path: bytes) -> None:
    with passed_on(path) as given:
        with pytest.raises(UnfitListenerError, match="SocketMode=0600"):
            take(path, public=False, given=given)
        os.chmod(path, 0o600)
        take(path, public=False, given=given).give_back()


class Accepting:
    """An Acceptor over a real loop, which keeps what it accepts."""

    def __init__(self, path: bytes, accepted: Callable[[socket.socket], object] | None = None) -> None:
        self.path = path
        self.loop = Loop()
        self.place = take(path, public=False)
        self.kept: list[socket.socket] = []
        self.acceptor = Acceptor(
            self.loop, self.place.listener, reserve=8, accepted=accepted or self.kept.append
        )

    def connect(self, count: int) -> list[socket.socket]:
        socks = [socket.socket(socket.AF_UNIX) for _ in range(count)]
        for sock in socks:
            sock.connect(self.path)
        return socks


@pytest.fixture
def accepting(path: bytes) -> Iterator[Accepting]:
    accepting = Accepting(path)
    yield accepting
    accepting.acceptor.close()
    accepting.place.give_back()
    for sock in accepting.kept:
        sock.close()
    accepting.loop.close()


def test_one_turn_accepts_a_bounded_number(accepting: Accepting) -> None:
    socks = accepting.connect(accept.BATCH + 10)
    accepting.loop.turn(TURN_NS)
    assert len(accepting.kept) == accept.BATCH
    accepting.loop.turn(TURN_NS)
    assert len(accepting.kept) == accept.BATCH + 10
    for sock in socks:
        sock.close()


def test_closed_acceptor_accepts_no_more(accepting: Accepting) -> None:
    socks = accepting.connect(1)
    accepting.acceptor.close()
    accepting.acceptor.descriptor_freed()
    accepting.loop.turn(0)
    assert accepting.kept == []
    for sock in socks:
        sock.close()


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """A table of descriptors with so much room."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_reserve_is_kept_and_the_rest_waits_without_a_spin(accepting: Accepting) -> None:
    socks = accepting.connect(30)
    accepting.loop.clock("monotonic")
    with room_for(20):
        accepting.loop.turn(TURN_NS)
        accepted = len(accepting.kept)
        assert 0 < accepted <= 12
        accepting.loop.turn(0)  # the listener is readable, and nothing happens
        assert len(accepting.kept) == accepted
        for _ in range(4):
            accepting.kept.pop().close()
        accepting.acceptor.descriptor_freed()
        accepting.loop.turn(TURN_NS)
        assert accepted - 4 < len(accepting.kept) <= accepted
    while len(accepting.kept) < 26:
        accepting.loop.turn(TURN_NS)  # the timer finds that there is room again
    for sock in socks:
        sock.close()


@pytest.fixture
def refusing(path: bytes) -> Iterator[Accepting]:
    """Turns everybody away."""
    refusing = Accepting(path, turn_away)
    refusing.loop.clock("monotonic")
    yield refusing
    refusing.acceptor.close()
    refusing.place.give_back()
    refusing.loop.close()


def turn_away(sock: socket.socket) -> object:
    sock.close()
    return accept.TURNED_AWAY


def test_those_who_are_turned_away_fill_no_table_and_their_number_in_a_turn_is_bounded(
    refusing: Accepting,
) -> None:
    most = accept.BATCH + accept.TURNED_AWAY_BATCH
    socks = refusing.connect(most + 1)
    with room_for(20):
        refusing.loop.turn(TURN_NS)
    assert [sock.recv(1) for sock in socks[:most]] == [b""] * most
    with pytest.raises(BlockingIOError):
        socks[most].recv(1, socket.MSG_DONTWAIT)
    refusing.loop.turn(TURN_NS)
    assert socks[most].recv(1) == b""
    assert refusing.acceptor.laid_aside == 0
    for sock in socks:
        sock.close()
