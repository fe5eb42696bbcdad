"""Socket addresses as text: tcp:HOST:PORT, udp:HOST:PORT, unix:PATH, unix:@NAME and its kin.

Hosts are numbers. The daemon asks no name service: it has one thread, and a name that somebody else's
server answers must not decide where a privileged process listens. "localhost" is the one exception, and
stands for 127.0.0.1. An empty host or `*` is any address; it stays the empty string, so that the socket
module decides whether that means IPv4, IPv6 or both.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from aemd.modules.contract import Address

FAMILIES_INET = ("tcp", "udp")
FAMILIES_UNIX = ("unix", "unix-dgram", "unix-seqpacket")
FAMILIES = FAMILIES_INET + FAMILIES_UNIX
UNIX_PATH_BYTES_MAX = 107  # sun_path of unix(7) has 108; one is the NUL before or behind
ZONE_CHARS_MAX = 15  # IFNAMSIZ of netdevice(7), less its NUL
PORT_MAX = 65_535


def parse_address(text: str) -> Address:
    """The address that `text` names; ValueError says what is wrong and how to write it.

    Paths may hold surrogate escapes (PEP 383), so that any bytes are possible.
    """
    family, colon, rest = text.partition(":")
    if not colon or family not in FAMILIES:
        forms = "tcp:HOST:PORT, udp:HOST:PORT, unix:PATH, unix-dgram:PATH, unix-seqpacket:PATH"
        raise ValueError(f"not a socket address; there are {forms}")
    if family in FAMILIES_UNIX:
        return Address(family=family, path=_unix_path(rest))
    host, port = _host_port(family, rest)
    return Address(family=family, host=host, port=port)


def _host_port(family: str, rest: str) -> tuple[str, int]:
    host, colon, port = rest.rpartition(":")
    if not colon:
        raise ValueError(f"the port is missing; write {family}:HOST:PORT, or {family}::PORT for any host")
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > PORT_MAX:
        raise ValueError(f"the port must be a number from 0 to {PORT_MAX}")
    return _host(family, host), int(port)


def _host(family: str, host: str) -> str:
    if host in ("", "*"):
        return ""
    if host == "localhost":
        return "127.0.0.1"
    if host.startswith("[") and host.endswith("]"):
        try:
            address = IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("there is no IPv6 address in the brackets") from None
        zone = address.scope_id or ""
        if len(zone) > ZONE_CHARS_MAX or not zone.isprintable() or set(zone) & set("[] /:"):
            raise ValueError("what stands after % must be the name of a network interface")
        return str(address)
    if ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets: {family}:[::1]:8080")
    try:
        return str(IPv4Address(host))
    except ValueError:
        raise ValueError(
            "the host must be a numeric address, localhost or *; names are not looked up"
        ) from None


def _unix_path(rest: str) -> bytes:
    path = rest.encode("utf-8", "surrogateescape")
    if b"\0" in path:
        raise ValueError("a path has no NUL; an abstract name is written with @ in front")
    if len(path) > UNIX_PATH_BYTES_MAX + path.startswith(b"@"):
        raise ValueError(f"the path is too long; at most {UNIX_PATH_BYTES_MAX} bytes fit")
    if path.startswith(b"@"):
        if len(path) == 1:
            raise ValueError("the abstract name is empty; write unix:@NAME")
        return b"\0" + path[1:]
    if not path.startswith(b"/"):
        raise ValueError("the path must be absolute, or an abstract name such as unix:@NAME")
    return path
