"""Who is at the other end of a Unix socket, asked of the kernel once, when the connection is accepted.

unix(7): SO_PEERCRED has pid, uid and gid as they were at connect(2), translated into our namespaces (pid 0:
not visible from here); SO_PEERGROUPS the supplementary groups of that moment; SO_PEERPIDFD (Linux 6.5) a
pidfd of the process that connected, even if it is gone by now. The rest comes from /proc/PID, which by then
may belong to another process: it counts only if the pidfd says afterwards that the process still lives.
Where there is no SO_PEERPIDFD, pidfd_open(2) of the pid stands in; it proves liveness, and the start time
read under it names the process, but who connected is then only what the credentials say.

Root inside a container is not root here: only what is known to be in the daemon's own user, pid and mount
namespaces may be the administrator. The network namespace decides where one may listen, and nothing else.
/proc/PID/ns needs ptrace rights (a daemon without CAP_SYS_PTRACE lacks them for other users' and for
non-dumpable processes). What cannot be read is nobody's own: it gets a number that no namespace has, so such
a process has less, never more.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from dataclasses import dataclass

from aemd.core.principal import Owner, Principal

SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Python 3.11 names none of them
SO_PEERPIDFD = 77
NAMESPACE_UNKNOWN = 1  # numbers of nsfs begin at 0xEFFFFFF8
GROUPS_BYTES_MAX = 65_536 * 4  # NGROUPS_MAX of limits.h

_UCRED = struct.Struct("iII")
_PYTHON_GETSOCKOPT_MAX = 1024  # socket.getsockopt takes no larger buffer
_libc = ctypes.CDLL(None, use_errno=True)


class UnidentifiedError(Exception):
    """The peer cannot be named: it has exited already, or it lives where this daemon cannot see it."""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Inode numbers in nsfs; NAMESPACE_UNKNOWN where they cannot be read."""

    user: int
    pid: int
    mount: int
    network: int


@dataclass(frozen=True, slots=True)
class Self:
    """What the daemon compares a peer with."""

    uid: int
    namespaces: Namespaces


def read_self() -> Self:
    """The daemon's own effective user and namespaces."""
    return Self(os.geteuid(), read_namespaces("self"))


def read_namespaces(pid: int | str) -> Namespaces:
    """The namespaces of a process as far as they can be read. namespaces(7)."""

    def number(name: str) -> int:
        try:
            return os.stat(f"/proc/{pid}/ns/{name}").st_ino
        except OSError:
            return NAMESPACE_UNKNOWN

    return Namespaces(number("user"), number("pid"), number("mnt"), number("net"))


def read_start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat in clock ticks since boot; 0 if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_start_time(file.read())
    except OSError:
        return 0


def parse_start_time(stat: bytes) -> int:
    """Field 22 of a /proc/PID/stat. The name of the program may contain anything, also ')' and spaces."""
    fields = stat[stat.rfind(b")") + 1 :].split()
    try:
        return int(fields[19])
    except (IndexError, ValueError):
        return 0


def pidfd_alive(pidfd: int) -> bool:
    """A pidfd is readable once its process has exited, zombie or reaped; pidfd_open(2)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def read_principal(sock: socket.socket, own: Self) -> tuple[Principal, int]:
    """(principal, pidfd) of the peer; the descriptor is the caller's.

    UnidentifiedError if there is none; OSError (EMFILE, ENFILE) if there is no descriptor for its pidfd.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if pid <= 0:
        raise UnidentifiedError("the process is outside the daemon's pid namespace")
    pidfd = _peer_pidfd(sock, pid)
    try:
        groups = _peer_groups(sock)
        start_time_ticks, namespaces = read_start_time(pid), read_namespaces(pid)
        if not pidfd_alive(pidfd):
            raise UnidentifiedError("the process has exited")
    except BaseException:
        os.close(pidfd)
        raise
    ours = own.namespaces
    deciding = (ours.user, ours.pid, ours.mount)
    administrator = (
        uid in (0, own.uid)
        and (namespaces.user, namespaces.pid, namespaces.mount) == deciding
        and NAMESPACE_UNKNOWN not in deciding
    )
    owner = Owner(uid, _relative(namespaces.user, ours.user), _relative(namespaces.pid, ours.pid))
    network = _relative(namespaces.network, ours.network)
    return Principal(owner, gid, groups, pid, start_time_ticks, administrator, network), pidfd


def _relative(number: int, own: int) -> int:
    return 0 if number == own and number != NAMESPACE_UNKNOWN else number


def _peer_pidfd(sock: socket.socket, pid: int) -> int:
    try:
        # The kernel has put the descriptor into our table, with O_CLOEXEC.
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        if error.errno != errno.ENOPROTOOPT:
            raise UnidentifiedError("the process has exited") from error
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise UnidentifiedError("the process has exited") from error


def _peer_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _PYTHON_GETSOCKOPT_MAX)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return ()
        if error.errno != errno.ERANGE:
            raise
        raw = _long_groups(sock)
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _long_groups(sock: socket.socket) -> bytes:
    buffer = ctypes.create_string_buffer(GROUPS_BYTES_MAX)
    size = ctypes.c_uint(GROUPS_BYTES_MAX)
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "getsockopt(SO_PEERGROUPS)")
    return buffer.raw[: size.value]
