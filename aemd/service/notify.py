"""What a daemon and its service manager say to each other: sd_notify(3), and descriptors passed on.

The protocol is a datagram of `NAME=value` lines to the Unix socket that NOTIFY_SOCKET names; descriptors go
beside it (SCM_RIGHTS). It is stable, public and older than every Python binding of it, and what a daemon
needs of it are these lines. What it does not promise:

- Nothing is answered. A datagram may be read after its sender is gone, and then nobody knows whose it was;
  the manager drops it. Whoever needs to know that it was read sends BARRIER=1 with a pipe (barrier()).
- The manager may be slow. A datagram that finds no room waits WAIT_SECONDS at most, a sign of life not at
  all: the next one is on its way anyway.
- Descriptors given to FDSTORE=1 come back with the next start, after those of socket units, by their names.
  The manager drops those that report an error or hang-up, as the pidfd of a process that has exited does,
  unless told FDPOLL=0.
- RELOADING=1 counts only with MONOTONIC_USEC beside it (systemd 253), and until READY=1 comes.

The variables of the environment are for one process. They are taken out of it, so that no child believes
that it was meant: a zygote that says READY=1, a command of a client that takes our listener.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from collections.abc import MutableMapping, Sequence

LISTEN_FDS_START = 3  # sd_listen_fds(3)
LISTEN_FDS_MAX = 4_096  # a daemon that keeps more than some hundreds there makes the manager slow
WAIT_SECONDS = 1.0
STATUS_CHARACTERS_MAX = 256  # one line of `systemctl status`


class Notifier:
    """The manager, as the daemon speaks to it. Without one nothing is said, and every call is free."""

    def __init__(self, address: str = "", *, watchdog_ns: int = 0) -> None:
        """`watchdog_ns`: how long the manager waits for alive(); 0: for ever."""
        self.watchdog_ns = watchdog_ns if address else 0
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)

    def __bool__(self) -> bool:
        """Whether there is a manager that listens."""
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """The daemon serves, or serves again after reloading()."""
        self._say("READY=1", *_status(status))

    def busy(self, seconds: int) -> None:
        """The start goes on for up to so long, and is not to be given up before."""
        self._say(f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000}")

    def status(self, status: str) -> None:
        """What `systemctl status` shows."""
        self._say(*_status(status))

    def reloading(self, mono_ns: int) -> None:
        """The configuration is read again, since `mono_ns` of CLOCK_MONOTONIC; ready() ends it."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={mono_ns // 1_000}")

    def stopping(self, status: str = "") -> None:
        """The daemon has begun to end."""
        self._say("STOPPING=1", *_status(status))

    def alive(self) -> None:
        """The sign of life that the watchdog waits for."""
        self._say("WATCHDOG=1", wait_seconds=0)

    def store(self, name: str, descriptors: Sequence[int], *, poll: bool = True, wait: bool = True) -> bool:
        """Keep descriptors for the next start. `poll=False`: also when they report an error or hang-up. False
        if it could not be said; without `wait` that may be because there is no room just now.
        """
        return self._say(
            "FDSTORE=1",
            f"FDNAME={name}",
            *(() if poll else ("FDPOLL=0",)),
            descriptors=descriptors,
            wait_seconds=WAIT_SECONDS if wait else 0,
        )

    def forget(self, name: str, *, wait: bool = True) -> bool:
        """Keep those of that name no longer; False as of store()."""
        return self._say("FDSTOREREMOVE=1", f"FDNAME={name}", wait_seconds=WAIT_SECONDS if wait else 0)

    def begin_barrier(self, *, wait: bool = False) -> int:
        """A descriptor that reports a hang-up when the manager has read what was said so far, the caller's to
        close; -1 if that could not be asked.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        said = self._say("BARRIER=1", descriptors=(writer,), wait_seconds=WAIT_SECONDS if wait else 0)
        os.close(writer)
        if said:
            return reader
        os.close(reader)
        return -1

    def barrier(self, seconds: float = WAIT_SECONDS) -> bool:
        """Wait until the manager has read what was said so far; whether it has."""
        reader = self.begin_barrier(wait=True)
        if reader < 0:
            return False
        try:
            poll = select.poll()
            poll.register(reader, 0)  # the hang-up alone: the manager closes its copy
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(reader)

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, *lines: str, descriptors: Sequence[int] = (), wait_seconds: float = WAIT_SECONDS) -> bool:
        """Send one datagram; False if there was nobody to take it."""
        if self._socket is None:
            return False
        message = "\n".join(lines).encode()
        beside = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                self._socket.sendmsg([message], beside, 0, self._address)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not _has_room(self._socket, self._address, left):
                    return False
            except OSError:
                return False  # the manager is being replaced, or was never there
            else:
                return True


def _has_room(sock: socket.socket, address: str, seconds: float) -> bool:
    """Wait until a datagram finds room. The kernel tells that of the peer of a connected socket only."""
    try:
        sock.connect(address)
    except OSError:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def _status(text: str) -> tuple[str, ...]:
    line = " ".join(text.split())[:STATUS_CHARACTERS_MAX]
    return (f"STATUS={line}",) if line else ()


def take_notifier(environment: MutableMapping[str, str]) -> Notifier:
    """The manager that started this process, out of the environment."""
    address = environment.pop("NOTIFY_SOCKET", "")
    period, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    meant = pid in ("", str(os.getpid())) and period.isdecimal()
    if address[:1] not in ("/", "@"):
        address = ""  # none, or of a kind that is for virtual machines
    return Notifier(address, watchdog_ns=int(period) * 1_000 if meant else 0)


def take_descriptors(environment: MutableMapping[str, str]) -> list[tuple[str, int]]:
    """The descriptors that the manager has passed on, each with its name, out of the environment.

    They are no longer inherited. ValueError if the environment contradicts itself.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "")
    environment.pop("LISTEN_PIDFDID", None)  # systemd 259
    if pid != str(os.getpid()):
        return []  # meant for another process
    if not count.isdecimal() or int(count) > LISTEN_FDS_MAX:
        raise ValueError(f"LISTEN_FDS={count[:32]!r}: a number up to {LISTEN_FDS_MAX} was expected")
    fds = range(LISTEN_FDS_START, LISTEN_FDS_START + int(count))
    named = names.split(":") if names else ["unknown"] * len(fds)
    if len(named) != len(fds):
        raise ValueError(f"LISTEN_FDNAMES has {len(named)} names for {len(fds)} descriptors")
    for fd in fds:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    return list(zip(named, fds, strict=True))
