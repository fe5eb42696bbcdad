"""Where the output of a run goes: to the journal, or where there is none to the daemon's standard error.

The journal is connected to by the run itself, when it is its owner already: so the owner is whom the journal
knows the lines from, and may read them. Its protocol is a few lines and then text (systemd's
journald-stream.c).

Standard error of the daemon is nothing to give away: it may be a terminal or a file of root's. What comes for
it goes through a pipe, line by line, each with the name of the run, and without control characters, which a
terminal might obey. What standard error does not take at once is dropped.
"""

from __future__ import annotations

import os
import select
import socket

JOURNAL = "/run/systemd/journal/stdout"
READ_BYTES = 4_096  # PIPE_BUF: so much is written whole, or not at all
LINE_BYTES_MAX = 2_048
_INFORMATION = 6  # syslog(3)
_PLAIN = bytes(ord("?") if byte != 9 and (byte < 32 or byte == 127) else byte for byte in range(256))


def connect_journal(name: str) -> socket.socket | None:
    """A stream to the journal, whose lines are called `name`; None where there is no journal."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(JOURNAL)
        stream.sendall(f"{name}\n\n{_INFORMATION}\n1\n0\n0\n0\n".encode())
        stream.shutdown(socket.SHUT_RD)
    except OSError:
        stream.close()
        return None
    return stream


class Lines:
    """What one run writes, on its way to standard error."""

    def __init__(self, name: str, pipe: int) -> None:
        """`pipe`: the end to read from, which is closed by close()."""
        self.pipe = pipe
        self._name = name.encode()
        self._rest = b""
        os.set_blocking(pipe, False)

    def read(self) -> bool:
        """Pass on what has come; False if nothing will any more."""
        try:
            data = os.read(self.pipe, READ_BYTES)
        except BlockingIOError:
            return True
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX or not data:
            whole, self._rest = [*whole, self._rest] if self._rest else whole, b""
        for line in whole:
            self._write(line)
        return bool(data)

    def close(self) -> None:
        """Pass on what there still is, a pipe's worth of it, and close."""
        for _ in range(16):
            if not self.read():
                break
        if self._rest:
            self._write(self._rest)
        os.close(self.pipe)

    def _write(self, line: bytes) -> None:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if any(events & select.POLLOUT for _, events in poll.poll(0)):
            try:
                os.write(2, b"%s: %s\n" % (self._name, line[:LINE_BYTES_MAX].translate(_PLAIN)))
            except OSError:
                pass  # nobody reads it any more
