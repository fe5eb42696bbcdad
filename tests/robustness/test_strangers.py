"""Another user's jobs: no method and no frame tells them from what does not exist.

A stranger asks everything there is to ask about what is root's, in two worlds: in one it is there, in the
other it was there and has ended. All answers are the same to the byte. In the first world it asks
about numbers that never were as well: the answers differ in these numbers only.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aemd.v1 import job_pb2, session_pb2
from tests.robustness import stranger
from tests.robustness.stranger import FRAMES, METHODS, METHODS_THERE_ARE, SESSION

STRANGER = Path(__file__).parent / "stranger.py"
ABSENT_AWAY = 5  # added to a number that exists, with as many digits
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's process is started")


def test_every_method_and_every_frame_has_a_case():
    assert {*METHODS, SESSION} == set(METHODS_THERE_ARE)
    frames = session_pb2.ClientFrame.DESCRIPTOR.oneofs_by_name["frame"].fields
    assert set(FRAMES) == {field.name for field in frames}
    assert next(iter(FRAMES)) == "hello"
    for request in METHODS:
        for each in METHODS[request](stranger.Target(1, 1, b"", 1)):
            assert each.DESCRIPTOR is METHODS_THERE_ARE[request].input_type


class World:
    """A daemon, and root's session in it: jobs on a channel, one with an event in flight, one that waits."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.client = daemon.client()
        self.session = self.client.session()
        options = {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_EXPLICIT}
        self.jobs = [
            self.session.register("user", channel="c", options=options).job,
            self.session.register("user", channel="c", start=False).job,
            self.session.register("process", pid=os.getpid()).job,
        ]
        self.session.ask(**{"raise": session_pb2.Raise(channel="c", payloads=[b"secret"])})
        request = job_pb2.CreateJobRequest(
            name="kept", module="user", params={"channel": job_pb2.Value(text="kept")}
        )
        self.jobs.append(self.client.call("JobService/CreateJob", request, job_pb2.Job).id)

    def end(self):
        """Nothing is left of it."""
        request = job_pb2.ShutdownJobRequest(name="jobs/kept")
        self.client.call("JobService/ShutdownJob", request, job_pb2.Job)
        self.session.half_close()
        self.session.end()
        self.client.close()

    def seen(self):
        """Root's jobs, as root sees them."""
        return [job.SerializeToString(deterministic=True) for job in self.client.jobs()]

    def ask(self, who, *, absent=False):
        """What a stranger is told, by case, with the numbers that it asked about made anonymous."""
        away = ABSENT_AWAY if absent else 0
        job, session = self.jobs[0] + away, self.session.welcome.session + away
        pid = absent_pid() if absent else os.getpid()
        token = self.session.welcome.resume_token
        token = os.urandom(len(token)) if absent else token
        ran = subprocess.run(
            [sys.executable, STRANGER, self.daemon.path, who, *map(str, (job, session, token.hex(), pid))],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr.decode()
        told = {}
        for name, parts in json.loads(ran.stdout):
            told.setdefault(name, []).append([anonymous(part, job, pid) for part in parts])
        return told


def anonymous(part, number, pid):
    """A part of an answer, text or base64, without the numbers that were asked about."""
    try:
        raw = base64.b64decode(part, validate=True)
    except ValueError:
        raw = part.encode()
    raw = re.sub(rb"(jobs?[/ ]|sessions?[/ ]|bindings?[/ ])%d(?![0-9])" % number, rb"\1#", raw)
    return raw.replace(b"%d" % pid, b"#" * len(str(pid)))


def code(answers):
    """Of the Result of a frame; None if the answer is none."""
    kind, encoded, *_ = answers[0]
    return session_pb2.ServerFrame.FromString(encoded).result.status.code if kind == b"result" else None


def absent_pid():
    """A number that no process has, with as many digits as this one's."""
    digits = len(str(os.getpid()))
    return next(n for n in range(10**digits - 1, 0, -1) if not os.path.exists(f"/proc/{n}"))


# A session's and a job's number is the next one, and what it did when it asked before is counted.
ITS_OWN = ("hello", "register", "/aem.v1.AdminService/GetMetrics")
NOT_FOUND = {  # methods and frames whose answer to a stranger is that
    "EndSession", "GetJob", "ListParked", "RetryParked", "ShutdownJob", "StartJob", "StopJob", "UpdateJob",
    "ack", "bind", "bundle's", "complete", "grant", "nack", "op", "set_priority", "shutdown", "start", "stop",
    "unbind",
}  # fmt: skip


@root
@pytest.mark.parametrize("who", ["nobody", "container-root"])
def test_what_is_anothers_looks_byte_for_byte_like_what_is_not_there(launch, who):
    there = World(launch())
    before = there.seen()
    told = there.ask(who)
    asked_about_nothing = there.ask(who, absent=True)
    assert there.seen() == before, "what is root's was not touched"
    assert there.session.events()[0][2].user.payload == b"secret"
    there.end()
    there.daemon.stop()
    shutil.rmtree(f"{there.daemon.folder}/state")  # so that the next daemon gives out the same numbers
    gone = World(launch())
    gone.end()
    told_of_nothing = gone.ask(who)
    gone.daemon.stop()
    assert told.keys() == told_of_nothing.keys() == asked_about_nothing.keys()
    for name, answers in told.items():
        assert answers == told_of_nothing[name], name
        if name.split()[0] not in ITS_OWN:
            assert answers == asked_about_nothing[name], name
    refused = {name for name, answers in told.items() if answers[0][0] == b"NOT_FOUND" or code(answers) == 5}
    assert {name.split()[0].rpartition("/")[2] for name in refused} == NOT_FOUND | {"register", "sync"}
    assert [code(told[name]) for name in ("register 1", "sync 0")] == [5, 5]
    if who == "nobody":  # for root of a container, uid 0 is itself
        assert [code(told[name]) for name in ("register 0", "raise 1")] == [7, 7]
    assert b"secret" not in b"".join(part for answers in told.values() for each in answers for part in each)


@root
def test_resume_with_anothers_token_gives_a_session_of_ones_own(daemon, client):
    """The token is right, and whose it is too: it stays good for its owner."""
    world = World(daemon)
    told = world.ask("nobody")
    ((kind, welcome),) = told["hello 0"]
    assert kind == b"welcome"
    mine = session_pb2.ServerFrame.FromString(welcome).welcome
    assert not mine.resumed
    assert mine.session != world.session.welcome.session
    world.session.cancel()
    back = world.client.raw()
    assert back.hello(resume_token=world.session.welcome.resume_token).resumed
