"""A client of another user with bad intentions: hostile.py WHAT SOCKET UID.

It begins as root: the interpreter may lie in a folder that only root can enter.
"""

import os
import sys

from google.rpc import error_details_pb2

from aemd.v1 import session_pb2
from tests.integration.conftest import Client, register_frame

LISTENERS = 20_000


def become(uid):
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def reason(status):
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return f"{info.reason} {info.metadata.get('subject', '')}"


def listen(client):
    """Open sockets until there are no more."""
    session = client.session()
    count = 0
    while True:
        answer = session.register("socket", listen=f"unix:@aemd-hostile-{os.getpid()}-{count}")
        if not hasattr(answer, "job"):
            return f"{count} {reason(answer)}"
        count += 1


def anywhere(client):
    """Listen where the daemon is, from a network of its own."""
    session = client.session()
    told = [session.register("socket", listen=listen) for listen in ("tcp:127.0.0.1:0", "udp::0", "unix:@x")]
    return " ".join("allowed" if hasattr(answer, "job") else reason(answer).strip() for answer in told)


def fan_out(client):
    """One Raise that would fire twenty million times, then as many that may be as fit in the window."""
    session = client.session()
    numbers = iter(range(1, LISTENERS + 1))
    for _ in range(LISTENERS // 1_000):
        register = register_frame("user", channel="c", options={"queue_depth": 1})
        session.send_bundle(
            [session_pb2.ClientFrame(request_id=next(numbers), register=register) for _ in range(1_000)]
        )
        for _ in range(1_000):
            session.skip_to("registered")
    refused = session.ask(**{"raise": session_pb2.Raise(channel="c", payloads=[b"x"] * 1_024)})
    for _ in range(2_000):
        session.send(**{"raise": session_pb2.Raise(channel="c", payloads=[b"x"] * 13)})
    return reason(refused.result.status)


def main(what, path, uid):
    become(int(uid))
    with Client(path) as client:
        print({"anywhere": anywhere, "listen": listen, "fan_out": fan_out}[what](client), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
