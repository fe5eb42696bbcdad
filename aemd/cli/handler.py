"""A command as the handler of events: what it gets, how it is run, how it is ended.

The event comes as one line of JSON on standard input, and its facts as AEM_* variables. Standard output and
standard error are those of aemctl. Each run has a session of its own: it has no terminal, and a time limit
ends a shell script together with what the script has started. What else it has around it is
`surroundings.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from aemd.service.feed import Row, dumps, ending, variables

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL; make, systemd and docker give 5 to 90


class CommandError(Exception):
    """The command did not do its work; the message says how it ended."""


class Command:
    """Runs a command for one event at a time.

    `environment`: its variables, beside those of the event; None: those of this process. `shield`: within
    it no signal's exception is raised. Without that, one that comes while the command is being started
    would leave it running with nobody who knows of it.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        timeout_ns: int | None = None,
        environment: Mapping[str, str] | None = None,
        shield: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._words = list(words)
        self._timeout_seconds = None if timeout_ns is None else timeout_ns / 1e9
        self._environment = os.environ if environment is None else environment
        self._shield = shield

    def run(self, row: Row) -> None:
        """Run it to its end; CommandError unless it exits with 0.

        Whatever else is raised meanwhile (a signal's exception) ends the command and goes on.
        """
        process: subprocess.Popen[bytes] | None = None
        try:
            with self._shield():
                process = self._start(row)
            process.communicate(dumps(row).encode() + b"\n", timeout=self._timeout_seconds)
        except subprocess.TimeoutExpired:
            assert process is not None
            end(process)
            limit = f"{self._timeout_seconds:g}s"
            raise CommandError(f"{self._words[0]}: ended after its time limit of {limit}") from None
        except BaseException:
            if process is not None:
                end(process)
            raise
        if process.returncode:
            raise CommandError(f"{self._words[0]}: {ending(process.returncode)}")

    def _start(self, row: Row) -> subprocess.Popen[bytes]:
        environment = {**self._environment, **variables(row)}
        try:
            return subprocess.Popen(
                self._words, stdin=subprocess.PIPE, env=environment, start_new_session=True
            )
        except OSError as error:
            raise CommandError(f"{self._words[0]}: {error.strerror}") from error


def end(process: subprocess.Popen[bytes], grace_seconds: float = GRACE_SECONDS) -> None:
    """End a command and its process group: SIGTERM, and after the grace, or at the next signal, SIGKILL."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
    except BaseException:
        _kill(process)
        raise


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
