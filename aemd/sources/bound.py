"""Sockets with an address: what may go wrong with one, and who holds it.

The traps of bind(2) and listen(2) stand in `sources/socket.py`. Everything that a caller can have got wrong
is an AemError of bind() or listen(), with the address and the system call's name. A Unix socket with a path
is bound elsewhere, by a process that is the caller (`modules/need.py`); abstract names have no owner.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from aemd.core.errors import AemError, Code, invalid
from aemd.sources.socket import SHORTAGE, Name, RawAddress, parse_name

NOBODYS_PORT = 1  # tcpmux, RFC 1078; nobody sends datagrams from there
UNIX_PATH_BYTES_MAX = 107  # sizeof(sockaddr_un.sun_path) without its closing NUL; unix(7)

_FAMILIES = {
    "tcp": (socket.AF_UNSPEC, socket.SOCK_STREAM),
    "udp": (socket.AF_UNSPEC, socket.SOCK_DGRAM),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM),
    "unix-dgram": (socket.AF_UNIX, socket.SOCK_DGRAM),
    "unix-seqpacket": (socket.AF_UNIX, socket.SOCK_SEQPACKET),
}


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


def occupied(place: Place) -> str:
    """What a socket at `place` keeps others from binding: a port or an abstract name. Empty: nothing, as for
    port 0 and paths.
    """
    if place.family in ("tcp", "udp"):
        return f"{place.family}:{place.port}" if place.port else ""
    return f"unix:{place.path[1:].hex()}" if place.path.startswith(b"\0") else ""


def occupied_by(sock: socket.socket) -> str:
    """The same of a socket that is bound."""
    name = parse_name(sock.getsockname())
    if sock.family != socket.AF_UNIX:
        return f"{'udp' if sock.type == socket.SOCK_DGRAM else 'tcp'}:{name.port}"
    return f"unix:{name.path[1:].hex()}" if name.path.startswith(b"\0") else ""


def silence(sock: socket.socket) -> None:
    """Let nobody through to it any more, whoever else still has it open."""
    with contextlib.suppress(OSError):
        if sock.family == socket.AF_UNIX or sock.type != socket.SOCK_DGRAM:
            sock.shutdown(socket.SHUT_RDWR)
        else:  # it hears this peer alone, and there is none
            host, _, *rest = sock.getsockname()
            sock.connect((host, NOBODYS_PORT, *rest))


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


def refusal(call: str, place: Place, error: OSError, who: str = "the daemon") -> AemError:
    """What a system call said about an address, as the caller's error; see errno(3) of bind(2), listen(2).

    `who`: whose rights it was tried with.
    """
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
        return AemError(Code.PERMISSION_DENIED, "NOT_ALLOWED", f"{said}: {who} may not do this", **facts)
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


class Held(Protocol):
    """A socket whose name is somebody else's to remove."""

    def close(self) -> None:
        """Close it, and let the name go."""

    def leave(self) -> None:
        """Close it, and leave the name to whoever else has the socket."""


@dataclass(slots=True, eq=False)
class Bound:
    """A socket with its address. `held`: by whom it was bound, if not here. `adopted`: a process before this
    one has bound it, and what came since then is in it.
    """

    socket: socket.socket
    place: Place
    shared: tuple[str, int] | None = None
    held: Held | None = None
    adopted: bool = False

    def name(self) -> Name:
        """Its name, with the port that the kernel chose."""
        return parse_name(self.socket.getsockname())

    @property
    def listens(self) -> bool:
        """Whether the kernel makes connections."""
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    @property
    def occupies(self) -> str:
        """See occupied(); with the port that the kernel chose."""
        return occupied_by(self.socket)

    @property
    def port(self) -> int:
        """Its port; 0 where there are none."""
        return self.name().port

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
        self._shared: dict[tuple[str, int], tuple[Hashable, int]] = {}

    def bind(self, place: Place, *, owner: Hashable, reuse_port: bool = False) -> Bound:
        """A bound socket, non-blocking and close-on-exec; it does not listen yet. Not for paths.

        `reuse_port`: `owner` may bind the same port again. Raises AemError.
        """
        family, kind, raw = resolve(place)
        try:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise refusal("socket", place, error) from error
        bound = Bound(sock, place)
        try:
            if family == socket.AF_UNIX:
                if kind == socket.SOCK_DGRAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                sock.bind(raw)
            else:
                self._bind_inet(bound, raw, owner=owner, reuse_port=reuse_port)
        except OSError as error:
            sock.close()
            raise refusal("bind", place, error) from error
        except AemError:
            sock.close()
            raise
        return bound

    def adopt(
        self, place: Place, descriptor: int, *, owner: Hashable, reuse_port: bool = False
    ) -> Bound | None:
        """A socket that was bound to `place` by a process before this one, with its connections and datagrams
        that wait; None, and it is closed, if it is not what bind() and listen() would make.
        """
        if not fits(place, descriptor, reuse_port=reuse_port):
            os.close(descriptor)
            return None
        bound = Bound(socket.socket(fileno=descriptor), place, adopted=True)
        bound.socket.setblocking(False)
        try:
            if reuse_port:
                self._share(bound, owner)
        except OSError:  # then it is bound anew, and the caller told what is wrong with that
            bound.socket.close()
            return None
        return bound

    def close(self, bound: Bound) -> None:
        """Close the socket."""
        silence(bound.socket)
        if bound.held is not None:
            bound.held.close()
        self._close(bound)

    def leave(self, bound: Bound) -> None:
        """Close the socket here, and leave it as it is to whoever else has it."""
        if bound.held is not None:
            bound.held.leave()
        self._close(bound)

    def _close(self, bound: Bound) -> None:
        bound.socket.close()
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


def fits(place: Place, descriptor: int, *, reuse_port: bool = False) -> bool:
    """Whether `descriptor` is a socket that bind() and listen() would make of `place`; a port that the kernel
    was to choose is one that it has chosen.
    """
    family, kind, raw = resolve(place)
    try:
        sock = socket.socket(fileno=descriptor)
    except (OSError, ValueError):  # it is no socket, or nothing
        return False
    try:
        name = sock.getsockname()
        if family != socket.AF_UNIX and not place.port:
            name = (name[0], 0, *name[2:])
        return (
            (sock.family, sock.type, name) == (family, kind, _as_named(family, raw))
            and (kind == socket.SOCK_DGRAM or Bound(sock, place).listens)
            and (family == socket.AF_UNIX or reuse_port == _shares(sock))
        )
    except OSError:
        return False
    finally:
        sock.detach()


def _as_named(family: int, raw: RawAddress) -> RawAddress:
    """A raw address as getsockname() gives it: a path is text there."""
    if family == socket.AF_UNIX and isinstance(raw, bytes) and not raw.startswith(b"\0"):
        return os.fsdecode(raw)
    return raw


def _shares(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
