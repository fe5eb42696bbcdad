"""A client of another user that registers sockets with paths: pathfinder.py SOCKET UID COUNT PATH_OF_NUMBER.

It begins as root: the interpreter may lie in a folder that only root can enter. It says one line of JSON, how
many were registered and what the refusals said, and goes when its standard input ends.
"""

import json
import os
import queue
import sys
import threading
from collections import Counter

import grpc

from aemd.v1 import session_pb2


def registrations(count, path):
    yield session_pb2.ClientFrame(hello=session_pb2.Hello(version_min=1, version_max=1))
    for start in range(0, count, 250):
        frames = []
        for number in range(start, min(start + 250, count)):
            register = session_pb2.Register(module="socket", start=True)
            register.params["listen"].text = path.replace("#", str(number))
            frames.append(session_pb2.ClientFrame(request_id=number + 1, register=register))
        yield session_pb2.ClientFrame(bundle=session_pb2.ClientBundle(frames=frames))


def main(socket, uid, count, path):
    out, told = queue.SimpleQueue(), Counter()
    done = threading.Event()
    for frame in registrations(count, path):
        out.put(frame)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.umask(0o077)
    channel = grpc.insecure_channel(f"unix:{socket}")
    call = channel.stream_stream(
        "/aem.v1.EventService/Session",
        request_serializer=session_pb2.ClientFrame.SerializeToString,
        response_deserializer=session_pb2.ServerFrame.FromString,
    )(iter(out.get, None), wait_for_ready=True)

    def read():
        try:
            for message in call:
                for frame in message.bundle.frames if message.HasField("bundle") else (message,):
                    if frame.HasField("registered"):
                        told["registered"] += 1
                    elif frame.HasField("result") and frame.request_id:
                        told[frame.result.status.message] += 1
                if told.total() == count:
                    done.set()
        except grpc.RpcError as error:
            told[f"stream: {error.code().name}"] += 1
            done.set()

    threading.Thread(target=read, daemon=True).start()
    done.wait(100)
    print(json.dumps(told), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
