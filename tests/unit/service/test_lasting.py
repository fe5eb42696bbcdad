"""What the service manager keeps from one daemon to the next."""

import array
import os
import socket
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from aemd.loop.loop import Loop
from aemd.modules.need import BoundPath
from aemd.service import lasting as lasting_file
from aemd.service.lasting import Lasting
from aemd.service.notify import Notifier
from aemd.sources.bound import Binder


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


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def make(notifier, loop):
    made = []

    def make(*found, **options):
        made.append(Lasting(notifier, loop, found, **options))
        return made[-1]

    yield make
    for lasting in made:
        lasting.close()


def hear(manager):
    """The next message; what came beside it is closed."""
    message, beside, _, _ = manager.recvmsg(1_000, 1_000)
    for _, _, data in beside:
        for fd in array.array("i", data):
            os.close(fd)
    return message.decode().split("\n")


def heard(manager):
    """All that there is."""
    manager.setblocking(False)
    found = []
    try:
        while True:
            found.append(hear(manager))
    except BlockingIOError:
        return found


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def file():
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


@dataclass(frozen=True)
class Owner:
    uid: int
    gid: int


@dataclass(frozen=True)
class Job:
    id: int
    owner: Owner


def job(number, uid=0):
    return Job(number, Owner(uid, uid))


@pytest.fixture
def bind():
    """Listeners that are closed after the test."""
    binder, made = Binder(), []

    def bind(family="tcp"):
        bound = binder.bind(SimpleNamespace(family=family, host="127.0.0.1", port=0, path=b""), owner="me")
        made.append(bound)
        return bound

    yield bind
    for bound in made:
        bound.socket.close()


def forgets(messages):
    assert all(lines[0] == "FDSTOREREMOVE=1" for lines in messages), messages
    return {lines[1].removeprefix("FDNAME=") for lines in messages}


def test_what_nobody_asks_for_is_closed_and_forgotten(make, manager):
    fds = [file() for _ in range(3)]
    with socket.socket() as one, socket.socket() as two:
        fds += [one.detach(), two.detach()]
    found = zip(("strange", "memory", "job-8-connection-5", "job-7", "job-7"), fds, strict=True)
    lasting = make(*found)
    lasting.clear()
    assert not any(map(is_open, fds))
    assert lasting.of(7) is lasting.of(8) is None
    lasting.shelf.flush()
    assert forgets(heard(manager)) == {"strange", "memory", "job-8-connection-5", "job-7"}
    assert lasting.shelf.kept == 0


def test_what_a_job_asked_for_is_its_own_until_it_is_released(make, manager, bind):
    bound, connection = bind(), file()
    bound.adopted = True
    listener = os.dup(bound.socket.fileno())
    lasting = make(("job-7", listener), ("job-7-connection-5", connection))
    left = lasting.of(7)
    assert (left.listener, left.connections) == (listener, {5: connection})
    lasting.clear()
    assert is_open(listener)
    assert is_open(connection)
    lasting.keep(job(7), bound)
    lasting.shelf.flush()
    assert forgets(heard(manager)) == {"job-7-connection-5"}  # the address stays, and is not told again
    lasting.release(7)
    assert not is_open(connection)
    assert not is_open(listener)
    lasting.shelf.flush()
    assert forgets(heard(manager)) == {"job-7"}


def test_what_was_bound_anew_takes_the_place_of_what_was_found(make, manager, bind):
    with socket.socket() as other:
        lasting = make(("job-7", other.detach()))
    lasting.of(7)
    lasting.keep(job(7), bind())
    lasting.shelf.flush()
    assert heard(manager) == [["FDSTOREREMOVE=1", "FDNAME=job-7"], ["FDSTORE=1", "FDNAME=job-7", "FDPOLL=0"]]


def test_a_path_is_kept_with_its_folder_and_removed_where_nobody_goes_on_with_it(make, manager, tmp_path):
    path = str(tmp_path / "sock")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    folder = os.open(tmp_path, os.O_PATH)
    status = os.stat(path)
    name = f"job-7-path-1000-100-{status.st_dev}-{status.st_ino}"
    removed = []
    lasting = make((name, folder), (name, sock.detach()), remove=lambda *facts: removed.append(facts))
    lasting.clear()
    ((uid, gid, bound),) = removed
    assert isinstance(bound, BoundPath)
    assert (uid, gid, bound.place.path) == (1000, 100, os.fsencode(path))
    assert (bound.directory, bound.identity) == (folder, (status.st_dev, status.st_ino))
    with socket.socket(socket.AF_UNIX) as peer, pytest.raises(ConnectionRefusedError):
        peer.connect(path)
    bound.leave()


def test_a_job_that_ends_before_its_turn_is_never_told_of(make, manager, bind):
    lasting = make()
    lasting.keep(job(7), bind())
    lasting.release(7)
    lasting.shelf.flush()
    assert heard(manager) == []


def test_an_address_that_nobody_asks_for_is_silenced_and_its_place_vacated(make, manager, bind):
    bound = bind()
    bound.listen(5)
    name = bound.socket.getsockname()
    lasting = make(("job-7", os.dup(bound.socket.fileno())))
    lasting.clear()
    assert lasting.vacating(bound.occupies)
    with socket.socket() as peer, pytest.raises(ConnectionRefusedError):
        peer.connect(name)


def test_a_place_is_vacated_once_the_manager_has_read_it(make, manager, bind, loop):
    lasting, bound = make(), bind("udp")
    place = bound.occupies
    lasting.keep(job(7), bound)
    lasting.shelf.flush()
    assert not lasting.vacating(place)
    lasting.release(7)
    assert lasting.vacating(place)
    answers = []
    lasting.await_vacancy(place, answers.append)
    lasting.await_vacancy(place, answers.append).cancel()
    lasting.shelf.flush()
    loop.turn(0)
    assert answers == []
    assert [lines[0] for lines in heard(manager)] == ["FDSTORE=1", "FDSTOREREMOVE=1", "BARRIER=1"]
    while not answers:
        loop.turn(10**9)
    assert answers == [None]
    assert not lasting.vacating(place)


def test_connections_are_left_in_turn_as_many_as_there_is_room_for(
    make, manager, notifier, monkeypatch, bind
):
    monkeypatch.setattr(lasting_file, "STORED_MAX", 5)
    notifier.barrier = lambda: None
    lasting = make()
    many, few, none = job(1, uid=1), job(2, uid=2), job(3, uid=3)
    fd = file()
    lasting.keep(many, bind())
    kept = lasting.leave({many: dict.fromkeys(range(10), fd), few: {77: fd}, none: {}})
    assert kept == {many: {0, 1, 2}, few: {77}, none: set()}
    assert [lines[1] for lines in heard(manager)] == [
        "FDNAME=job-1",
        "FDNAME=job-1-connection-0",
        "FDNAME=job-2-connection-77",
        "FDNAME=job-1-connection-1",
        "FDNAME=job-1-connection-2",
    ]
    lasting.release(1)  # the next daemon's by now
    lasting.close()
    assert heard(manager) == []
    os.close(fd)


def test_without_a_manager_nothing_is_kept(loop, bind):
    lasting = Lasting(Notifier(), loop)
    lasting.keep(job(7), bind())
    assert lasting.shelf.waiting == 0
    leaving = job(7)
    assert lasting.leave({leaving: {1: 0}}) == {leaving: set()}
    lasting.close()
