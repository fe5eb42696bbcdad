"""The looker: what it sees for who may not, and what becomes of the question when it is not there."""

import os
import signal
import sys

import pytest

from aemd.core.errors import AemError, Code
from aemd.deputy import looking, starting
from aemd.deputy.looking import What
from aemd.peer import looker as module
from aemd.peer.beside import OwnStarter, Program
from aemd.peer.looker import RemoteLooker
from tests.kernel.deputy.conftest import ANOTHER, switch

ALL = What.USER | What.PID | What.MOUNT | What.NETWORK | What.PROGRAM | What.STAT
HANGS = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
GUARDED = ALL & ~What.STAT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: processes of several users are made")


class Starter(OwnStarter):
    """Knows what it has started."""

    def __init__(self, loop):
        super().__init__(loop)
        self.started = []

    def start(self, program, died):
        self.started.append(super().start(program, died))
        return self.started[-1]


@pytest.fixture
def starter(loop):
    starter = Starter(loop)
    yield starter
    for process in starter.started:
        process.end(0)


@pytest.fixture
def looker(starter):
    looker = RemoteLooker(starter)
    yield looker
    looker.close()


def as_another(do):
    """Whether that holds in a process of a user without rights."""
    child = os.fork()
    if child == 0:
        try:
            switch(ANOTHER)
            os._exit(0 if do() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_who_may_not_look_sees_it_through_the_looker(looker):
    pid, seen = os.getpid(), looking.look(os.getpid(), ALL)
    assert {What(each) for each in ALL} == set(seen)
    assert set(looker.look(pid, ALL)) == set(seen)  # it has come up
    assert as_another(lambda: not looking.look(pid, GUARDED))
    assert as_another(lambda: looker.look(pid, GUARDED) == {w: seen[w] for w in GUARDED})


def test_pid_namespace_comes_as_a_descriptor(looker):
    namespace = looker.open_pid_namespace(os.getpid())
    assert os.fstat(namespace).st_ino == os.stat("/proc/self/ns/pid").st_ino
    os.close(namespace)
    with pytest.raises(PermissionError):
        looker.open_pid_namespace(0)


def test_process_that_is_not_there_has_nothing(looker):
    assert looker.look(0, ALL) == {}


def test_looker_that_died_is_started_again_for_the_next_question(looker, starter):
    looker.look(1, ALL)
    os.kill(starter.started[0].pid, signal.SIGKILL)
    assert What.STAT in looker.look(os.getpid(), ALL)
    assert len(starter.started) == 2


def test_looker_that_hangs_is_given_up_and_not_waited_for_by_everybody(starter, monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(module, "AGAIN_SECONDS", 600)
    looker = RemoteLooker(starter, Program(HANGS, starting.Program.LOOKER))
    for _ in range(20):
        with pytest.raises(AemError) as refused:
            looker.look(1, ALL)
        assert (refused.value.code, refused.value.reason) == (Code.UNAVAILABLE, "DEPUTY_LOST")
    assert len(starter.started) == module.TRIES
