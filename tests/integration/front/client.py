"""A client with an identity of its own: client.py SOCKET UID[:GROUP,...].

It says who the daemon takes it for and stays connected until its stdin ends. It must be started as root
to become somebody else; gRPC is imported before, because the interpreter may be in a folder that the other
user cannot read.
"""

import os
import sys

import grpc
import grpc._channel

path, identity = sys.argv[1:]
uid, _, groups = identity.partition(":")
if int(uid) != os.geteuid():
    os.setgroups([int(group) for group in groups.split(",") if group])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
with grpc.insecure_channel(f"unix:{path}") as channel:
    call = channel.stream_stream("/aem.v1.EventService/Session")(iter([b'{"do": "who"}']), timeout=20)
    print(next(call).decode(), flush=True)
    sys.stdin.read()
