"""Unix sockets bound as the caller: whose file it is, whom it replaces, how it goes."""

import os
import socket
import stat
import struct

import pytest

from aemd.core.errors import AemError
from aemd.modules.contract import Address
from aemd.modules.need import BindPath, ListenPath
from tests.kernel.deputy.conftest import ANOTHER, NOBODY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users' processes are started")

KINDS = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


def credentials_seen(path):
    """Who a client sees at the other end."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_file_belongs_to_the_caller_and_has_the_mode_that_its_umask_leaves(rig, own, kind):
    program = rig.program(NOBODY, umask=0o027)
    bound = rig.bind(program, f"{own}/s", kind)
    status = os.stat(f"{own}/s")
    assert stat.S_ISSOCK(status.st_mode)
    assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY)
    assert stat.S_IMODE(status.st_mode) == 0o750
    assert bound.identity == (status.st_dev, status.st_ino)
    assert bound.socket.getsockname() == f"{own}/s"
    bound.close()


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o666, 0o777])
def test_mode_that_is_asked_for_holds_whatever_the_umask_says(rig, own, mode):
    bound = rig.bind(rig.program(NOBODY, umask=0o077), f"{own}/s", mode=mode)
    assert stat.S_IMODE(os.stat(f"{own}/s").st_mode) == mode
    bound.close()


def test_who_connects_sees_the_caller_and_not_root(rig, own):
    program = rig.program(NOBODY)
    bound = rig.bind(program, f"{own}/s", backlog=1)
    assert credentials_seen(f"{own}/s")[1:] == (NOBODY, NOBODY)
    late = rig.bind(program, f"{own}/late")
    with pytest.raises(ConnectionRefusedError):
        credentials_seen(f"{own}/late")
    assert rig.answer(program, ListenPath(late, backlog=1)) is None
    assert credentials_seen(f"{own}/late")[1:] == (NOBODY, NOBODY)
    bound.close()
    late.close()


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("absent/s", "ENOENT"),
        ("file/s", "ENOTDIR"),
        ("loop/s", "ELOOP"),
        ("closed/s", "EACCES"),
        ("locked/s", "EACCES"),
        ("n" * 100, "ENAMETOOLONG"),
    ],
)
def test_refusal_has_the_errno_of_the_caller(rig, place, own, path, number):
    with open(f"{own}/file", "w", encoding="ascii"):
        pass
    os.symlink("loop", f"{own}/loop")
    os.mkdir(f"{own}/closed", 0o700)
    os.mkdir(f"{own}/locked", 0o755)
    refused = rig.bind(rig.program(NOBODY), f"{own}/{path}")
    assert refused.details["errno"] == number
    assert os.listdir(f"{own}/closed") == os.listdir(f"{own}/locked") == []


def dead_socket(path, owner, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)
    os.chown(path, owner, owner)


@pytest.mark.parametrize("kind", KINDS)
def test_own_socket_that_nobody_holds_is_replaced(rig, own, kind):
    dead_socket(f"{own}/s", NOBODY, kind)
    before = os.stat(f"{own}/s").st_ino
    bound = rig.bind(rig.program(NOBODY), f"{own}/s", kind)
    assert bound.identity[1] == os.stat(f"{own}/s").st_ino
    assert os.stat(f"{own}/s").st_uid == NOBODY
    assert before  # the number may be the same one again
    bound.close()


def test_socket_of_another_user_is_not_replaced_even_where_the_directory_allows_it(rig, own):
    dead_socket(f"{own}/s", ANOTHER)
    os.chmod(f"{own}/s", 0o777)  # anybody may find out that nobody holds it
    before = os.stat(f"{own}/s")
    assert rig.bind(rig.program(NOBODY), f"{own}/s").reason == "ADDRESS_IN_USE"
    assert os.stat(f"{own}/s") == before


@pytest.mark.parametrize("kind", KINDS)
def test_socket_that_does_not_listen_yet_is_not_taken_for_dead(rig, own, kind):
    program = rig.program(NOBODY)
    first = rig.bind(program, f"{own}/s", kind)
    assert rig.bind(program, f"{own}/s", kind).reason == "ADDRESS_IN_USE"
    assert os.stat(f"{own}/s").st_ino == first.identity[1]
    first.close()


def test_of_many_that_ask_for_one_path_at_once_exactly_one_has_it(rig, own):
    """Whoever comes second meets a socket that does not listen, before the core knows that it is its own."""
    program = rig.program(NOBODY)

    answers = []
    for _ in range(40):
        place = Address("unix", path=os.fsencode(f"{own}/s"))
        rig.ask(program, BindPath(place, socket.SOCK_STREAM), answers)
    rig.until(lambda: len(answers) == 40)
    (bound,) = [each for each in answers if not isinstance(each, AemError)]
    assert {each.reason for each in answers if each is not bound} == {"ADDRESS_IN_USE"}
    assert os.stat(f"{own}/s").st_ino == bound.identity[1]
    bound.close()


def test_file_is_never_replaced(rig, own):
    with open(f"{own}/s", "w", encoding="ascii") as file:
        file.write("precious")
    os.chown(f"{own}/s", NOBODY, NOBODY)
    assert rig.bind(rig.program(NOBODY), f"{own}/s").reason == "ADDRESS_IN_USE"
    os.symlink("nowhere", f"{own}/link")
    assert rig.bind(rig.program(NOBODY), f"{own}/link").reason == "ADDRESS_IN_USE"
    with open(f"{own}/s", encoding="ascii") as file:
        assert file.read() == "precious"


def test_name_goes_with_the_socket_also_when_the_caller_has_exited(rig, own):
    program = rig.program(NOBODY)
    bound = rig.bind(program, f"{own}/s")
    program.end()
    bound.close()
    rig.quiet()
    assert os.listdir(own) == []


def test_what_has_taken_the_name_meanwhile_stays(rig, own):
    bound = rig.bind(rig.program(NOBODY), f"{own}/s")
    os.unlink(f"{own}/s")
    with open(f"{own}/s", "w", encoding="ascii"):
        pass
    bound.close()
    rig.quiet()
    assert os.listdir(own) == ["s"]


def test_name_is_removed_with_the_rights_of_the_caller_and_no_others(rig, own):
    """The directory has become another's: the daemon could remove the name, the caller cannot."""
    bound = rig.bind(rig.program(NOBODY), f"{own}/s")
    os.chown(own, 0, 0)
    bound.close()
    rig.quiet()
    assert os.listdir(own) == ["s"]


