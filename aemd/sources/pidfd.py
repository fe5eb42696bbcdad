"""The end of a process, anybody's child: pidfd_open(2), and what the kernel tells of how it ended.

A pidfd names a process for good. A pid does not: once its process has been reaped the number is free, and
may name somebody else between any two calls. So everything that is read from /proc/PID here is read
while a pidfd is held, and counts only if the process behind the pidfd had not been reaped afterwards
(pidfd_send_signal(2) with signal 0 gives ESRCH then), or if the start time, field 22 of /proc/PID/stat, is
still the same.

When it ends. A pidfd is readable (EPOLLIN) from the moment at which all threads of the process have exited,
for everybody who holds one, not only for the parent. It hangs up (EPOLLHUP) when it is reaped; kernels
before 6.7 or so never say that. Nothing is lost and nothing queues: it is a level, and stays.

How it ended. There are two windows, and they do not overlap:

  zombie   The last field (52, exit_code) of /proc/PID/stat is the wait status, as in wait(2); of a process
           with threads that of the whole group. It is guarded like ptrace(2): who may not read it sees 0,
           which looks like success. The link /proc/PID/ns/user is guarded by the same check
           (PTRACE_MODE_READ_FSCREDS) and fails with EACCES instead of lying, for zombies too. It is read
           first. (Other guarded fields of stat do not serve: wchan is 0 also while a zombie still runs
           its last instructions, and the addresses of a zombie are 0 for everybody.) Root may read it, and
           a looker (looks.py); a daemon without privilege may for dumpable processes of its own uid.
  reaped   /proc/PID is gone. PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux 6.15) gives the wait status, to
           whoever holds a pidfd that was open when the process ended. Before the reap it says nothing.

So a process is asked in the first window, and in the second if it is reaped already. There remains the
zombie whose status may not be read. Most parents reap at once, so its pidfd is watched for a grace of 100 ms
more; then the end is reported with the status unknown. A zombie that nobody reaps must not hang whoever
waits for the process, and a status that nobody has read must not be given out as 0. On a kernel without
PIDFD_GET_INFO there is nothing to wait for, so there is no grace.

Whose it is in the end. A process may have become another user's after its registration, by executing a
set-user-ID program. A zombie still has its credentials, so they are read once more in the first window and go
with the ending: whoever may not watch it any more must not learn what stat says. In the second window nobody
knows them any longer. There the kernel itself tells the status to every holder of a pidfd, and pidfd_open(2)
asks for no right: it is what the caller could have had without the daemon.

waitid(2) with P_PIDFD is for children only (ECHILD), and taking the status of somebody's child would be
stealing it.

Manual pages: pidfd_open(2), pidfd_send_signal(2), proc_pid_stat(5), proc_pid_status(5), ptrace(2) "Ptrace
access mode checking", wait(2). Kernel: fs/pidfs.c, fs/proc/array.c, include/uapi/linux/pidfd.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass

from aemd.core.errors import AemError, Code
from aemd.core.limits import MS
from aemd.deputy.looking import What
from aemd.sources import looks
from aemd.sources.counts import counts
from aemd.sources.reactor import Reactor, Timer

GRACE_NS = 100 * MS  # for a reap after an exit; an init or a shell that waits needs less than one
PROC_FILE_BYTES = 8_192  # stat has some 350, status some 1,500

# <linux/pidfd.h>: struct pidfd_info of 80 bytes (the kernel fills what it knows of them); the mask is its
# first field, exit_code stands behind two 64-bit and eleven 32-bit ones.
PIDFD_GET_INFO = 0xC050FF0B
PIDFD_INFO_EXIT = 1 << 3
PIDFD_INFO_BYTES = 80
EXIT_CODE_OFFSET = 60

# Fields of proc_pid_stat(5), counted from the first behind the command's closing bracket (field 3).
_STATE, _START_TIME, _EXIT_CODE = 3 - 3, 22 - 3, 52 - 3

_COUNTS = counts("pidfd")


@dataclass(frozen=True, slots=True)
class Stat:
    """What is used of /proc/PID/stat; `wait_status` is 0 for those who may not read it."""

    command: bytes
    state: str
    start_time_ticks: int
    wait_status: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Who a process is. `pid`: as it is known to who watches it. `uids`: real, effective and saved;
    `user_namespace` is 0 for the daemon's own.
    """

    pid: int
    start_time_ticks: int
    command: str
    uids: tuple[int, int, int]
    user_namespace: int


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended. `wait_status` as in wait(2), None where nobody says it; `source` is "stat" or
    "pidfd", or why there is none. `facts`: who it was in the end; None if it was reaped before that was read.
    """

    wait_status: int | None
    reaped: bool
    source: str
    facts: Facts | None


def gone(pid: int) -> AemError:
    """There is no such process, or it is not for the caller to know of it: the same answer."""
    return AemError(
        Code.NOT_FOUND, "PROCESS_GONE", f"no process {pid}: it has exited or never existed", pid=pid
    )


def look(pid: int, known_as: int) -> Facts:
    """Who a process is now; gone() if there is none. Takes a descriptor for a moment."""
    fd = _pidfd_open(pid, known_as)
    try:
        return _identify(pid, fd, known_as)
    finally:
        os.close(fd)


class ProcessExit:
    """One process, watched until it ends; `on_end` is called once, from the reactor.

    Costs one descriptor, which the caller has charged. Raises AemError: gone(), RESOURCE_EXHAUSTED for
    descriptors, FAILED_PRECONDITION for a kernel without pidfd_open(2), which came with Linux 5.3.
    `known_as`: its pid for who watches, in facts and errors, where that is not the daemon's own.
    """

    def __init__(
        self, reactor: Reactor, pid: int, on_end: Callable[[Ending], None], *, known_as: int = 0
    ) -> None:
        self._reactor = reactor
        self._on_end = on_end
        self._grace: Timer | None = None
        self._known_as = known_as or pid
        self._facts_at_end: Facts | None = None
        self.pid = pid
        self.ending: Ending | None = None
        self._fd = _pidfd_open(pid, self._known_as)
        try:
            self.facts = self.identify()
            _add(reactor, self._fd, self._ready)
        except BaseException:
            os.close(self._fd)
            raise

    def identify(self) -> Facts:
        """Who the process is now (it may have changed its uid); gone() if it has been reaped."""
        return _identify(self.pid, self._fd, self._known_as)

    def is_reaped(self) -> bool:
        """Whether the pid may name another process by now."""
        return _is_reaped(self._fd)

    def settle(self) -> None:
        """If the process has ended, report it now, with what is known now."""
        if self.ending is None and self.has_ended():
            self._end(self._known() or self._unknown())

    def has_ended(self) -> bool:
        """Whether the pidfd is readable; asked of the kernel, not of the loop."""
        return self.ending is not None or _is_readable(self._fd)

    def close(self) -> None:
        """Watch no more."""
        self._unwatch()
        os.close(self._fd)

    def _ready(self, events: int) -> None:
        ending = self._known()
        if ending is not None:
            self._end(ending)
        elif events & select.EPOLLHUP or not _has_info(self._fd):
            self._end(self._unknown())
        elif self._grace is None:
            self._reactor.modify(self._fd, 0)  # EPOLLIN stays; EPOLLHUP is reported all the same
            clock = self._reactor.clock("monotonic")
            self._grace = clock.call_at(clock.now_ns() + GRACE_NS, lambda _: self.settle())

    def _known(self) -> Ending | None:
        """How the process ended, if one of the two windows tells."""
        _COUNTS.reads += 1
        try:
            self._facts_at_end = self.identify()
            stat = _read_guarded_stat(self.pid)
        except AemError:  # reaped, or no descriptor is left to read it with; it has ended all the same
            stat = None
        facts = self._facts_at_end
        if stat is not None and stat.start_time_ticks == self.facts.start_time_ticks and stat.state in "ZX":
            return Ending(stat.wait_status, self.is_reaped(), "stat", facts)
        status = _read_exit_info(self._fd)
        return None if status is None else Ending(status, reaped=True, source="pidfd", facts=facts)

    def _unknown(self) -> Ending:
        _COUNTS.failures += 1
        reaped = self.is_reaped()
        source = (
            "it was reaped, and this kernel does not keep how it ended"
            if reaped
            else "the daemon may not read how it ended before it is reaped; a daemon run by root may"
        )
        return Ending(None, reaped, source, self._facts_at_end)

    def _end(self, ending: Ending) -> None:
        if self.ending is None:
            self._unwatch()
            self.ending = ending
            _COUNTS.events += 1
            self._on_end(ending)

    def _unwatch(self) -> None:
        if self.ending is None:
            self._reactor.remove(self._fd)
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None


def parse_stat(buffer: bytes) -> Stat:
    """/proc/PID/stat. The command may hold spaces and brackets, so it ends at the last `)`. ValueError."""
    opening, closing = buffer.find(b"("), buffer.rfind(b")")
    fields = buffer[closing + 1 :].split()
    if not 0 <= opening < closing or len(fields) <= _EXIT_CODE:
        raise ValueError("stat of proc(5) is too short")
    return Stat(
        command=buffer[opening + 1 : closing],
        state=fields[_STATE].decode("ascii", "replace")[:1],
        start_time_ticks=int(fields[_START_TIME]),
        wait_status=int(fields[_EXIT_CODE]) & 0xFFFF,
    )


def parse_uids(buffer: bytes) -> tuple[int, int, int]:
    """Real, effective and saved uid of /proc/PID/status. ValueError."""
    for line in buffer.splitlines():
        if line.startswith(b"Uid:"):
            real, effective, saved, _filesystem = map(int, line[4:].split())
            return real, effective, saved
    raise ValueError("status of proc(5) has no Uid line")


def parse_exit_info(buffer: bytes | bytearray) -> int | None:
    """The wait status in a struct pidfd_info, None if the kernel did not give it. ValueError."""
    if len(buffer) < EXIT_CODE_OFFSET + 4:
        raise ValueError("struct pidfd_info is too short")
    if not struct.unpack_from("=Q", buffer)[0] & PIDFD_INFO_EXIT:
        return None
    status: int = struct.unpack_from("=i", buffer, EXIT_CODE_OFFSET)[0]
    return status & 0xFFFF


def _identify(pid: int, fd: int, known_as: int) -> Facts:
    stat = _read_stat(pid)
    uids = _read_uids(pid)
    namespace = _user_namespace(pid)
    if stat is None or uids is None or _is_reaped(fd):
        raise gone(known_as)
    command = stat.command.decode("utf-8", "backslashreplace")
    return Facts(known_as, stat.start_time_ticks, command, uids, namespace)


def _is_reaped(fd: int) -> bool:
    try:
        signal.pidfd_send_signal(fd, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _add(reactor: Reactor, fd: int, callback: Callable[[int], None]) -> None:
    try:
        reactor.add(fd, select.EPOLLIN, callback)
    except OSError as error:  # ENOSPC: max_user_watches of epoll(7); ENOMEM
        raise AemError(
            Code.RESOURCE_EXHAUSTED, "NO_DESCRIPTORS", f"epoll_ctl: {error.strerror}; free some jobs"
        ) from None


def _pidfd_open(pid: int, known_as: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise AemError(
                Code.RESOURCE_EXHAUSTED, "NO_DESCRIPTORS", f"pidfd_open: {error.strerror}; free some jobs"
            ) from None
        if error.errno == errno.ENOSYS:
            raise AemError(
                Code.FAILED_PRECONDITION,
                "KERNEL_TOO_OLD",
                "pidfd_open: this kernel has none; it came with Linux 5.3",
                feature="pidfd_open",
            ) from None
        raise gone(known_as) from None  # ESRCH; EINVAL and ENOENT for the id of a thread


def _read_stat(pid: int) -> Stat | None:
    content = _read_proc(pid, "stat")
    return None if content is None else parse_stat(content)


def read_start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat in clock ticks since boot; 0 if it cannot be read."""
    try:
        stat = _read_stat(pid)
    except (AemError, ValueError):
        return 0
    return 0 if stat is None else stat.start_time_ticks


