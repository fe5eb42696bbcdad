"""System calls of a real daemon that fail when a test wants them to: seccomp's user notification.

A filter that is installed before the daemon is executed hands every call of certain names to us: we let the
kernel go on with it, or answer it with an errno, and then the kernel does nothing. The daemon is the real
one, whole, down to what SQLite does; its children inherit the filter, and their calls go on.

What cannot be injected like this: that a call does half of its work before it fails, calls of io_uring (there
are none), and what fails without a call, such as a page that cannot be had.

Numbers of system calls are those of x86_64 and aarch64, asm/unistd.h. man: seccomp_unotify(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

NUMBERS = {  # name: x86_64, aarch64
    "accept4": (288, 242),
    "bind": (49, 200),
    "clone3": (435, 435),
    "connect": (42, 203),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, 22),  # epoll_pwait(2) on aarch64
    "eventfd2": (290, 19),
    "fdatasync": (75, 83),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "ioctl": (16, 29),
    "listen": (50, 201),
    "openat": (257, 56),
    "pidfd_open": (434, 434),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "read": (0, 63),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setsockopt": (54, 208),
    "shutdown": (48, 210),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86),
    "write": (1, 64),
}
MACHINES = ("x86_64", "aarch64")
SECCOMP = (317, 277)
PIDFD_GETFD = 438
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
NOTIF, RESPONSE = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
CONTINUE = 1
EPOLL_CTL_ADD = 1
PATIENCE = 20
LOOK_SECONDS = 0.001
LAUNCHER = """
import ctypes, json, os, struct, sys
seccomp, numbers = int(sys.argv[1]), json.loads(sys.argv[2])
code = [(0x20, 0, 0, 0)]  # load the number of the call
for place, number in enumerate(numbers):
    code.append((0x15, len(numbers) - place, 0, number))  # equal: to the last
code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)]  # ALLOW, USER_NOTIF
body = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
program = struct.pack("@HP", len(code), ctypes.addressof(body))
libc = ctypes.CDLL(None, use_errno=True)
free = os.dup(0)
os.close(free)
libc.prctl(38, 1, 0, 0, 0) if os.geteuid() else None
os.write(1, b"%d\\n" % free)  # where the listener will be
if libc.syscall(seccomp, 1, 1 << 3, program) < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.read(0, 1)
os.dup2(2, 1)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Tap:
    """Calls of one daemon, by name. `wish`: which of them is to fail, and how."""

    def __init__(self) -> None:
        which = MACHINES.index(os.uname().machine)
        self._names = {numbers[which]: name for name, numbers in NUMBERS.items()}
        self._seccomp = SECCOMP[which]
        self._lock = threading.Lock()
        self._name, self._left, self._errno = "", 0, 0
        self._ours: dict[int, bool] = {}  # thread: of the core
        self._core = 0
        self._listener = -1
        self._thread: threading.Thread | None = None
        self._stop = os.eventfd(0)

    def start(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        """Start a daemon whose calls come here."""
        numbers = json.dumps(sorted(self._names))
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(self._seccomp), numbers]
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [*launcher, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, cwd="/"
            )
        assert process.stdin is not None
        assert process.stdout is not None
        self._core = process.pid
        self._listener = self._take(process.pid, int(process.stdout.readline()))
        self._thread = threading.Thread(target=self._serve, name="tap")
        self._thread.start()
        process.stdin.write(b"1")
        process.stdin.close()
        process.stdout.close()
        return process

    def _take(self, pid: int, number: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        pidfd, until = os.pidfd_open(pid), time.monotonic() + PATIENCE
        try:
            while (found := libc.syscall(PIDFD_GETFD, pidfd, number, 0)) < 0:
                assert ctypes.get_errno() == errno.EBADF, os.strerror(ctypes.get_errno())
                assert time.monotonic() < until, "there is no listener"
                time.sleep(LOOK_SECONDS)
        finally:
            os.close(pidfd)
        return int(found)

    def close(self) -> None:
        """No call comes any more."""
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join(PATIENCE)
            os.close(self._listener)
        os.close(self._stop)

    def wish(self, name: str, which: int, error: int) -> None:
        """Of the calls of that name from now on, let the `which`-th fail."""
        with self._lock:
            self._name, self._left, self._errno = name, which, error

    def granted(self) -> bool:
        """Whether it came to that; if not, it no longer will."""
        with self._lock:
            left, self._left = self._left, 0
            return left == 0

    # -- in the thread

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        buffer = bytearray(NOTIF.size)
        while True:
            ready = dict(poll.poll())
            if self._stop in ready or ready.get(self._listener, 0) & select.POLLHUP:
                return
            buffer[:] = bytes(NOTIF.size)
            with contextlib.suppress(OSError):  # the thread that called is gone
                fcntl.ioctl(self._listener, NOTIF_RECV, buffer)
                number, thread, _, call, _, _, *more = NOTIF.unpack(buffer)
                error = self._error(self._names[call], thread) if _can_fail(self._names[call], more) else 0
                answer = RESPONSE.pack(number, 0, -error, 0 if error else CONTINUE)
                fcntl.ioctl(self._listener, NOTIF_SEND, answer)

    def _error(self, name: str, thread: int) -> int:
        with self._lock:
            if not self._left or name != self._name or not self._of_core(thread):
                return 0
            self._left -= 1
            return 0 if self._left else self._errno

    def _of_core(self, thread: int) -> bool:
        known = self._ours.get(thread)
        if known is None:
            known = self._ours[thread] = os.path.exists(f"/proc/{self._core}/task/{thread}")
        return known


def _can_fail(name: str, arguments: list[int]) -> bool:
    """Of epoll_ctl(2) it is only adding that needs anything which may be short."""
    return name != "epoll_ctl" or arguments[1] == EPOLL_CTL_ADD


def refusal() -> str:
    """Why it cannot be done on this machine; empty if it can."""
    if os.uname().machine not in MACHINES:
        return f"knows the system calls of {' and '.join(MACHINES)} only"
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists() or "user_notif" not in actions.read_text():
        return "needs seccomp with user_notif"
    return ""