def test_directory_that_was_moved_loses_the_name_where_it_is_now(rig, place, own):
    bound = rig.bind(rig.program(NOBODY), f"{own}/s")
    os.rename(own, f"{place}/moved")
    os.mkdir(own)
    with open(f"{own}/s", "w", encoding="ascii"):
        pass
    bound.close()
    rig.quiet()
    assert os.listdir(f"{place}/moved") == []
    assert os.listdir(own) == ["s"]


def test_administrator_binds_and_removes_where_only_its_rights_allow_it(rig, own):
    bound = rig.bind(rig.program(0), f"{own}/s")
    assert os.stat(f"{own}/s").st_uid == 0
    bound.close()
    rig.quiet()
    assert os.listdir(own) == []


def test_start_is_refused_once_the_path_is_out_of_reach(rig, place, own):
    program = rig.program(NOBODY)
    os.chmod(place, 0o755)
    bound = rig.bind(program, f"{own}/s", backlog=1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{own}/s")
        peer, _ = bound.socket.accept()
        os.chmod(place, 0o700)
        refused = rig.answer(program, ListenPath(bound, backlog=1))
        assert (refused.reason, refused.details["errno"]) == ("NOT_ALLOWED", "EACCES")
        client.sendall(b"still connected")
        assert peer.recv(100) == b"still connected", "an open descriptor stays valid"
        peer.close()
    os.chmod(place, 0o755)
    assert rig.answer(program, ListenPath(bound, backlog=1)) is None
    os.rename(f"{own}/s", f"{own}/t")
    assert rig.answer(program, ListenPath(bound, backlog=1)).details["errno"] == "ENOENT"
    dead_socket(f"{own}/s", NOBODY)
    assert rig.answer(program, ListenPath(bound, backlog=1)).reason == "PATH_MOVED"
    bound.close()


def test_answer_that_nobody_waits_for_leaves_nothing(rig, own):
    program = rig.program(NOBODY)

    rig.bind(program, f"{own}/first").close()
    rig.quiet()
    before = len(os.listdir("/proc/self/fd"))
    asked = rig.deputy.ask(
        program.principal, BindPath(Address("unix", path=os.fsencode(f"{own}/s")), 1), lambda _: None
    )
    rig.until(lambda: rig.deputy._running)
    asked.cancel()
    rig.quiet()
    assert os.listdir(own) == []
    assert len(os.listdir("/proc/self/fd")) == before
