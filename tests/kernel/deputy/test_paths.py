"""What a caller learns of paths through the deputy: what it could learn itself."""

import errno
import os
import socket
import threading

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.principal import Owner, Principal
from aemd.deputy.protocol import NOBODY_SAYS
from aemd.modules.need import Access, OpenPath
from tests.kernel.deputy.conftest import (
    NOBODY,
    identity,
    mount,
    private_mounts,
    switch,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users' processes are started")

ROUNDS = 2_000


def by_itself(uid, path, flags):
    """What a process of that user gets: 0, or its errno."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            switch(uid)
            os.open(path, flags | os.O_NONBLOCK)
            os.write(theirs, b"0")
        except OSError as error:
            os.write(theirs, b"%d" % error.errno)
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        said = int(file.read())
    os.waitpid(pid, 0)
    return said


def test_every_answer_is_the_one_that_the_caller_would_get_itself(rig, place, own, secret):
    os.mkdir(f"{place}/closed", 0o000)
    os.mkdir(f"{place}/unlisted", 0o711)
    os.mkdir(f"{place}/unlisted/inside", 0o755)
    for name, mode in (("mine", 0o600), ("theirs", 0o600), ("public", 0o644)):
        with open(f"{place}/{name}", "w", encoding="ascii"):
            os.chmod(f"{place}/{name}", mode)
    os.chown(f"{place}/mine", NOBODY, NOBODY)
    os.symlink("loop", f"{place}/loop")
    os.symlink("secret/file", f"{place}/to-secret")
    os.symlink(f"{place}/public", f"{place}/to-public")
    os.symlink("nowhere", f"{place}/dangling")
    paths = [
        place,
        *(f"{place}/{name}" for name in os.listdir(place)),
        *(f"{place}/{name}/absent" for name in os.listdir(place)),
        f"{secret}/file",
        f"{secret}/../public",
        f"{place}/unlisted/inside",
        f"{place}/{'x' * 256}",
        f"{place}//.//public",
        f"{own}/../../../../../../../etc/passwd",
        "/",
        "/etc/shadow",
        "/root",
        "/root/x",
    ]
    program = rig.program(NOBODY)
    seen = set()
    for path in paths:
        for access, flags in (
            (Access.PATH, os.O_PATH),
            (Access.READ, os.O_RDONLY),
            (Access.WATCH, os.O_RDONLY),
        ):
            told = rig.open(program, path, access)
            number = by_itself(NOBODY, path, flags)
            seen.add(number)
            if number:
                assert told.details["errno"] == errno.errorcode[number], (path, access)
            else:
                assert told == identity(path), (path, access)
    assert seen >= {0, errno.EACCES, errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}


@pytest.mark.parametrize("access", list(Access))
def test_what_may_not_be_searched_for_looks_the_same_whether_it_exists_or_not(rig, secret, access):
    program = rig.program(NOBODY)
    there, absent = rig.open(program, f"{secret}/file", access), rig.open(program, f"{secret}/none", access)
    assert (there.code, there.reason) == (Code.PERMISSION_DENIED, "NOT_ALLOWED")
    assert there.message == absent.message.replace("none", "file")
    assert there.details == absent.details


def test_binding_where_nothing_may_be_searched_for_tells_nothing_either(rig, secret):
    program = rig.program(NOBODY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{secret}/sock")
    told = {name: rig.bind(program, f"{secret}/{name}") for name in ("file", "none", "sock")}
    assert {each.reason for each in told.values()} == {"NOT_ALLOWED"}
    assert len({each.message.replace(name, "X") for name, each in told.items()}) == 1
    assert sorted(os.listdir(secret)) == ["file", "sock"]


def test_link_swapped_all_the_time_never_leads_where_the_caller_may_not_go(rig, place, own, secret):
    """Against check-then-use: whoever looks first and opens then is led astray within a few rounds."""
    os.mkdir(f"{own}/harmless")
    with open(f"{own}/harmless/file", "w", encoding="ascii") as file:
        file.write("harmless")
    mine = identity(f"{own}/harmless/file")

    def swap():
        while True:
            for target in ("harmless", secret):
                os.symlink(target, f"{own}/next")
                os.rename(f"{own}/next", f"{own}/link")

    rig.program(NOBODY, run=swap)
    program = rig.program(NOBODY)
    answers = rig.ask_many(program, OpenPath(os.fsencode(f"{own}/link/file"), Access.READ), ROUNDS)
    found = [each for each in answers if not isinstance(each, AemError)]
    refused = {each.details.get("errno") for each in answers if isinstance(each, AemError)} - {None}
    for each in found:
        assert os.pread(each.descriptor, 100, 0) == b"harmless"
        assert each.identity == mine
        each.close()
    assert found
    assert "EACCES" in refused


def test_socket_is_never_bound_behind_a_swapped_link_where_the_caller_may_not_write(rig, own, secret):
    os.mkdir(f"{own}/harmless")
    os.chown(f"{own}/harmless", NOBODY, NOBODY)

    def swap():
        while True:
            for target in ("harmless", secret):
                os.symlink(target, f"{own}/next")
                os.rename(f"{own}/next", f"{own}/link")

    rig.program(NOBODY, run=swap)
    program = rig.program(NOBODY)
    bound = refused = 0
    for number in range(ROUNDS // 10):
        answer = rig.bind(program, f"{own}/link/s{number}")
        if isinstance(answer, AemError):
            refused += 1
        else:
            bound += 1
            answer.close()
        assert os.listdir(secret) == ["file"]
    assert bound
    assert refused


def test_caller_in_another_mount_namespace_gets_its_own_files(rig, place):
    os.mkdir(f"{place}/data")
    with open(f"{place}/data/file", "w", encoding="ascii") as file:
        file.write("the host's")

    def hide():
        private_mounts()
        mount("tmpfs", f"{place}/data", "tmpfs", options="mode=777")
        with open(f"{place}/data/file", "w", encoding="ascii") as other:
            other.write("the caller's")

    program, neighbour = rig.program(NOBODY, hide), rig.program(NOBODY)
    for who, text in ((program, b"the caller's"), (neighbour, b"the host's")):
        opened = rig.answer(who, OpenPath(os.fsencode(f"{place}/data/file"), Access.READ))
        assert os.pread(opened.descriptor, 100, 0) == text
        opened.close()
    bound = rig.bind(program, f"{place}/data/s", backlog=1)
    assert bound.socket.getsockname() == f"{place}/data/s"
    assert os.listdir(f"{place}/data") == ["file"], "the host does not see it"
    assert os.listdir(f"/proc/{program.pid}/root{place}/data") != ["file"]
    bound.close()
    rig.quiet()
    assert os.listdir(f"/proc/{program.pid}/root{place}/data") == ["file"], "it has gone where it was"


def test_read_only_mount_of_the_caller_is_read_only_here(rig, own):
    def freeze():
        private_mounts()
        mount(own, own, "none", 4096)  # MS_BIND
        mount("none", own, "none", 4096 | 32 | 1)  # MS_BIND, MS_REMOUNT, MS_RDONLY

    program = rig.program(NOBODY, freeze)
    assert rig.bind(program, f"{own}/s").details["errno"] == "EROFS"
    rig.bind(rig.program(NOBODY), f"{own}/s").close()


@pytest.fixture
def jail(place):
    """A root directory with a link in it that means another file there than here."""
    path = f"{place}/jail"
    os.makedirs(f"{path}/etc")
    with open(f"{path}/etc/passwd", "w", encoding="ascii") as file:
        file.write("the jail's")
    os.symlink("/etc/passwd", f"{path}/absolute")
    os.symlink("../../../../../../../../etc/passwd", f"{path}/relative")
    os.mkdir(f"{path}/run", 0o777)
    os.chmod(f"{path}/run", 0o777)
    return path


def test_caller_below_another_root_stays_below_it(rig, jail, place):
    def enter():
        os.chroot(jail)
        os.chdir("/")

    program = rig.program(NOBODY, enter)
    expected = identity(f"{jail}/etc/passwd")
    for path in ("/etc/passwd", "/absolute", "/relative", "/../../etc/passwd", "/run/../../../etc/passwd"):
        assert rig.open(program, path) == expected, path
    assert rig.open(program, f"{place}").details["errno"] == "ENOENT"
    bound = rig.bind(program, "/run/s", backlog=1)
    assert os.listdir(f"{jail}/run") == ["s"]
    bound.close()
    rig.quiet()
    assert os.listdir(f"{jail}/run") == []


def test_directory_that_is_moved_out_while_it_is_looked_at_leads_nowhere_else(rig, jail, place):
    """Its `..` would be another one than a moment ago: the classic way out of a chroot."""
    os.makedirs(f"{jail}/run/a/b")
    os.mkdir(f"{place}/outside")
    os.mkdir(f"{place}/etc")
    with open(f"{place}/etc/passwd", "w", encoding="ascii"):
        pass
    long = "/run/a/b/" + "../b/" * 700 + "../../../etc/passwd"  # so that it is moved on the way

    def enter():
        os.chroot(jail)
        os.chdir("/")

    program = rig.program(NOBODY, enter)
    moving = True

    def move():
        while moving:
            os.rename(f"{jail}/run/a", f"{place}/outside/a")
            os.rename(f"{place}/outside/a", f"{jail}/run/a")

    mover = threading.Thread(target=move)
    mover.start()
    try:
        answers = rig.ask_many(program, OpenPath(long.encode()), ROUNDS // 4)
    finally:
        moving = False
        mover.join()
    inside = identity(f"{jail}/etc/passwd")
    for each in answers:
        if isinstance(each, AemError):
            assert each.details["errno"] in ("ENOENT", "EAGAIN", "ENOTDIR")
        else:
            assert each.identity == inside
            each.close()


def test_proc_leads_nowhere(rig, place, own, secret):
    """What lies behind the links of /proc is not what a path leads to, and "self" would be the deputy."""
    other = rig.program(NOBODY)
    root_s = rig.program(0)
    program = rig.program(NOBODY)
    for name, target in (("to-root", "/proc/self/root"), ("to-fd", "/proc/self/fd"), ("to-proc", "/proc")):
        os.symlink(target, f"{own}/{name}")
    paths = [
        "/proc",
        "/proc/version",
        "/proc/self/status",
        "/proc/self/root/etc/passwd",
        "/proc/thread-self/root",
        "/proc/self/cwd",
        "/proc/self/exe",
        "/proc/self/ns/mnt",
        "/proc/self/fd/0",
        "/proc/self/fd/3",
        "/proc/self/fd/4/x",
        "/dev/fd/3",
        "/dev/fd/0",
        f"/proc/{program.pid}/root/etc/passwd",
        f"/proc/{program.pid}/cwd",
        f"/proc/{program.pid}/fd/1",
        f"/proc/{other.pid}/root",
        f"/proc/{root_s.pid}/root{secret}/file",
        f"/proc/{os.getpid()}/root",
        f"{own}/to-root/etc/passwd",
        f"{own}/to-fd/3",
        f"{own}/to-proc/self/status",
    ]
    for path in paths:
        for access in Access:
            told = rig.open(program, path, access)
            assert isinstance(told, AemError), (path, access)
            assert told.reason == "NOT_ALLOWED" or told.details["errno"] in ("ELOOP", "ENOENT"), path
        for name in ("x", "fd/x"):
            assert isinstance(rig.bind(program, f"{path}/{name}"), AemError), path
    administrator = rig.program(0)
    for path in ("/proc/self/root/etc/passwd", "/proc/self/status", "/proc/1/root"):
        assert isinstance(rig.open(administrator, path, Access.READ), AemError), path


@pytest.mark.parametrize("path", ["etc/passwd", "", "/etc/passwd\0", "/etc/passwd\0/x"])
def test_what_is_no_absolute_path_is_refused(rig, path):
    assert rig.open(rig.program(0), path, Access.READ).details["errno"] == "EINVAL"


def test_nothing_but_files_and_directories_is_read(rig, own):
    os.mkfifo(f"{own}/fifo")
    os.chown(f"{own}/fifo", NOBODY, NOBODY)
    program = rig.program(NOBODY)
    for path in (f"{own}/fifo", "/dev/zero", "/dev/null"):
        assert "neither a regular file" in rig.open(program, path, Access.READ).message
        assert rig.open(program, path, Access.PATH) == identity(path)


def test_directory_that_is_closed_while_a_job_runs_is_refused_from_then_on(rig, place, own):
    program = rig.program(NOBODY)
    os.mkdir(f"{place}/lent", 0o755)
    with open(f"{place}/lent/file", "w", encoding="ascii"):
        pass
    assert rig.open(program, f"{place}/lent/file", Access.READ) == identity(f"{place}/lent/file")
    os.chmod(f"{place}/lent", 0o700)
    assert rig.open(program, f"{place}/lent/file", Access.READ).details["errno"] == "EACCES"
    os.chmod(f"{place}/lent", 0o755)
    assert rig.open(program, f"{place}/lent/file", Access.READ) == identity(f"{place}/lent/file")


def test_user_without_a_process_is_looked_up_in_the_databases(rig, place, secret):
    def told(uid, path):
        answers = []
        somebody = Principal(Owner(uid), NOBODY_SAYS, (), 0, 0, administrator=False)
        rig.deputy.ask_for_user(somebody, OpenPath(os.fsencode(path)), answers.append)
        rig.until(lambda: answers)
        if isinstance(answers[0], AemError):
            return answers[0].details.get("errno", answers[0].reason)
        answers[0].close()
        return answers[0].identity

    assert told(NOBODY, f"{secret}/file") == "EACCES"
    assert told(NOBODY, "/etc/passwd") == identity("/etc/passwd")
    assert told(0, f"{secret}/file") == identity(f"{secret}/file"), "root owns it"
    assert told(4_000_000_000, "/etc/passwd") == "NOT_FOUND"
