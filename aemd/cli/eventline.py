"""One readable line for each event and each gap of a stream.

The facts that matter of the built-in modules are told in words; a module that this program has never
heard of gets its payload as name=value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aemd.cli.output import Output
from aemd.cli.text import clock_text, preview, safe, size_text, span_text
from aemd.service.feed import Row

Payload = Mapping[str, Any]


def event_line(output: Output, row: Row) -> str:
    """An event as a line: when, what, for which job, how many stimuli, and what it says."""
    module = str(row["module"])
    when = output.paint(clock_text(int(row["real_time_ns"])), "bright_black")
    kind = output.paint(f"{module}/{safe(str(row['type']))}", "cyan")
    count = f" x{row['count']}" if int(row.get("count") or 1) > 1 else ""
    again = f" (delivery {row['attempts']})" if int(row.get("attempts") or 1) > 1 else ""
    text = _TELL.get(module, _tell_any)(str(row["type"]), row.get("payload") or {})
    taken = row.get("redacted")
    hidden = f" (policy took out {safe(', '.join(taken))})" if taken else ""
    return f"{when} {kind} job {row['job']}{count}{again}  {text}{hidden}".rstrip()


def gap_line(output: Output, row: Row) -> str:
    """A gap as a line that cannot be taken for an event."""
    count = int(row.get("count") or 0)
    many = f"{count} event{'s' * (count != 1)} lost" if count else "events lost, nobody knows how many"
    scope = f" in {safe(str(row['scope']))}" if row.get("scope") else ""
    remedy = f", remedy {row['remedy']}" if row.get("remedy") else ""
    why = f"stage {row['stage']}, cause {row['cause']}{remedy}"
    return output.paint(f"GAP {row['module']} job {row['job']}  {many}{scope}: {why}", "red", bold=True)


def _tell_timer(_kind: str, payload: Payload) -> str:
    parts = [f"lateness {span_text(int(payload.get('lateness_ns') or 0))}"]
    if payload.get("cookie"):
        parts.append(f"cookie {payload['cookie']}")
    if payload.get("clock_was_set"):
        parts.append("the clock was set")
    scheduled_ns, next_ns = int(payload.get("scheduled_ns") or 0), int(payload.get("next_ns") or 0)
    parts.append(f"next {span_text(next_ns - scheduled_ns)} later" if next_ns else "the last")
    return ", ".join(parts)


def _tell_process(_kind: str, payload: Payload) -> str:
    who = f"pid {payload.get('pid')}"
    if payload.get("command"):
        who += f" ({safe(str(payload['command']))})"
    if payload.get("knowledge") != "known":
        return f"{who} ended, nobody knows how ({payload.get('source') or 'no source'})"
    if payload.get("signal"):
        core = ", core dumped" if payload.get("core_dumped") else ""
        end = f"was ended by {payload.get('signal_name') or 'signal ' + str(payload['signal'])}{core}"
    else:
        end = f"exited with status {payload.get('exit_status') or 0}"
    return f"{who} {end}" + ("" if payload.get("reaped") else ", not reaped yet")


def _tell_socket(kind: str, payload: Payload) -> str:
    connection = f"connection {payload['connection']} " if payload.get("connection") else ""
    peer = safe(str((payload.get("peer") or {}).get("display") or ""))
    local = safe(str((payload.get("local") or {}).get("display") or ""))
    if kind == "listening":
        return f"on {local}"
    if kind == "accepted":
        return f"{connection}from {peer or 'an unnamed peer'}" + (f" on {local}" if local else "")
    if kind == "data":
        cut = ", cut off" if payload.get("truncated") else ""
        sender = "" if connection else f"from {peer} " if peer else ""
        return f"{connection}{sender}{_data(payload, 'data')}{cut}"
    if kind == "closed":
        traffic = (
            f"{size_text(int(payload.get('bytes_in') or 0))} in, "
            f"{size_text(int(payload.get('bytes_out') or 0))} out"
        )
        error = f" (errno {payload['error_number']})" if payload.get("error_number") else ""
        return f"{connection}{payload.get('reason') or ''}{error}, {traffic}"
    return connection or _tell_any(kind, payload)


def _tell_user(_kind: str, payload: Payload) -> str:
    sender = f"from pid {payload.get('sender_pid')}, uid {payload.get('sender_uid')}"
    return f"{safe(str(payload.get('channel') or ''))} {_data(payload, 'payload')} {sender}"


def _tell_any(_kind: str, payload: Payload) -> str:
    facts = ((name, value) for name, value in payload.items() if value not in (None, "", 0, False, [], {}))
    return " ".join(f"{name}={safe(str(value))}" for name, value in facts)


def _data(payload: Payload, name: str) -> str:
    """The beginning of a field of bytes: text, or, where it is none, how many bytes."""
    encoded = payload.get(f"{name}_base64")
    if encoded is not None:
        return f"{len(encoded) * 3 // 4 - encoded[-2:].count('=')} bytes that are no text"
    return preview(str(payload.get(name) or ""))


_TELL: Mapping[str, Callable[[str, Payload], str]] = {
    "timer": _tell_timer,
    "process": _tell_process,
    "socket": _tell_socket,
    "user": _tell_user,
}
