"""Handlers, and what their results mean for the event."""

from __future__ import annotations

import logging
from typing import Any

from aem._binding import SUCCESS, Entry, Outcome
from aem._registration import Registration
from aem.errors import Park, Reply, Retry
from aem.events import Event, Gap, make_event
from aem.v1 import session_pb2

log = logging.getLogger("aem")

ERROR_CHARACTERS_MAX = 1_000  # of what a handler raised, told to the daemon


def event_of(entry: Entry) -> Event | Gap:
    """What the handler gets for `entry`."""
    job = entry.binding.registration.job
    if entry.gap is not None:
        return Gap(entry.gap, job)
    return make_event(entry.parse(), job, entry.first, entry.last, entry.epoch, entry.attempts)


def note_room(registration: Registration, event: Event | Gap) -> None:
    """Keep count of what may be written to the connection of `event`."""
    if registration.module != "socket" or isinstance(event, Gap):
        return
    if event.type == "accepted":
        key = event.key
        registration.rooms[key] = registration.rooms.get(key, 0) + event.message.socket.room_bytes
    elif event.type == "closed":
        registration.rooms.pop(event.key, None)


def spend_room(registration: Registration, key: bytes, outcome: Outcome) -> None:
    """A reply writes to the connection, too."""
    if outcome.reply is not None and key in registration.rooms:
        registration.rooms[key] -= len(outcome.reply.data)


def outcome_of(result: Any) -> Outcome:
    """What a handler's return value says; raises TypeError for one that says nothing."""
    if result is None:
        return SUCCESS
    if isinstance(result, bytes | bytearray | memoryview):
        return Outcome(reply=Reply("write", bytes(result)))
    if isinstance(result, Reply):
        return Outcome(reply=result)
    raise TypeError(f"a handler returns None, bytes or aem.Reply, not {type(result).__name__}")


def outcome_of_exception(error: BaseException) -> Outcome:
    """What it says that a handler raised `error`."""
    if isinstance(error, Retry):
        return Outcome(nack=session_pb2.Nack(delay_ns=max(0, round(error.delay * 1e9)), reason=error.reason))
    if isinstance(error, Park):
        return Outcome(nack=session_pb2.Nack(park=True, reason=error.reason))
    return Outcome(error=summary(error))


def summary(error: BaseException) -> str:
    """One line for lists: the exception's type and what it says."""
    text = str(error).strip()
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line[:ERROR_CHARACTERS_MAX]


def failed(registration: Registration, error: BaseException) -> Outcome:
    """The outcome of a handler that raised; logged with its traceback unless it is an instruction."""
    outcome = outcome_of_exception(error)
    if outcome.error is not None:
        log.error(
            "the handler %s of job %d (%s) failed",
            registration.label or "",
            registration.id,
            registration.module,
            exc_info=error,
        )
    return outcome


def gap_unheard(gap: Gap) -> None:
    """A gap that no one asked to be told of."""
    log.warning("%r", gap)
