"""A client of another user with bad intentions: hostile.py WHAT SOCKET UID.

It begins as root: the interpreter may lie in a folder that only root can enter.
"""

import os
import sys

from google.rpc import error_details_pb2

from tests.integration.conftest import Client


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


def main(what, path, uid):
    become(int(uid))
    with Client(path) as client:
        print({"listen": listen}[what](client), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
