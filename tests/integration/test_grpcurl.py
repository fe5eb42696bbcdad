"""grpcurl as a person types it: no SDK, no generated code, only reflection and JSON."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GRPCURL = shutil.which("grpcurl") or shutil.which("grpcurl", path=str(Path(sys.prefix) / "bin"))

pytestmark = pytest.mark.skipif(GRPCURL is None, reason="needs grpcurl")


def run(daemon, *words, typed=""):
    """What it prints, called with -unix."""
    options = ["-plaintext", "-unix", *(["-d", "@"] if typed else []), daemon.path, *words]
    ran = subprocess.run(
        [GRPCURL, *options], input=typed, capture_output=True, text=True, timeout=40, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def messages(text):
    """The JSON objects of a text, one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:]
    return found


def test_services_are_listed_and_described(daemon):
    assert "aem.v1.EventService" in run(daemon, "list").splitlines()
    assert "rpc Session ( stream .aem.v1.ClientFrame )" in run(daemon, "describe", "aem.v1.EventService")


def test_unary_calls_and_health(daemon):
    modules = json.loads(run(daemon, "aem.v1.ModuleService/ListModules"))["modules"]
    assert {"timer", "socket", "process", "user"} == {module["id"] for module in modules}
    assert json.loads(run(daemon, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}


def test_session_typed_by_hand_registers_and_ends_in_order(daemon, client):
    frames = [
        {"request_id": 1, "hello": {"version_min": 1, "version_max": 1, "label": "by hand"}},
        {
            "request_id": 2,
            "register": {"module": "timer", "params": {"after": {"text": "1ms"}}, "start": True},
        },
        {"request_id": 3, "sync": {}},
    ]
    answers = messages(run(daemon, "aem.v1.EventService/Session", typed="\n".join(map(json.dumps, frames))))
    frames = [each for answer in answers for each in answer.get("bundle", {}).get("frames", [answer])]
    assert frames[0]["welcome"]["session"]
    assert frames[1]["registered"]["job"]
    assert client.status().jobs == 0
