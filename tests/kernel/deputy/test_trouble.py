"""What goes wrong around the deputy: file systems that hang, users that interfere, its own death."""

import contextlib
import os
import signal
import socket

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.limits import MS, SECOND
from aemd.modules.contract import Address
from aemd.modules.need import Access, BindPath, OpenPath
from tests.kernel.deputy.conftest import ANOTHER, NOBODY, libc, mount, private_mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users' processes are started")

PTRACE_SEIZE, PTRACE_ATTACH = 0x4206, 16
SYS_PIDFD_GETFD = 438
CHILDREN = 16
IN_FLIGHT = 253  # descriptors of one message, unix(7)


def hangs(path):
    """Prepares a program that sees a FUSE file system at `path` which answers nothing, ever."""

    def prepare():
        private_mounts()
        fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fuse},rootmode=40000,user_id={NOBODY},group_id={NOBODY}"
        mount("hangs", path, "fuse", options=options)

    return prepare


def test_descriptors_that_a_user_has_in_flight_elsewhere_keep_nothing_from_it(rig, own):
    sent, says = os.pipe()

    def send():
        kept = socket.socketpair()
        socket.send_fds(kept[0], [b"x"], [0] * IN_FLIGHT)  # nobody reads it
        os.write(says, b"1")
        os.read(kept[0].fileno(), 1)  # until it is killed

    program = rig.program(NOBODY, run=send)
    assert os.read(sent, 1) == b"1"
    bound = rig.bind(program, f"{own}/s")
    assert not isinstance(bound, AemError), bound
    bound.close()
    os.close(sent)
    os.close(says)


