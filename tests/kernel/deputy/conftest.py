"""The real deputy, and callers that are real: of other users, in other roots and mount namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import tempfile
import time

import pytest

from aemd.core.accounts import Accounts
from aemd.core.errors import AemError
from aemd.core.limits import MS, SECOND
from aemd.core.principal import Owner, Principal
from aemd.modules.contract import Address
from aemd.modules.need import Access, BindPath, OpenPath
from aemd.peer.deputy import Deputy

NOBODY, ANOTHER = 65_534, 65_533
LOOK_NS = 10 * MS
WAIT_NS = 20 * SECOND
PR_SET_DUMPABLE = 4
CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 16_384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def system_call(result):
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source, target, kind, flags=0, options=""):
    system_call(libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()))


def private_mounts():
    """A mount namespace of one's own, from which nothing comes out."""
    system_call(libc.unshare(CLONE_NEWNS))
    system_call(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))


def switch(uid, gid=None, groups=()):
    gid = uid if gid is None else gid
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


class Program:
    """A process that is `uid` and waits; before that it has done `prepare()`, as root."""

    def __init__(self, uid, prepare=None, *, run=None, umask=0o022, dumpable=False):
        self.uid = uid
        ready, says = os.pipe()
        waits, self._end = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._end)
                os.umask(umask)
                if prepare is not None:
                    prepare()
                switch(uid)
                if dumpable:  # as every program is that it has executed
                    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
                os.write(says, b"1")
                if run is not None:
                    run()
                os.read(waits, 1)
            finally:
                os._exit(0)
        os.close(says)
        os.close(waits)
        assert os.read(ready, 1), "the program could not be prepared"
        os.close(ready)
        self.pidfd = os.pidfd_open(self.pid)
        self.principal = Principal(
            Owner(uid), uid, (), self.pid, 0, administrator=uid == 0 and prepare is None
        )

    def end(self):
        if self._end >= 0:
            os.close(self._end)
            self._end = -1
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def close(self):
        self.end()
        os.close(self.pidfd)


class Rig:
    """A deputy, and what is asked of it."""

    def __init__(self, loop, **limits):
        self.loop = loop
        self.programs = {}
        self.accounts = Accounts()
        self.deputy = Deputy(
            loop, self.accounts, pidfd_of=lambda principal: self.programs[principal.pid].pidfd, **limits
        )

    def program(self, uid, prepare=None, **options):
        program = Program(uid, prepare, **options)
        self.programs[program.pid] = program
        return program

    def ask(self, program, need, answers=None):
        """Ask; the answers come into the list."""
        answers = [] if answers is None else answers
        self.deputy.ask(program.principal, need, answers.append)
        return answers

    def ask_many(self, program, need, count, *, at_once=100):
        """Ask the same so many times; all answers."""
        answers = []
        for done in range(0, count, at_once):
            for _ in range(at_once):
                self.ask(program, need, answers)
            self.until(lambda done=done: len(answers) == done + at_once)
        return answers

    def until(self, condition):
        deadline = time.monotonic_ns() + WAIT_NS
        while not condition():
            left = deadline - time.monotonic_ns()
            assert left > 0, "it did not come"
            self.loop.turn(min(left, LOOK_NS))  # not everything that is waited for wakes the loop

    def answer(self, program, need):
        answers = self.ask(program, need)
        self.until(lambda: answers)
        return answers[0]

    def quiet(self):
        """Until nothing is under way any more."""
        self.until(lambda: not self.deputy.busy)

    def open(self, program, path, access=Access.PATH):
        """What lies at a path, as (device, inode); or the error."""
        answer = self.answer(program, OpenPath(os.fsencode(path), access))
        if isinstance(answer, AemError):
            return answer
        answer.close()
        return answer.identity

    def bind(self, program, path, kind=socket.SOCK_STREAM, **options):
        family = {socket.SOCK_STREAM: "unix", socket.SOCK_DGRAM: "unix-dgram"}.get(kind, "unix-seqpacket")
        return self.answer(program, BindPath(Address(family, path=os.fsencode(path)), kind, **options))

    def children(self):
        """The deputy's children, once they are who they are to be."""
        pid = self.deputy.pid
        if not pid:
            return []
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            found = [int(word) for word in file.read().split()]
        return [child for child in found if not status_of(child).startswith("0\t")]


def status_of(pid):
    """The uids of a process; empty if it has gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii") as file:
        return file.read().partition("Uid:\t")[2].partition("\n")[0]
    return "0\t"


def identity(path):
    found = os.stat(path)
    return found.st_dev, found.st_ino


@pytest.fixture
def make_rig(loop, place):
    """`place` is removed after what looks at it has ended."""
    with contextlib.ExitStack() as stack:

        def make(limit_ns=5 * SECOND):
            rig = Rig(loop, limit_ns=limit_ns)
            stack.callback(lambda: [program.close() for program in rig.programs.values()])
            stack.callback(rig.deputy.close)
            return rig

        yield make


@pytest.fixture
def rig(make_rig):
    rig = make_rig()
    yield rig
    rig.quiet()
    assert rig.accounts.in_use() == [], "everything charged has come back"


@pytest.fixture
def place():
    """A directory that everybody may enter; tmp_path lies below one that is root's own."""
    path = tempfile.mkdtemp(prefix="aemd-")
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def own(place):
    """A directory of nobody's."""
    path = f"{place}/own"
    os.mkdir(path)
    os.chown(path, NOBODY, NOBODY)
    return path


@pytest.fixture
def secret(place):
    """A directory of root's that nobody else may search, with a file in it."""
    path = f"{place}/secret"
    os.mkdir(path, 0o700)
    with open(f"{path}/file", "w", encoding="ascii") as file:
        file.write("secret")
    os.chmod(f"{path}/file", 0o666)
    return path
