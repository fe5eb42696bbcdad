"""The tape of registrations: kept short, given up where it cannot be kept, taken up a few times."""

import os
import resource
import socket
from dataclasses import replace

import pytest
import structlog

from aemd.core.engine import Engine
from aemd.core.job import JobState
from aemd.core.limits import Limits
from aemd.core.now import Now
from aemd.core.principal import Owner, Principal
from aemd.core.registrations import STARTED, Begun, Teller, begun, encode, parse_record
from aemd.core.traits import Traits
from aemd.peer.principal import read_start_time
from aemd.service import registrations
from aemd.service.config import Config
from aemd.service.daemon import Daemon
from aemd.service.notify import Notifier
from aemd.service.registrations import NAME, TRIES_MAX, Registrations
from aemd.store.tape import Tape, framed
from aemd.v1 import job_pb2, session_pb2
from tests.unit.service import conftest

TRAITS = Traits("user")
NOW = Now(1, 1)
PRINCIPAL = Principal(Owner(1_000), 1_000, (), 7, 99, administrator=False)
TELLER = Teller(lambda job: job.state is JobState.ARMED, lambda _job: None)


class Bench:
    """An engine, the tape of its registrations, and the service manager."""

    def __init__(self, address):
        self.ears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ears.bind(address)
        self.ears.settimeout(20)
        self.notifier = Notifier(address)
        self.fd = -1
        self.begin([])

    def begin(self, found):
        self.engine = Engine(Limits(), new_token=lambda: os.urandom(4))
        self.kept = Registrations(self.engine, self.notifier, found, TELLER)

    def open(self):
        self.kept.open()
        message, (self.fd,), _, _ = socket.recv_fds(self.ears, 1_000, 4)
        assert message.decode().split("\n") == ["FDSTORE=1", f"FDNAME={NAME}", "FDPOLL=0"]
        self.session = self.engine.open_session(PRINCIPAL, label="", sdk="", credit=None, now=NOW)

    def register(self, params=b"p" * 20):
        job = self.engine.register(
            self.session,
            module=TRAITS,
            values={},
            params=params,
            options=job_pb2.Options(),
            label="",
            credit=None,
            now=NOW,
        )
        self.engine.announce(job, b"")
        return job

    @property
    def size(self):
        header = Tape(self.fd).header
        return header.end - header.begin

    @property
    def live(self):
        """What has to be there."""
        jobs = [binding.job for binding in self.session.bindings.values()]
        records = [begun(self.session), *map(TELLER.registered, jobs)]
        return sum(len(framed(encode(record))) for record in records)

    def left(self):
        """What the next daemon finds."""
        self.begin([os.dup(self.fd)])
        self.kept.open()
        return self.kept.sessions()

    def heard(self):
        return self.ears.recv(1_000).decode().split("\n")

    def close(self):
        self.kept.close()
        self.notifier.close()
        self.ears.close()
        if self.fd >= 0:
            os.close(self.fd)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(registrations, "LEFT_BYTES_MIN", 2_000)
    bench = Bench(str(tmp_path / "notify"))
    yield bench
    bench.close()


@pytest.fixture
def lines():
    with structlog.testing.capture_logs() as found:
        yield found


def test_jobs_that_come_and_go_leave_the_tape_as_short_as_what_stays(bench):
    bench.open()
    for _ in range(50):
        bench.register()
    longest = 0
    for _ in range(3_000):
        bench.engine.end_job(bench.register(), "over", NOW)
        short = bench.register()
        bench.kept.commit()
        bench.engine.end_job(short, "over", NOW)
        bench.kept.commit()
        longest = max(longest, bench.size)
    assert longest <= 3 * (bench.live + 2_000)
    (session,) = bench.left()
    assert len(session.jobs) == 50


def test_a_job_that_is_started_and_stopped_for_ever_does_not_lengthen_the_tape(bench):
    bench.open()
    jobs = [bench.register() for _ in range(50)]
    longest = 0
    for _ in range(5_000):
        bench.engine.start(jobs[7], NOW)
        bench.kept.commit()
        bench.engine.stop(jobs[7], NOW)
        bench.kept.commit()
        longest = max(longest, bench.size)
    assert longest <= 3 * (bench.live + 2_000)
    bench.engine.start(jobs[7], NOW)
    bench.kept.commit()
    (session,) = bench.left()
    assert [job.id for job in session.jobs if job.started] == [jobs[7].id]


