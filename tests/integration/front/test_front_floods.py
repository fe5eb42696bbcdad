"""Connections a second: so many pass and not one more, of an unprivileged user only."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a program of another user is started")

FLOODER = Path(__file__).parents[2] / "robustness" / "flooder.py"
NOBODY = 65534
RATE = 20
BURST = 3 * RATE // 2


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def is_open(sock):
    try:
        return bool(sock.recv(1, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True


def test_user_who_connects_too_fast_is_refused_and_the_administrator_is_not(start):
    echo = start(quota={"connections_per_second": RATE})
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.who()
        begin = time.monotonic()
        command = [sys.executable, FLOODER, "connections_and_nothing", echo.path, str(NOBODY)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flooder:
            assert flooder.stdout.readline() == b"begun\n"
            said = echo.wait("connection refused or cut off", reason="CONNECTIONS_PER_SECOND")
            assert said["uid"] == NOBODY
            with ExitStack() as stack:
                socks = [stack.enter_context(connect(echo.path)) for _ in range(2 * BURST)]
                with echo.channel() as last:
                    assert echo.echo(last, b"x", wait_for_ready=True) == b"x"
                assert [is_open(sock) for sock in socks] == [True] * len(socks)
            facts = json.loads(flooder.communicate()[0])
        admitted = facts["connections"] - facts["refused"]
        assert BURST <= admitted <= BURST + RATE * (time.monotonic() - begin) + 1
        assert facts["connections"] > 2 * admitted
        assert talk.ask("echo", text="unharmed") == b"unharmed"
