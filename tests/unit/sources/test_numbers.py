"""Numbers of connections, over the daemons of one machine."""

import subprocess
import sys

TWO_DAEMONS = """
import runpy
for _ in range(2):
    print(next(runpy.run_module("aemd.sources.socket")["NUMBERS"]))
"""


def test_a_daemon_that_follows_at_once_begins_behind_the_numbers_of_the_one_before():
    said = subprocess.run([sys.executable, "-c", TWO_DAEMONS], check=True, capture_output=True, text=True)
    first, second = map(int, said.stdout.split())
    assert second > first
