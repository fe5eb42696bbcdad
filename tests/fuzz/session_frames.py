"""Frames that a client could send: likely ones, absurd ones, and bytes that are no frames at all.

Everything is made by a `random.Random`, so that a test needs to draw one number for a frame, and shrinking
drops whole frames instead of bits of them.
"""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor

from aemd.v1 import job_pb2, session_pb2

DEPTH_MAX = 4
INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, 1, 2, 3, 7, 8, 99, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    FieldDescriptor.TYPE_INT32: (0, 1, 2, -1, (1 << 31) - 1, -(1 << 31)),
    FieldDescriptor.TYPE_UINT64: (0, 1, 2, 3, 4, 5, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT64: (0, 1, 2, -1, 1_000_000, 10**9, 1 << 40, (1 << 63) - 1, -(1 << 63)),
    FieldDescriptor.TYPE_ENUM: (0, 1, 2, 3, 4, 5, 99, -1, (1 << 31) - 1),
}
WORDS = (
    *("", "timer", "user", "socket", "process", "every", "after", "at", "calendar", "channel", "listen"),
    *("pid", "uid", "cookie", "accuracy", "clock", "1ms", "1h", "c", "monotonic", "realtime", "1", "-1"),
    *("unix:@aemd-fuzz", "tcp:127.0.0.1:0", "*-*-* *:*:*", "* * * * *", "write", "close", "x" * 300),
    *("0", "9223372036854775807", "\0", "\u00e9\U0001f980", "infinity", "2262-04-11T23:47:17Z"),
)
BLOBS = (b"", b"x", b"\0" * 8, b"\0" * 7 + b"\1", b"\xff" * 8, b"payload" * 40)
PARAMS = (
    ("user", {"channel": "c"}),
    ("user", {"channel": "c"}),
    ("user", {"channel": "d"}),
    ("timer", {"every": "1ms"}),
    ("timer", {"every": 1 << 62}),
    ("timer", {"after": 0}),
    ("timer", {"at": (1 << 63) - 1}),
    ("timer", {"calendar": "*-*-* *:*:*", "accuracy": "1s"}),
    ("timer", {"every": "1h", "cookie": -1}),
    ("process", {"pid": 1}),
    ("process", {"pid": 4194304}),
    ("socket", {"listen": "unix:@"}),
    ("socket", {"listen": "tcp:127.0.0.1:0", "framing": "line"}),
    ("socket", {"listen": "udp:127.0.0.1:0"}),
)
FRAMES = [field.name for field in session_pb2.ClientFrame.DESCRIPTOR.oneofs_by_name["frame"].fields]


