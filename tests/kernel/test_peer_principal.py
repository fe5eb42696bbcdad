"""Who the kernel says is at the other end, asked about processes of several kinds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import pytest

from aemd.peer import principal as module
from aemd.peer.principal import (
    NAMESPACE_UNKNOWN,
    Namespaces,
    Self,
    UnidentifiedError,
    parse_start_time,
    pidfd_alive,
    read_principal,
    read_self,
)

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as sock:
        os.chmod(folder, 0o755)
        sock.bind(f"{folder}/sock")
        os.chmod(f"{folder}/sock", 0o666)
        sock.listen()
        sock.settimeout(10)
        yield sock


@contextlib.contextmanager
def connected(listener: socket.socket, become: Callable[[], object]) -> Iterator[tuple[socket.socket, int]]:
    """A connection from a child that has done `become` before, and its pid; the child is killed after."""
    path = listener.getsockname()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            become()
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            signal.pause()
        os._exit(1)
    try:
        sock, _ = listener.accept()
        with sock:
            yield sock, child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def read(sock: socket.socket, own: Self | None = None) -> module.Principal:
    principal, pidfd = read_principal(sock, own or read_self())
    assert pidfd_alive(pidfd)
    os.close(pidfd)
    return principal


def become(uid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def unshare(flags: int) -> None:
    assert libc.unshare(flags) == 0


def test_own_child_is_the_administrator(listener: socket.socket) -> None:
    with connected(listener, lambda: None) as (sock, pid):
        principal = read(sock)
        with open(f"/proc/{pid}/stat", "rb") as file:
            assert principal.start_time_ticks == int(file.read().rpartition(b")")[2].split()[19])
    assert (principal.uid, principal.gid, principal.pid) == (os.geteuid(), os.getegid(), pid)
    assert principal.owner.user_namespace == principal.owner.pid_namespace == 0
    assert sorted(principal.groups) == sorted(os.getgroups())
    assert principal.administrator


@root
@pytest.mark.parametrize("groups", [[], [5, 70000], list(range(100, 1000))], ids=["none", "two", "many"])
def test_other_user_with_groups(listener: socket.socket, groups: list[int]) -> None:
    with connected(listener, lambda: become(65534, groups)) as (sock, _):
        principal = read(sock)
    assert principal.uid == principal.gid == 65534
    assert list(principal.groups) == groups
    assert principal.owner.user_namespace == principal.owner.pid_namespace == 0
    assert not principal.administrator


@root
def test_root_in_another_mount_namespace_is_no_administrator(listener: socket.socket) -> None:
    with connected(listener, lambda: unshare(CLONE_NEWNS)) as (sock, _):
        principal = read(sock)
    assert principal.uid == 0
    assert not principal.administrator


@root
def test_network_namespace_is_told_and_takes_nothing_from_root(listener: socket.socket) -> None:
    with connected(listener, lambda: unshare(CLONE_NEWNET)) as (sock, pid):
        found, pidfd = read_principal(sock, read_self())
        os.close(pidfd)
        assert found.network_namespace == os.stat(f"/proc/{pid}/ns/net").st_ino
        assert found.administrator


def test_own_user_in_a_user_namespace_is_another_owner(listener: socket.socket) -> None:
    try:
        with connected(listener, lambda: unshare(CLONE_NEWUSER)) as (sock, pid):
            principal = read(sock)
            inode = os.stat(f"/proc/{pid}/ns/user").st_ino
    except TimeoutError:
        pytest.skip("user namespaces cannot be made here")
    assert principal.owner.user_namespace == inode
    assert not principal.administrator


@root
def test_process_in_a_pid_namespace_has_our_pid_and_its_namespace(listener: socket.socket) -> None:
    script = "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);sys.stdin.read()"
    command = ["unshare", "--pid", "--fork", "--kill-child", "python3", "-c", script, listener.getsockname()]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        sock, _ = listener.accept()
        with sock:
            principal = read(sock)
            assert principal.owner.pid_namespace == os.stat(f"/proc/{principal.pid}/ns/pid").st_ino
        process.communicate()
    assert principal.pid not in (0, 1, process.pid)
    assert not principal.administrator


def test_namespaces_that_cannot_be_read_are_nobodys_own(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = Namespaces(*[NAMESPACE_UNKNOWN] * 4)
    monkeypatch.setattr(module, "read_namespaces", lambda pid: unknown)
    for own in (read_self(), Self(os.geteuid(), unknown)):
        with connected(listener, lambda: None) as (sock, _):
            principal = read(sock, own)
        assert principal.owner.user_namespace == principal.owner.pid_namespace == NAMESPACE_UNKNOWN
        assert not principal.administrator


def test_process_that_has_exited_is_nobody(listener: socket.socket) -> None:
    with connected(listener, lambda: None) as (sock, pid):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(UnidentifiedError):
            read_principal(sock, read_self())


def test_process_that_was_reaped_is_nobody(listener: socket.socket) -> None:
    child = subprocess.Popen(
        ["python3", "-c", "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])",
         listener.getsockname()]
    )  # fmt: skip
    sock, _ = listener.accept()
    child.wait(10)
    with sock, pytest.raises(UnidentifiedError):
        read_principal(sock, read_self())


def test_without_peer_pidfd_the_pid_stands_in(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SO_PEERPIDFD", 32_000)  # the kernel answers ENOPROTOOPT
    with connected(listener, lambda: None) as (sock, pid):
        assert read(sock).pid == pid


def test_reading_leaves_no_descriptor(listener: socket.socket) -> None:
    with connected(listener, lambda: None) as (sock, pid):
        before = os.listdir("/proc/self/fd")
        read(sock)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(UnidentifiedError):
            read_principal(sock, read_self())
        assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("stat", "ticks"),
    [
        (b"7 (a) b) S) S " + b" ".join(b"%d" % number for number in range(4, 53)), 22),
        (b"7 (x) S 1 2 3", 0),
        (b"", 0),
        (b"7 (x) S" + b" x" * 49, 0),
    ],
)
def test_start_time_is_field_22(stat: bytes, ticks: int) -> None:
    assert parse_start_time(stat) == ticks
