"""The zygote as root: it kills fronts for a core that may not, and nobody else."""

import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from aemd.front.sandbox import find_lodger
from aemd.link import CONTROL, Control

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: processes of several users are made")
PATIENCE = 30
STRANGER = 4_242


@pytest.fixture
def control():
    """The core's end of a zygote."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [
            sys.executable,
            "-P",
            "-m",
            "aemd.front",
            "",
            "65536",
            str(512 << 20),
            str(theirs.fileno()),
        ]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    ours.settimeout(PATIENCE)
    with ours:
        yield ours
    assert process.wait(PATIENCE) == 0


@pytest.fixture
def sleeper():
    """Starts a process of that user, and holds it."""
    processes = []

    def start(uid):
        processes.append(subprocess.Popen(["sleep", "600"], user=uid, group=uid, extra_groups=[]))
        return os.pidfd_open(processes[-1].pid)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ended(pidfd, seconds):
    return bool(select.select([pidfd], [], [], seconds)[0])


def kill(control, pidfd):
    socket.send_fds(control, [CONTROL.pack(Control.KILL, 0, 0)], [pidfd])


def test_process_of_the_fronts_user_is_killed_and_no_other(control, sleeper):
    lodger = find_lodger()
    root, stranger, front = (sleeper(uid) for uid in (0, STRANGER, lodger.uid))
    for pidfd in (root, stranger, front):  # in this order: when the last is gone the others had their turn
        kill(control, pidfd)
    assert ended(front, PATIENCE)
    assert not ended(root, 0)
    assert not ended(stranger, 0)
    for pidfd in (root, stranger, front):
        os.close(pidfd)


def test_front_that_is_stopped_is_killed(control):
    ends = [socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)]
    socket.send_fds(control, [CONTROL.pack(Control.FORK, 7, 0)], [theirs.fileno() for _, theirs in ends])
    message, (pidfd,), _, _ = socket.recv_fds(control, CONTROL.size, 1)
    assert CONTROL.unpack(message)[:2] == (Control.FORKED, 7)
    for _, theirs in ends:
        theirs.close()
    assert ends[0][0].recv(1)  # it has locked itself up, and is the fronts' user
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    kill(control, pidfd)
    assert ended(pidfd, PATIENCE)
    assert CONTROL.unpack(control.recv(CONTROL.size)) == (Control.EXITED, 7, signal.SIGKILL)
    for ours, _ in ends:
        ours.close()
    os.close(pidfd)
