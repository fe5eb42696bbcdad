"""A front that was taken over: locked up like any other, it does whatever its client says.

It stands in the place of the real one for the user ATTACKER; for everybody else the real code runs. Its
first connection is a tunnel: what comes from the client goes to the core as it is, and back. Each connection
that it is given is told its number first, eight bytes. A message that begins with CONNECT makes the front
itself connect to the path that follows, begin to speak HTTP/2, and say what it heard.
"""

import errno
import os
import select
import socket
import struct

from aemd import link

ATTACKER = 2_345
CONNECT = b"connect:"
NUMBER = struct.Struct("<Q")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
honest = None  # the real code, set by whoever installs this


async def serve(link_sock, descriptors, *more, **named):
    """What a front does instead of serving, once it is locked up."""
    select.select([descriptors], [], [])
    if peek_uid(descriptors) != ATTACKER:
        await honest(link_sock, descriptors, *more, **named)
        return
    link_sock.setblocking(True)
    descriptors.setblocking(True)
    tunnels = [taken(descriptors)]
    while True:
        ready = select.select([link_sock, descriptors, tunnels[0]], [], [])[0]
        if descriptors in ready:
            tunnels.append(taken(descriptors))
        if link_sock in ready:
            piece = link_sock.recv(1 << 18)
            if not piece:
                return
            tunnels[0].sendall(piece)
        if tunnels[0] in ready:
            piece = tunnels[0].recv(1 << 18)
            if not piece:
                return
            if piece.startswith(CONNECT):
                tunnels[0].sendall(connect(piece.removeprefix(CONNECT)))
            else:
                link_sock.sendall(piece)


def peek_uid(descriptors):
    """Whose the next connection is; it stays where it is. socket.recv_fds forgets its flags."""
    room = socket.CMSG_SPACE(struct.calcsize("i"))
    _, ((_, _, fd),), _, _ = descriptors.recvmsg(link.DESCRIPTOR.size, room, socket.MSG_PEEK)
    with socket.socket(fileno=struct.unpack("i", fd)[0]) as sock:
        return struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]


def taken(descriptors):
    """The next connection that the core hands over."""
    message, (fd,), _, _ = socket.recv_fds(descriptors, link.DESCRIPTOR.size, 1)
    sock = socket.socket(fileno=fd)
    sock.setblocking(True)
    sock.sendall(NUMBER.pack(link.DESCRIPTOR.unpack(message)[1]))
    return sock


def connect(path):
    """What a connection of the front's own leads to: the first bytes, "closed", or the name of the error."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        try:
            sock.connect(os.fsdecode(path))
            sock.sendall(PREFACE)
            return sock.recv(100) or b"closed"
        except TimeoutError:
            return b"silence"
        except OSError as error:
            closed = error.errno in (errno.EPIPE, errno.ECONNRESET)
            return b"closed" if closed else errno.errorcode[error.errno].encode()
