"""Who the kernel says is at the other end, asked about processes of several kinds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from aemd.core.principal import Owner
from aemd.deputy.looking import What
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
from aemd.sources import looks

REBORN = Path(__file__).parent.parent / "robustness" / "reborn.py"
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


def is_administrator(listener: socket.socket, own: Self, become: Callable[[], object]) -> bool:
    with connected(listener, become) as (sock, _):
        return read(sock, own).administrator


def setns(path: str) -> None:
    assert libc.setns(os.open(path, os.O_RDONLY), 0) == 0


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
def test_root_where_init_lives_is_the_administrator_of_a_daemon_in_a_mount_namespace_of_its_own(
    listener: socket.socket,
) -> None:
    home = os.stat("/proc/self/ns/mnt").st_ino  # takes the place of that of PID 1
    test, daemon = os.getpid(), os.fork()
    if daemon == 0:  # its exit code says what it found
        code = 1
        with contextlib.suppress(BaseException):
            unshare(CLONE_NEWNS)
            own = Self(0, read_self().namespaces, mount_init=home)
            assert own.namespaces.mount != home
            assert is_administrator(listener, own, lambda: setns(f"/proc/{test}/ns/mnt"))
            assert is_administrator(listener, own, lambda: None)
            assert not is_administrator(listener, own, lambda: unshare(CLONE_NEWNS))
            code = 0
        os._exit(code)
    assert os.waitpid(daemon, 0)[1] == 0


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
            assert principal.own_pid == 1
            assert principal.pid_for(principal.owner) == 1
            assert principal.pid_for(Owner(0)) == principal.pid
            assert principal.pid_for(Owner(0, pid_namespace=1)) == 0
        process.communicate()
    assert principal.pid not in (0, 1, process.pid)
    assert not principal.administrator


class Blind:
    """Sees nothing."""

    def look(self, pid: int, what: What) -> Mapping[What, bytes]:
        return {}

    def open_pid_namespace(self, pid: int) -> int:
        raise PermissionError


@pytest.fixture
def blind() -> Iterator[None]:
    looks.install(Blind())
    yield
    looks.install(None)


def test_namespaces_that_cannot_be_read_are_nobodys_own(listener: socket.socket, blind: None) -> None:
    unknown = Namespaces(*[NAMESPACE_UNKNOWN] * 4)
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


def test_peer_pidfd_proves_who_connected(listener: socket.socket) -> None:
    with connected(listener, lambda: None) as (sock, _):
        try:
            os.close(sock.getsockopt(socket.SOL_SOCKET, module.SO_PEERPIDFD))
        except OSError:
            assert not read(sock).proven
            pytest.skip("needs SO_PEERPIDFD of Linux 6.5")
        assert read(sock).proven


def test_without_peer_pidfd_the_pid_stands_in_and_proves_nothing(listener: socket.socket) -> None:
    own = read_self(peer_pidfd=False)
    with connected(listener, lambda: None) as (sock, pid):
        principal, pidfd = read_principal(sock, own)
        assert principal.pid == pid
        assert not principal.proven
        os.kill(pid, signal.SIGKILL)
        assert os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT).si_pid == pid
        os.close(pidfd)
        with pytest.raises(UnidentifiedError, match="exited"):
            read_principal(sock, own)


def test_without_peer_pidfd_and_reaped_nobody_is_there(listener: socket.socket) -> None:
    with connected(listener, lambda: None) as (sock, pid):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(UnidentifiedError, match="exited"):
            read_principal(sock, read_self(peer_pidfd=False))


NO_PIDFD = """
import ctypes, os, socket, struct, sys
from aemd.peer.principal import UnidentifiedError, read_principal, read_self
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 434), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *each) for each in code)
buffer = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer)), 0, 0) == 0
listener = socket.socket(socket.AF_UNIX)
listener.bind("")
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect(listener.getsockname())
before = os.listdir("/proc/self/fd")
try:
    read_principal(listener.accept()[0], read_self(peer_pidfd=False))
