"""A client that makes its front take memory without end has it replaced; others notice nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FLOODER = Path(__file__).parents[2] / "robustness" / "flooder.py"
FRONT_BYTES = 96 << 20
PAGE_BYTES = os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a program of another user is started")
@pytest.mark.parametrize("attack", ["hpack_bomb", "half_messages"])
def test_front_that_is_made_too_large_is_replaced_and_its_user_is_blamed(start, attack):
    echo = start(front_bytes=FRONT_BYTES)
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.who()
        (front,) = echo.counters(channel)["front_pids"]
        command = [sys.executable, FLOODER, attack, echo.path, "65534"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flooder:
            assert echo.wait("connection refused or cut off", reason="FRONT_BYTES")["uid"] == 65534
            flooder.communicate()
        assert talk.ask("echo", text="unharmed") == b"unharmed"
        counters = echo.counters(channel)
        assert counters["replaced"] >= 1
        assert front in counters["front_pids"]
