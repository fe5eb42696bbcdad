"""Module process against real processes; wait(2) of their parent is the oracle."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aemd.core.errors import AemError, Code
from aemd.loop.loop import Loop
from aemd.modules.process import Process
from aemd.sources import pidfd
from aemd.v1 import process_pb2
from tests.kernel.conftest import FakeHost, FakeJob, principal

KNOWN, UNKNOWN = process_pb2.EXIT_KNOWLEDGE_KNOWN, process_pb2.EXIT_KNOWLEDGE_UNKNOWN
NOBODY, SOMEBODY = 65_534, 1_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: takes on other user ids")


class Child:
    """A process that waits for end() and then ends as told; a child of this one, not reaped before wait()."""

    def __init__(self, last: Callable[[], object]) -> None:
        reader, self._gate = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._gate)
            os.read(reader, 1)
            last()
            os._exit(99)
        os.close(reader)

    def end(self) -> Child:
        """Let it end; returns once it is a zombie."""
        self._open_gate()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return self

    def wait(self) -> int:
        """Reap it; returns the wait status."""
        pid, self.pid = self.pid, 0
        return os.waitpid(pid, 0)[1]

    def _open_gate(self) -> None:
        os.write(self._gate, b"x")  # closing would not do: later children have inherited it
        os.close(self._gate)
        self._gate = -1

    def clean(self) -> None:
        if self._gate >= 0:
            self._open_gate()
        if self.pid:
            self.wait()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Makes children; those that are left are ended."""
    made: list[Child] = []

    def make(last: Callable[[], object] = lambda: os._exit(0), *, uid: int | None = None) -> Child:
        def become() -> None:
            if uid is not None:
                os.setresuid(uid, uid, uid)
            last()

        made.append(Child(become))
        return made[-1]

    yield make
    for one in made:
        one.clean()


@pytest.fixture
def module(host: FakeHost) -> Process:
    return Process(host)


def watch(host: FakeHost, module: Process, pid: int, *, owner=None, **values: object) -> FakeJob:
    job = host.job({"pid": pid, **values}, owner=owner)
    module.open(job)
    module.start(job)
    return job


def told(host: FakeHost, count: int = 1) -> process_pb2.ProcessEvent:
    return host.wait_for(count)[count - 1].event.process


def keeps_endings() -> bool:
    """Whether the kernel tells the end of a reaped process (Linux 6.15)."""
    pid = os.fork()
    if not pid:
        os._exit(3)
    fd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    status = pidfd._read_exit_info(fd)
    os.close(fd)
    return status is not None


