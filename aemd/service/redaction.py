"""Fields that policy takes out of events.

A rule names them as they are called in the module's payload message, with dots where one is inside another.
An event of a job under such a rule is decoded, the fields are cleared, all their names are written into
Event.redacted, whether the event had them or not, and it is encoded again. Other jobs pay nothing for this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from aemd.v1 import event_pb2


def message_of(payload_message: str) -> Descriptor | None:
    """The description of a module's payload; None if this process does not know the message."""
    try:
        return descriptor_pool.Default().FindMessageTypeByName(payload_message)
    except KeyError:
        return None


def unknown_field(path: str, payload_message: str) -> str:
    """What is wrong with a field that is to be taken out; empty if the payload has it."""
    message = message_of(payload_message)
    if message is None:
        return (
            "it does not say what its events hold" if not payload_message else f"no message {payload_message}"
        )
    names = path.split(".")
    for depth, name in enumerate(names):
        field = message.fields_by_name.get(name) if message is not None else None
        if field is None:
            known = list(message.fields_by_name) if message is not None else []
            near = get_close_matches(name, known, n=1)
            guess = f"; did you mean {'.'.join([*names[:depth], near[0]])}?" if near else ""
            there = f"; there are {', '.join(known)}" if known else ""
            return f"its events have no field {path}{guess}{there}"
        message = field.message_type
    return ""


def redactor(paths: Sequence[str], payload_message: str) -> Callable[[bytes], bytes]:
    """What takes the fields `paths` out of an encoded Event whose payload is a `payload_message`.

    Of a payload that is something else nothing is known, so nothing of it passes.
    """
    split = [path.split(".") for path in paths]
    field = _event_field(payload_message)
    packed = message_of(payload_message) if field is None else None

    def redact(encoded: bytes) -> bytes:
        event = event_pb2.Event.FromString(encoded)
        if event.WhichOneof("payload") != (field or "any"):
            event.ClearField("payload")
        elif field is not None:
            payload: Message = getattr(event, field)
            for names in split:
                _clear(payload, names)
        elif packed is not None:
            payload = GetMessageClass(packed)()
            if event.any.Unpack(payload):
                for names in split:
                    _clear(payload, names)
                event.any.Pack(payload)
            else:
                event.ClearField("payload")
        else:
            event.ClearField("payload")
        event.redacted.extend(paths)
        return event.SerializeToString()

    return redact


def _event_field(payload_message: str) -> str | None:
    for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields:
        message = field.message_type
        if field.name != "any" and message is not None and message.full_name == payload_message:
            return field.name
    return None


def _clear(message: Message, names: Sequence[str]) -> None:
    """Clear a field; of a list of messages in each of them."""
    field = message.DESCRIPTOR.fields_by_name.get(names[0])
    if field is None:
        return
    if len(names) == 1:
        message.ClearField(names[0])
        return
    inner = getattr(message, names[0])
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        message.ClearField(names[0])  # what stands in it has no name that could be given
    elif field.is_repeated:
        for each in inner:
            _clear(each, names[1:])
    elif message.HasField(names[0]):
        _clear(inner, names[1:])
