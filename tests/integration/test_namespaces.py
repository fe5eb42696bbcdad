"""A client in a pid and user namespace of its own, against a real daemon: every pid is one that it knows."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
NOBODY = 65_534

# Imports first: the interpreter may lie in a folder that nobody can enter.
CLIENT = """
import ctypes, json, os, socket, sys
import aem, grpc._channel
uid, flags = map(int, sys.argv[1:])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
assert ctypes.CDLL(None).unshare(flags) == 0
if init := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]))
reader, writer = os.pipe()
child = os.fork()
if not child:
    os.read(reader, 1)
    os._exit(7)
told = {"child": child}
with aem.Client() as client:
    caller = client.status().caller
    told["caller"] = [caller.pid, caller.administrator]
    ended = client.events("process", pid=child)
    heard = client.events("user", channel="c")
    told["job"] = [job.pid for job in client.list_jobs()]
    told["sessions"] = [session.principal.pid for session in client.list_sessions()]
    client.raise_event("c", b"x")
    told["sender"] = next(iter(heard)).message.user.sender_pid
    os.write(writer, b"x")
    event = next(iter(ended)).message.process
    told["process"] = [event.pid, event.exit_status]
    address = f"unix:@aemd-test-{os.environ['NAME']}"
    accepted = client.events("socket", listen=address)
    peer = socket.socket(socket.AF_UNIX)
    peer.connect("\\0" + address[6:])
    for event in accepted:
        if event.type == "accepted":
            told["peer"] = event.message.socket.credentials.pid
            break
    try:
        client.events("process", pid=int(os.environ["OUTSIDE"]))
    except aem.AemError as error:
        told["outside"] = error.reason
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    ("uid", "flags"),
    [(0, CLONE_NEWPID), (0, CLONE_NEWPID | CLONE_NEWUSER), (NOBODY, CLONE_NEWPID | CLONE_NEWUSER)],
    ids=["root", "root-of-a-container", "user-of-a-container"],
)
def test_every_pid_is_one_of_the_clients_own_namespace(daemon, uid, flags):
    environment = {**os.environ, "NAME": str(os.getpid()), "OUTSIDE": str(os.getpid())}
    said = subprocess.run(
        [sys.executable, "-c", CLIENT, str(uid), str(flags)],
        capture_output=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert said.returncode == 0, said.stderr.decode()
    told = json.loads(said.stdout)
    assert told == {
        "child": 2,
        "caller": [1, False],
        "job": [1, 1],
        "sessions": [1],
        "sender": 1,
        "process": [2, 7],
        "peer": 1,
        "outside": "PROCESS_GONE",
    }