def as_user(uid: int, body: Callable[[FakeHost, Process], object]) -> object:
    """Run `body` with a loop of its own in a process of that user, as a daemon without privilege would."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            host = FakeHost(Loop())
            outcome = json.dumps({"returned": body(host, Process(host))})
        except BaseException:
            outcome = json.dumps({"raised": traceback.format_exc()})
        os.write(writer, outcome.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        outcome = json.loads(stream.read())
    os.waitpid(pid, 0)
    assert "raised" not in outcome, outcome["raised"]
    return outcome["returned"]


def facts(event: process_pb2.ProcessEvent) -> list[object]:
    return [event.knowledge, event.exit_status, event.signal, event.reaped, event.source]


def test_exit_of_a_child_is_told_while_it_is_a_zombie(host, module, child):
    one = child(lambda: os._exit(7))
    job = watch(host, module, one.pid)
    host.reactor.turn(0)
    assert not host.fired
    one.end()
    event = told(host)
    assert facts(event) == [KNOWN, 7, 0, False, "stat"]
    assert event.pid == one.pid
    assert event.uid == os.getuid()
    assert event.command == Path("/proc/self/comm").read_text().strip()
    assert host.fired[0].event.type == "exited"
    assert host.exhausted == [(job, "the process has ended")]


@pytest.mark.skipif(not keeps_endings(), reason="needs PIDFD_INFO_EXIT of Linux 6.15")
def test_exit_of_a_process_reaped_before_it_was_read_is_told_by_its_pidfd(host, module, child):
    one = child(lambda: os._exit(42))
    watch(host, module, one.pid)
    one.end().wait()
    assert facts(told(host)) == [KNOWN, 42, 0, True, "pidfd"]


def test_what_an_older_kernel_has_forgotten_is_said_to_be_unknown(host, module, child, monkeypatch):
    monkeypatch.setattr(pidfd, "PIDFD_GET_INFO", 0xFF00)  # the ioctl of a kernel that has it not: ENOTTY
    one = child(lambda: os._exit(42))
    watch(host, module, one.pid)
    one.end().wait()
    event = told(host)
    assert facts(event)[:4] == [UNKNOWN, 0, 0, True]
    assert "does not keep" in event.source


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "SIGTERM"), (40, "SIGRTMIN+6"), (64, "SIGRTMAX")],
)
def test_a_signal_that_ends_a_process_is_named(host, module, child, number, name):
    one = child(lambda: os.kill(os.getpid(), number))
    watch(host, module, one.pid)
    one.end()
    event = told(host)
    assert (event.signal, event.signal_name, event.exit_status) == (number, name, 0)
    assert os.WTERMSIG(one.wait()) == number


@pytest.mark.parametrize("limit", [0, resource.RLIM_INFINITY])
def test_the_core_flag_is_that_of_wait(host, module, child, tmp_path, limit):
    def crash() -> None:
        os.chdir(tmp_path)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (0 if limit == 0 else hard, hard))
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's background job has it ignored
        os.kill(os.getpid(), signal.SIGQUIT)  # dumps, and pytest has no handler for it

    one = child(crash)
    watch(host, module, one.pid)
    one.end()
    event = told(host)
    assert event.signal_name == "SIGQUIT"
    assert event.core_dumped == os.WCOREDUMP(one.wait())


def test_a_process_whose_first_thread_is_gone_ends_with_the_status_of_the_group(host, module):
    code = (
        "import ctypes, os, sys, threading\n"
        "threading.Thread(target=lambda: (sys.stdin.read(1), os._exit(3))).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).syscall(ctypes.c_long(60 if os.uname().machine == 'x86_64' else 93), 0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        watch(host, module, process.pid)
        host.reactor.turn(0)
        assert not host.fired
        process.stdin.close()
        event = told(host)
        process.stdin = None
        assert process.wait() == 3
    assert (event.knowledge, event.exit_status) == (KNOWN, 3)


def test_a_grandchild_that_nobody_reaps_is_told_at_once(host, module):
    """Its parent lives and does not wait: a zombie for as long as that takes."""
    numbers, numbers_in = os.pipe()
    parent_gate, parent_end = os.pipe()
    child_gate, child_end = os.pipe()
    middle = os.fork()
    if not middle:
        os.close(parent_end)
        os.close(child_end)
        pid = os.fork()
        if not pid:
            os.read(child_gate, 1)
            os._exit(11)
        os.write(numbers_in, str(pid).encode())
        os.read(parent_gate, 1)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    pid = int(os.read(numbers, 20))
    watch(host, module, pid)
    os.close(child_end)
    assert facts(told(host)) == [KNOWN, 11, 0, False, "stat"]
    os.close(parent_end)
    assert os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1]) == 11
    for fd in (numbers, numbers_in, parent_gate, child_gate):
        os.close(fd)


def test_a_zombie_can_be_registered_for_and_fires_at_start(host, module, child):
    one = child(lambda: os._exit(5)).end()
    watch(host, module, one.pid)
    assert facts(told(host)) == [KNOWN, 5, 0, False, "stat"]


def test_a_process_that_is_gone_is_an_error_that_says_so(host, module, child):
    one = child()
    pid = one.pid
    one.end().wait()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AemError) as caught:
        watch(host, module, pid)
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.reason == "PROCESS_GONE"
    assert caught.value.message == f"no process {pid}: it has exited or never existed"
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not +host.charged


def test_another_start_time_is_another_process(host, module, child):
    one = child()
    ticks = watch(host, module, one.pid).data.source.facts.start_time_ticks
    watch(host, module, one.pid, start_time=ticks)
    with pytest.raises(AemError, match="it has exited or never existed"):
        watch(host, module, one.pid, start_time=ticks - 1)


@needs_root
def test_anothers_process_is_not_told_from_none(host, module, child):
    roots, own = child(), child(lambda: os._exit(1))
    mixed = child()
    with pytest.raises(AemError) as hidden:
        watch(host, module, roots.pid, owner=principal(SOMEBODY))
    one = own.pid
    own.end().wait()
    with pytest.raises(AemError) as absent:
        watch(host, module, one, owner=principal(SOMEBODY))
    assert hidden.value.message.replace(str(roots.pid), "N") == absent.value.message.replace(str(one), "N")
    assert (hidden.value.code, hidden.value.reason) == (absent.value.code, absent.value.reason)
    assert hidden.value.details.keys() == absent.value.details.keys()
    assert not +host.charged
    assert mixed.pid


def running_as(*uids: int) -> subprocess.Popen[bytes]:
    """A process with these real, effective and saved uids, ready when this returns."""
    code = f"import os, sys; os.setresuid{uids}; print('ready', flush=True); sys.stdin.read(1)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


@needs_root
@pytest.mark.parametrize("uids", [(SOMEBODY, 0, 0), (SOMEBODY, SOMEBODY, 0), (0, SOMEBODY, SOMEBODY)])
def test_a_process_with_other_rights_too_is_not_the_callers(host, module, uids):
    with running_as(*uids) as process:
        with pytest.raises(AemError, match="never existed"):
            watch(host, module, process.pid, owner=principal(SOMEBODY))
        process.stdin.close()


@needs_root
def test_own_process_and_for_the_administrator_everybodys(host, module):
    with running_as(SOMEBODY, SOMEBODY, SOMEBODY) as process:
        watch(host, module, process.pid, owner=principal(SOMEBODY))
        watch(host, module, process.pid)
        process.stdin.close()
        assert told(host, 2).uid == SOMEBODY


class SetUser:
    """A process of one user that executes a program of another's when it is told to.

    Its program has the set-user-ID bit; skips where the file system does not honour that.
    """

    def __init__(self, folder: Path, *, uid: int, becomes: int) -> None:
        copy = folder / "cat"
        shutil.copy("/bin/cat", copy)
        os.chown(copy, becomes, -1)
        copy.chmod(0o4755)
        folder.chmod(0o755)
        self.becomes = becomes
        code = (
            f"import os, sys; os.setresuid({uid}, {uid}, {uid}); print('ready', flush=True); os.read(0, 1)\n"
            f"os.execl({str(copy)!r}, 'cat')"
        )
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe)
        assert self.process.stdout.readline() == b"ready\n"
        self.pid = self.process.pid

    def change(self) -> None:
        """Let it; returns once the other program runs."""
        self.process.stdin.write(b"x\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"\n"  # the rest of the line, copied by cat
        if pidfd._read_uids(self.pid)[1] != self.becomes:
            pytest.skip("needs a file system that honours set-user-ID")

    def end(self) -> None:
        """Kill it; it is a zombie then."""
        self.process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def wait(self) -> int:
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


@pytest.fixture
def changer() -> Iterator[SetUser]:
    with tempfile.TemporaryDirectory() as folder:
        process = SetUser(Path(folder), uid=SOMEBODY, becomes=NOBODY)
        yield process
        if process.process.returncode is None:
            process.process.kill()
            process.wait()


@needs_root
def test_a_process_that_has_become_anothers_is_told_to_have_ended_and_not_how(host, module, changer):
    job = watch(host, module, changer.pid, owner=principal(SOMEBODY))
    changer.change()
    with pytest.raises(AemError, match="never existed"):
        watch(host, module, changer.pid, owner=principal(SOMEBODY))
    everybodys = watch(host, module, changer.pid)
    changer.end()
    host.wait_for(2)
    seen = {fired.job.id: fired.event.process for fired in host.fired}
    assert facts(seen[job.id])[:4] == [UNKNOWN, 0, 0, False]
    assert "changed its credentials" in seen[job.id].source
    assert not seen[job.id].signal_name
    assert (seen[job.id].uid, seen[job.id].command) == (SOMEBODY, "python")
    assert seen[everybodys.id].signal == signal.SIGKILL
    changer.wait()


@needs_root
def test_what_was_withheld_stays_so_when_the_job_is_started_after_the_reap(host, module, changer):
    job = watch(host, module, changer.pid, owner=principal(SOMEBODY))
    module.stop(job)
    changer.change()
    changer.end()
    host.wait_until(lambda: job.data.source.ending)
    changer.wait()
    module.start(job)
    assert facts(told(host))[:4] == [UNKNOWN, 0, 0, False]


@needs_root
@pytest.mark.skipif(not keeps_endings(), reason="needs PIDFD_INFO_EXIT of Linux 6.15")
def test_who_a_zombie_was_is_remembered_until_its_status_is_known(changer):
    """A daemon that may not read the status of the zombie, and hears of it when it is reaped."""
    asked_out, asked = os.pipe()
    ready_out, ready = os.pipe()

    def body(host: FakeHost, module: Process) -> object:
        job = watch(host, module, changer.pid, owner=principal(SOMEBODY))
        os.write(ready, b"x")
        host.wait_until(lambda: job.data.source._grace)
        os.write(asked, b"x")
        return facts(told(host))

    daemon = os.fork()
    if not daemon:
        outcome = as_user(NOBODY, body)
        os._exit(0 if outcome[:4] == [UNKNOWN, 0, 0, False] and "changed" in outcome[4] else 1)
    os.read(ready_out, 1)
    changer.change()
    changer.end()
    os.read(asked_out, 1)
    changer.wait()
    assert os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1]) == 0
    for fd in (asked_out, asked, ready_out, ready):
        os.close(fd)


@needs_root
@pytest.mark.skipif(not keeps_endings(), reason="needs PIDFD_INFO_EXIT of Linux 6.15")
def test_the_kernel_tells_any_holder_of_a_pidfd_how_a_process_ended(child):
    """Why the status of a process that was reaped at once is not withheld: nobody needs a right for it."""
    one = child(lambda: os._exit(7))

    def body(host: FakeHost, module: Process) -> object:
        held = os.pidfd_open(one.pid)
        os.write(asked, b"x")
        select.select([held], [], [])
        os.read(reaped, 1)
        return pidfd._read_exit_info(held)

    asked_out, asked = os.pipe()
    reaped, reaped_in = os.pipe()
    stranger = os.fork()
    if not stranger:
        os._exit(0 if as_user(NOBODY, body) == 7 << 8 else 1)
    os.read(asked_out, 1)
    one.end().wait()
    os.write(reaped_in, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(stranger, 0)[1]) == 0
    for fd in (asked_out, asked, reaped, reaped_in):
        os.close(fd)


@needs_root
def test_a_status_that_may_not_be_read_is_unknown_and_not_zero(child):
    one = child(lambda: os._exit(7)).end()

    def body(host: FakeHost, module: Process) -> object:
        watch(host, module, one.pid, owner=principal(NOBODY, administrator=True))
        return facts(told(host))

    outcome = as_user(NOBODY, body)
    assert outcome[:4] == [UNKNOWN, 0, 0, False]
    assert "may not read" in outcome[4]
    assert os.waitstatus_to_exitcode(one.wait()) == 7


@needs_root
@pytest.mark.skipif(not keeps_endings(), reason="needs PIDFD_INFO_EXIT of Linux 6.15")
def test_a_status_that_may_not_be_read_is_known_if_the_process_is_reaped_soon(child):
    one = child(lambda: os._exit(7)).end()
    asked_out, asked = os.pipe()

    def body(host: FakeHost, module: Process) -> object:
        job = watch(host, module, one.pid, owner=principal(NOBODY, administrator=True))
        host.wait_until(lambda: job.data.source._grace)
        os.write(asked, b"x")
        return facts(told(host))

    reaper = os.fork()  # runs the daemon, while this process is the parent that reaps
    if not reaper:
        outcome = as_user(NOBODY, body)
        os._exit(0 if outcome == [KNOWN, 7, 0, True, "pidfd"] else 1)
    os.read(asked_out, 1)
    one.wait()
    assert os.waitstatus_to_exitcode(os.waitpid(reaper, 0)[1]) == 0
    os.close(asked_out)
    os.close(asked)


def test_an_end_while_the_job_is_stopped_is_told_at_start_and_once(host, module, child):
    one = child(lambda: os._exit(9))
    job = watch(host, module, one.pid)
    module.stop(job)
    one.end()
    host.wait_until(lambda: job.data.source.ending)
    one.wait()
    assert not host.fired
    module.start(job)
    assert facts(host.fired[0].event.process)[:2] == [KNOWN, 9]
    module.stop(job)
    module.start(job)
    assert len(host.fired) == 1


def test_jobs_of_one_user_share_a_descriptor_and_its_charge_moves_on(host, module, child):
    one = child()
    descriptors = len(os.listdir("/proc/self/fd"))
    jobs = [watch(host, module, one.pid) for _ in range(3)]
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1
    assert +host.charged == {jobs[0].id: 1}
    module.close(jobs[0])
    assert +host.charged == {jobs[1].id: 1}
    one.end()
    host.wait_for(2)
    assert [fired.job for fired in host.fired] == jobs[1:]
    assert host.fired[0].encoded is not None
    assert host.fired[0].encoded == host.fired[1].encoded
    module.close(jobs[1])
    module.close(jobs[2])
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1  # the child's gate is closed as well


def test_a_shared_descriptor_outlives_a_shortage_of_descriptors(host, module, child):
    one = child(lambda: os._exit(2))
    first, second = watch(host, module, one.pid), watch(host, module, one.pid)
    host.descriptors_max = 0
    module.close(first)
    one.end()
    assert told(host).exit_status == 2
    module.close(second)
    assert not +host.charged


def test_close_while_armed_leaves_nothing_behind(host, module, child):
    one = child()
    module.close(watch(host, module, one.pid))
    one.end()
    host.reactor.turn(0)
    assert not host.fired


def test_sync_tells_an_end_that_the_loop_has_not_seen_yet(host, module, child):
    one = child(lambda: os._exit(4))
    job = watch(host, module, one.pid)
    one.end()
    done: list[bool] = []
    module.sync(job, lambda: done.append(bool(host.fired)))
    assert done == [True]
    host.reactor.turn(0)
    assert len(host.fired) == 1


def test_details_say_who_the_process_is(host, module, child):
    one = child()
    details = module.details(watch(host, module, one.pid))
    assert details["pid"] == str(one.pid)
    assert details["uid"] == str(os.getuid())
    assert int(details["start_time"]) > 0
