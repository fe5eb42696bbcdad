"""Messages of protobuf as JSON can hold them, for Event.to_dict() and what is built on it."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from google.protobuf import (
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import Message

# Also imported so that they are known when one comes in an Any.
_WELL_KNOWN = frozenset(
    kind.DESCRIPTOR.full_name
    for kind in (
        duration_pb2.Duration,
        empty_pb2.Empty,
        field_mask_pb2.FieldMask,
        struct_pb2.ListValue,
        struct_pb2.Struct,
        struct_pb2.Value,
        timestamp_pb2.Timestamp,
        wrappers_pb2.BoolValue,
        wrappers_pb2.BytesValue,
        wrappers_pb2.DoubleValue,
        wrappers_pb2.FloatValue,
        wrappers_pb2.Int32Value,
        wrappers_pb2.Int64Value,
        wrappers_pb2.StringValue,
        wrappers_pb2.UInt32Value,
        wrappers_pb2.UInt64Value,
    )
)


def payload_dict(message: Message) -> dict[str, Any]:
    """message_dict(), also of the types of google.protobuf that have a JSON form of their own.

    One that is no object there, such as a Timestamp, is called `value`, as protobuf's JSON does it in an Any.
    """
    found = _message(message)
    return found if isinstance(found, dict) else {"value": found}


def _message(message: Message) -> Any:
    if message.DESCRIPTOR.full_name in _WELL_KNOWN:
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    return message_dict(message)


def message_dict(message: Message) -> dict[str, Any]:
    """A message as JSON can hold it, by the rules of Event.to_dict()."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.type == field.TYPE_BYTES and not field.is_repeated:
            try:
                found[field.name] = value.decode()
            except UnicodeDecodeError:
                found[field.name + "_base64"] = base64.b64encode(value).decode()
        elif field.is_repeated:
            found[field.name] = _repeated(field, value)
        elif field.type == field.TYPE_MESSAGE:
            found[field.name] = _message(value) if message.HasField(field.name) else None
        elif field.type == field.TYPE_ENUM:
            found[field.name] = enum_word(field.enum_type, value)
        else:
            found[field.name] = value
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
        return enum_word(field.enum_type, item)
    if field.type == field.TYPE_BYTES:
        try:
            return item.decode()
        except UnicodeDecodeError:
            return {"base64": binascii.b2a_base64(item, newline=False).decode()}
    return item


def enum_word(kind: Any, number: int) -> str:
    """CAUSE_SOURCE_FAILED of Cause as source-failed; UNSPECIFIED as nothing."""
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    word: str = value.name.removeprefix(prefix)
    return "" if word == "UNSPECIFIED" else word.lower().replace("_", "-")
