"""A client that stays connected, run inside the box: one call after the other over one channel of gRPC's own.

Runs until its standard input ends, then prints one JSON object: how many calls were answered, and what went
wrong how often.
"""

import collections
import json
import select
import sys

import grpc

METHOD = "/aem.v1.ModuleService/ListModules"
PATIENCE = 30


def main() -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    with grpc.insecure_channel(sys.argv[1]) as channel:
        call = channel.unary_unary(METHOD)
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                call(b"", timeout=PATIENCE, wait_for_ready=True)
                outcomes[""] += 1
            except grpc.RpcError as error:
                outcomes[f"{error.code().name}: {error.details()}"] += 1
    answered = outcomes.pop("", 0)
    print(json.dumps({"answered": answered, "failed": outcomes}))


if __name__ == "__main__":
    main()
