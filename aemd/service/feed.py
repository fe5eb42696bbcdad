"""What a command gets of an event, and what is said of its end: for the commands of jobs and for `aemctl on`.

The event is a line of JSON on standard input; its facts are AEM_* variables as well. Nothing but the standard
library is imported here: the command line begins with it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]

VARIABLE_BYTES_MAX = 32 * 1024  # the kernel takes 128 KiB for one (MAX_ARG_STRLEN), 2 MiB for all
PREFIX = "AEM_"


def dumps(value: object) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def variables(row: Row) -> dict[str, str]:
    """The facts of an event or a gap as environment variables.

    The fields of the payload come first, so that none of them can take the place of a fact of the event.
    What cannot be a variable (text with a NUL, or longer than VARIABLE_BYTES_MAX) is on standard input only.
    """
    facts = dict(_flatten(row.get("payload") or {}))
    for name in ("module", "type", "job", "seq", "epoch", "count", "attempts"):
        facts[name.upper()] = row[name]
    if "real_time_ns" in row:
        facts["TIME_NS"] = row["real_time_ns"]
    else:
        facts |= {name.upper(): row[name] for name in ("stage", "cause", "scope", "remedy")}
    texts = {PREFIX + name: _text(value) for name, value in facts.items()}
    return {
        name: text
        for name, text in texts.items()
        if "\0" not in text and len(text.encode()) <= VARIABLE_BYTES_MAX
    }


def ending(code: int) -> str:
    """How a command ended, in words; `code` as subprocess has it: below 0 a signal's number."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


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