def _read_uids(pid: int) -> tuple[int, int, int] | None:
    content = _read_proc(pid, "status")
    return None if content is None else parse_uids(content)


def _read_proc(pid: int, name: str) -> bytes | None:
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise AemError(
                Code.RESOURCE_EXHAUSTED, "NO_DESCRIPTORS", f"open /proc/{pid}/{name}: {error.strerror}"
            ) from None
        return None
    try:
        return os.read(fd, PROC_FILE_BYTES) or None
    except ProcessLookupError:  # reaped between open and read
        return None
    finally:
        os.close(fd)


def _read_guarded_stat(pid: int) -> Stat | None:
    """The same with the guarded fields; None if the kernel does not tell those, or it is gone."""
    found = looks.look(pid, What.USER | What.STAT)
    content = found.get(What.STAT)
    return parse_stat(content) if What.USER in found and content else None


def _user_namespace(pid: int) -> int:
    """The inode number of its user namespace; 0 for the daemon's own, or where it may not be read: then the
    uids decide alone.
    """
    inode = looks.namespace(pid, What.USER)
    return 0 if inode == os.stat("/proc/self/ns/user").st_ino else inode


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _read_exit_info(fd: int) -> int | None:
    buffer = bytearray(PIDFD_INFO_BYTES)
    struct.pack_into("=Q", buffer, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(fd, PIDFD_GET_INFO, buffer)
    except OSError:  # ENOTTY, EINVAL: the kernel has it not; ESRCH: reaped, and nothing was kept
        return None
    return parse_exit_info(buffer)


def _has_info(fd: int) -> bool:
    """Whether PIDFD_GET_INFO exists, so that waiting for the reap may tell more."""
    try:
        fcntl.ioctl(fd, PIDFD_GET_INFO, bytearray(PIDFD_INFO_BYTES))
    except OSError as error:
        return error.errno == errno.ESRCH
    return True
