"""Pids of callers in pid namespaces of their own, with real ones; the line NSpid is the oracle."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.principal import Owner, Principal
from aemd.modules.process import Process
from aemd.modules.socket.event import credentials_message
from aemd.peer.principal import read_principal, read_self
from aemd.sources import pidnamespace
from aemd.sources.pidnamespace import callers_pid, daemons_pid, parse_nspid
from aemd.sources.socket import peer_credentials
from tests.kernel.conftest import FakeHost, FakeJob, principal

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
NOBODY, SOMEBODY = 65_534, 1_000
NO_SUCH_IOCTL = 0xFF00  # of a kernel that has it not: ENOTTY
libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Inside:
    """A caller that is pid 1 of its namespace, and processes that it has started there.

    `child`: the number that the caller has for its child; `pid`: the daemon's number for that one. end(code)
    ends the child; who else there is has its number from start().
    """

    principal: Principal
    sock: socket.socket
    child: int

    @property
    def pid(self) -> int:
        return self.real(self.child)

    def real(self, number: int) -> int:
        """The daemon's number, looked for in all of /proc."""
        found = [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit() and pids(int(name))[1:] == (number,) and inode(int(name)) == self.namespace
        ]
        assert len(found) == 1
        return found[0]

    @property
    def namespace(self) -> int:
        return self.principal.owner.pid_namespace

    def ask(self, order: str) -> int:
        self.sock.sendall(order.encode() + b"\n")
        return int(self.sock.recv(20))


def pids(pid: int) -> tuple[int, ...]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        return parse_nspid(file.read())
    return ()


def inode(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/pid").st_ino


def start(become: Callable[[], object] = lambda: None) -> tuple[int, int]:
    """A process that exits with the byte that it is sent, and where to send it."""
    reader, writer = os.pipe()
    became, ready = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writer)
        become()
        os.write(ready, b"x")
        os._exit(ord(os.read(reader, 1) or b"\0"))
    os.read(became, 1)
    for fd in (reader, became, ready):
        os.close(fd)
    return pid, writer


def serve(path: bytes) -> None:
    """What pid 1 does: connect, start a child, obey."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    child, gate = start()
    others = []
    sock.sendall(b"%d" % child)
    for line in sock.makefile():
        order, argument = line.split()
        if order == "end":
            os.write(gate, bytes([int(argument)]))
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            sock.sendall(b"0")
        elif order == "other":
            others.append(start(lambda: os.setresuid(*[int(argument)] * 3)))  # noqa: B023 - called at once
            sock.sendall(b"%d" % others[-1][0])
        elif order == "nested":
            assert libc.unshare(CLONE_NEWPID) == 0
            others.append(start())
            sock.sendall(b"%d" % others[-1][0])


@contextlib.contextmanager
def inside(flags: int = CLONE_NEWPID, uid: int | None = None) -> Iterator[Inside]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        listener.settimeout(10)
        middle = os.fork()
        if not middle:
            with contextlib.suppress(BaseException):
                if uid is not None:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                if libc.unshare(flags) == 0:
                    init = os.fork()
                    if not init:
                        serve(listener.getsockname())
                        os._exit(0)
                    os.waitpid(init, 0)
            os._exit(0)
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            pytest.skip("user namespaces cannot be made here")
        try:
            with sock:
                found, pidfd = read_principal(sock, read_self())
                os.close(pidfd)
                yield Inside(found, sock, int(sock.recv(20)))
        finally:
            os.waitpid(middle, 0)


KINDS = {
    "root": (CLONE_NEWPID, None),
    "root-of-a-container": (CLONE_NEWPID | CLONE_NEWUSER, None),
    "user-of-a-container": (CLONE_NEWPID | CLONE_NEWUSER, NOBODY),
}


@pytest.fixture(params=KINDS)
def caller(request: pytest.FixtureRequest) -> Iterator[Inside]:
    flags, uid = KINDS[request.param]
    if os.geteuid() != 0 and (uid is not None or not flags & CLONE_NEWUSER):
        pytest.skip("needs root, to make a pid namespace or to be somebody else")
    with inside(flags, uid) as found:
        yield found


@pytest.fixture
def module(host: FakeHost) -> Process:
    return Process(host)


def watch(host: FakeHost, module: Process, pid: int, owner: Principal) -> FakeJob:
    job = host.job({"pid": pid}, owner=owner)
    module.open(job)
    module.start(job)
    return job


def refusal(host: FakeHost, module: Process, pid: int, owner: Principal) -> AemError:
    with pytest.raises(AemError) as caught:
        watch(host, module, pid, owner)
    assert not +host.charged
    return caught.value


def test_own_process_is_watched_by_its_number_inside(host, module, caller):
    job = watch(host, module, caller.child, caller.principal)
    assert module.details(job)["pid"] == str(caller.child)
    assert module.details(job)["pid_namespace"] == str(caller.namespace)
    assert job.data.source.pid == caller.pid
    caller.ask("end 7")
    event = host.wait_for()[0].event.process
    assert (event.pid, event.exit_status) == (caller.child, 7)


def test_what_is_not_inside_is_the_same_as_what_is_nowhere(host, module, caller):
    """The daemon's own number of the child, this process, a number that nobody has."""
    nowhere = refusal(host, module, 4_194_304, caller.principal)
    assert (nowhere.code, nowhere.reason) == (Code.NOT_FOUND, "PROCESS_GONE")
    for number in (caller.pid, os.getpid()):
        hidden = refusal(host, module, number, caller.principal)
        assert hidden.message.replace(str(number), "4194304") == nowhere.message
        assert hidden.details == {"pid": str(number)}


