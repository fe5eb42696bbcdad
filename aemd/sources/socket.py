"""Sockets: what is listened on, who connects, what the kernel takes and gives.

What the kernel promises (socket(7), tcp(7), udp(7), unix(7), accept(2), epoll(7)):

- A stream socket loses nothing and has no borders. A read of 0 bytes is the end of the *peer's* direction;
  ours stays open until we end it. A datagram or seqpacket socket keeps borders and cuts what is longer than
  the buffer; with MSG_TRUNC as an input flag recv(2) returns the true length, so that a cut is never silent.
- accept(2) hands out connections that the kernel has already made. The backlog keeps them while nobody
  accepts, so an acceptor may stop for want of descriptors and lose nobody.
- A Unix peer's credentials (SO_PEERCRED) are those of the process that called connect(2), kept by the
  kernel. With SO_PASSCRED the same comes with every datagram (SCM_CREDENTIALS).

What it loses:

- UDP drops datagrams when the receive buffer is full and only counts them. The count stands in SO_MEMINFO
  (`drops`); the reader compares it after each reading, and the difference is a Gap of stage KERNEL.
- A connection that is closed while bytes of the peer lie unread, or come later, answers with RST, and an
  RST destroys what the peer has not yet read of our last answer (RFC 1122, 4.2.2.13). So a connection is
  never simply closed: its write side is shut, and what still comes is read and thrown away until the peer
  has closed too or a short time has passed (`DISCARD_NS`).

Traps:

- EPOLLHUP and EPOLLERR are reported whether asked for or not, and level-triggered. A descriptor that nobody
  reads must leave the epoll set, or a peer that goes away makes the loop spin.
- Errors of a connection that died in the backlog come out of accept(2) (`ACCEPT_AGAIN`): they are that
  connection's, not the listener's. EMFILE leaves the listener readable: accepting must stop until a
  descriptor is free, or the loop spins.
- With SO_REUSEADDR two sockets may bind one port as long as neither listens; then listen(2) of the second
  fails. Without it a port with connections in TIME_WAIT cannot be bound for a minute. Both are wanted right:
  bind without it, if that fails once more with it, and take it away again; listen() sets it for good, since
  accepted sockets inherit it and later binds look at it there. So a port that is taken is an error of bind.
- SO_REUSEPORT shares a port among sockets of one effective uid, and all of ours have the daemon's.
  `bound.Binder` keeps a shared port to one owner.
- [::] takes IPv4 too, unless IPV6_V6ONLY; it is set, so that an address means its own family and
  tcp:0.0.0.0:80 beside tcp:[::]:80 is no conflict. An empty host means both: [::] without it, or 0.0.0.0 on
  a machine without IPv6. The IPv4 peers of such a socket come as ::ffff:a.b.c.d; `parse_name` undoes that.
- A Unix path outlives its socket. connect(2) to a dead one is refused, so is one to a regular file and one
  to a socket that is bound and does not listen yet: hence S_ISSOCK in `deputy/task.py`, and the table of our
  own inodes in `peer/deputy.py`.
- fchmod(2) on an unbound Unix socket decides the mode of the path to come: it is never wider for a moment.
- Whoever may name a Unix datagram peer makes the daemon write to it with the daemon's rights. See
  `modules/socket/datagram.py` for how a reply is held to those who wrote, and `reply.py` for paths.
- Descriptors that a peer passes (SCM_RIGHTS) are closed by the kernel as long as no control buffer has room
  for them. The one used for credentials is filled by them.
- recv(2) returns 0 for an empty seqpacket message and for the end alike; poll(2) for POLLRDHUP tells.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import socket
import struct
import sys
import termios
import time
from typing import NamedTuple

from aemd.core.limits import SECOND
from aemd.sources.counts import counts
from aemd.sources.reactor import Reactor

YEAR_2023 = 1_672_531_200  # seconds since the epoch; so that the numbers are shorter
DISCARD_NS = 2 * SECOND  # nginx: lingering_timeout 5 s; Apache httpd: 2 s
SO_MEMINFO = 55  # asm-generic/socket.h; not in the socket module
MEMINFO_DROPS = 8  # SK_MEMINFO_DROPS, linux/sock_diag.h
# Of connections. Here because a module may be loaded anew, a source is not. They begin where no daemon before
# this one can have come (it accepted less than a million a second), however short it lived: what a client
# still answers to a connection of that one must not reach another's.
NUMBERS = itertools.count((time.time_ns() - YEAR_2023 * SECOND << 20) // SECOND)
_MEMINFO = struct.Struct("@9I")
_CREDENTIALS = struct.Struct("@iII")
_ACCEPTS = counts("accept")
_DATAGRAMS = counts("datagram")
CREDENTIALS_SPACE = socket.CMSG_SPACE(_CREDENTIALS.size)

# accept(2), "Error handling", and what a firewall answers: try the next one.
ACCEPT_AGAIN = frozenset(
    {
        errno.ECONNABORTED,
        errno.EINTR,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.EPERM,
        errno.ETIMEDOUT,
    }
)
# There is not enough of something just now: stop until there is. ENOSPC: epoll_ctl(2), max_user_watches.
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})

RawAddress = tuple[str, int] | tuple[str, int, int, int] | str | bytes


class Name(NamedTuple):
    """A socket's name, as the kernel gives it. A leading NUL in `path` marks an abstract one."""

    host: str
    port: int
    path: bytes


