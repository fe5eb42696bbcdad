"""What the deputy's children are: the caller, and nothing else."""

import os
import resource
import socket

import pytest

from aemd.core.errors import AemError
from aemd.deputy import caller, task
from aemd.deputy.protocol import Fault, Kind, Request, pack_answer, parse_answer
from aemd.modules.need import OpenPath
from tests.kernel.deputy.conftest import ANOTHER, NOBODY, PR_SET_DUMPABLE, libc, private_mounts, switch

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users' processes are started")

PR_GET_DUMPABLE = 3


def forked(do, keep=()):
    """What `do` says in a child that has nothing open but that and its way back, as those of the deputy."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            kept = sorted([*keep, theirs])
            for low, high in zip([2, *kept], [*kept, 1 << 30], strict=True):
                os.closerange(low + 1, high)
            os.write(theirs, do())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    assert said, os.waitstatus_to_exitcode(status)
    return said


def as_another(*arguments, **options):
    """Become somebody in a child; what /proc says of it then, its dumpable flag and its limits."""

    def become():
        try:
            caller.become(*arguments, **options)
        except OSError as error:
            return repr(error).encode()
        with open("/proc/self/status", "rb") as file:
            said = file.read()
        said += b"Dumpable:\t%d\n" % libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
        said += b"Processes:\t%d %d\n" % resource.getrlimit(resource.RLIMIT_NPROC)
        said += b"Core:\t%d %d\n" % resource.getrlimit(resource.RLIMIT_CORE)
        return said

    said = forked(become).decode()
    assert said.startswith("Name"), said
    return dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)


def test_nothing_of_root_is_left_in_who_becomes_a_user():
    status = as_another(NOBODY, 12, (34, 56), root=None)
    assert status["Uid"] == "\t".join([str(NOBODY)] * 4)
    assert status["Gid"] == "\t".join(["12"] * 4)
    assert status["Groups"].split() == ["34", "56"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Dumpable"] == "0"
    assert status["Processes"] == status["Core"] == "0 0"


def test_root_of_a_container_is_left_without_capabilities_too():
    status = as_another(0, 0, (), root=None)
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0


def test_administrator_keeps_what_overrides_permissions_and_no_more():
    status = as_another(0, 0, (), root=None, capabilities=(1 << 41) - 1)
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == caller.CAPABLE
    assert int(status["CapBnd"], 16) == 0


def test_administrator_that_has_given_up_its_capabilities_does_not_get_them_here(rig, secret):
    os.chown(secret, NOBODY, NOBODY)

    def give_up():
        caller._capset(effective=0, permitted=0)

    weak = rig.program(0, run=give_up)
    strong = rig.program(0)
    assert rig.open(weak, f"{secret}/file").details["errno"] == "EACCES"
    assert not isinstance(rig.open(strong, f"{secret}/file"), AemError)


def test_groups_of_the_caller_count(rig, place):
    os.mkdir(f"{place}/shared", 0o750)
    os.chown(f"{place}/shared", 0, 4_242)
    program = rig.program(NOBODY)
    assert rig.open(program, f"{place}/shared/x").details["errno"] == "EACCES"
    member = program.principal.__class__(**{**_fields(program.principal), "groups": (4_242,)})
    answers = []
    rig.deputy.ask(member, OpenPath(os.fsencode(f"{place}/shared/x")), answers.append)
    rig.until(lambda: answers)
    assert answers[0].details["errno"] == "ENOENT"


def _fields(principal):
    return {name: getattr(principal, name) for name in principal.__slots__}


def test_caller_that_has_exited_is_refused_and_nothing_is_done(rig, own):
    program = rig.program(NOBODY)
    program.end()
    refused = rig.bind(program, f"{own}/s")
    assert refused.reason == "CALLER_GONE"
    assert os.listdir(own) == []


def test_pid_that_came_round_is_not_taken_for_the_caller(rig, own):
    """The number belongs to a process that lives, the pidfd to one that has exited."""
    program, other = rig.program(NOBODY), rig.program(NOBODY)
    program.end()
    principal = program.principal.__class__(**{**_fields(program.principal), "pid": other.pid})
    rig.programs[other.pid], other_program = program, other
    try:
        answers = []
        rig.deputy.ask(principal, OpenPath(os.fsencode(own)), answers.append)
        rig.until(lambda: answers)
        assert answers[0].reason == "CALLER_GONE"
    finally:
        other_program.close()
        del rig.programs[other.pid]


def by_daemon_of(uid, request, fds):
    """What a deputy says that is not root; what it hands over is closed."""

    def perform():
        switch(uid)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        answer, _ = task.perform(request, list(fds))
        return pack_answer(answer)

    return parse_answer(forked(perform, fds))


def test_deputy_that_is_not_root_acts_for_its_own_user_below_its_own_root_only(rig, place, own):
    def bind(program, uid):
        request = Request(
            Kind.BIND,
            1,
            uid,
            uid,
            pid=program.pid,
            type=int(socket.SOCK_STREAM),
            path=f"{own}/s{uid}".encode(),
        )
        return by_daemon_of(NOBODY, request, [program.pidfd]).error

    assert bind(rig.program(NOBODY, dumpable=True), NOBODY) == 0
    assert os.stat(f"{own}/s{NOBODY}").st_uid == NOBODY
    assert bind(rig.program(NOBODY, private_mounts, dumpable=True), 1) == Fault.ELSEWHERE
    assert bind(rig.program(NOBODY, lambda: os.chroot(place), dumpable=True), 2) == Fault.ELSEWHERE
    assert bind(rig.program(NOBODY, dumpable=True), ANOTHER) == Fault.ANOTHER
    assert os.listdir(own) == [f"s{NOBODY}"]
