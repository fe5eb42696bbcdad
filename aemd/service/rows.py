"""Events and gaps as JSON can hold them, for the commands that the daemon runs.

A row is what the SDK's `to_dict()` makes of the same entry, name for name: the SDK must not need the daemon,
and the daemon must not load the SDK, so each has its own, and a test holds them to be equal.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pool, json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from aemd.core.entry import Entry
from aemd.core.job import Job
from aemd.service.feed import Row
from aemd.v1 import event_pb2, session_pb2

_PLAIN, _BYTES, _LIST, _MAP, _MESSAGE, _ENUM = range(6)
_WELL_KNOWN = frozenset(  # have a JSON form of their own
    f"google.protobuf.{name}"
    for name in (
        *("Duration", "Empty", "FieldMask", "ListValue", "Struct", "Timestamp", "Value"),
        *("BoolValue", "BytesValue", "DoubleValue", "FloatValue", "StringValue"),
        *("Int32Value", "Int64Value", "UInt32Value", "UInt64Value"),
    )
)


def entry_row(job: Job, epoch: int, entry: Entry) -> Row:
    """An entry of a job as JSON can hold it."""
    place: Row = {
        "module": job.traits.name,
        "type": "gap",
        "job": job.id,
        "epoch": epoch,
        "first": entry.first,
        "seq": entry.last,
        "count": entry.last - entry.first + 1,
        "attempts": entry.attempts,
    }
    loss = entry.loss
    if loss is not None:
        return place | {
            "count": 0 if loss.unknown else place["count"],
            "stage": _word(session_pb2.Stage.DESCRIPTOR, loss.stage),
            "cause": _word(session_pb2.Cause.DESCRIPTOR, loss.cause),
            "scope": loss.scope,
            "remedy": _word(session_pb2.Remedy.DESCRIPTOR, loss.remedy),
        }
    event = event_pb2.Event.FromString(entry.event)
    return place | {
        "type": event.type,
        "real_time_ns": event.real_time_ns,
        "mono_time_ns": event.mono_time_ns,
        "key": event.key.hex(),
        "redacted": list(event.redacted),
        "payload": _payload(event),
    }


def _payload(event: event_pb2.Event) -> Row | None:
    which = event.WhichOneof("payload")
    if which is None:
        return None
    found = _message(_unpacked(event) if which == "any" else getattr(event, which))
    return found if isinstance(found, dict) else {"value": found}


def _unpacked(event: event_pb2.Event) -> Message:
    """What is packed in `any`, if this process knows its type, else the Any itself."""
    try:
        kind = descriptor_pool.Default().FindMessageTypeByName(event.any.TypeName())
    except KeyError:
        return event.any
    found = GetMessageClass(kind)()
    return found if event.any.Unpack(found) else event.any


def _message(message: Message) -> Any:
    if message.DESCRIPTOR.full_name in _WELL_KNOWN:
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    found: Row = {}
    for name, how, kind in _plan(message.DESCRIPTOR):
        value = getattr(message, name)
        if how == _BYTES:
            try:
                found[name] = value.decode()
            except UnicodeDecodeError:
                found[name + "_base64"] = base64.b64encode(value).decode()
        elif how == _LIST:
            found[name] = [_item(kind, item) for item in value]
        elif how == _MAP:
            found[name] = {str(key): _item(kind, item) for key, item in value.items()}
        elif how == _MESSAGE:
            found[name] = _message(value) if message.HasField(name) else None
        else:
            found[name] = _word(kind, value) if how == _ENUM else value
    return found


@lru_cache(maxsize=1_024)
def _plan(descriptor: Any) -> list[tuple[str, int, Any]]:
    """The fields of a kind of message: name, how they are shown, and of what type they or their items are."""
    return [(field.name, *_how(field)) for field in descriptor.fields]


def _how(field: Any) -> tuple[int, Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _MAP, field.message_type.fields_by_name["value"]
    if field.is_repeated:
        return _LIST, field
    if field.type == field.TYPE_BYTES:
        return _BYTES, None
    if field.type == field.TYPE_MESSAGE:
        return _MESSAGE, None
    return (_ENUM, field.enum_type) if field.type == field.TYPE_ENUM else (_PLAIN, None)


def _item(field: Any, item: Any) -> Any:
    """One of several values, of the type of `field`."""
    if field.type == field.TYPE_MESSAGE:
        return _message(item)
    if field.type == field.TYPE_ENUM:
        return _word(field.enum_type, item)
    if field.type == field.TYPE_BYTES:
        try:
            return item.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(item).decode()}
    return item


@lru_cache(maxsize=1_024)
def _word(kind: Any, number: int) -> str:
    """CAUSE_SOURCE_FAILED of Cause as source-failed; UNSPECIFIED as nothing."""
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    word: str = value.name.removeprefix(prefix)
    return "" if word == "UNSPECIFIED" else word.lower().replace("_", "-")