class Credentials(NamedTuple):
    """Who is at the other end of a Unix socket; the pid is one of the daemon's own namespace."""

    pid: int
    uid: int
    gid: int


def parse_name(raw: RawAddress) -> Name:
    """What getsockname(2) and its like gave, in the form that Python's socket module puts it."""
    if isinstance(raw, str):
        return Name("", 0, os.fsencode(raw))
    if isinstance(raw, bytes):
        return Name("", 0, raw)
    host = raw[0]
    if len(raw) == 4:
        host = host.removeprefix("::ffff:") if "." in host else host
        host = f"{host}%{raw[3]}" if raw[3] else host
    return Name(host, raw[1], b"")


def parse_credentials(data: bytes) -> Credentials | None:
    """A struct ucred; unix(7). None if the kernel knows nobody (pid 0 and uid -1)."""
    if len(data) < _CREDENTIALS.size:
        return None
    found = Credentials(*_CREDENTIALS.unpack_from(data))
    return None if found.pid == 0 and found.uid == 0xFFFFFFFF else found


def leave(reactor: Reactor, sock: socket.socket) -> None:
    """Take a socket out of the loop. It may be out already: the loop drops what had a fault."""
    try:
        reactor.remove(sock.fileno())
    except KeyError:
        pass


def accept(listener: socket.socket) -> tuple[socket.socket, RawAddress]:
    """The next connection, non-blocking and close-on-exec, without Nagle's delay (RFC 896).

    Raises BlockingIOError if there is none, OSError as accept(2).
    """
    _ACCEPTS.reads += 1
    try:
        sock, raw = listener.accept()
    except BlockingIOError:
        raise
    except OSError:
        _ACCEPTS.failures += 1
        raise
    _ACCEPTS.events += 1
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock, raw


def peer_credentials(sock: socket.socket) -> Credentials | None:
    """Who connected a Unix socket."""
    return parse_credentials(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))


def receive_message(
    sock: socket.socket, view: memoryview, *, credentials: bool
) -> tuple[int, RawAddress, Credentials | None]:
    """The next datagram, in `view`: its true length, its sender, and on request who that is.

    Raises BlockingIOError if there is none, OSError as recvmsg(2).
    """
    _DATAGRAMS.reads += 1
    try:
        if not credentials:
            size, raw = sock.recvfrom_into(view, 0, socket.MSG_TRUNC)
            _DATAGRAMS.events += 1
            return size, raw, None
        size, control, _, raw = sock.recvmsg_into([view], CREDENTIALS_SPACE, socket.MSG_TRUNC)
    except BlockingIOError:
        raise
    except OSError:
        _DATAGRAMS.failures += 1
        raise
    _DATAGRAMS.events += 1
    raw = "" if raw is None else raw  # a sender without a name
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return size, raw, parse_credentials(data)
    return size, raw, None


def drops(sock: socket.socket) -> int:
    """How many datagrams the kernel has dropped for want of room, modulo 2^32."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return 0  # kernels before 4.12 do not tell
    return int(_MEMINFO.unpack(data)[MEMINFO_DROPS]) if len(data) == _MEMINFO.size else 0


def ended(sock: socket.socket) -> bool:
    """The peer has ended its direction: what 0 bytes from a seqpacket socket mean."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def readable(sockets: list[socket.socket]) -> list[int]:
    """The descriptors among them that have something to read, an end or an error; one poll(2)."""
    poll = select.poll()
    for sock in sockets:
        poll.register(sock, select.POLLIN)
    return [fd for fd, _ in poll.poll(0)]


def pending_bytes(sock: socket.socket) -> int:
    """How many bytes lie unread; tcp(7), unix(7), SIOCINQ."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def reset(sock: socket.socket) -> None:
    """Close with RST: the peer learns that the connection was broken off; socket(7), SO_LINGER."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    except OSError:
        pass  # it is gone already
    sock.close()


def shut(sock: socket.socket) -> None:
    """End our direction; what was written before still arrives. Nothing if the connection is gone."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # ENOTCONN: the peer has reset it
