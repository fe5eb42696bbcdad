"""One box for all tests here, and in it the service as it is installed."""

import contextlib
import json
import os
import subprocess

import pytest

from tests.system.box import ENVIRONMENT, Box, missing

UNITS = ("aemd.service", "aemd.socket", "aemd-deputy.socket", "aemd-runner.socket")


class Service:
    """The service in the box."""

    def __init__(self, box):
        self.box = box
        self._begin = box.journal_end()

    @property
    def pid(self):
        """Its main process, as the box counts."""
        return int(self.box.show("aemd.service", "MainPID")["MainPID"])

    @property
    def state(self):
        return self.box.show("aemd.service", "ActiveState")["ActiveState"]

    @property
    def restarts(self):
        return int(self.box.show("aemd.service", "NRestarts")["NRestarts"])

    @property
    def fronts(self):
        """The processes that clients are connected to."""
        return [front for zygote in self.beside("aemd-zygote") for front in self.box.children(zygote)]

    @property
    def office(self):
        """The main process of the deputy's unit."""
        return int(self.box.show("aemd-deputy.service", "MainPID")["MainPID"])

    def beside(self, name):
        """The processes of that name which the office has started."""
        office = self.office
        return [pid for pid in self.box.children(office) if self.box.name_of(pid) == name] if office else []

    def status(self):
        return json.loads(self.ctl("status", "-o", "json").stdout)

    @property
    def journal(self):
        """What was logged about it in this test."""
        return self.box.journal("aemd.service", after=self._begin)

    def override(self, text):
        """A drop-in for the service, until the test ends."""
        self.box.write("/run/systemd/system/aemd.service.d/test.conf", f"[Service]\n{text}\n")
        self.box.run("systemctl", "daemon-reload")

    def ctl(self, *arguments, check=True):
        """Run aemctl in the box."""
        return self.box.run("/opt/aemd/bin/aemctl", *arguments, check=check)

    def reset(self):
        self.box.run("systemctl", "stop", *UNITS, "aemd-deputy.service", "aemd-runner.service")
        self.box.run("systemctl", "reset-failed", check=False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.box.path("/run/systemd/system/aemd.service.d/test.conf"))
            self.box.run("systemctl", "daemon-reload")


@pytest.fixture(scope="session")
def box():
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    box = Box(str(os.getpid()))
    try:
        box.start()
        box.run("/opt/aemd/bin/aemctl", "install-units")
        box.run("systemd-sysusers", "aemd.conf")
        box.run("systemd-tmpfiles", "--create", "aemd.conf")
        box.run("systemctl", "daemon-reload")
        yield box
    finally:
        box.stop()
    assert box.leftovers() == []


@pytest.fixture
def service(box):
    """The service, not started."""
    service = Service(box)
    yield service
    service.reset()


@pytest.fixture
def aemd(service):
    """The service, running."""
    service.box.run("systemctl", "start", *UNITS)
    return service


@pytest.fixture
def program(box):
    """Starts a program of this folder in the box; what still runs at the end is killed."""
    running = []

    def start(name, *arguments):
        command = box.command("/opt/aemd/bin/python", "-P", f"/opt/aemd/src/tests/system/{name}", *arguments)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()
