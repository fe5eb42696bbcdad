"""A client process that has one of everything: victim.py SOCKET FOLDER LEASE_NS.

It says "ready" once all of it is armed, and then does the word it reads: half-close, cancel (and stays), exit
(without a goodbye), or nothing until it is killed.
"""

import os
import queue
import sys
import threading

import grpc

from aemd.v1 import session_pb2

TIMERS = 10


def frames(path, lease_ns, out):
    jobs = [("timer", "every", "10ms")] * TIMERS + [
        ("socket", "listen", f"unix:{path}/victim"),
        ("process", "pid", str(os.getppid())),
        ("user", "channel", "c"),
    ]
    yield session_pb2.ClientFrame(hello=session_pb2.Hello(version_min=1, version_max=1))
    for number, (module, name, text) in enumerate(jobs, 1):
        register = session_pb2.Register(module=module, start=True)
        register.params[name].text = text
        register.options.lease_ns = lease_ns
        yield session_pb2.ClientFrame(request_id=number, register=register)
    yield session_pb2.ClientFrame(request_id=len(jobs) + 1, stop=session_pb2.Stop(job=0))
    yield from iter(out.get, None)


def read(call, ready):
    answered = set()
    try:
        for frame in call:
            for each in frame.bundle.frames if frame.HasField("bundle") else (frame,):
                if each.request_id:
                    answered.add(each.request_id)
                if len(answered) > TIMERS + 3:
                    ready.set()  # all have been answered; one that looks at a path after others
    except grpc.RpcError:
        pass


def main(socket, path, lease_ns):
    out, ready = queue.SimpleQueue(), threading.Event()
    channel = grpc.insecure_channel(f"unix:{socket}")
    call = channel.stream_stream(
        "/aem.v1.EventService/Session",
        request_serializer=session_pb2.ClientFrame.SerializeToString,
        response_deserializer=session_pb2.ServerFrame.FromString,
    )(frames(path, lease_ns, out))
    reader = threading.Thread(target=read, args=(call, ready), daemon=True)
    reader.start()
    assert ready.wait(20)
    print("ready", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "exit":
            os._exit(0)
        if word == "half-close":
            out.put(None)
            reader.join(20)
        if word == "cancel":
            call.cancel()
            reader.join(20)
        print(word, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
