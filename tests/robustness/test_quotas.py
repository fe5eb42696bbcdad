"""Every quota on a real daemon: exactly so much, others notice nothing, and a killed user leaves nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aemd.core.accounts import ENTRY_BYTES
from aemd.v1 import admin_pb2, job_pb2, session_pb2
from tests.integration.conftest import DaemonProcess
from tests.robustness.tenant import facts

ALICE, BOB = 65_534, 64_321  # the second one has no name on any machine
MIB = 1 << 20
TOP = Path(__file__).parent.parent.parent
COUNTED = {"sessions": 3, "channels": 3, "sources": 4, "jobs": 9, "connections": 5, "queue_bytes": 32_768}
RATES = {"registrations_per_second": 10, "events_per_second": 10, "descriptors": 2}
WHO = {"own": f"uid = {os.geteuid()}", "small": "all = true"}  # all are not the administrator

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two other users")


class QuotaDaemon(DaemonProcess):
    """Everybody has the same quota, that of the test."""

    def __init__(self, folder, quota):
        folder = Path(folder)
        self.policy = folder / "etc" / "policy.d" / "quotas.toml"
        self.policy.parent.mkdir(parents=True, mode=0o755)
        self.allow(**quota)
        kind = [] if os.geteuid() == 0 else ["--user"]
        super().__init__(str(folder), "--config-dir", str(folder / "etc"), *kind)

    def allow(self, **quota):
        """What the policy says from its next reading on."""
        limits = "".join(f"{name} = {limit}\n" for name, limit in quota.items())
        tables = (f'[[quota]]\nname = "{name}"\nsubject = {{ {who} }}\n{limits}' for name, who in WHO.items())
        self.policy.write_text("\n".join(tables))

    def quotas(self, client):
        """What everybody uses, by uid and resource."""
        listed = client.call(
            "AdminService/ListQuotas", admin_pb2.ListQuotasRequest(), admin_pb2.ListQuotasResponse
        )
        return {user.uid: {use.resource: use for use in user.uses} for user in listed.users}


@pytest.fixture
def serve(folder):
    with contextlib.ExitStack() as stack:

        def start(**quota):
            running = QuotaDaemon(folder, quota).start()
            stack.callback(running.assert_healthy)
            stack.callback(lambda: running.stop() if running.process.poll() is None else None)
            return running

        yield start


@pytest.fixture
def tenant():
    """Starts a user's process and gives what it was granted; it keeps all of it until it is killed."""
    started = []

    def start(daemon, uid, which):
        environment = {**os.environ, "PYTHONPATH": str(TOP)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.tenant", daemon.path, str(uid), which],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=TOP,
            env=environment,
        )
        started.append(process)
        line = process.stdout.readline()
        assert line, f"uid {uid} ended with {process.wait()}"
        return process, json.loads(line)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def check_counts(uid, told):
    taken = told["taken"]
    granted = {"sessions": 2, "channels": 3, "sources": 4, "jobs": 2, "connections": 4}  # beside the first
    assert {name: taken[name][0] for name in granted} == granted
    for name in ("sessions", "channels", "sources", "jobs"):
        said = taken[name][1]
        assert (said["key"], said["subject"]) == (f"quota.{name}", f"uid {uid}")
        assert said["used"] == said["limit"] == str(COUNTED[name])
        assert said["details"][:2] == ["ErrorInfo", "QuotaFailure"]
    kept, cause, held = taken["queue_bytes"]
    assert cause == "CAUSE_QUOTA"
    assert list(told["quotas"]) == [str(uid)]
    used = told["quotas"][str(uid)]
    assert {name: used[name] for name in granted} == {name: COUNTED[name] for name in granted}
    cost, rest = divmod(held, kept)
    assert 1_000 + ENTRY_BYTES < cost < 1_100 + ENTRY_BYTES
    assert not rest
    assert kept == COUNTED["queue_bytes"] // cost


def watch(client):
    """A session of root's that fires, and is told all of it."""
    session = client.session()
    assert session.register("user", channel="own").job
    told = []

    def fire(payload):
        session.send(**{"raise": session_pb2.Raise(channel="own", payloads=[payload])})
        ((run, seq, event),) = session.events()
        session.send(ack=session_pb2.Ack(binding=run.binding, cursor=job_pb2.Cursor(epoch=1, seq=seq)))
        told.append(event.user.payload)
        assert told[-1] == payload

    return fire