def test_no_turn_moves_more_than_it_writes_several_times_over(bench):
    bench.open()
    for _ in range(2_000):
        bench.register()
    bench.kept.commit()
    looked = []
    bench.kept._still = lambda record, still=bench.kept._still: looked.append(record) or still(record)
    most = 0
    while len(looked) < 2_000:
        job, before = bench.register(params=b"p" * 200), len(looked)
        bench.kept.commit()
        most = max(most, len(looked) - before)
        bench.engine.end_job(job, "over", NOW)
        bench.kept.commit()
    assert 0 < most <= 20


def test_a_turn_that_writes_much_moves_no_more_than_it_writes(bench):
    bench.open()
    looked, most, many = [], 0, 2_000
    for _ in range(2 * many):
        bench.register()
    bench.kept.commit()
    bench.kept._still = lambda record, still=bench.kept._still: looked.append(record) or still(record)
    while len(looked) < 3 * many:
        jobs, before = [bench.register() for _ in range(many)], len(looked)
        bench.kept.commit()
        most = max(most, len(looked) - before)
        for job in jobs:
            bench.engine.end_job(job, "over", NOW)
        bench.kept.commit()
    assert 0 < most <= many
    assert bench.size <= 5 * bench.live


def test_number_of_a_binding_that_came_and_went_in_one_turn_is_used_up(bench):
    bench.open()
    bench.kept.commit()
    job = bench.register()
    bench.engine.end_job(job, "over", NOW)
    bench.kept.commit()
    (session,) = bench.left()
    assert session.jobs == []
    assert session.next_binding > job.binding.id


def test_nothing_is_written_while_nothing_changes(bench):
    bench.open()
    job = bench.register()
    bench.kept.commit()
    before = os.fstat(bench.fd)
    bench.engine.fire(job, b"event")
    bench.engine.collect(bench.session, 1 << 20)
    bench.kept.commit()
    assert os.fstat(bench.fd).st_mtime_ns == before.st_mtime_ns


def test_what_cannot_be_written_any_more_is_given_up_and_nothing_of_it_is_believed(bench, lines):
    bench.open()
    bench.register()
    bench.kept.commit()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(bench.fd).st_size, before[1]))
    try:
        bench.register()
        bench.kept.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    bench.register()
    bench.kept.commit()
    assert [line["event"] for line in lines] == ["registrations not kept"]
    assert bench.heard() == ["FDSTOREREMOVE=1", f"FDNAME={NAME}"]
    assert not bench.engine.changes
    assert bench.left() == []


def test_more_than_a_tape_may_hold_is_given_up(bench, lines, monkeypatch):
    monkeypatch.setattr(registrations, "TAPE_BYTES_MAX", 10_000)
    bench.open()
    while not lines:
        bench.register(params=b"p" * 500)
        bench.kept.commit()
    assert lines[0]["event"] == "registrations not kept"
    assert "at most 10000" in lines[0]["error"]
    assert bench.left() == []


@pytest.mark.parametrize("trouble", ["descriptors", "manager"])
def test_where_there_can_be_no_tape_the_daemon_goes_on_without(bench, lines, trouble):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if trouble == "manager":
        bench.ears.close()
        os.unlink(bench.notifier._address)
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        bench.kept.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [line["event"] for line in lines] == ["registrations not kept"]
    bench.session = bench.engine.open_session(PRINCIPAL, label="", sdk="", credit=None, now=NOW)
    bench.register()
    bench.kept.commit()
    assert not bench.engine.changes


def test_a_tape_that_daemons_die_of_is_left_after_some(bench, lines):
    bench.open()
    bench.register()
    bench.kept.commit()
    for _ in range(TRIES_MAX):
        assert len(bench.left()) == 1
        bench.kept.close()
    assert lines == []
    assert bench.left() == []
    assert lines[0]["event"] == "registrations left"
    assert bench.engine.next_id == 2  # its numbers are still known


