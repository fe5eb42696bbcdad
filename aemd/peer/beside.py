"""How the core starts a process that works beside it: with a control socket, and with nothing else of its
own.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence

BUFFER_BYTES = 1024 * 1024  # of the control socket: the longest request fits
ENVIRONMENT = ("PATH", "LANG", "LC_", "LD_LIBRARY_PATH", "PYTHON")  # beginnings of names


def start_beside(command: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, and our end of its control socket (SEQPACKET, not blocking); `command` is given the number
    of its own end as the last argument. OSError if it cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with theirs:
        _widen(ours)
        _widen(theirs)
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=_environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def _widen(sock: socket.socket) -> None:
    """Room for the longest message; SO_SNDBUFFORCE of socket(7) needs CAP_NET_ADMIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, 32, BUFFER_BYTES)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)}
