"""The two numbers of a process: what the daemon calls it, and what somebody in another pid namespace does.

A process has a pid in its own pid namespace and one in each of its ancestors, pid_namespaces(7). A caller
in a namespace of its own asks for the numbers that it knows, so they are translated on the way in, and what
it is told on the way out; a process that the caller's namespace does not contain has no number there. What
the kernel offers:

- NS_GET_PID_FROM_PIDNS and NS_GET_PID_IN_PIDNS, ioctl(2)s on a namespace's descriptor (linux/nsfs.h, Linux
  6.11): one lookup each way. ESRCH: there is no such process, or it has no number on this side.
- The line NSpid of /proc/PID/status, proc_pid_status(5): all pids of a process, from the namespace of the
  mounted procfs inwards. It serves the way out on any kernel: the entry at the caller's depth is the number,
  if the process's ancestor namespace at that depth (ioctl NS_GET_PARENT, Linux 4.9) is the caller's. The way
  in would need every process on the machine to be read while everybody waits, so before Linux 6.11 it is
  refused.

The namespace itself is had from /proc/PID/ns/pid of the caller. It counts only if its inode is the one that
was read when the caller connected and the start time says that the pid is still the caller's: inode numbers
of nsfs are given out again when a namespace is gone, and pids too.

A translated number is a pid like any other, and may name somebody else a moment later: translate again once
the process is held by a pidfd.
"""

from __future__ import annotations

import errno
import fcntl
import os

from aemd.core.errors import AemError, Code
from aemd.core.principal import Principal
from aemd.sources import looks
from aemd.sources.pidfd import gone, read_start_time

NS_GET_PARENT = 0xB702  # _IO(0xb7, 2) of linux/nsfs.h
NS_GET_PID_FROM_PIDNS = 0x8004B706  # _IOR(0xb7, 6, int)
NS_GET_PID_IN_PIDNS = 0x8004B708  # _IOR(0xb7, 8, int)
STATUS_BYTES = 8_192  # /proc/PID/status has some 1,500

_NO_SUCH_CALL = (errno.ENOTTY, errno.EINVAL)


def daemons_pid(principal: Principal, pid: int) -> int:
    """What the daemon calls the process that `principal` calls `pid`.

    AemError: gone() if there is no such process for the caller; FAILED_PRECONDITION, PID_NAMESPACE, where it
    cannot be translated.
    """
    if not principal.owner.pid_namespace:
        return pid
    namespace = _open(principal)
    if namespace < 0:
        raise _untranslated(pid, "the daemon may not look at the caller's pid namespace")
    try:
        return fcntl.ioctl(namespace, NS_GET_PID_FROM_PIDNS, pid)
    except OSError as error:
        if error.errno in _NO_SUCH_CALL:
            raise _untranslated(pid, "this kernel translates no pids, which came with Linux 6.11") from None
        raise gone(pid) from None
    finally:
        os.close(namespace)


def callers_pid(principal: Principal, pid: int) -> int:
    """What `principal` calls the process that the daemon calls `pid`; 0 if it has no number for it."""
    if not principal.owner.pid_namespace or not pid:
        return pid
    namespace = _open(principal)
    if namespace < 0:
        return 0
    try:
        return fcntl.ioctl(namespace, NS_GET_PID_IN_PIDNS, pid)
    except OSError as error:
        return _by_status(principal, pid) if error.errno in _NO_SUCH_CALL else 0
    finally:
        os.close(namespace)


def parse_nspid(status: bytes) -> tuple[int, ...]:
    """The pids of a /proc/PID/status, from the reader's namespace inwards; the last is the process's own."""
    _, _, rest = status.partition(b"\nNSpid:")
    try:
        return tuple(map(int, rest.partition(b"\n")[0].split()))
    except ValueError:
        return ()


def _open(principal: Principal) -> int:
    """A descriptor of the caller's pid namespace; -1 if it cannot be had, or is another's by now."""
    try:
        namespace = looks.open_pid_namespace(principal.pid)
    except OSError:
        return -1
    if (
        os.fstat(namespace).st_ino == principal.owner.pid_namespace
        and read_start_time(principal.pid) == principal.start_time_ticks
    ):
        return namespace
    os.close(namespace)
    return -1


def _by_status(principal: Principal, pid: int) -> int:
    depth, pids = len(_pids(principal.pid)), _pids(pid)
    if not 0 < depth <= len(pids):
        return 0
    try:
        namespace = _ancestor(pid, len(pids) - depth)
    except OSError:
        return 0
    return pids[depth - 1] if namespace == principal.owner.pid_namespace else 0


def _pids(pid: int) -> tuple[int, ...]:
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            return parse_nspid(file.read(STATUS_BYTES))
    except OSError:
        return ()


def _ancestor(pid: int, levels: int) -> int:
    """The inode of the pid namespace so many levels above that of a process."""
    namespace = looks.open_pid_namespace(pid)
    try:
        for _ in range(levels):
            parent = fcntl.ioctl(namespace, NS_GET_PARENT)
            os.close(namespace)
            namespace = parent
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)


def _untranslated(pid: int, reason: str) -> AemError:
    return AemError(
        Code.FAILED_PRECONDITION,
        "PID_NAMESPACE",
        f"process {pid}: the number is one of the caller's own pid namespace, and {reason}; ask from the"
        " daemon's pid namespace, or run a daemon inside with aemd --user",
        pid=pid,
    )
