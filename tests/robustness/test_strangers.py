"""Another user's jobs: no method and no frame tells them from what does not exist."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aemd.v1 import session_pb2

STRANGER = Path(__file__).parent / "stranger.py"
ABSENT_AWAY = 5  # added to a number that exists, with as many digits


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's process is started")
def test_what_is_anothers_looks_byte_for_byte_like_what_is_not_there(daemon, client):
    session = client.session()
    registered = [session.register("user", channel="c") for _ in range(3)]
    session.ask(**{"raise": session_pb2.Raise(channel="c", payloads=[b"secret"])})
    job, number = registered[0].job, session.welcome.session
    absent = job + ABSENT_AWAY
    assert absent < 10
    assert job == number == 1, "what is compared differs in this one digit"
    arguments = [daemon.path, str(job), str(number), str(absent)]
    ran = subprocess.run(
        [sys.executable, STRANGER, *arguments], capture_output=True, text=True, timeout=40, check=False
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert len(told["others"]) == 18
    for name, (code, text, details) in told["others"].items():
        assert code in (5, "NOT_FOUND"), name
        there, gone = told["absent"][name][1:], (text, details)
        assert text.replace(str(job), "#") == there[0].replace(str(absent), "#"), name
        raw = [base64.b64decode(encoded) for encoded in (gone[1], there[1])]
        assert raw[0] == raw[1].replace(b"%d" % absent, b"%d" % job), name
    assert told["lists"]["jobs"][:2] == ["OK", ""]
    sessions = base64.b64decode(told["lists"]["sessions"][1])
    assert sessions == b"", "its own are over"
    assert told["module_jobs"] == 0
    assert told["counts"] == [0, 0, 0, 0]
    assert len(client.jobs()) == 3
