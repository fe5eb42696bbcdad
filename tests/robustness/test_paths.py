"""Paths in a real daemon: many at once, from another user, from another mount namespace, without a deputy."""

import contextlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aemd.v1 import job_pb2
from tests.integration.conftest import descendants

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: programs of other users are started")

PATHFINDER = Path(__file__).parent / "pathfinder.py"
NOBODY = 65_534
MANY = 1_000


@contextlib.contextmanager
def pathfinder(daemon, count, path, *, wrapper=()):
    """A client of nobody's that has registered; what it was told."""
    command = [*wrapper, sys.executable, str(PATHFINDER), daemon.path, str(NOBODY), str(count), path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield lambda: json.loads(process.stdout.readline())
    finally:
        process.communicate(timeout=40)


@pytest.fixture
def own(folder):
    path = f"{folder}/own"
    os.mkdir(path)
    os.chown(path, NOBODY, NOBODY)
    return path


@pytest.mark.timeout(120)
def test_thousand_paths_at_once_are_bound_and_others_do_not_wait_for_them(daemon, client, own, eventually):
    session = client.session()
    with pathfinder(daemon, MANY, f"unix:{own}/s#") as told:
        eventually(lambda: len(os.listdir(own)) > 10, "that it has begun")
        for _ in range(5):
            assert session.register("timer", after="1ms").job
            session.skip_to("batch")
        assert len(os.listdir(own)) < MANY, "they were served before it was through"
        assert told() == {"registered": MANY}
        assert len(os.listdir(own)) == MANY
        status = os.stat(f"{own}/s7")
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (NOBODY, 0o700)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(f"{own}/s7")
            credentials = struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            assert credentials[1:] == (NOBODY, NOBODY)
    eventually(lambda: not os.listdir(own), "that every path has gone")
    eventually(lambda: not descendants(daemon.child("aemd-deputy")), "the end of its children")


@pytest.mark.timeout(120)
def test_deputy_that_is_killed_in_the_middle_costs_no_registration(launch, own, eventually):
    daemon = launch()
    with daemon.client() as client, pathfinder(daemon, 300, f"unix:{own}/s#") as told:
        eventually(lambda: client.status() and len(os.listdir(own)) > 30, "that it has begun")
        os.kill(daemon.child("aemd-deputy"), signal.SIGKILL)
        assert told() == {"registered": 300}
        assert len(os.listdir(own)) == 300
    eventually(lambda: not os.listdir(own), "that every path has gone")
    assert "deputy died" in daemon.log()
    daemon.stop()


def test_client_in_another_mount_namespace_binds_in_its_own(daemon, own):
    script = f'mount -t tmpfs -o mode=1777 none {own} && exec "$@"'
    wrapper = ("unshare", "--mount", "sh", "-c", script, "sh")
    with pathfinder(daemon, 3, f"unix:{own}/s#", wrapper=wrapper) as told:
        assert told() == {"registered": 3}
        assert os.listdir(own) == []


def test_durable_job_on_a_path_is_bound_again_by_the_next_daemon(launch, own):
    daemon = launch()
    request = job_pb2.CreateJobRequest(name="echo", module="socket")
    request.params["listen"].text = f"unix:{own}/s"
    with daemon.client() as client:
        made = client.call("JobService/CreateJob", request, job_pb2.Job)
        again = client.call("JobService/CreateJob", request, job_pb2.Job)
    assert again.id == made.id
    first = os.stat(f"{own}/s").st_ino
    daemon.kill()
    daemon.start()
    with daemon.client() as client, socket.socket(socket.AF_UNIX) as peer:
        wait_for_state(client, job_pb2.STATE_ARMED)
        peer.connect(f"{own}/s")
        client.call("JobService/StopJob", job_pb2.StopJobRequest(name="jobs/echo"), job_pb2.Job)
        os.chmod(own, 0o700)
        started = client.call("JobService/StartJob", job_pb2.StartJobRequest(name="jobs/echo"), job_pb2.Job)
        assert started.state == job_pb2.STATE_ARMED
    daemon.stop()
    assert os.listdir(own) == [], "the name goes with the daemon, after a kill with the next one"
    assert first
    with open(f"{own}/s", "w", encoding="ascii"):
        pass
    daemon.start()
    with daemon.client() as client:
        job = wait_for_state(client, job_pb2.STATE_REGISTERED)
        assert "in use" in job.reason
    daemon.stop()


def wait_for_state(client, state):
    """The only job, once it is in that state and says why."""
    deadline = time.monotonic() + 20
    while True:
        (job,) = client.jobs()
        if job.state == state and (job.reason or state != job_pb2.STATE_REGISTERED):
            return job
        assert time.monotonic() < deadline, job


CREATE = """
import sys, grpc
from aemd.v1 import job_pb2
request = job_pb2.CreateJobRequest(name="echo", module="socket")
request.params["listen"].text = sys.argv[2]
create = grpc.insecure_channel(sys.argv[1]).unary_unary(
    "/aem.v1.JobService/CreateJob", lambda message: message.SerializeToString(), job_pb2.Job.FromString
)
try:
    print(create(request, wait_for_ready=True).id)
except grpc.RpcError as error:
    print(error.details())
"""


def test_durable_job_of_a_caller_with_other_mounts_is_refused(daemon, own):
    """It would be made again without that caller, where the path is another one."""
    script = f'mount -t tmpfs none {own} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh"]
    command += [sys.executable, "-c", CREATE, daemon.address, f"unix:{own}/s"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert "another root directory or mount namespace" in ran.stdout
    assert os.listdir(own) == []


def test_refusals_tell_nobody_what_it_could_not_see_itself(daemon, folder):
    os.mkdir(f"{folder}/secret", 0o700)
    Path(f"{folder}/secret/s0").touch()
    with pathfinder(daemon, 2, f"unix:{folder}/secret/s#") as told:
        refusals = list(told())
    assert refusals[0].replace("s0", "s1") == refusals[-1].replace("s0", "s1")
    assert all("Permission denied" in refusal for refusal in refusals)
    assert len(refusals) == 2
