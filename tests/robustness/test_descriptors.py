"""Descriptors run out: refused at the limit with the numbers, a reserve stays, and all of it comes back."""

import contextlib
import os
import socket

import pytest
from google.rpc import error_details_pb2

from aemd.core.errors import Code
from aemd.core.limits import Limits
from aemd.v1 import session_pb2
from tests.integration.conftest import DaemonProcess

NOFILE = 512
CONNECTIONS = 400


class SmallDaemon(DaemonProcess):
    """May have few descriptors."""

    def command(self):
        return ["/bin/sh", "-c", f'ulimit -n {NOFILE} && exec "$@"', "sh", *super().command()]


@pytest.fixture
def daemon(folder):
    running = SmallDaemon(folder, *([] if os.geteuid() == 0 else ["--user"])).start()
    yield running
    if running.process.poll() is None:
        running.stop()
    running.assert_healthy()


def metadata(status):
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason, dict(info.metadata)


def test_jobs_are_refused_exactly_at_the_limit_and_the_daemon_keeps_its_reserve(daemon, footprint):
    with daemon.client() as client:
        session = client.session()
        before = footprint.descriptors()
        jobs = []
        while True:
            answer = session.register("socket", listen="unix:@" + f"{daemon.folder}/{len(jobs)}")
            if not hasattr(answer, "job"):
                break
            jobs.append(answer.binding)
            assert len(jobs) < NOFILE
        assert answer.code == Code.RESOURCE_EXHAUSTED
        reason, facts = metadata(answer)
        assert reason == "LIMIT_REACHED"
        assert int(facts["used"]) == int(facts["limit"]) == len(jobs)
        assert "NOFILE" in facts["key"]
        assert NOFILE - len(jobs) >= Limits().descriptors_reserve
        with daemon.client() as another:
            assert another.status().jobs == len(jobs)
            assert another.session().register("user", channel="c").job
        assert session.ask(unbind=session_pb2.Unbind(binding=jobs[0])).result.status.code == 0
        assert session.register("socket", listen=f"unix:@{daemon.folder}/again").job
        session.half_close()
        session.end()
        assert client.status().descriptors_open <= before[daemon.pid]


def test_connections_beyond_the_limit_wait_in_the_backlog_and_are_served_later(daemon, eventually):
    path = f"{daemon.folder}/listen"
    with daemon.client() as client, contextlib.ExitStack() as stack:
        session = client.session()
        options = {"queue_depth": 65_536}
        job = session.register("socket", options=options, listen=f"unix:{path}", backlog=1024).job
        peers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(CONNECTIONS)]
        for peer in peers:
            peer.connect(path)

        def details():
            return next(each.details for each in client.jobs() if each.id == job)

        eventually(lambda: "stalled" in details(), "that accepting stops")
        held = int(details()["connections"])
        assert 0 < held < NOFILE - Limits().descriptors_reserve
        with daemon.client() as another:
            assert another.status().sessions == 1
        for peer in peers[:held]:
            peer.close()
        eventually(lambda: int(details()["accepted"]) == CONNECTIONS, "those who have waited")
