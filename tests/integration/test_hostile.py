"""What one user does to all: programs of uid nobody against a daemon of root, with everybody else watching.

Not to be seen and not to be found is in tests/robustness/test_strangers.py, what a front may not do in
tests/kernel/test_front_sandbox.py and tests/unit/peer/test_front.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import DaemonProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: programs of other users are started")

HOSTILE = Path(__file__).parent / "hostile.py"
NOBODY, ANOTHER = 65534, 65533
NOFILE = 512


class SmallDaemon(DaemonProcess):
    """May have few descriptors."""

    def command(self):
        return ["/bin/sh", "-c", f'ulimit -n {NOFILE} && exec "$@"', "sh", *super().command()]


class Hostile:
    """A program of another user: it says a line when it has done its worst, and goes when it is told to."""

    def __init__(self, what, path, *, uid=NOBODY, wrapper=()):
        command = [*wrapper, sys.executable, str(HOSTILE), what, path, str(uid)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = self.process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=40)


def test_user_who_takes_all_descriptors_keeps_nobody_else_out(folder):
    running = SmallDaemon(folder).start()
    with Hostile("listen", running.path) as first, Hostile("listen", running.path, uid=ANOTHER) as second:
        assert first.said.split()[1:] == ["LIMIT_REACHED", "uid", str(NOBODY)]
        assert second.said.split()[1:] == ["LIMIT_REACHED", "uid", str(ANOTHER)]
        assert int(first.said.split()[0]) > int(second.said.split()[0]) > NOFILE // 16
        with running.client() as client:
            assert client.session().register("socket", listen=f"unix:@{folder}/root").job
    running.stop()
    running.assert_healthy()


def test_user_who_raises_to_thousands_of_listeners_delays_nobody_for_long(daemon):
    with Hostile("fan_out", daemon.path) as hostile, daemon.client() as client:
        assert hostile.said == "LIMIT_REACHED 1024 payloads to 20000 listeners"
        session = client.session()
        for _ in range(5):
            assert session.register("timer", after="1ms").job
            session.skip_to("batch")


def test_user_in_another_network_namespace_cannot_listen_in_the_daemons(daemon):
    with Hostile("anywhere", daemon.path) as at_home:
        assert at_home.said == "allowed allowed allowed"
    with Hostile("anywhere", daemon.path, wrapper=("unshare", "--net")) as stranger:
        assert stranger.said == "NOT_ALLOWED NOT_ALLOWED NOT_ALLOWED"
