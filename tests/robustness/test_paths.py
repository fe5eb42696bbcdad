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
from pathlib import Path

import pytest

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


def test_refusals_tell_nobody_what_it_could_not_see_itself(daemon, folder):
    os.mkdir(f"{folder}/secret", 0o700)
    Path(f"{folder}/secret/s0").touch()
    with pathfinder(daemon, 2, f"unix:{folder}/secret/s#") as told:
        refusals = list(told())
    assert refusals[0].replace("s0", "s1") == refusals[-1].replace("s0", "s1")
    assert all("Permission denied" in refusal for refusal in refusals)
    assert len(refusals) == 2