def test_a_daemon_that_lives_takes_it_up_as_often_as_it_is_killed(bench, lines):
    bench.open()
    bench.register()
    bench.kept.commit()
    for _ in range(2 * TRIES_MAX):
        (frozen,) = bench.left()
        bench.engine.thaw_session(frozen, NOW)
        bench.kept.commit()
        bench.kept.close()
    assert lines == []


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x63\x01", b"\x91\x04", b"{}"])
def test_a_record_that_says_nothing_known_costs_the_sessions_and_a_line(bench, lines, data):
    bench.open()
    bench.register()
    bench.kept.commit()
    tape = Tape(os.dup(bench.fd))
    tape.write(framed(data))
    tape.commit(type(tape.header)(tape.header.begin, tape.end, 9, 9))
    tape.close()
    assert bench.left() == []
    assert [line["event"] for line in lines] == ["registrations left"]
    assert (bench.engine.next_id, bench.engine.next_session) == (9, 9)


def test_several_tapes_are_none(bench, lines):
    bench.open()
    bench.register()
    bench.kept.commit()
    bench.begin([os.dup(bench.fd), os.dup(bench.fd)])
    bench.kept.open()
    assert bench.heard() == ["FDSTOREREMOVE=1", f"FDNAME={NAME}"]
    assert bench.heard()[0] == "FDSTORE=1"
    assert bench.kept.sessions() == []


CALLER = replace(conftest.principal(), start_time_ticks=read_start_time(os.getpid()))


class DaemonWithManager(conftest.Bench):
    """A daemon whose service manager keeps what it is given, and has `left` it that."""

    def __init__(self, folder, left=None):
        self.ears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ears.bind(f"{folder}/notify")
        config = Config(socket=f"{folder}/never", state_dir=f"{folder}")
        found = [(NAME, os.dup(left))] if left is not None else []
        self.daemon = Daemon(config, Limits(), notifier=Notifier(f"{folder}/notify"), left=found)
        self.daemon.begin()
        if left is None:
            _, (self.fd,), _, _ = socket.recv_fds(self.ears, 1_000, 4)
        else:
            self.fd = os.dup(left)

    def kept(self):
        """The records that the next daemon would read."""
        tape = Tape(os.dup(self.fd))
        records = [parse_record(data) for data, _ in tape.records(tape.header.begin, tape.header.end)]
        tape.close()
        return records

    def end(self):
        self.daemon.end()
        self.daemon.notifier.close()
        self.ears.close()
        os.close(self.fd)


@pytest.fixture
def daemon(tmp_path):
    daemon = DaemonWithManager(tmp_path)
    daemon.daemon.peers._processes.hold(CALLER, os.pidfd_open(os.getpid()))
    yield daemon
    daemon.end()


def register_path(daemon, path):
    """A job that a deputy opens, which takes more than a turn; the stream that asks for it."""
    wire = daemon.wire(caller=CALLER)
    wire.hello()
    address = job_pb2.Value(text=f"unix:{path}")
    register = session_pb2.Register(module="socket", params={"listen": address}, start=True)
    wire.say(request_id=1, register=register)
    return wire


def test_what_is_about_to_be_answered_is_on_the_tape_before_its_turn_ends(daemon):
    daemon.turn()
    wire = daemon.wire(caller=CALLER)
    wire.say(hello=session_pb2.Hello(version_min=1, version_max=1))
    (answer,) = wire.told()  # and the front may have it before the turn is over
    assert daemon.kept() == []
    daemon.daemon.peers.before_sending()
    (session,) = daemon.kept()
    assert (session.session, session.token) == (answer.welcome.session, answer.welcome.resume_token)


def test_a_job_that_is_being_opened_is_on_the_tape_when_its_client_is_told(daemon, tmp_path):
    wire = register_path(daemon, f"{tmp_path}/socket")
    daemon.turn()
    assert [type(record) for record in daemon.kept()] == [Begun]
    daemon.turn_until(lambda: any(frame.HasField("registered") for frame in wire.frames))
    _, job = daemon.kept()
    assert (job.standing, job.session) == (STARTED, 1)


def test_a_job_that_is_still_being_taken_up_when_that_daemon_is_killed_is_to_fire_none_the_less(
    daemon, tmp_path
):
    wire = register_path(daemon, f"{tmp_path}/socket")
    daemon.turn_until(lambda: any(frame.HasField("registered") for frame in wire.frames))
    os.mkdir(tmp_path / "next")
    after = DaemonWithManager(tmp_path / "next", left=daemon.fd)
    after.daemon.registrations.commit()
    _, job = after.kept()
    assert (job.standing, job.epoch) == (STARTED, 2)
    after.end()
