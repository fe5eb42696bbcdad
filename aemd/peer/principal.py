"""Who is at the other end of a Unix socket, asked of the kernel once, when the connection is accepted.

unix(7): SO_PEERCRED has pid, uid and gid as they were at connect(2), translated into our namespaces (pid 0:
not visible from here); SO_PEERGROUPS the supplementary groups of that moment; SO_PEERPIDFD (Linux 6.5) a
pidfd of the process that connected, even if it is gone by now. The rest comes from /proc/PID, which by then
may belong to another process: it counts only if the pidfd says afterwards that the process still lives.
Where there is no SO_PEERPIDFD, pidfd_open(2) of the pid stands in; it proves liveness, and the start time
read under it names the process, but who connected is then only what the credentials say: the principal is
not `proven`. Where not even that can be had nobody would hear of the process's exit, and it is not served.

What /proc/PID says is what the process is now. It may have connected first and then run another program or
moved to another control group of its own, with the connection still open; a connection may also be passed
on. So `executable` is for people to read, and decides nothing; the control group is one that the
user of the connection could get into, which is what a rule about a unit needs to know. Both are kept as they
were when the connection was accepted. SO_PEERSEC is the security module's own word about the socket's
maker; without one (ENOPROTOOPT) there is no label.

Root inside a container is not root here: only what is known to be in the daemon's own user, pid and mount
namespaces may be the administrator. The mount namespace of PID 1 counts like the daemon's own: a service
manager puts a daemon that it protects (ProtectSystem= and its like) into a mount namespace that nobody else
is in. The network namespace decides where one may listen, and nothing else.
/proc/PID/ns and exe need ptrace rights: a daemon without CAP_SYS_PTRACE lacks them for other users' and for
non-dumpable processes, unless it has a looker (sources/looks.py). What cannot be read is nobody's own: it
gets a number that no namespace has, so such a process has less, never more.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from aemd.core.errors import AemError
from aemd.core.principal import Owner, Principal
from aemd.deputy import looking
from aemd.deputy.looking import What
from aemd.peer.cgroup import CGROUP_BYTES, parse_cgroup, unit_of
from aemd.sources import looks
from aemd.sources.pidnamespace import STATUS_BYTES, parse_nspid

SO_PEERSEC = 31  # include/uapi/asm-generic/socket.h; Python 3.11 names none of them
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
NAMESPACE_UNKNOWN = 1  # numbers of nsfs begin at 0xEFFFFFF8
GROUPS_BYTES_MAX = 65_536 * 4  # NGROUPS_MAX of limits.h
LABEL_BYTES_MAX = 4_096  # SELinux has some 100; AppArmor's grow with every stacked profile
STAT_BYTES = 4_096  # /proc/PID/stat has some 350

_NAMESPACES = What.USER | What.PID | What.MOUNT | What.NETWORK
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
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
    """What the daemon compares a peer with. `uid`: who is the administrator, beside root. `peer_pidfd`:
    whether SO_PEERPIDFD is asked for at all; without it everybody is read as on a kernel that has it not.
    """

    uid: int
    namespaces: Namespaces
    peer_pidfd: bool = True
    mount_init: int = NAMESPACE_UNKNOWN  # that of PID 1, where the users of the machine live


def read_self(*, peer_pidfd: bool = True, administrator: int | None = None) -> Self:
    """The daemon's own namespaces, the mount namespace of PID 1, and the administrator: if None, the daemon's
    own effective user.
    """
    own, init = read_own_namespaces(), read_namespaces(1)
    at_home = (init.user, init.pid) == (own.user, own.pid)  # else it is not the init of the daemon's machine
    uid = os.geteuid() if administrator is None else administrator
    return Self(uid, own, peer_pidfd, init.mount if at_home else NAMESPACE_UNKNOWN)


def read_own_namespaces() -> Namespaces:
    """The namespaces that this process is in."""
    return _namespaces(looking.look(os.getpid(), _NAMESPACES))


def read_namespaces(pid: int) -> Namespaces:
    """The namespaces of a process as far as they can be read. namespaces(7)."""
    return _namespaces(looks.look(pid, _NAMESPACES))


def _namespaces(found: Mapping[What, bytes]) -> Namespaces:
    def number(what: What) -> int:
        return int(found.get(what, NAMESPACE_UNKNOWN))

    return Namespaces(number(What.USER), number(What.PID), number(What.MOUNT), number(What.NETWORK))


def read_network(pid: int) -> int:
    """The network namespace of a process; 0 if it is the caller's own, or cannot be read."""
    try:
        inode = looks.namespace(pid, What.NETWORK)
        return 0 if inode == os.stat("/proc/self/ns/net").st_ino else inode
    except (OSError, AemError):
        return 0


def read_proc(pid: int, name: str, bytes_max: int) -> bytes:
    """What a file of /proc/PID begins with; empty if it cannot be read. No file object: accepting is hot.

    OSError where that is for want of descriptors: nobody is to lose his control group by using them up.
    """
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OUT_OF_DESCRIPTORS:
            raise
        return b""
    try:
        return os.read(fd, bytes_max)
    except OSError:
        return b""
    finally:
        os.close(fd)


