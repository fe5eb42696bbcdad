"""What the service manager keeps from one daemon to the next."""

import array
import os
import socket
import threading
from types import SimpleNamespace

import pytest

from aemd.service.lasting import STORED_MAX, Lasting
from aemd.service.notify import Notifier


@pytest.fixture
def manager(tmp_path):
    """The manager's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


@pytest.fixture
def notifier(tmp_path, manager):
    notifier = Notifier(str(tmp_path / "notify"))
    yield notifier
    notifier.close()


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_what_was_kept_is_offered_once_and_then_closed_and_forgotten(manager, notifier):
    fds = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(3)]
    lasting = Lasting(notifier, zip(("job-7", "strange", "job-7"), fds, strict=True))
    assert lasting.of(7) in fds
    assert lasting.of(8) is None
    lasting.clear()
    assert not any(map(is_open, fds))
    assert lasting.of(7) is None
    told = {manager.recv(1_000) for _ in range(2)}
    assert told == {b"FDSTOREREMOVE=1\nFDNAME=job-7", b"FDSTOREREMOVE=1\nFDNAME=strange"}


def test_descriptors_are_left_by_the_name_of_their_job_and_the_manager_is_waited_for(manager, notifier):
    said = []
    barrier = notifier.barrier
    notifier.barrier = lambda: said.append(barrier(0))  # nobody closes the pipe
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    Lasting(notifier).leave([(SimpleNamespace(id=1), None), (SimpleNamespace(id=7), fd)])
    message, beside, _, _ = manager.recvmsg(1_000, 1_000)
    assert message == b"FDSTORE=1\nFDNAME=job-7\nFDPOLL=0"
    (kept,) = array.array("i", beside[0][2])
    assert os.path.sameopenfile(kept, fd)
    os.close(kept)
    os.close(fd)
    message, beside, _, _ = manager.recvmsg(1_000, 1_000)
    assert message == b"BARRIER=1"
    os.close(array.array("i", beside[0][2])[0])
    assert said == [False]


def test_no_more_is_left_than_the_manager_keeps():
    stored = []
    manager = SimpleNamespace(store=lambda name, *_, **__: not stored.append(name), barrier=lambda: None)
    Lasting(manager).leave((SimpleNamespace(id=number), 0) for number in range(STORED_MAX + 1))
    assert len(stored) == STORED_MAX


def test_without_a_manager_nothing_is_looked_at():
    Lasting(Notifier()).leave(iter(lambda: pytest.fail("looked at"), None))


def test_more_is_left_than_the_manager_has_read_yet(manager, notifier):
    count = 40  # net.unix.max_dgram_qlen is 10
    names = []

    def read():
        while len(names) < count:
            message, beside, _, _ = manager.recvmsg(1_000, 1_000)
            names.append(message.splitlines()[1])
            os.close(array.array("i", beside[0][2])[0])

    notifier.barrier = lambda: None
    reader = threading.Thread(target=read)
    jobs = [(SimpleNamespace(id=number), 2) for number in range(count)]
    reader.start()
    Lasting(notifier).leave(jobs)
    reader.join(20)
    assert names == [b"FDNAME=job-%d" % number for number in range(count)]