except UnidentifiedError as error:
    print(error)
assert os.listdir("/proc/self/fd") == before
"""


def test_where_no_pidfd_can_be_had_nobody_is_served() -> None:
    """With a seccomp filter that answers pidfd_open(2), number 434 everywhere, with ENOSYS."""
    said = subprocess.run([sys.executable, "-c", NO_PIDFD], capture_output=True, timeout=20, check=False)
    assert said.stdout == b"its process cannot be held: pidfd_open: Function not implemented\n", said.stderr


def test_executable_is_what_runs_now(listener: socket.socket) -> None:
    with connected(listener, lambda: None) as (sock, _):
        assert read(sock).executable == os.readlink("/proc/self/exe")


def test_label_is_the_security_modules_and_none_without_one(listener: socket.socket) -> None:
    with connected(listener, lambda: None) as (sock, _):
        try:
            label = sock.getsockopt(socket.SOL_SOCKET, module.SO_PEERSEC, 1024)
        except OSError:
            label = b""
        assert read(sock).security_label == label.rstrip(b"\0\n").decode()


def unified_hierarchy() -> str:
    """Where cgroup2 is mounted, for those who may make groups there."""
    with open("/proc/self/mounts") as mounts:
        found = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    if not found or not os.access(f"{found[0]}/cgroup.procs", os.W_OK):
        pytest.skip("needs a cgroup2 that can be written")
    return found[0]


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A control group of a service's name in a slice, as a path in the hierarchy."""
    mount = unified_hierarchy()
    name = f"/aemd-test-{os.getpid()}.slice"
    os.mkdir(mount + name)
    os.mkdir(f"{mount}{name}/job.service")
    yield f"{name}/job.service"
    os.rmdir(f"{mount}{name}/job.service")
    os.rmdir(mount + name)


def enter(cgroup: str) -> None:
    with open(f"{unified_hierarchy()}{cgroup}/cgroup.procs", "w") as file:
        file.write("0")


def test_control_group_and_its_unit_are_told(listener: socket.socket, cgroup: str) -> None:
    with connected(listener, lambda: enter(cgroup)) as (sock, _):
        principal = read(sock)
    assert principal.cgroup == cgroup
    assert principal.unit == "job.service"


@root
@pytest.mark.parametrize(
    ("flags", "reason"),
    [(CLONE_NEWNS, "in another mount namespace"), (CLONE_NEWUSER, "in another user namespace")],
)
def test_root_that_is_no_administrator_is_told_why(listener: socket.socket, flags: int, reason: str) -> None:
    def confine() -> None:
        unshare(flags)

    with connected(listener, confine) as (sock, _):
        assert reason in read(sock).not_administrator


@root
@pytest.mark.parametrize("peer_pidfd", [True, False])
def test_pid_of_a_connection_that_another_process_has_now(listener: socket.socket, peer_pidfd: bool) -> None:
    """The connection lives on in a descendant. Only SO_PEERPIDFD tells that who connected is gone."""
    with connected(listener, lambda: None) as (sock, _):
        if peer_pidfd and not read(sock).proven:
            pytest.skip("needs SO_PEERPIDFD of Linux 6.5")
    gate, end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(end)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(listener.getsockname())
        if not os.fork():
            os.read(gate, 1)  # until the test closes the other end
        os._exit(0)
    os.close(gate)
    sock, _ = listener.accept()
    os.waitpid(pid, 0)
    command = [sys.executable, REBORN, str(pid), "/bin/cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reborn, sock:
        reborn.stdin.write(b"there\n")
        reborn.stdin.flush()
        assert reborn.stdout.readline() == b"there\n"
        if peer_pidfd:
            with pytest.raises(UnidentifiedError, match="exited"):
                read_principal(sock, read_self())
        else:
            principal = read(sock, read_self(peer_pidfd=False))
            assert (principal.pid, principal.proven) == (pid, False)
            assert principal.executable.endswith("cat")
    os.close(end)


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
