"""What the daemon says to its operator, and in which form.

Lines go to stderr: for people on a terminal, with the `<N>` prefix of sd-daemon(3) under journald, as JSON
lines everywhere else. Messages are fixed strings and data goes into fields, whose names stand here. A
healthy daemon says that it serves, that it ends, and nothing between.

stderr may be a pipe that nobody reads, and the core must never wait: a line is written only if poll(2) says
that a pipe has room for PIPE_BUF bytes, in pieces of at most that size. What finds no room is dropped and
counted, and the count goes out with the next line that does.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

# The names of fields; one fact has one name, whoever logs it.
ERROR = "error"
GRANT = "grant"
JOB = "job"
JOBS = "jobs"
LEFT_OUT = "left_out"
LIMITS = "limits"
METHOD = "method"
MODULE = "module"
PID = "pid"
PROBLEMS = "problems"
REASON = "reason"
REPEATED = "repeated"
RULE = "rule"
RULES = "rules"
SESSION = "session"
SIGNAL = "signal"
SOCKET = "socket"
UID = "uid"
VERSION = "version"
WHAT = "what"

LEVEL_DEFAULT = "info"
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_JOURNAL_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
PIECE_BYTES = 4_096  # PIPE_BUF: poll(2) reports a pipe writable when so much fits
LINE_BYTES_MAX = 4 * PIECE_BYTES


class Stderr:
    """Writes lines to a descriptor without ever waiting for its reader."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.dropped = 0

    def msg(self, message: str) -> None:
        """Write one line, or count it as dropped."""
        line = message.encode("utf-8", "backslashreplace")[: LINE_BYTES_MAX - 1] + b"\n"
        if self.dropped:
            line = b"(%d lines dropped)\n" % self.dropped + line
        for start in range(0, len(line), PIECE_BYTES):
            if not self._write(line[start : start + PIECE_BYTES]):
                self.dropped += 1
                return
        self.dropped = 0

    debug = info = warning = error = critical = log = msg

    def _write(self, piece: bytes) -> bool:
        try:
            ready = self._poll.poll(0)
            if not ready or not ready[0][1] & select.POLLOUT:
                return False
            os.write(self._fd, piece)
        except OSError:  # nobody is there to be told
            return False
        return True


def configure(level: str) -> None:
    """Send the log to stderr from `level` on, in the form that suits what stderr is."""
    stderr = Stderr()
    processors: list[structlog.typing.Processor] = [structlog.processors.add_log_level]
    if os.isatty(2):
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ),
        ]
    elif _is_journal():
        processors += [
            structlog.processors.format_exc_info,
            _journal_line,
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: stderr,
        cache_logger_on_first_use=False,
    )


def get() -> Any:
    """The logger."""
    return structlog.get_logger()


def _is_journal() -> bool:
    """Whether stderr is the journal's stream; systemd.exec(5), JOURNAL_STREAM."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno() if sys.stderr else 2)
    except (OSError, ValueError):
        return False
    return f"{status.st_dev}:{status.st_ino}" == f"{device}:{inode}"


_logfmt = structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False)


def _journal_line(logger: object, name: str, event: MutableMapping[str, Any]) -> str:
    priority = _JOURNAL_PRIORITY.get(event.pop("level", "info"), 6)
    return f"<{priority}>{_logfmt(logger, name, event)}"
