"""Events and gaps as JSON can hold them, for the commands that the daemon runs.

A row is what the SDK's `to_dict()` makes of the same entry, name for name: the SDK must not need the daemon,
and the daemon must not load the SDK, so each has its own, and a test holds them to be equal.
"""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf import descriptor_pool, json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from aemd.core.entry import Entry
from aemd.core.job import Job
from aemd.service.feed import Row
from aemd.v1 import event_pb2, session_pb2

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
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.type == field.TYPE_BYTES and not field.is_repeated:
            try:
                found[field.name] = value.decode()
            except UnicodeDecodeError:
                found[field.name + "_base64"] = base64.b64encode(value).decode()
        elif field.is_repeated:
            found[field.name] = _repeated(field, value)
        elif field.type == field.TYPE_MESSAGE and not message.HasField(field.name):
            found[field.name] = None
        else:
            found[field.name] = _item(field, value)
    return found


def _repeated(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {str(name): _item(inner, item) for name, item in value.items()}
    return [_item(field, item) for item in value]


def _item(field: Any, item: Any) -> Any:
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


def _word(kind: Any, number: int) -> str:
    """CAUSE_SOURCE_FAILED of Cause as source-failed; UNSPECIFIED as nothing."""
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    word: str = value.name.removeprefix(prefix)
    return "" if word == "UNSPECIFIED" else word.lower().replace("_", "-")
