"""A user who takes of everything until it is refused, and keeps it.

tenant.py SOCKET UID counts|rates: begins as root, for the interpreter may lie in a folder that nobody else
can enter. Prints how much of each resource it was given, with what the refusal said, as JSON; then waits to
be killed.
"""

import json
import os
import socket
import sys

import grpc
from google.rpc import error_details_pb2, status_pb2

from aemd.v1 import admin_pb2, job_pb2, session_pb2
from tests.integration.conftest import Client, register_frame

ENOUGH = 100  # of anything; no quota in these tests is so high
PAYLOAD = bytes(1_000)


def facts(details):
    """What the ErrorInfo among the details of a refusal says, and which other details there are."""
    info = error_details_pb2.ErrorInfo()
    assert details[0].Unpack(info)
    found = dict(info.metadata)
    found["details"] = [detail.type_url.rpartition(".")[2] for detail in details]
    return found


def until_refused(take):
    """How often `take(number)` returned nothing, and the refusal that it returned then."""
    for number in range(ENOUGH):
        refusal = take(number)
        if refusal:
            return [number, refusal]
    raise AssertionError("never refused")


class Tenant:
    """One process of a user."""

    def __init__(self, path):
        self.path = path
        self.client = Client(path)
        self.sessions = [self.client.session()]
        self.kept = []

    def session(self, _number):
        raw = self.client.raw()
        try:
            raw.hello()
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata())
            return facts(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details)
        self.sessions.append(raw)
        return None

    def job(self, module, options=None, credit=None, **params):
        answer = self.sessions[0].register(module, options=options, credit=credit, **params)
        return None if hasattr(answer, "job") else facts(answer.details)

    def connection(self, _number):
        sock = socket.socket(socket.AF_UNIX)
        self.kept.append(sock)
        sock.connect(self.path)
        sock.settimeout(20 if len(self.kept) > 4 else 0.05)
        try:
            return "closed" if sock.recv(1) == b"" else None
        except TimeoutError:
            return None

    def counts(self):
        """Resources that are counted: one way to each."""
        none = job_pb2.Credit()
        taken = {"sessions": until_refused(self.session)}
        taken["channels"] = until_refused(lambda number: self.job("user", credit=none, channel=f"c{number}"))
        taken["queue_bytes"] = self.queue()
        name = f"unix:@aemd-tenant-{os.getpid()}-"
        taken["sources"] = until_refused(lambda number: self.job("socket", listen=f"{name}{number}"))
        taken["jobs"] = until_refused(lambda _: self.job("timer", after="1h"))
        taken["connections"] = until_refused(self.connection)
        return taken

    def queue(self):
        """Events for a job that takes none, until they are lost: how many it keeps, and why not more."""
        raised = session_pb2.Raise(channel="c0", payloads=[PAYLOAD] * ENOUGH)
        other = self.sessions[1]
        assert other.ask(**{"raise": raised}).result.status.code == 0
        gap = self.sessions[0].skip_to("gap")
        (used,) = self.quotas().values()
        return [ENOUGH - gap.count, session_pb2.Cause.Name(gap.cause), used["queue_bytes"]]

    def rates(self):
        """What is so much a second, each time asked for in one message; and descriptors."""
        registers = [register_frame("timer", after="1h") for _ in range(20)]
        taken = {"registrations_per_second": self.burst([{"register": frame} for frame in registers])}
        while self.job("user", channel="c"):
            pass  # until there is a registration again
        raised = session_pb2.Raise(channel="c", payloads=[b""])
        taken["events_per_second"] = self.burst([{"raise": raised}] * 20)
        name = f"unix:@aemd-tenant-{os.getpid()}-"
        taken["descriptors"] = until_refused(lambda number: self.listener(f"{name}{number}"))
        return taken

    def listener(self, address):
        while (refusal := self.job("socket", listen=address)) and refusal["key"].endswith("_per_second"):
            pass
        return refusal

    def burst(self, bodies):
        """How many of these requests were granted before the first refusal, and what that said."""
        numbers = range(1_000_000, 1_000_000 + len(bodies))
        frames = [
            session_pb2.ClientFrame(request_id=number, **body)
            for number, body in zip(numbers, bodies, strict=True)
        ]
        self.sessions[0].send_bundle(frames)
        answers = {}
        while len(answers) < len(bodies):
            frame = self.sessions[0].next()
            if frame.request_id in numbers:
                answers[frame.request_id] = frame.result.status
        refused = [number for number in numbers if answers[number].code]
        return [refused[0] - numbers[0], facts(answers[refused[0]].details)]

    def quotas(self):
        """What it is told of its own user."""
        listed = self.client.call(
            "AdminService/ListQuotas", admin_pb2.ListQuotasRequest(), admin_pb2.ListQuotasResponse
        )
        return {user.uid: {use.resource: use.used for use in user.uses} for user in listed.users}


def become(uid):
    if uid == os.geteuid():
        return
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main(path, uid, which):
    become(int(uid))
    tenant = Tenant(path)
    taken = tenant.counts() if which == "counts" else tenant.rates()
    print(json.dumps({"taken": taken, "quotas": tenant.quotas()}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
