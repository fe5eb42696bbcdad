"""A service manager that keeps descriptors for the daemon, as systemd does: sd_pid_notify_with_fds(3)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time

REGISTRATIONS = "registrations"
HIGH = 700  # above the numbers that descriptors are passed on as
STARTED = """if True:  # what a manager does between fork and exec
    import os, sys
    for number, fd in enumerate(map(int, sys.argv[1].split()), 3):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Keeper:
    """`kept`: the descriptors by their names. `room`: how many it takes beside the registrations; the names
    of those beyond are in `refused`. `idle_seconds`: before it looks at a message.
    """

    def __init__(self, folder):
        self.kept = {}
        self.refused = []
        self.room = 511
        self.idle_seconds = 0.0
        self._condition = threading.Condition()
        self._path = f"{folder}/notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        while True:
            message, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
            if message == b"over":
                return
            time.sleep(self.idle_seconds)
            lines = dict(line.split("=", 1) for line in message.decode().split("\n"))
            with self._condition:
                self._note(lines, fds)
                self._condition.notify_all()

    def _note(self, lines, fds):
        name = lines.get("FDNAME")
        if "FDSTOREREMOVE" in lines:
            for fd in self.kept.pop(name, ()):
                os.close(fd)
        elif "FDSTORE" in lines:
            assert lines["FDPOLL"] == "0"
            for fd in fds:
                held = sum(len(self.kept[other]) for other in self._names())
                if (held < self.room or name == REGISTRATIONS) and not self._has(fd):
                    self.kept.setdefault(name, []).append(fd)
                else:
                    self.refused.append(name)
                    os.close(fd)
        else:
            for fd in fds:  # BARRIER=1
                os.close(fd)

    def _has(self, fd):
        return any(os.path.sameopenfile(fd, other) for fds in self.kept.values() for other in fds)

    def until(self, condition, patience=20):
        """Wait until it holds of the names that are kept."""
        with self._condition:
            assert self._condition.wait_for(lambda: condition(self._names()), patience), self.kept

    def names(self):
        """What is kept, beside what every daemon has kept."""
        with self._condition:
            return self._names()

    def _names(self):
        return set(self.kept) - {REGISTRATIONS}

    def lose(self, name):
        """As if it had not been given to it."""
        with self._condition:
            for fd in self.kept.pop(name):
                os.close(fd)

    def sockets(self):
        """Those that are kept, as /proc names them."""
        with self._condition:
            names = [os.readlink(f"/proc/self/fd/{fd}") for fds in self.kept.values() for fd in fds]
        return {name for name in names if name.startswith("socket:")}

    def start(self, daemon):
        """Start the daemon with everything that is kept."""
        with self._condition:
            kept = [(name, fd) for name, fds in self.kept.items() for fd in fds]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH) for _, fd in kept]
        environment = {**os.environ, "NOTIFY_SOCKET": self._path, "LISTEN_FDS": str(len(kept))}
        environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in kept)
        with open(daemon.log_path, "ab") as log:
            daemon.process = subprocess.Popen(
                [sys.executable, "-S", "-c", STARTED, " ".join(map(str, high)), *daemon.command()],
                env=environment,
                cwd="/",
                pass_fds=high,
                stderr=log,
                stdout=log,
            )
        for fd in high:
            os.close(fd)
        daemon.wait_until_serving()
        return daemon

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.sendto(b"over", self._path)
        self._thread.join(20)
        self._socket.close()
        for fds in self.kept.values():
            for fd in fds:
                os.close(fd)
