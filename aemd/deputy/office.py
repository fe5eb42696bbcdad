"""`python -m aemd.deputy.office USER UNIT PROGRAM...`: the main process of aemd-deputy.service, and of
aemd-runner.service.

Where the core runs as USER it has no right to start what needs root's rights, and asks here for it: in the
one unit the deputy itself, the zygote of the fronts and the looker, in the other the runner. Each is started
with a control socket that the core has made, and from then on the two speak with each other alone. The core
chooses among the PROGRAMs and says numbers; no path, no command and no variable of theirs comes from it.

The service manager listens, and starts this process for the first who connects. That must be a process of
USER in the control group of UNIT, as the kernel tells it; whoever else connects is sent away. One core is
served, until its connection is closed: then its processes are given a moment to end, as their own control
sockets tell them, and the office ends with them. The next core has another one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

from aemd.deputy import starting
from aemd.deputy.caller import name_process
from aemd.deputy.starting import Kind, Message, Program

SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h, Linux 6.5
LISTENER = 3  # sd_listen_fds(3)
PROCESSES_MAX = 8  # at once; a core needs three, and three more while they are replaced
MILLISECONDS_MAX = 3_600_000
BYTES_MAX = 1 << 40
END_SECONDS = 3.0  # the zygote waits 1.5 for its fronts
ENVIRONMENT = ("PATH", "LANG", "LC_", "LD_LIBRARY_PATH", "PYTHON", "GRPC_")  # beginnings of names
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
_UCRED = struct.Struct("iII")


class RefusedError(Exception):
    """Who has connected is not the core; the message says why."""


def main(user: str, unit: str, programs: frozenset[Program]) -> None:
    """Wait for the core, and serve it until it is gone."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)
    os.chdir("/")
    name_process("aemd-office")
    uid = pwd.getpwnam(user).pw_uid
    with take_listener() as listener:
        core = wait_for_core(listener, uid, unit)
    Office(core, programs).serve()


def take_listener() -> socket.socket:
    """The listener that the service manager has passed on."""
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if (count, pid) != ("1", str(os.getpid())):
        sys.exit("aemd-deputy: started by its socket unit and by nobody else")
    os.set_inheritable(LISTENER, False)
    listener = socket.socket(fileno=LISTENER)
    listener.setblocking(True)
    return listener


def wait_for_core(listener: socket.socket, uid: int, unit: str) -> socket.socket:
    """The connection of the core; others are closed."""
    while True:
        connection, _ = listener.accept()
        try:
            check_core(connection, uid, unit)
        except RefusedError as error:
            connection.close()
            print(f"aemd-deputy: refused: {error}", file=sys.stderr, flush=True)
        else:
            return connection


def check_core(connection: socket.socket, uid: int, unit: str) -> None:
    """Raise RefusedError if that is not a process of `uid` in the control group of `unit`."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, found, _ = _UCRED.unpack(credentials)
    if found != uid:
        raise RefusedError(f"pid {pid} is of uid {found}, and not of {uid}")
    try:
        pidfd = _pidfd(connection, pid)
    except OSError:
        raise RefusedError(f"pid {pid} has exited") from None
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            cgroups = file.read()
        signal.pidfd_send_signal(pidfd, 0)
    except OSError:
        raise RefusedError(f"pid {pid} has exited") from None
    finally:
        os.close(pidfd)
    if unit_of(cgroups) != unit:
        raise RefusedError(f"pid {pid} is of {unit_of(cgroups) or 'no unit'}, and not of {unit}")


def _pidfd(connection: socket.socket, pid: int) -> int:
    """Of who has connected, or before Linux 6.5 of who has its pid now."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(pid)


def unit_of(cgroups: str) -> str:
    """The unit of a /proc/PID/cgroup: the first name below the slices, which nobody but the service manager
    of the system makes. Empty if there is none.
    """
    for line in cgroups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number, controllers) == ("0", "") or controllers == "name=systemd":
            unit = next((name for name in path.split("/")[1:] if not name.endswith(".slice")), "")
            if unit:
                return unit
    return ""


