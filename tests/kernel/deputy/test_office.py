"""The office with a core at the other end: what it starts, what it refuses, and how it ends."""

import os
import signal
import socket
from pathlib import Path

import pytest

from aemd.core.accounts import Accounts
from aemd.core.errors import AemError
from aemd.core.limits import SECOND
from aemd.deputy import office as server
from aemd.deputy.starting import Program as Which
from aemd.modules.need import Access, OpenPath
from aemd.peer.beside import Program
from aemd.peer.deputy import Deputy
from aemd.peer.looker import PROGRAM as LOOKER
from aemd.peer.office import Office
from tests.kernel.deputy.conftest import LOOK_NS, NOBODY, WAIT_NS
from tests.kernel.deputy.conftest import Program as Caller

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it starts what becomes others")
PROGRAMS = frozenset({Which.DEPUTY, Which.LOOKER})
RUNNER = Program((), Which.RUNNER)


class Rig:
    """The core's end, and the process of the office."""

    def __init__(self, loop, path):
        self.loop = loop
        self.ended = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            self.pid = os.fork()
            if self.pid == 0:
                server.Office(listener.accept()[0], PROGRAMS).serve()
                os._exit(0)
        self.office = Office(loop, path)

    def start(self, program=LOOKER):
        """Have one started; its end is noted under its place."""
        place = len(self.ended)
        self.ended.append(None)

        def died(status):
            self.ended[place] = status

        return self.office.start(program, died)

    def reap(self):
        """Its exit status."""
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def until(self, condition):
        due_ns = self.loop.mono_ns() + WAIT_NS
        while not condition():
            assert self.loop.mono_ns() < due_ns
            self.loop.turn(LOOK_NS)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.fixture
def rig(loop, tmp_path):
    rig = Rig(loop, str(tmp_path / "office"))
    yield rig
    rig.office.close()
    assert not rig.pid or rig.reap() == 0


def test_what_it_starts_works_and_ends_when_it_is_told(rig):
    started = rig.start()
    rig.until(lambda: started.pid)
    assert children(rig.pid) == [str(started.pid)]
    started.kill()
    rig.until(lambda: rig.ended == [-9])
    started.control.close()


def test_program_of_another_unit_is_not_started(rig):
    started = rig.start(RUNNER)
    rig.until(lambda: rig.ended == [-1])
    assert (started.pid, children(rig.pid)) == (0, [])
    started.control.close()


def test_no_more_than_so_many_at_once(rig):
    started = [rig.start() for _ in range(server.PROCESSES_MAX + 1)]
    rig.until(lambda: -1 in rig.ended)
    assert rig.ended == [None] * server.PROCESSES_MAX + [-1]
    assert len(children(rig.pid)) == server.PROCESSES_MAX
    for each in started:
        each.control.close()


def test_end_is_waited_for_without_the_loop(rig):
    started = rig.start()
    started.control.close()
    started.end(20)
    rig.until(lambda: not children(rig.pid))
    assert rig.ended == [None]  # who ends it is not told


def test_deputy_behind_an_office_acts_as_the_caller(rig, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("")
    secret.chmod(0o600)
    os.chmod(tmp_path, 0o755)
    answers = []
    caller = Caller(NOBODY)
    deputy = Deputy(
        rig.loop, Accounts(), pidfd_of=lambda _principal: caller.pidfd, limit_ns=SECOND, starter=rig.office
    )
    deputy.ask(caller.principal, OpenPath(os.fsencode(secret), Access.READ), answers.append)
    rig.until(lambda: answers)
    deputy.close()
    caller.close()
    assert isinstance(answers[0], AemError)
    assert answers[0].details["errno"] == "EACCES"


def test_office_that_dies_takes_all_with_it_and_everybody_is_told(rig):
    started = [rig.start() for _ in range(2)]
    rig.until(lambda: all(each.pid for each in started))
    os.kill(rig.pid, signal.SIGKILL)
    rig.reap()
    rig.until(lambda: rig.ended == [-1, -1])
    for each in started:
        each.control.close()
    with pytest.raises(ConnectionRefusedError, match="office"):
        rig.start()
