"""What the daemon says to its operator, and in which form.

Lines go to stderr: for people on a terminal, as JSON lines everywhere else. Where stderr is the journal's,
entries go to it with their fields (journal.py), or, if it takes none, lines with the `<N>` prefix of
sd-daemon(3). Messages are fixed strings and data goes into fields, whose names stand here. A
healthy daemon says that it serves, that it ends, and nothing between.

stderr may be a pipe that nobody reads, and the core must never wait: a line is written only if poll(2) says
that a pipe has room for PIPE_BUF bytes, in pieces of at most that size. What finds no room is dropped and
counted, and the count goes out with the next line that does.
"""

from __future__ import annotations

import os
import select
from collections.abc import MutableMapping
from typing import Any

import structlog

from aemd.service import journal

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
    target: Stderr | journal.Journal = stderr
    processors: list[structlog.typing.Processor] = [structlog.processors.add_log_level]
    if os.isatty(2):
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ),
        ]
    elif journal.stream_is_journal(2, os.environ.get("JOURNAL_STREAM", "")):
        processors.append(structlog.processors.format_exc_info)
        if journal.can_be_spoken(2):
            target = journal.Journal(stderr.msg)
            processors.append(_journal_entry)
        else:
            processors.append(_journal_line)
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: target,
        cache_logger_on_first_use=False,
    )


def get() -> Any:
    """The logger."""
    return structlog.get_logger()


_logfmt = structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False)
_data = structlog.processors.LogfmtRenderer(bool_as_flag=False)


def _journal_line(logger: object, name: str, event: MutableMapping[str, Any]) -> str:
    priority = journal.PRIORITIES.get(event.pop("level", "info"), 6)
    return f"<{priority}>{_logfmt(logger, name, event)}"


def _journal_entry(
    logger: object, name: str, event: MutableMapping[str, Any]
) -> tuple[tuple[object, ...], dict[str, object]]:
    told = {key: value for key, value in event.items() if key not in ("event", "level", "exception")}
    fields = journal.entry_of(event, _data(logger, name, told))
    return (fields, _journal_line(logger, name, event)), {}