@pytest.fixture
def stuck(own):
    """A path that never answers, for programs prepared with hangs()."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse")
    os.mkdir(f"{own}/stuck")
    return f"{own}/stuck"


def test_file_system_that_does_not_answer_costs_its_own_request_only(make_rig, own, stuck):
    rig = make_rig(limit_ns=300 * MS)
    program, other = rig.program(NOBODY, hangs(stuck)), rig.program(ANOTHER)
    answers = []
    rig.ask(program, OpenPath(os.fsencode(f"{stuck}/x/y")), answers)
    rig.ask(program, BindPath(Address("unix", path=os.fsencode(f"{stuck}/s")), socket.SOCK_STREAM), answers)
    rig.until(lambda: len(rig.children()) == 2)
    assert not isinstance(rig.open(other, own), AemError)
    assert not isinstance(rig.open(program, own), AemError)
    assert answers == [], "neither of the two waited for them"
    rig.until(lambda: len(answers) == 2)
    assert {(each.code, each.reason) for each in answers} == {(Code.DEADLINE_EXCEEDED, "PATH_TIMEOUT")}
    rig.quiet()
    assert rig.children() == []
    assert rig.accounts.in_use() == []


def test_user_whose_file_systems_hang_has_no_more_processes_than_its_quota(make_rig, own, stuck):
    rig = make_rig(limit_ns=2 * SECOND)
    program, other = rig.program(NOBODY, hangs(stuck)), rig.program(ANOTHER)
    answers = []
    for _ in range(CHILDREN + 1):
        rig.ask(program, OpenPath(os.fsencode(f"{stuck}/x")), answers)
    late = []
    rig.ask(program, OpenPath(os.fsencode(own)), late)
    rig.until(lambda: len(rig.children()) == CHILDREN)
    assert rig.accounts.find(NOBODY).used("children") == CHILDREN
    assert not isinstance(rig.open(other, own), AemError), "another user is served meanwhile"
    assert len(rig.children()) == CHILDREN
    assert late == []
    rig.until(lambda: late)
    assert late[0].close() is None, "it had its turn when others had run out of their time"
    rig.until(lambda: len(answers) == CHILDREN + 1)
    rig.quiet()
    assert rig.accounts.in_use() == []


def test_user_can_neither_trace_nor_read_a_process_that_acts_for_it(make_rig, stuck):
    rig = make_rig(limit_ns=3 * SECOND)
    victim = rig.program(NOBODY, hangs(stuck))
    answers = rig.ask(victim, OpenPath(os.fsencode(f"{stuck}/x")))
    rig.until(lambda: rig.children())
    (pid,) = rig.children()
    said, tells = os.pipe()

    def attack():
        tried = {
            "attach": lambda: libc.ptrace(PTRACE_ATTACH, pid, None, None),
            "seize": lambda: libc.ptrace(PTRACE_SEIZE, pid, None, None),
            "memory": lambda: os.open(f"/proc/{pid}/mem", os.O_RDONLY),
            "descriptors": lambda: os.listdir(f"/proc/{pid}/fd"),
            "root": lambda: os.stat(f"/proc/{pid}/root/"),
            "environment": lambda: os.read(os.open(f"/proc/{pid}/environ", os.O_RDONLY), 1),
            "descriptor": lambda: libc.syscall(SYS_PIDFD_GETFD, os.pidfd_open(pid), 0, 0),
        }
        done = []
        for name, attempt in tried.items():
            with contextlib.suppress(OSError):
                result = attempt()
                if result != -1:
                    done.append(name)
        os.write(tells, (",".join(done) or "nothing").encode())

    rig.program(NOBODY, run=attack)
    assert os.read(said, 1000) == b"nothing"
    os.close(said)
    os.close(tells)
    rig.until(lambda: answers)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "DEPUTY_LOST"), (signal.SIGSTOP, "PATH_TIMEOUT")]
)
def test_user_that_ends_or_stops_its_own_process_hurts_itself_only(make_rig, own, stuck, number, reason):
    rig = make_rig(limit_ns=SECOND)
    program = rig.program(NOBODY, hangs(stuck))
    answers = rig.ask(program, OpenPath(os.fsencode(f"{stuck}/x")))
    rig.until(lambda: rig.children())
    (pid,) = rig.children()
    deputy = rig.deputy.pid

    def attack():
        os.kill(pid, number)
        for target in (deputy, os.getppid()):
            with contextlib.suppress(PermissionError):
                os.kill(target, number)

    rig.program(NOBODY, run=attack)
    rig.until(lambda: answers)
    assert answers[0].reason == reason
    assert ("signal 9" in answers[0].message) == (number == signal.SIGKILL)
    assert rig.deputy.pid == deputy
    assert not isinstance(rig.open(program, own), AemError)


def test_deputy_that_is_killed_is_replaced_and_asked_again(rig, own):
    program = rig.program(NOBODY)
    assert not isinstance(rig.open(program, own), AemError)
    first = rig.deputy.pid
    answers = []
    for number in range(100):
        place = Address("unix", path=os.fsencode(f"{own}/s{number}"))
        rig.ask(program, BindPath(place, socket.SOCK_STREAM), answers)
    rig.until(lambda: len(answers) >= 10)
    os.kill(first, signal.SIGKILL)
    rig.until(lambda: len(answers) == 100)
    assert [each.message for each in answers if isinstance(each, AemError)] == []
    assert rig.deputy.pid not in (0, first)
    assert len(os.listdir(own)) == 100
    for each in answers:
        each.close()
    rig.quiet()
    assert os.listdir(own) == []


def test_children_of_a_deputy_that_is_killed_die_with_it(make_rig, stuck):
    rig = make_rig(limit_ns=20 * SECOND)
    program = rig.program(NOBODY, hangs(stuck))
    answers = rig.ask(program, OpenPath(os.fsencode(f"{stuck}/x")))
    rig.until(lambda: rig.children())
    (pid,) = rig.children()
    pidfd = os.pidfd_open(pid)
    os.kill(rig.deputy.pid, signal.SIGKILL)
    gone = []
    rig.loop.add(pidfd, 1, gone.append)
    rig.until(lambda: gone)
    rig.loop.remove(pidfd)
    os.close(pidfd)
    rig.until(lambda: rig.deputy.pid and rig.children())
    os.kill(rig.deputy.pid, signal.SIGKILL)
    rig.until(lambda: answers)
    assert answers[0].reason == "DEPUTY_LOST", "it is not asked a third time"


def test_message_that_the_deputy_does_not_understand_ends_it_and_nobody_else(rig, own):
    program = rig.program(NOBODY)
    assert not isinstance(rig.open(program, own), AemError)
    first = rig.deputy.pid
    rig.deputy._control.send(b"nonsense")
    rig.until(lambda: rig.deputy.pid != first)
    assert not isinstance(rig.open(program, own, Access.PATH), AemError)


def test_daemon_that_ends_removes_the_names_that_are_still_there(make_rig, own):
    rig = make_rig()
    program = rig.program(NOBODY)
    bound = [rig.bind(program, f"{own}/s{number}") for number in range(40)]
    for each in bound:
        each.close()
    rig.deputy.close()
    assert os.listdir(own) == []
    assert rig.deputy.pid == 0