@root_only
def test_users_are_refused_at_their_quotas_and_leave_nothing(serve, tenant, eventually):
    daemon = serve(**COUNTED)
    with daemon.client() as client:
        fire = watch(client)
        fire(b"before")
        for uid in (ALICE, BOB):  # their fronts stay for a while: they are no part of what is counted below
            tenant(daemon, uid, "counts")[0].kill()
        eventually(lambda: list(daemon.quotas(client)) == [0], "that they are gone")
        before = client.status().descriptors_open, client.status().resident_bytes
        alice, told = tenant(daemon, ALICE, "counts")
        check_counts(ALICE, told)
        fire(b"while one is at all quotas")
        bob, told = tenant(daemon, BOB, "counts")
        check_counts(BOB, told)
        fire(b"while two are")
        found = daemon.quotas(client)
        assert list(found) == [0, BOB, ALICE]
        assert [found[ALICE][name].refused for name in ("sessions", "jobs", "channels", "sources")] == [2] * 4
        assert (found[0]["jobs"].used, found[0]["jobs"].refused) == (1, 0)
        os.kill(alice.pid, signal.SIGKILL)
        eventually(lambda: list(daemon.quotas(client)) == [0, BOB], "that the first is gone")
        assert {name: use.used for name, use in daemon.quotas(client)[BOB].items() if use.used} == {
            name: use.used for name, use in found[BOB].items() if use.used
        }
        os.kill(bob.pid, signal.SIGKILL)
        eventually(lambda: list(daemon.quotas(client)) == [0], "that the second is gone")
        fire(b"after")
        eventually(lambda: client.status().descriptors_open <= before[0], "the descriptors")
        assert client.status().resident_bytes < before[1] + 8 * MIB
        assert (client.status().jobs, client.status().sessions) == (1, 1)


@root_only
def test_rates_and_descriptors_end_at_their_quotas(serve, tenant, eventually):
    daemon = serve(**RATES)
    with daemon.client() as client:
        for uid in (ALICE, BOB):
            process, told = tenant(daemon, uid, "rates")
            taken = told["taken"]
            assert {name: found[0] for name, found in taken.items()} == {
                "registrations_per_second": 15,
                "events_per_second": 15,
                "descriptors": 2,
            }
            for name, (_, said) in taken.items():
                assert (said["key"], said["subject"]) == (f"quota.{name}", f"uid {uid}")
                assert ("RetryInfo" in said["details"]) == name.endswith("_per_second")
            process.kill()
        eventually(lambda: list(daemon.quotas(client)) == [0], "that they are gone")


def test_thirty_large_queues_take_no_more_memory_than_their_user_may(serve, eventually):
    daemon = serve(queue_bytes=32 * MIB)
    with daemon.client() as client:
        before = client.status().resident_bytes
        session = client.session()
        payload = bytes(250_000)
        options = {"queue_depth": 65_536, "queue_bytes": 64 * MIB}
        for number in range(30):
            channel = f"c{number}"
            answer = session.register("user", options=options, credit=job_pb2.Credit(), channel=channel)
            assert answer.job
            for _ in range(7):  # 50 MB a Raise of 3 would be refused: a message has a MiB
                raised = session_pb2.Raise(channel=channel, payloads=[payload] * 3)
                assert session.ask(**{"raise": raised}).result.status.code == 0
        used = daemon.quotas(client)[os.geteuid()]["queue_bytes"].used
        assert 31 * MIB < used <= 32 * MIB
        assert client.status().resident_bytes < before + (32 + 24) * MIB
        session.half_close()
        session.end()
        assert daemon.quotas(client)[os.geteuid()]["queue_bytes"].used == 0
        eventually(lambda: client.status().resident_bytes < before + 24 * MIB, "the memory's return")


def test_the_daemons_own_user_has_quotas_too(serve, tenant):
    _, told = tenant(serve(**COUNTED), os.geteuid(), "counts")
    check_counts(os.geteuid(), told)


def test_reload_with_lower_quotas_takes_nothing_and_gives_nothing_more(serve, eventually):
    daemon = serve(jobs=3)
    with daemon.client() as client:
        session = client.session()
        jobs = [session.register("timer", after="1h") for _ in range(3)]
        assert facts(session.register("timer", after="1h").details)["limit"] == "3"
        daemon.allow(jobs=2)
        daemon.signal(signal.SIGHUP)
        eventually(lambda: _jobs(daemon, client) == (3, 2), "the reload")
        assert session.ask(unbind=session_pb2.Unbind(binding=jobs[0].binding)).result.status.code == 0
        said = facts(session.register("timer", after="1h").details)
        assert (said["used"], said["limit"]) == ("2", "2")
        daemon.allow(jobs=4)
        daemon.signal(signal.SIGHUP)
        eventually(lambda: _jobs(daemon, client) == (2, 4), "the reload")
        assert session.register("timer", after="1h").job


def _jobs(daemon, client):
    use = daemon.quotas(client)[os.geteuid()]["jobs"]
    assert use.origin == "own"
    return use.used, use.limit
