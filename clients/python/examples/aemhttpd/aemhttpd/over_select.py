"""The file server on select(2): what a portable single-threaded server was in 2001, for comparison.

select() looks at every descriptor at every call and takes none above 1,023 (FD_SETSIZE): both are the point.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from aemhttpd.exchange import Exchange

ROOM_BYTES = 256 * 1024


class _Connection:
    __slots__ = ("exchange", "pending", "socket")

    def __init__(self, connected: socket.socket, exchange: Exchange) -> None:
        self.socket = connected
        self.exchange = exchange
        self.pending = b""


def serve(listener: socket.socket, new_exchange: Callable[[], Exchange], stopped: Callable[[], bool]) -> None:
    """Serve until `stopped()`; it is asked whenever select() returns, at least once a second."""
    connections: dict[int, _Connection] = {}
    listener.setblocking(False)
    while not stopped():
        writers = [fd for fd, connection in connections.items() if connection.pending]
        readers = [
            listener.fileno(),
            *(fd for fd, connection in connections.items() if not connection.pending),
        ]
        readable, writable, _ = select.select(readers, writers, [], 1.0)
        for fd in readable:
            if fd == listener.fileno():
                _accept(listener, connections, new_exchange)
            elif fd in connections:
                _read(connections, fd)
        for fd in writable:
            if fd in connections:
                _write(connections, fd)
    for fd in list(connections):
        _close(connections, fd)


def _accept(
    listener: socket.socket, connections: dict[int, _Connection], new_exchange: Callable[[], Exchange]
) -> None:
    while True:
        try:
            connected, _ = listener.accept()
        except OSError:
            return
        if connected.fileno() >= 1024:  # FD_SETSIZE: select() cannot wait for it
            connected.close()
            continue
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections[connected.fileno()] = _Connection(connected, new_exchange())


def _read(connections: dict[int, _Connection], fd: int) -> None:
    connection = connections[fd]
    try:
        data = connection.socket.recv(65536)
    except BlockingIOError:
        return
    except OSError:
        _close(connections, fd)
        return
    connection.exchange.receive(data)
    _write(connections, fd)


def _write(connections: dict[int, _Connection], fd: int) -> None:
    connection = connections[fd]
    while True:
        connection.pending = connection.pending or connection.exchange.output(ROOM_BYTES)
        if not connection.pending:
            break
        try:
            sent = connection.socket.send(connection.pending)
        except BlockingIOError:
            return
        except OSError:
            _close(connections, fd)
            return
        connection.pending = connection.pending[sent:]
        if connection.pending:
            return
    if connection.exchange.finished:
        _close(connections, fd)


def _close(connections: dict[int, _Connection], fd: int) -> None:
    connection = connections.pop(fd)
    connection.exchange.close()
    connection.socket.close()
