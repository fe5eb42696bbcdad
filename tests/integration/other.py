"""A client that becomes another user: other.py SOCKET UID [GID...]; does what each line of JSON on stdin
says, and answers with one.

It begins as root: the interpreter may lie in a folder that nobody else can enter. The session stays open
until stdin ends.
"""

import json
import os
import sys

import grpc
import grpc._channel  # grpc imports it late, when it may no longer be read
from google.protobuf import json_format

from aemd.v1 import admin_pb2, event_pb2, session_pb2
from tests.integration.conftest import Client, as_value


class Other:
    def __init__(self, path):
        self.client = Client(path)
        self.session = self.client.session()

    def register(self, module, start=True, **params):
        made = self.session.register(module, start=start, **params)
        return {"job": made.job, "binding": made.binding} if hasattr(made, "job") else refusal(made)

    def raise_(self, channel, payload, uid=None):
        body = session_pb2.Raise(channel=channel, payloads=[payload.encode()], uid=uid)
        return refusal(self.session.ask(**{"raise": body}).result.status)

    def event(self):
        """The next event, acknowledged; or the next state of a job."""
        while True:
            frame = self.session.next()
            if frame.HasField("job_state"):
                return json_format.MessageToDict(frame.job_state)
            for run in frame.batch.runs:
                last = run.first_seq + len(run.events) - 1
                cursor = {"epoch": run.epoch, "seq": last}
                complete = session_pb2.Complete(binding=run.binding, cursor=cursor)
                self.session.send(complete=complete)
                return json_format.MessageToDict(event_pb2.Event.FromString(run.events[0]))

    def explain(self, module, for_uid=None, **params):
        request = admin_pb2.ExplainPolicyRequest(module=module, uid=for_uid)
        for name, value in params.items():
            request.params[name].CopyFrom(as_value(value))
        return self._call("ExplainPolicy", request, admin_pb2.ExplainPolicyResponse)

    def reload(self):
        request = admin_pb2.ReloadConfigurationRequest()
        return self._call("ReloadConfiguration", request, admin_pb2.ReloadConfigurationResponse)

    def status(self):
        return json_format.MessageToDict(self.client.status())

    def _call(self, method, request, answer):
        try:
            told = self.client.call(f"AdminService/{method}", request, answer)
        except grpc.RpcError as error:
            return {"code": error.code().value[0], "message": error.details()}
        return json_format.MessageToDict(told, always_print_fields_with_no_presence=True)


def refusal(status):
    return {"code": status.code, "message": status.message}


def main(path, uid, *groups):
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    other = Other(path)
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked.pop("do")
        print(json.dumps(getattr(other, name)(**asked)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
