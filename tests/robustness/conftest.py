"""Daemons as in tests/integration, and what the kernel says about their processes.

What the promises of this folder share with tests/integration stands there and is not repeated: a thousand
sessions, a hundred thousand jobs and five thousand silent connections, drain, stale and taken sockets in
test_daemon.py; requests that nobody reads the answers of in test_session.py; bytes that are no HTTP/2, killed
zygotes and short descriptors of the fronts in front/test_front_faults.py; clients of a restarted daemon in
test_sdk_reconnect.py.
"""

import os
from pathlib import Path

import pytest

from tests.integration.conftest import (  # noqa: F401
    client,
    daemon,
    eventually,
    folder,
    launch,
    session,
    shared_daemon,
)

PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class Footprint:
    """What the processes of a daemon hold."""

    def __init__(self, daemon):  # noqa: F811
        self.daemon = daemon

    def descriptors(self):
        """Of the core, its zygote and its fronts; of the core alone for who may not look at the others."""
        core = self.daemon.pid
        pids = [core, self.daemon.zygote(), *self.daemon.fronts()] if os.geteuid() == 0 else [core]
        return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}

    def threads(self):
        """Of the core."""
        return len(os.listdir(f"/proc/{self.daemon.pid}/task"))

    def resident_bytes(self):
        """Of the core and of the fronts together."""
        return self.resident([self.daemon.pid]), self.resident(self.daemon.fronts())

    @staticmethod
    def resident(pids):
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES for pid in pids)


@pytest.fixture
def footprint(daemon):  # noqa: F811
    return Footprint(daemon)