def read_start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat in clock ticks since boot; 0 if it cannot be read."""
    return parse_start_time(read_proc(pid, "stat", STAT_BYTES))


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


def read_uid(sock: socket.socket) -> int:
    """The uid of the peer: one call of the kernel, nothing opened."""
    uid: int = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    return uid


def read_principal(sock: socket.socket, own: Self) -> tuple[Principal, int]:
    """(principal, pidfd) of the peer; the descriptor is the caller's.

    UnidentifiedError if there is none; OSError (EMFILE, ENFILE) if there is no descriptor for its pidfd.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if pid <= 0:
        raise UnidentifiedError("the process is outside the daemon's pid namespace")
    pidfd, proven = _peer_pidfd(sock, pid, own)
    try:
        found = _look(pid)
        namespaces = _namespaces(found)
        owner = _owner(uid, namespaces, own)
        reason = _not_administrator(uid, namespaces, own)
        cgroup = parse_cgroup(read_proc(pid, "cgroup", CGROUP_BYTES))
        principal = Principal(
            owner=owner,
            gid=gid,
            groups=_peer_groups(sock),
            pid=pid,
            start_time_ticks=read_start_time(pid),
            administrator=not reason,
            network_namespace=_relative(namespaces.network, own.namespaces.network),
            security_label=_peer_label(sock),
            executable=found.get(What.PROGRAM, b"").decode("utf-8", "backslashreplace"),
            cgroup=cgroup,
            unit=unit_of(cgroup),
            proven=proven,
            own_pid=_read_own_pid(pid) if owner.pid_namespace else pid,
            not_administrator=reason,
        )
        if not pidfd_alive(pidfd):
            raise UnidentifiedError("the process has exited")
    except BaseException:
        os.close(pidfd)
        raise
    return principal, pidfd


def _owner(uid: int, namespaces: Namespaces, own: Self) -> Owner:
    ours = own.namespaces
    return Owner(uid, _relative(namespaces.user, ours.user), _relative(namespaces.pid, ours.pid))


def _not_administrator(uid: int, namespaces: Namespaces, own: Self) -> str:
    """Why the caller is not the administrator; empty if it is."""
    if uid not in (0, own.uid):
        return "another user"
    ours = own.namespaces
    pairs = (
        ("user", namespaces.user, ours.user),
        ("pid", namespaces.pid, ours.pid),
        ("mount", namespaces.mount, _mount_namespace(namespaces.mount, own)),
    )
    unknown = [name for name, theirs, our in pairs if NAMESPACE_UNKNOWN in (theirs, our)]
    if unknown:
        return f"the daemon may not look at its {' and '.join(unknown)} namespace"
    foreign = [name for name, theirs, our in pairs if theirs != our]
    return f"in another {' and '.join(foreign)} namespace than the daemon" if foreign else ""


def _mount_namespace(theirs: int, own: Self) -> int:
    """Which of the two where the administrator may live is to be compared with a caller's."""
    return own.mount_init if theirs == own.mount_init else own.namespaces.mount


def _look(pid: int) -> Mapping[What, bytes]:
    """Namespaces, and what /proc/PID/exe names: nothing where the daemon may not look, and for a kernel
    thread.
    """
    try:
        return looks.look(pid, _NAMESPACES | What.PROGRAM)
    except AemError as error:
        raise UnidentifiedError(error.message) from None


def _read_own_pid(pid: int) -> int:
    """What a process calls itself; 0 if that cannot be read."""
    return (parse_nspid(read_proc(pid, "status", STATUS_BYTES)) or (0,))[-1]


def _relative(number: int, own: int) -> int:
    return 0 if number == own and number != NAMESPACE_UNKNOWN else number


def _peer_pidfd(sock: socket.socket, pid: int, own: Self) -> tuple[int, bool]:
    """A pidfd, and whether it is proven to be that of the process that connected."""
    if own.peer_pidfd:
        try:
            # The kernel has put the descriptor into our table, with O_CLOEXEC.
            return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD), True
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                raise
            if error.errno != errno.ENOPROTOOPT:
                raise UnidentifiedError("the process has exited") from error
    try:
        return os.pidfd_open(pid), False
    except OSError as error:
        if error.errno in _OUT_OF_DESCRIPTORS:
            raise
        if error.errno == errno.ESRCH:
            raise UnidentifiedError("the process has exited") from error
        raise UnidentifiedError(f"its process cannot be held: pidfd_open: {error.strerror}") from error


def _peer_groups(sock: socket.socket) -> tuple[int, ...]:
    raw = _peer_option(sock, SO_PEERGROUPS, GROUPS_BYTES_MAX)
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _peer_label(sock: socket.socket) -> str:
    label = _peer_option(sock, SO_PEERSEC, LABEL_BYTES_MAX)
    return label.rstrip(b"\0\n").decode("utf-8", "backslashreplace")


def _peer_option(sock: socket.socket, option: int, bytes_max: int) -> bytes:
    """What the kernel has kept of the peer; empty if it keeps no such thing."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, option, min(bytes_max, _PYTHON_GETSOCKOPT_MAX))
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return b""
        if error.errno != errno.ERANGE:
            raise
    buffer = ctypes.create_string_buffer(bytes_max)
    size = ctypes.c_uint(bytes_max)
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, option, buffer, ctypes.byref(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"getsockopt({option})")
    return buffer.raw[: size.value]
