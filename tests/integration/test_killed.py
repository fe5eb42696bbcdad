"""A daemon is killed under a service manager that keeps its registrations: sessions go on, behind a gap."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import aem
import pytest

from aemd.v1 import job_pb2, session_pb2
from tests.integration.conftest import PATIENCE, DaemonProcess, register_frame
from tests.integration.test_handover import LOTS, come_back, payloads, raise_on
from tests.integration.test_policy import POLICY, A, Other
from tests.integration.test_service_manager import STARTED, Manager
from tests.robustness.test_pid_reuse import REBORN

LISTEN_FDS_START = 3
STORE = "registrations"


class KeepingManager(Manager):
    """Keeps what it is given, and gives it to the next daemon."""

    def __init__(self, folder):
        super().__init__(folder)
        self.kept = []  # (name, descriptor)

    def listen(self):
        """Deal with what was said so far, and return the first lines."""
        self.ears.settimeout(0)
        said = []
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self.ears, 4096, 16)
            except BlockingIOError:
                return said
            lines = message.decode().split("\n")
            said.append(lines[0])
            names = [line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")]
            if lines[0] == "FDSTORE=1":
                assert "FDPOLL=0" in lines
                self.kept += [(names[0], fd) for fd in fds]
                continue
            for fd in fds:  # a barrier's
                os.close(fd)
            if lines[0] == "FDSTOREREMOVE=1":
                self.forget(names[0])

    def forget(self, gone):
        for name, fd in self.kept:
            if name == gone:
                os.close(fd)
        self.kept = [(name, fd) for name, fd in self.kept if name != gone]

    def start(self, daemon, **environment):
        self.listen()
        given = [self.listener.fileno(), *(fd for _, fd in self.kept)]
        names = ["listener", *(name for name, _ in self.kept)]

        def pass_on():
            copies = [os.dup(fd) for fd in given]
            for number, fd in enumerate(copies, LISTEN_FDS_START):
                os.dup2(fd, number + 100)
            for number in range(LISTEN_FDS_START, LISTEN_FDS_START + len(copies)):
                os.dup2(number + 100, number)
                os.set_inheritable(number, True)

        options = () if os.geteuid() == 0 else ("--user",)
        with open(daemon.log_path, "ab") as log:
            daemon.process = subprocess.Popen(
                ["sh", "-c", STARTED, "sh", *daemon.command(), *options],
                env={
                    **self.environment,
                    "LISTEN_FDS": str(len(given)),
                    "LISTEN_FDNAMES": ":".join(names),
                    **environment,
                },
                preexec_fn=pass_on,
                close_fds=False,
                stderr=log,
                stdout=log,
            )
        daemon.wait_until_serving()
        return daemon

    def restart(self, daemon):
        """Kill it, and start the next one."""
        daemon.kill()
        return self.start(daemon)

    def tape(self):
        """The memory of the registrations."""
        self.listen()
        ((_, fd),) = [(name, fd) for name, fd in self.kept if name == STORE]
        return fd

    def close(self):
        super().close()
        for _, fd in self.kept:
            os.close(fd)


@pytest.fixture
def manager(folder):
    manager = KeepingManager(folder)
    yield manager
    manager.close()


@pytest.fixture
def daemon(folder, manager):
    daemon = manager.start(DaemonProcess(folder))
    yield daemon
    if daemon.process.poll() is None:
        daemon.signal(15)
        assert daemon.process.wait(PATIENCE) == 0
    daemon.assert_healthy()


@pytest.fixture
def client(daemon):
    with daemon.client() as client:
        yield client


def back(daemon, session, **received):
    """The session on a new stream to the next daemon."""
    with daemon.client() as client:
        again, welcome = come_back(client, session, **received)
        yield again, welcome


def expect_gap(session, binding, epoch):
    gap = session.skip_to("gap")
    assert (gap.binding, gap.epoch, gap.first, gap.last) == (binding, epoch, 1, 1)
    assert (gap.count, gap.cause, gap.stage) == (0, session_pb2.CAUSE_RESTART, session_pb2.STAGE_SOURCE)
    return gap


def grant(session, binding):
    session.send(grant=session_pb2.Grant(binding=binding, credit=LOTS))


def ack(session, binding, epoch, seq):
    answer = session.ask(ack=session_pb2.Ack(binding=binding, cursor=job_pb2.Cursor(epoch=epoch, seq=seq)))
    assert answer.result.status.code == 0, answer


def test_a_session_finds_its_jobs_in_the_next_epoch_behind_a_gap(manager, daemon, client):
    session = client.session()
    registered = session.register("user", channel="work", credit=LOTS)
    raise_on(session, "work", b"a", b"b", b"c")
    payloads(session, 3)
    for epoch in (2, 3):
        manager.restart(daemon)
        client = daemon.client()
        session, welcome = come_back(client, session, b1=3)
        assert welcome.resumed
        assert list(welcome.bindings) == [registered.binding]
        gap = expect_gap(session, registered.binding, epoch)
        ack(session, registered.binding, epoch - 1, 3)  # late, and harmless
        ack(session, registered.binding, epoch, gap.last)
        grant(session, registered.binding)
        raise_on(session, "work", b"d")
        ((run, seq, event),) = session.events()
        assert (run.epoch, seq, event.user.payload) == (epoch, 2, b"d")
        (job,) = client.jobs()
        assert (job.id, job.label, job.state) == (registered.job, "test", job_pb2.STATE_ARMED)
        client.close()


def test_what_a_job_had_sent_or_queued_is_covered_by_the_gap_and_no_number_comes_twice(
    manager, daemon, client
):
    session = client.session()
    explicit = {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_EXPLICIT}
    credit = job_pb2.Credit(events=1, bytes=1 << 20)
    binding = session.register("user", channel="work", options=explicit, credit=credit).binding
    raise_on(session, "work", b"sent", b"queued")
    payloads(session, 1)
    manager.restart(daemon)
    with daemon.client() as client:
        session, _ = come_back(client, session, b1=1)
        expect_gap(session, binding, 2)
        grant(session, binding)
        raise_on(session, "work", b"next")
        ((run, seq, event),) = session.events()
        assert (run.epoch, seq, event.user.payload) == (2, 2, b"next")
        former = session_pb2.Complete(binding=binding, cursor=job_pb2.Cursor(epoch=1, seq=1))
        answer = session.ask(complete=former)
        assert answer.result.status.code == 9  # FAILED_PRECONDITION: no such entry, and nothing is done
        (job,) = client.jobs()
        assert job.stats.in_flight == 2


def test_a_job_that_was_stopped_stays_so_and_another_priority_is_kept(manager, daemon, client):
    session = client.session()
    stopped = session.register("user", channel="work").job
    inert = session.register("user", channel="work", start=False).job
    assert session.ask(stop=session_pb2.Stop(job=stopped)).result.status.code == 0
    urgent = session.register("user", channel="work").job
    priority = session_pb2.SetPriority(job=urgent, priority=7)
    assert session.ask(set_priority=priority).result.status.code == 0
    manager.restart(daemon)
    with daemon.client() as client:
        found = {job.id: (job.state, job.options.priority) for job in client.jobs()}
    registered, armed = job_pb2.STATE_REGISTERED, job_pb2.STATE_ARMED
    assert found == {stopped: (registered, 3), inert: (registered, 3), urgent: (armed, 7)}


def test_jobs_and_sessions_that_ended_do_not_come_back(manager, daemon, client):
    session, other = client.session(), client.session()
    ended = session.register("user", channel="work").job
    kept = session.register("user", channel="work").job
    other.register("user", channel="work")
    assert session.ask(shutdown=session_pb2.Shutdown(job=ended)).result.status.code == 0
    other.half_close()
    other.end()
    manager.restart(daemon)
    with daemon.client() as client:
        assert [job.id for job in client.jobs()] == [kept]
        again = client.session()
        assert again.welcome.session > other.welcome.session
        assert again.register("user", channel="work").job > kept


def test_numbers_that_were_given_out_are_not_given_again(manager, daemon, client):
    session = client.session()
    session.register("user", channel="work")
    last = session.register("user", channel="work")
    assert session.ask(shutdown=session_pb2.Shutdown(job=last.job)).result.status.code == 0
    manager.restart(daemon)
    with daemon.client() as client:
        session, _ = come_back(client, session)
        fresh = session.register("user", channel="work")
        assert (fresh.job, fresh.binding) > (last.job, last.binding)
        assert fresh.binding > last.binding


def test_number_of_a_hold_on_a_durable_job_is_not_given_again(manager, daemon, client):
    request = job_pb2.CreateJobRequest(
        name="kept", module="user", params={"channel": job_pb2.Value(text="work")}
    )
    client.call("JobService/CreateJob", request, job_pb2.Job)
    session = client.session()
    bind = session_pb2.Bind(name="kept", role=session_pb2.ROLE_FOLLOW, credit=LOTS)
    held = session.ask(bind=bind).registered.binding
    manager.restart(daemon)
    with daemon.client() as client:
        session, welcome = come_back(client, session)
        assert welcome.resumed
        assert list(welcome.bindings) == []  # it is bound again, wherever it was
        assert session.register("user", channel="work").binding > held


def test_a_one_shot_job_that_has_fired_ends_with_its_gap(manager, daemon, client):
    session = client.session()
    binding = session.register("user", channel="work", options={"one_shot": True}, credit=LOTS).binding
    raise_on(session, "work", b"once")
    payloads(session, 1)
    manager.restart(daemon)
    with daemon.client() as client:
        session, _ = come_back(client, session, b1=1)
        gap = expect_gap(session, binding, 2)
        session.send(ack=session_pb2.Ack(binding=binding, cursor=job_pb2.Cursor(epoch=2, seq=gap.last)))
        assert session.skip_to("job_state").state == job_pb2.STATE_GONE


def test_a_timer_begins_anew(manager, daemon, client):
    session = client.session()
    binding = session.register("timer", every="50ms", credit=LOTS).binding
    session.events()
    manager.restart(daemon)
    with daemon.client() as client:
        session, _ = come_back(client, session, b1=1)
        ack(session, binding, 2, expect_gap(session, binding, 2).last)
        grant(session, binding)
        run, _, _ = session.events()[0]
        assert (run.epoch, run.first_seq) == (2, 2)


def test_a_listener_keeps_the_port_that_the_kernel_chose(manager, daemon, client):
    session = client.session()
    binding = session.register("socket", listen="tcp:127.0.0.1:0", credit=LOTS).binding
    ((_, _, listening),) = session.events()
    port = listening.socket.local.port
    with socket.create_connection(("127.0.0.1", port)) as peer:
        ((_, last, accepted),) = session.events()
        manager.restart(daemon)
        assert peer.recv(1) == b""
    with daemon.client() as client:
        session, _ = come_back(client, session, b1=last)
        grant(session, binding)
        expect_gap(session, binding, 2)
        ((_, _, listening),) = session.events()
        assert (listening.type, listening.socket.local.port) == ("listening", port)
        with socket.create_connection(("127.0.0.1", port)):
            ((_, _, again),) = session.events()
        assert again.type == "accepted"
        assert again.key != accepted.key


def test_a_process_is_watched_on_and_its_end_meanwhile_is_a_gap(manager, daemon, client):
    staying, leaving = (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)
    )
    session = client.session()
    stays = session.register("process", pid=staying.pid, credit=LOTS).binding
    leaves = session.register("process", pid=leaving.pid, credit=LOTS).binding
    daemon.kill()
    leaving.communicate(b"\n")
    manager.start(daemon)
    with daemon.client() as client:
        session, welcome = come_back(client, session)
        assert list(welcome.bindings) == [stays, leaves]
        told = {gap.binding: gap.last for gap in (session.skip_to("gap"), session.skip_to("gap"))}
        assert told == {stays: 1, leaves: 1}
        grant(session, stays)
        answer = session_pb2.Ack(binding=leaves, cursor=job_pb2.Cursor(epoch=2, seq=1))
        session.send(ack=answer)
        assert session.skip_to("job_state").state == job_pb2.STATE_GONE
        staying.communicate(b"\n")
        ((run, seq, event),) = session.events()
        assert (run.binding, seq, event.process.exit_status) == (stays, 2, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: clone3(2) with set_tid")
def test_a_process_that_has_got_the_number_meanwhile_is_not_watched(manager, daemon, client):
    program = [sys.executable, "-c", "print(flush=True); input()"]
    first = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    first.stdout.readline()
    session = client.session()
    binding = session.register("process", pid=first.pid, credit=LOTS).binding
    daemon.kill()
    first.communicate(b"\n")
    reborn = subprocess.Popen(
        [sys.executable, REBORN, str(first.pid), *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    reborn.stdout.readline()
    manager.start(daemon)
    with daemon.client() as client:
        session, _ = come_back(client, session)
        gap = expect_gap(session, binding, 2)
        answer = session_pb2.Ack(binding=binding, cursor=job_pb2.Cursor(epoch=2, seq=gap.last))
        session.send(ack=answer)
        assert session.skip_to("job_state").state == job_pb2.STATE_GONE
    reborn.communicate(b"\n")


def test_a_client_that_was_killed_meanwhile_leaves_nothing(manager, daemon, client):
    program = f"""if True:
        import sys
        sys.path.insert(0, {os.getcwd()!r})
        from tests.integration.conftest import Client
        session = Client({daemon.path!r}).session()
        session.register("user", channel="theirs")
        print("ready", flush=True)
        sys.stdin.read()
    """
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"ready\n"
    assert len(client.jobs()) == 1
    daemon.kill()
    other.kill()
    other.communicate()
    manager.start(daemon)
    with daemon.client() as client:
        assert client.jobs() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a process of another user is started")
def test_a_job_that_policy_has_forbidden_meanwhile_ends_and_another_stays(manager, daemon, client):
    other = Other(daemon.path, A)
    kept = other.do("register", module="user", channel="work")
    other.do("register", module="timer", every="1h")
    assert len(client.jobs()) == 2
    daemon.kill()
    os.makedirs(f"{daemon.folder}/etc/policy.d")
    Path(daemon.folder, "etc/policy.d/10-test.toml").write_text(POLICY)
    manager.start(daemon)
    with daemon.client() as client:
        assert [job.id for job in client.jobs()] == [kept["job"]]
    assert "rule no-timers" in daemon.log()
    other.end()


def test_a_client_of_the_sdk_goes_on_with_the_same_jobs_and_does_nothing_for_it(manager, daemon):
    seen, gaps = [], []
    with aem.Client(daemon.address) as client:
        job = client.register("user", lambda event: seen.append(event), channel="c", on_gap=gaps.append)
        stopped = client.register("timer", print, every="1h", start=False)
        numbers = (job.id, stopped.id)
        for times in range(3):
            client.raise_event("c", b"%d" % times)
            client.run(lambda: len(seen) == times + 1)  # noqa: B023
            manager.restart(daemon)
            client.run(lambda: len(gaps) == times + 1)  # noqa: B023
        client.raise_event("c", b"3")
        client.run(lambda: len(seen) == 4)
        assert (job.id, stopped.id) == numbers
        assert (job.state, stopped.state) == ("ARMED", "REGISTERED")
    assert [event.data for event in seen] == [b"0", b"1", b"2", b"3"]
    assert [event.epoch for event in seen] == [1, 2, 3, 4]
    assert {(gap.cause, gap.stage, gap.count, gap.remedy) for gap in gaps} == {
        ("restart", "source", 0, "rescan")
    }
    assert [(gap.epoch, gap.seq) for gap in gaps] == [(2, 1), (3, 1), (4, 1)]


def test_a_durable_job_is_bound_again_in_the_same_session(manager, daemon):
    seen = []
    with aem.Client(daemon.address) as client:
        job = client.durable("kept", "user", seen.append, channel="c", on_gap=seen.append)
        plain = client.register("user", print, channel="other")
        numbers = (job.id, plain.id)
        client.raise_event("c", b"before")
        client.run(lambda: len(seen) == 1)
        manager.restart(daemon)
        client.run(lambda: any(isinstance(event, aem.Gap) for event in seen))
        client.raise_event("c", b"after")
        client.run(lambda: getattr(seen[-1], "data", b"") == b"after")
        assert (job.id, plain.id) == numbers


def test_an_orderly_end_still_loses_nothing(manager, daemon, client):
    session = client.session()
    binding = session.register("user", channel="work", credit=job_pb2.Credit(events=1, bytes=1 << 20)).binding
    raise_on(session, "work", b"a", b"b")
    payloads(session, 1)
    daemon.signal(15)
    assert daemon.process.wait(PATIENCE) == 0
    manager.start(daemon)
    with daemon.client() as client:
        session, _ = come_back(client, session, b1=1)
        grant(session, binding)
        assert payloads(session, 1) == [(2, b"b", 1)]
        manager.restart(daemon)
    with daemon.client() as client:
        session, welcome = come_back(client, session, b1=2)
        assert list(welcome.bindings) == [binding]
        expect_gap(session, binding, 2)


def test_a_daemon_that_cannot_hand_over_in_order_has_its_registrations_noted(manager, daemon, client):
    session = client.session()
    binding = session.register("user", channel="work", credit=LOTS).binding
    os.makedirs(f"{daemon.folder}/state/handover.new/in-the-way")
    daemon.signal(15)
    assert daemon.process.wait(PATIENCE) == 0
    os.rmdir(f"{daemon.folder}/state/handover.new/in-the-way")
    os.rmdir(f"{daemon.folder}/state/handover.new")
    assert "nothing is handed over" in daemon.log()
    os.truncate(daemon.log_path, 0)  # the error was to be
    manager.start(daemon)
    with daemon.client() as client:
        session, _ = come_back(client, session)
        expect_gap(session, binding, 2)
        (job,) = client.jobs()
        assert job.state == job_pb2.STATE_ARMED  # it was stopped for the end only


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has 0 bytes"),
        (b"garbage " * 1_000, "no tape"),
        (b"aemdtape\x63" + bytes(5_000), "version 99"),
    ],
)
def test_what_is_no_tape_of_this_version_is_left_with_a_line_in_the_log(manager, folder, content, told):
    foreign = os.memfd_create("foreign")
    os.write(foreign, content)
    manager.kept.append((STORE, foreign))
    daemon = manager.start(DaemonProcess(folder))
    with daemon.client() as client:
        session = client.session()
        session.register("user", channel="work")
    assert told in daemon.log()
    manager.restart(daemon)
    with daemon.client() as client:
        assert come_back(client, session)[1].resumed
    daemon.kill()
    assert daemon.log().count("registrations left") == 1


def test_a_damaged_tape_costs_the_sessions_and_nothing_else(manager, daemon, client):
    session = client.session()
    session.register("user", channel="work")
    daemon.kill()
    os.pwrite(manager.tape(), b"\xff" * 40, 4_096)
    manager.start(daemon)
    with daemon.client() as client:
        assert not come_back(client, session)[1].resumed
        again = client.session()
        assert again.welcome.session > session.welcome.session + 1  # what was given out is known
        assert again.register("user", channel="work").job > 1
    assert "registrations left" in daemon.log()
    manager.restart(daemon)
    with daemon.client() as client:
        assert come_back(client, again)[1].resumed


def test_without_a_manager_nothing_is_written(folder):
    options = () if os.geteuid() == 0 else ("--user",)
    daemon = DaemonProcess(folder, *options).start()
    with daemon.client() as client:
        client.session().register("user", channel="work")
        held = [os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon.pid}/fd")]
        assert not any("memfd:" in name for name in held)
    daemon.stop()


def test_jobs_that_come_and_go_without_end_leave_the_tape_short(manager, daemon, client):
    session = client.session()
    kept = session.register("user", channel="work").job
    for start in range(0, 50_000, 1_000):
        session.send_bundle(
            [
                session_pb2.ClientFrame(
                    request_id=start + number + 1,
                    register=register_frame("user", channel="work", start=False),
                )
                for number in range(1_000)
            ]
        )
        jobs = [session.skip_to("registered").job for _ in range(1_000)]
        session.send_bundle([session_pb2.ClientFrame(shutdown=session_pb2.Shutdown(job=job)) for job in jobs])
    assert session.ask(sync=session_pb2.Sync()).HasField("sync_done")
    tape = manager.tape()
    assert os.fstat(tape).st_size > 4_000_000
    assert os.fstat(tape).st_blocks * 512 < 2_000_000
    manager.restart(daemon)
    with daemon.client() as client:
        assert [job.id for job in client.jobs()] == [kept]