@needs_root
def test_anothers_process_inside_is_not_told_from_none(host, module):
    with inside() as caller:
        other = caller.ask(f"other {SOMEBODY}")
        hidden = refusal(host, module, other, caller.principal)
        assert hidden.message == f"no process {other}: it has exited or never existed"
        assert str(caller.real(other)) not in str(hidden.details)


@needs_root
def test_same_user_of_the_daemons_namespace_does_not_share_the_processes_inside(host, module):
    with inside(CLONE_NEWPID | CLONE_NEWUSER, SOMEBODY) as caller:
        hidden = refusal(host, module, caller.pid, principal(SOMEBODY))
        assert hidden.code is Code.NOT_FOUND


def test_older_kernel_refuses_with_the_reason(host, module, caller, monkeypatch):
    monkeypatch.setattr(pidnamespace, "NS_GET_PID_FROM_PIDNS", NO_SUCH_IOCTL)
    error = refusal(host, module, caller.child, caller.principal)
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "PID_NAMESPACE")
    assert "Linux 6.11" in error.message


@pytest.mark.parametrize("older", [False, True])
def test_way_out_gives_the_number_inside_or_none(caller, monkeypatch, older):
    if older:
        monkeypatch.setattr(pidnamespace, "NS_GET_PID_IN_PIDNS", NO_SUCH_IOCTL)
    who = caller.principal
    assert callers_pid(who, caller.pid) == caller.child
    assert callers_pid(who, who.pid) == who.own_pid == 1
    assert callers_pid(who, os.getpid()) == 0
    assert callers_pid(who, 4_194_304) == 0
    nested = caller.ask("nested 0")
    deep = next(
        int(name) for name in os.listdir("/proc") if name.isdigit() and pids(int(name))[1:] == (nested, 1)
    )
    assert callers_pid(who, deep) == nested
    owner = replace(who.owner, pid_namespace=inode(deep))
    below = replace(who, owner=owner, pid=deep, own_pid=1, start_time_ticks=ticks(deep))
    assert callers_pid(below, deep) == 1
    assert callers_pid(below, caller.pid) == 0
    with inside(CLONE_NEWPID | CLONE_NEWUSER) as neighbour:
        assert callers_pid(neighbour.principal, neighbour.pid) == neighbour.child
        assert callers_pid(neighbour.principal, caller.pid) == 0
        assert callers_pid(neighbour.principal, deep) == 0


def ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def test_way_in_and_way_out_are_each_others_inverse(caller):
    real = daemons_pid(caller.principal, caller.child)
    assert real == caller.pid
    assert callers_pid(caller.principal, real) == caller.child


@pytest.mark.parametrize("field", ["start_time_ticks", "pid_namespace"])
def test_namespace_of_a_caller_that_is_not_the_same_any_more_is_not_used(caller, field):
    """A start time that differs is a pid that came round; an inode that differs another namespace."""
    who = caller.principal
    if field == "pid_namespace":
        who = replace(who, owner=replace(who.owner, pid_namespace=who.owner.pid_namespace + 1))
    else:
        who = replace(who, **{field: getattr(who, field) + 1})
    with pytest.raises(AemError, match="may not look at the caller's pid namespace"):
        daemons_pid(who, caller.child)
    assert callers_pid(who, caller.pid) == 0


def test_callers_of_the_daemons_own_namespace_are_told_pids_as_they_are():
    who = Principal(Owner(SOMEBODY), SOMEBODY, (), 1, 1, administrator=False)
    assert daemons_pid(who, 4_242) == callers_pid(who, 4_242) == 4_242


def test_unix_peer_is_named_by_its_number_inside_or_by_none(caller):
    inner = peer_credentials(caller.sock)
    assert credentials_message(inner, caller.principal).pid == 1
    assert credentials_message(inner, principal()).pid == caller.principal.pid
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")
        listener.listen()
        client.connect(listener.getsockname())
        with listener.accept()[0] as sock:
            assert credentials_message(peer_credentials(sock), caller.principal).pid == 0


def test_translating_leaves_no_descriptor(caller, monkeypatch):
    before = os.listdir("/proc/self/fd")
    daemons_pid(caller.principal, caller.child)
    callers_pid(caller.principal, caller.pid)
    monkeypatch.setattr(pidnamespace, "NS_GET_PID_IN_PIDNS", NO_SUCH_IOCTL)
    callers_pid(caller.principal, caller.pid)
    with pytest.raises(AemError):
        daemons_pid(caller.principal, os.getpid())
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("status", "pids"),
    [
        (b"Name:\tx\nNSpid:\t4242\t17\t1\nNSpgid:\t1\n", (4242, 17, 1)),
        (b"Name:\tx\nNSpid:\t7\n", (7,)),
        (b"Name:\tx\n", ()),
        (b"Name:\tNSpid:\t3\nNSpid:\tx\n", ()),
        (b"", ()),
    ],
)
def test_pids_are_the_line_nspid(status: bytes, pids: tuple[int, ...]) -> None:
    assert parse_nspid(status) == pids
