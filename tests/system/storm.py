"""A storm of connections, run inside the box: connect, call, read the answer, close; again and again.

Each connection is new and the call is made by hand, without a library that would try again. Runs until its
standard input ends, then prints one JSON object: how many were answered, and what went wrong how often.
"""

import collections
import json
import select
import socket
import sys
import threading

from aemd.peer.call import Call, CallError

METHOD = "/aem.v1.ModuleService/ListModules"
PATIENCE = 30


def call_once(path: str) -> str:
    """How one connection went; empty if it was answered."""
    call = Call(METHOD, b"")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(path)
        except OSError as error:
            return f"connect: {error.strerror}"
        try:
            sock.sendall(call.request)
            while not call.feed(sock.recv(65_536)):
                pass
        except (OSError, CallError) as error:
            return f"call: {error}"
    return ""


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    outcomes: collections.Counter[str] = collections.Counter()
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            outcome = call_once(path)
            outcomes[outcome] += 1
            over.wait(0.001)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    select.select([sys.stdin], [], [])
    over.set()
    for worker in workers:
        worker.join()
    answered = outcomes.pop("", 0)
    print(json.dumps({"answered": answered, "failed": outcomes}))


if __name__ == "__main__":
    main()
