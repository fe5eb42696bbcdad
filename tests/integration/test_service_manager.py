"""A daemon under a service manager, which is the test: what it says, and the listener that it was given."""

import os
import signal
import socket
import subprocess

import grpc
import pytest

from tests.integration.conftest import PATIENCE, Client, DaemonProcess

STARTED = 'export LISTEN_PID=$$; exec "$@"'  # as a manager does between fork and exec


class Manager:
    """Listens for the daemon, and hears what it says."""

    def __init__(self, folder):
        self.path = f"{folder}/aemd.sock"
        self.ears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ears.bind(f"{folder}/notify")
        self.ears.settimeout(PATIENCE)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        os.chmod(self.path, 0o666 if os.geteuid() == 0 else 0o600)
        self.listener.listen(100)
        self.environment = {**os.environ, "NOTIFY_SOCKET": f"{folder}/notify"}

    def start(self, daemon, **environment):
        def pass_on():  # the one descriptor that is passed on is number 3
            os.dup2(self.listener.fileno(), 3)
            os.set_inheritable(3, True)

        options = () if os.geteuid() == 0 else ("--user",)
        with open(daemon.log_path, "ab") as log:
            daemon.process = subprocess.Popen(
                ["sh", "-c", STARTED, "sh", *daemon.command(), *options],
                env={**self.environment, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "listener", **environment},
                preexec_fn=pass_on,
                close_fds=False,
                stderr=log,
                stdout=log,
            )
        return daemon

    def hear(self):
        """The first lines of what is said, one after the other."""
        return self.ears.recv(4096).decode().split("\n")

    def wait_for(self, line):
        while line not in (lines := self.hear()):
            pass
        return lines

    def close(self):
        self.ears.close()
        self.listener.close()


@pytest.fixture
def manager(folder):
    manager = Manager(folder)
    yield manager
    manager.close()


@pytest.fixture
def daemon(folder):
    daemon = DaemonProcess(folder)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.kill()


def test_ready_is_said_when_a_front_has_answered(manager, daemon):
    manager.start(daemon)
    assert manager.hear() == ["FDSTORE=1", "FDNAME=registrations", "FDPOLL=0"]
    lines = manager.hear()
    assert lines == ["READY=1", f"STATUS=serving {manager.path}"]
    assert daemon.fronts()
    daemon.signal(signal.SIGTERM)
    assert manager.hear()[0] == "STOPPING=1"
    assert daemon.process.wait(PATIENCE) == 0


def test_reload_is_told_with_its_time(manager, daemon):
    manager.start(daemon)
    manager.wait_for("READY=1")
    daemon.signal(signal.SIGHUP)
    lines = manager.hear()
    assert lines[0] == "RELOADING=1"
    assert lines[1].startswith("MONOTONIC_USEC=")
    assert manager.hear()[0] == "READY=1"


def test_client_that_came_before_the_daemon_is_served_and_one_that_comes_after_it_waits(manager, daemon):
    with Client(manager.path) as early:
        session = early.raw()  # connects, and waits in the backlog
        session.send(hello={"version_min": 1, "version_max": 1})
        manager.start(daemon)
        session.expect("welcome")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(PATIENCE) == 0
    with Client(manager.path) as late:
        session = late.raw()
        session.send(hello={"version_min": 1, "version_max": 1})
        manager.start(daemon)
        session.expect("welcome")
        assert late.status().pid == daemon.pid


def test_front_that_hangs_is_replaced_before_the_watchdog_bites(manager, daemon):
    manager.start(daemon, WATCHDOG_USEC="2000000")
    manager.wait_for("WATCHDOG=1")
    (front,) = daemon.fronts()
    os.kill(front, signal.SIGSTOP)
    with daemon.client() as client:
        with pytest.raises(grpc.RpcError):  # it had this connection, and is killed
            client.channel.unary_unary("/aem.v1.AdminService/GetStatus")(b"", timeout=PATIENCE)
        assert client.status().fronts_replaced == 1
    manager.wait_for("WATCHDOG=1")
    assert daemon.fronts() != [front]


def test_listener_for_another_path_is_refused_with_both(folder, manager):
    daemon = DaemonProcess(f"{folder}")
    daemon.path = f"{folder}/other.sock"
    manager.start(daemon)
    assert daemon.process.wait(PATIENCE) == 1
    assert manager.path in daemon.log()
    assert daemon.path in daemon.log()


def test_environment_of_a_manager_that_contradicts_itself_is_refused(manager, daemon):
    manager.start(daemon, LISTEN_FDS="many")
    assert daemon.process.wait(PATIENCE) == 1
    assert "LISTEN_FDS" in daemon.log()


def test_fronts_know_nothing_of_the_manager(manager, daemon):
    manager.start(daemon)
    manager.wait_for("READY=1")
    with open(f"/proc/{daemon.zygote()}/environ", "rb") as environment:
        assert not any(line.startswith((b"NOTIFY", b"LISTEN")) for line in environment.read().split(b"\0"))
