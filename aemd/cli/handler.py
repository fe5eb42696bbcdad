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
from typing import Any

from aemd.cli.output import Row, dumps

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL; make, systemd and docker give 5 to 90
VARIABLE_BYTES_MAX = 32 * 1024  # the kernel takes 128 KiB for one (MAX_ARG_STRLEN), 2 MiB for all
PREFIX = "AEM_"


class CommandError(Exception):
    """The command did not do its work; the message says how it ended."""


def variables(row: Row) -> dict[str, str]:
    """The facts of an event as environment variables.

    The fields of the payload come first, so that none of them can take the place of a fact of the event.
    What cannot be a variable (text with a NUL, or longer than VARIABLE_BYTES_MAX) is on standard input only.
    """
    facts = dict(_flatten(row.get("payload") or {}))
    facts |= {
        "MODULE": row["module"],
        "TYPE": row["type"],
        "JOB": row["job"],
        "SEQ": row["seq"],
        "EPOCH": row["epoch"],
        "COUNT": row["count"],
        "ATTEMPTS": row["attempts"],
        "TIME_NS": row["real_time_ns"],
    }
    texts = {PREFIX + name: _text(value) for name, value in facts.items()}
    return {
        name: text
        for name, text in texts.items()
        if "\0" not in text and len(text.encode()) <= VARIABLE_BYTES_MAX
    }


def _flatten(payload: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """The scalar fields, also those of messages within: peer.port becomes PEER_PORT."""
    result: list[tuple[str, Any]] = []
    for name, value in payload.items():
        key = f"{before}{name}".upper()
        if isinstance(value, Mapping):
            result += _flatten(value, f"{key}_")
        elif value is not None and not isinstance(value, list):
            result.append((key, value))
    return result


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


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
            raise CommandError(f"{self._words[0]}: {_ended(process.returncode)}")

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


def _ended(code: int) -> str:
    if code < 0:
        try:
            return f"ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"ended by signal {-code}"
    return f"exited with status {code}"
