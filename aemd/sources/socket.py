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
- SO_REUSEPORT shares a port among sockets of one effective uid, and all of ours have the daemon's. `Binder`
  keeps a shared port to one owner.
- [::] takes IPv4 too, unless IPV6_V6ONLY; it is set, so that an address means its own family and
  tcp:0.0.0.0:80 beside tcp:[::]:80 is no conflict. An empty host means both: [::] without it, or 0.0.0.0 on
  a machine without IPv6. The IPv4 peers of such a socket come as ::ffff:a.b.c.d; `parse_name` undoes that.
- A Unix path outlives its socket. connect(2) to a dead one is refused, so is one to a regular file and one
  to a socket that is bound and does not listen yet: hence S_ISSOCK, and the table of our own inodes.
- fchmod(2) on an unbound Unix socket decides the mode of the path to come: it is never wider for a moment.
- Whoever may name a Unix datagram peer makes the daemon write to it with the daemon's rights. See
  `modules/socket/datagram.py` for how a reply is held to those who wrote.
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
import stat
import struct
import sys
import termios
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from aemd.core.errors import AemError, Code, invalid
from aemd.core.limits import SECOND
from aemd.sources.reactor import Reactor

DISCARD_NS = 2 * SECOND  # nginx: lingering_timeout 5 s; Apache httpd: 2 s
UNIX_PATH_BYTES_MAX = 107  # sizeof(sockaddr_un.sun_path) with its closing NUL; unix(7)
MESSAGES_PENDING_MAX = 1_024  # seqpacket messages that wait for one peer
SO_MEMINFO = 55  # asm-generic/socket.h; not in the socket module
MEMINFO_DROPS = 8  # SK_MEMINFO_DROPS, linux/sock_diag.h
NUMBERS = itertools.count(1)  # of connections; here because a module may be loaded anew, a source is not
_MEMINFO = struct.Struct("@9I")
_CREDENTIALS = struct.Struct("@iII")
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
# There is not enough of something just now: stop until there is.
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_FAMILIES = {
    "tcp": (socket.AF_UNSPEC, socket.SOCK_STREAM),
    "udp": (socket.AF_UNSPEC, socket.SOCK_DGRAM),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM),
    "unix-dgram": (socket.AF_UNIX, socket.SOCK_DGRAM),
    "unix-seqpacket": (socket.AF_UNIX, socket.SOCK_SEQPACKET),
}

RawAddress = tuple[str, int] | tuple[str, int, int, int] | str | bytes


class Place(Protocol):
    """Where to listen. `family` is one of tcp, udp, unix, unix-dgram, unix-seqpacket."""

    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def host(self) -> str: ...  # noqa: D102
    @property
    def port(self) -> int: ...  # noqa: D102
    @property
    def path(self) -> bytes: ...  # noqa: D102


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


def resolve(place: Place) -> tuple[socket.AddressFamily, socket.SocketKind, RawAddress]:
    """Address family, type and raw address of `place`. Names are not looked up: that could take seconds.

    Raises AemError INVALID_FIELD.
    """
    family, kind = _FAMILIES[place.family]
    if family == socket.AF_UNIX:
        return family, kind, _unix_path(place.path)
    try:
        found = socket.getaddrinfo(
            place.host or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0"),
            place.port,
            type=kind,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV | socket.AI_PASSIVE,
        )
    except (socket.gaierror, UnicodeError) as error:
        raise invalid(
            "params.listen",
            f"{place.host!r} is not an IP address; host names are not looked up. Give an IPv4 address such "
            "as 127.0.0.1, an IPv6 address such as [::1], or 0.0.0.0 or [::] for all interfaces",
        ) from error
    return found[0][0], kind, found[0][4]  # type: ignore[return-value]


def _unix_path(path: bytes) -> bytes:
    abstract = path.startswith(b"\0")
    limit = UNIX_PATH_BYTES_MAX + abstract
    shown = os.fsdecode(path.replace(b"\0", b"@", 1) if abstract else path)
    if not path.strip(b"\0"):
        raise invalid("params.listen", "a Unix socket needs a path, or a name after @")
    if not abstract and not path.startswith(b"/"):
        raise invalid(
            "params.listen", f"{shown!r} is relative; give the whole path, or @{shown} for an abstract name"
        )
    if not abstract and b"\0" in path:
        raise invalid("params.listen", f"{shown!r} holds a NUL byte")
    if len(path) > limit:
        raise invalid("params.listen", f"{shown!r} has {len(path)} bytes; a Unix socket takes {limit}")
    return path


def refusal(call: str, place: Place, error: OSError) -> AemError:
    """What a system call said about an address, as the caller's error; see errno(3) of bind(2), listen(2)."""
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    facts = {"field": "params.listen", "address": str(place), "errno": name, "call": call}
    said = f"{place}: {call}: {os.strerror(number)}"
    if number == errno.EADDRINUSE:
        return AemError(
            Code.ALREADY_EXISTS,
            "ADDRESS_IN_USE",
            f"{place}: the address is in use; take another one, or end what listens there",
            **facts,
        )
    if number == errno.EADDRNOTAVAIL:
        message = f"{place}: no interface of this machine has that address; see `ip address`"
        return AemError(Code.INVALID_ARGUMENT, "ADDRESS_NOT_AVAILABLE", message, **facts)
    if number in (errno.EACCES, errno.EPERM):
        return AemError(Code.PERMISSION_DENIED, "NOT_ALLOWED", f"{said}: the daemon may not do this", **facts)
    if number in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
        message = f"{place}: this kernel has no such sockets ({os.strerror(number)})"
        return AemError(
            Code.FAILED_PRECONDITION, "FAMILY_NOT_SUPPORTED", message, feature=place.family, **facts
        )
    if number in SHORTAGE:
        return AemError(Code.RESOURCE_EXHAUSTED, "SYSTEM_LIMIT", said, **facts)
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENODEV):
        return AemError(Code.INVALID_ARGUMENT, "INVALID_FIELD", f"params.listen: {said}", **facts)
    return AemError(Code.FAILED_PRECONDITION, "SYSTEM_CALL_FAILED", said, **facts)