def command(message: Message) -> list[str]:
    """What is to be executed, without the number of the control socket. ValueError: out of bounds."""
    start = [sys.executable, "-P", "-m"]
    if message.program is Program.DEPUTY and 0 < message.first <= MILLISECONDS_MAX:
        return [*start, "aemd.deputy", f"{message.first / 1000:g}"]
    sizes = message.first, message.second
    if message.program is Program.FRONTS and min(sizes) > 0 and max(sizes) <= BYTES_MAX:
        # Without a folder: fronts have network namespaces of their own here, or there are none.
        return [*start, "aemd.front", "", str(message.first), str(message.second)]
    if message.program is Program.LOOKER:
        return [*start, "aemd.deputy.looker"]
    if message.program is Program.RUNNER:
        return [*start, "aemd.deputy.runner"]
    raise ValueError(message)


@dataclass(slots=True, eq=False)
class _Started:
    number: int
    process: subprocess.Popen[bytes]


class Office:
    """Serves one core."""

    def __init__(self, core: socket.socket, programs: frozenset[Program]) -> None:
        self._core = core
        self._programs = programs
        self._core.setblocking(True)
        self._poll = select.poll()
        self._poll.register(core, select.POLLIN)
        self._started: dict[int, _Started] = {}  # by pidfd

    def serve(self) -> None:
        """Until the core is gone, and what was started for it."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._started:
                    self._reap(fd)
                elif not self._message():
                    self._leave()
                    return

    def _message(self) -> bool:
        """Deal with the next message; False if there is none, for ever."""
        try:
            data, fds, _, _ = socket.recv_fds(self._core, starting.MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            message = starting.parse(data)
        except (OSError, starting.StartingError):
            return False
        if message.kind is Kind.START and len(fds) == 1:
            self._start(message, fds[0])
        elif message.kind is Kind.END:
            self._kill(message.number)
        for fd in fds:
            os.close(fd)
        return True

    def _start(self, message: Message, control: int) -> None:
        try:
            if len(self._started) >= PROCESSES_MAX:
                raise ValueError(f"{PROCESSES_MAX} are there")
            if message.program not in self._programs:
                raise ValueError(f"{message.program.name} is not for this unit")
            process = subprocess.Popen(
                [*command(message), str(control)],
                stdin=subprocess.DEVNULL,
                env=_environment(),
                pass_fds=[control],
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            print(f"aemd-deputy: cannot be started: {error}", file=sys.stderr, flush=True)
            self._tell(Message(Kind.ENDED, message.number, first=-1))
            return
        pidfd = os.pidfd_open(process.pid)
        self._started[pidfd] = _Started(message.number, process)
        self._poll.register(pidfd, select.POLLIN)
        self._tell(Message(Kind.STARTED, message.number, first=process.pid))

    def _kill(self, number: int) -> None:
        for started in self._started.values():
            if started.number == number:
                started.process.kill()

    def _reap(self, pidfd: int) -> None:
        started = self._started.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._tell(Message(Kind.ENDED, started.number, first=started.process.wait()))

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the core is gone; the next poll says so
            self._core.send(starting.pack(message), socket.MSG_DONTWAIT)

    def _leave(self) -> None:
        self._poll.unregister(self._core)
        until = time.monotonic() + END_SECONDS
        while self._started:
            gone = self._poll.poll(max(until - time.monotonic(), 0) * 1000)
            for pidfd, _ in gone:
                self._reap(pidfd)
            if not gone:
                for started in self._started.values():
                    started.process.kill()
                return


def _environment() -> dict[str, str]:
    """As the core gives it to what it starts itself."""
    return {"GRPC_VERBOSITY": "NONE"} | {
        name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)
    }


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], frozenset(Program[name.upper()] for name in sys.argv[3:]))
