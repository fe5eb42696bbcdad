"""Protobuf messages as plain values: what `-o json` prints and what the tables are made of.

protobuf's own JSON writes 64-bit numbers as text and leaves out whatever is zero. Programs that read
`aemctl -o json` are better served by numbers (nanoseconds as whole numbers) and by fields that are
always there. Enumerations are words as the SDK has them: armed, drop-oldest; unspecified is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

TYPE_MESSAGE, TYPE_ENUM, TYPE_BYTES = 11, 14, 12  # FieldDescriptor.TYPE_*; importing it costs 80 ms


def plain(message: Message) -> dict[str, Any]:
    """A message as a dict with all its fields by name; an absent message or optional value is None."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            result[field.name] = _repeated(field, value)
        elif field.has_presence and not message.HasField(field.name):
            result[field.name] = None
        else:
            result[field.name] = _single(field, value)
    return result


def value_plain(value: Message) -> Any:
    """What an aem.v1.Value holds: text, a number, a truth value or a list."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    held = getattr(value, kind)
    if kind == "list":
        return [value_plain(one) for one in held.values]
    return _text(held) if kind == "data" else held


def enum_name(enum: Any, number: int) -> str:
    """STATE_ARMED as armed; a value that a newer daemon has added stays a number."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    word: str = value.name.removeprefix(enum.values_by_number[0].name.removesuffix("UNSPECIFIED"))
    return "" if word == "UNSPECIFIED" else word.lower().replace("_", "-")


def _repeated(field: Any, value: Any) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        of = kind.fields_by_name["value"]
        return {str(name): _single(of, value[name]) for name in sorted(value)}
    return [_single(field, one) for one in value]


def _single(field: Any, value: Any) -> Any:
    if field.type == TYPE_MESSAGE:
        return value_plain(value) if field.message_type.full_name == "aem.v1.Value" else plain(value)
    if field.type == TYPE_ENUM:
        return enum_name(field.enum_type, value)
    return _text(value) if field.type == TYPE_BYTES else value


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