def fill(message, rng, depth=0):
    """Give fields of `message` any values that the wire can carry."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(rng.randrange(3)):
                _fill_one(getattr(message, field.name)[rng.choice(WORDS)], rng, depth)
        elif field.is_repeated:
            for _ in range(rng.randrange(4)):
                if field.message_type is None:
                    getattr(message, field.name).append(scalar(field, rng))
                else:
                    _fill_one(getattr(message, field.name).add(), rng, depth)
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            _fill_one(getattr(message, field.name), rng, depth)
        else:
            setattr(message, field.name, scalar(field, rng))
    return message


def _fill_one(message, rng, depth):
    if depth < DEPTH_MAX:
        fill(message, rng, depth + 1)


def scalar(field, rng):
    """Any value of a field that is no message."""
    if field.type in INTEGERS:
        return rng.choice(INTEGERS[field.type])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(WORDS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice(BLOBS)
    return rng.choice((0.0, 1.0, -1.5, 1e300, float("inf"), float("nan")))


def any_frame(rng):
    """A frame whose every field may hold anything."""
    frame = session_pb2.ClientFrame(request_id=rng.choice((0, 1, (1 << 64) - 1)))
    name = rng.choice([name for name in FRAMES if name not in ("hello", "bundle")])
    body = getattr(frame, name)
    body.SetInParent()
    fill(body, rng)
    return frame


def likely_frame(rng, request_id):
    """A frame as a client in its right mind could send it."""
    frame = session_pb2.ClientFrame(request_id=request_id)
    name = rng.choice(("register", "register", "register", "raise", "ack", "complete", "grant", "other"))
    if name == "register":
        _register(frame.register, rng)
    elif name == "raise":
        body = getattr(frame, "raise")
        body.channel = rng.choice("cd")
        body.payloads.extend(rng.choice(BLOBS) for _ in range(rng.randrange(1, 5)))
    elif name == "other":
        _other(frame, rng)
    else:
        body = getattr(frame, name)
        body.binding = rng.randrange(8)
        if name == "grant":
            body.credit.events = body.credit.bytes = rng.choice((1, 100, 1 << 20))
        else:
            body.cursor.epoch, body.cursor.seq = 1, rng.randrange(12)
    return frame


def _register(body, rng):
    body.module, params = rng.choice(PARAMS)
    for name, value in params.items():
        kind = "integer" if isinstance(value, int) else "text"
        setattr(body.params[name], kind, value)
    body.start = rng.random() < 0.8
    options = body.options
    options.one_shot = rng.random() < 0.2
    options.queue_depth = rng.choice((0, 0, 1, 2, 65_536))
    options.queue_bytes = rng.choice((0, 0, 1, 100))
    options.acknowledgement = rng.choice((0, 0, 1, 2, 3))
    options.overflow = rng.choice((0, 0, 1, 2, 3, 4))
    options.ack_timeout_ns = rng.choice((0, 0, 1_000_000, (1 << 63) - 1))
    options.attempts_max = rng.choice((0, 0, 1, (1 << 32) - 1))
    options.lease_ns = rng.choice((0, 0, 1, 10**9))
    if rng.random() < 0.3:
        body.credit.events = body.credit.bytes = rng.choice((0, 1, (1 << 64) - 1))


def _other(frame, rng):
    name = rng.choice(("unbind", "start", "stop", "shutdown", "set_priority", "nack", "op", "sync", "bind"))
    body = getattr(frame, name)
    body.SetInParent()
    if name in ("unbind", "nack"):
        body.binding = rng.randrange(8)
    elif name == "sync":
        body.jobs.extend(rng.randrange(1, 8) for _ in range(rng.randrange(3)))
    else:
        body.job = rng.randrange(1, 12)
    if name == "nack":
        body.cursor.epoch, body.cursor.seq = 1, rng.randrange(12)
        body.delay_ns = rng.choice((0, 1, 10**9))
        body.park = rng.random() < 0.3
    elif name == "op":
        body.key = rng.choice(BLOBS)
        body.operation.name = rng.choice(("write", "write-close", "pause", "resume", "shutdown", "close"))
        body.operation.data = rng.choice(BLOBS)
    elif name == "shutdown":
        body.deadline_ns = rng.choice((0, 1, 10**9))
    elif name == "set_priority":
        body.priority = rng.randrange(9)


def mutated(message, rng):
    """The bytes of a frame, some of them changed."""
    data = bytearray(message)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                del data[at : at + rng.randrange(1, 5)]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 5))
            case 3:
                data[at:at] = data[:at]
    return bytes(data[:4096])


def message(rng, request_id):
    """(the bytes of one message of a stream, whether they are a frame that must be answered)."""
    kind = rng.random()
    if kind < 0.6:
        return likely_frame(rng, request_id).SerializeToString(), True
    if kind < 0.8:
        return any_frame(rng).SerializeToString(), False
    if kind < 0.985:
        frames = [
            rng.choice((any_frame(rng), likely_frame(rng, 0))) for _ in range(rng.choice((1, 2, 5, 30)))
        ]
        bundle = session_pb2.ClientBundle(frames=frames)
        return session_pb2.ClientFrame(bundle=bundle).SerializeToString(), False
    return mutated(rng.choice((any_frame(rng), likely_frame(rng, 1))).SerializeToString(), rng), False


def hello(rng=None):
    """The bytes of a Hello, a good one or any."""
    body = session_pb2.Hello(version_min=1, version_max=1)
    if rng is not None:
        fill(body, rng)
        for _ in range(rng.randrange(3)):
            cursor = job_pb2.Cursor(epoch=rng.choice((0, 1, 2)), seq=rng.choice((0, 1, (1 << 64) - 1)))
            body.received.add(binding=rng.randrange(5), cursor=cursor)
    return session_pb2.ClientFrame(hello=body).SerializeToString()