@dataclass(slots=True, eq=False)
class Bound:
    """A socket with its address. `inode`: (device, inode) of its path, if it has one."""

    socket: socket.socket
    place: Place
    shared: tuple[str, int] | None = None
    inode: tuple[int, int] | None = None

    def name(self) -> Name:
        """Its name, with the port that the kernel chose."""
        return parse_name(self.socket.getsockname())

    def listen(self, backlog: int) -> None:
        """Let the kernel make connections. Raises AemError ADDRESS_IN_USE."""
        try:
            if self.socket.family != socket.AF_UNIX:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.listen(backlog)
        except OSError as error:
            raise refusal("listen", self.place, error) from error


class Binder:
    """Binds sockets, and knows what it has bound."""

    def __init__(self) -> None:
        self._inodes: set[tuple[int, int]] = set()
        self._shared: dict[tuple[str, int], tuple[Hashable, int]] = {}

    def bind(
        self, place: Place, *, owner: Hashable, reuse_port: bool = False, mode: int | None = None
    ) -> Bound:
        """A bound socket, non-blocking and close-on-exec; it does not listen yet.

        `reuse_port`: `owner` may bind the same port again. `mode`: permission bits of a Unix path; without
        it the umask decides. Raises AemError.
        """
        family, kind, raw = resolve(place)
        try:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise refusal("socket", place, error) from error
        bound = Bound(sock, place)
        try:
            if family == socket.AF_UNIX:
                self._bind_unix(bound, kind, mode)
            else:
                self._bind_inet(bound, raw, owner=owner, reuse_port=reuse_port)
        except OSError as error:
            sock.close()
            raise refusal("bind", place, error) from error
        except AemError:
            sock.close()
            raise
        return bound

    def close(self, bound: Bound) -> None:
        """Close the socket, and remove its path if it is still the one that was bound."""
        bound.socket.close()
        if bound.inode is not None:
            self._inodes.discard(bound.inode)
            try:
                if _inode(bound.place.path) == bound.inode:
                    os.unlink(bound.place.path)
            except OSError:
                pass  # somebody else has taken it away: nothing is left to do
        if bound.shared is not None:
            owner, count = self._shared.pop(bound.shared)
            if count > 1:
                self._shared[bound.shared] = (owner, count - 1)

    def _bind_inet(self, bound: Bound, raw: RawAddress, *, owner: Hashable, reuse_port: bool) -> None:
        sock = bound.socket
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(bound.place.host))
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(raw)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or sock.type != socket.SOCK_STREAM:
                raise
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(raw)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        if reuse_port:
            self._share(bound, owner)

    def _share(self, bound: Bound, owner: Hashable) -> None:
        key = (bound.place.family, bound.name().port)
        holder, count = self._shared.get(key, (owner, 0))
        if holder != owner:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._shared[key] = (owner, count + 1)
        bound.shared = key

    def _bind_unix(self, bound: Bound, kind: int, mode: int | None) -> None:
        sock, path = bound.socket, bound.place.path
        if mode is not None:
            os.fchmod(sock.fileno(), mode)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or path.startswith(b"\0") or not self._stale(path, kind):
                raise
            os.unlink(path)
            sock.bind(path)
        if path.startswith(b"\0"):
            return
        if mode is not None:
            os.chmod(path, mode)
        bound.inode = _inode(path)
        self._inodes.add(bound.inode)

    def _stale(self, path: bytes, kind: int) -> bool:
        """A socket file that nobody holds any more."""
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode) or (found.st_dev, found.st_ino) in self._inodes:
            return False
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
            return probe.connect_ex(path) == errno.ECONNREFUSED


def _inode(path: bytes) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


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
    sock, raw = listener.accept()
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
    if not credentials:
        size, raw = sock.recvfrom_into(view, 0, socket.MSG_TRUNC)
        return size, raw, None
    size, control, _, raw = sock.recvmsg_into([view], CREDENTIALS_SPACE, socket.MSG_TRUNC)
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


class StreamOutput:
    """Bytes that the kernel has not taken yet."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    def push(self, data: bytes | memoryview) -> None:
        """After everything that waits already."""
        self._bytes += data

    def flush(self, sock: socket.socket) -> int:
        """How many bytes the kernel took now. Raises OSError as send(2), but not EAGAIN."""
        try:
            with memoryview(self._bytes) as view:
                taken = sock.send(view, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        del self._bytes[:taken]
        return taken


class MessageOutput:
    """Messages that the kernel has not taken yet: each goes whole or not at all."""

    __slots__ = ("_bytes", "_messages")

    def __init__(self) -> None:
        self._bytes = 0
        self._messages: deque[bytes] = deque()

    def __len__(self) -> int:
        """In bytes; a queue of empty messages only is as long as it has messages."""
        return self._bytes or len(self._messages)

    def push(self, data: bytes | memoryview) -> None:
        """After everything that waits already. Raises BufferError: there are too many of them."""
        if len(self._messages) >= MESSAGES_PENDING_MAX:
            raise BufferError
        self._messages.append(bytes(data))
        self._bytes += len(data)

    def flush(self, sock: socket.socket) -> int:
        """How many bytes the kernel took now. Raises OSError as send(2), but not EAGAIN."""
        taken = 0
        while self._messages:
            try:
                sock.send(self._messages[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            taken += len(self._messages.popleft())
        self._bytes -= taken
        return taken
