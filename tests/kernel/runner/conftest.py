"""The real runner, and commands that write down what they find."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest

from aemd.core.limits import SECOND
from aemd.deputy.orders import Start
from aemd.peer.runner import Runner, Watch

NOBODY, GROUP = 65_534, 12
LOOK_NS = SECOND // 100
WAIT_NS = 20 * SECOND


class Seen:
    """A run, and what has been told of it."""

    def __init__(self, number):
        self.number = number
        self.pid = 0
        self.told = []

    def begun(self, pid):
        self.pid = pid

    @property
    def ended(self):
        return self.told[0]


class Rig:
    """A runner, and what is run by it."""

    def __init__(self, loop, place, command=()):
        self.loop = loop
        self.place = place
        self.runner = Runner(loop, command=command)

    def begin(self, script, *, command=None, stdin=b"", uid=NOBODY, gid=GROUP, groups=(34, 56), **more):
        seen = Seen(self.runner.next_number())
        order = Start(
            number=seen.number,
            uid=uid,
            gid=gid,
            groups=list(groups),
            command=command or ["sh", "-c", script],
            **{
                "capable": False,
                "environment": {},
                "directory": str(self.place),
                "timeout_ms": 20_000,
                "place": f"job-{seen.number}",
                "name": "aemd-job-test",
                **more,
            },
        )
        self.runner.start(order, stdin, Watch(seen.begun, seen.told.append))
        return seen

    def until(self, condition):
        deadline = time.monotonic_ns() + WAIT_NS
        while not condition():
            left = deadline - time.monotonic_ns()
            assert left > 0, "it did not come"
            self.loop.turn(min(left, LOOK_NS))  # not everything that is waited for wakes the loop

    def finish(self, seen):
        self.until(lambda: seen.told)
        return seen.ended

    def run(self, script, **more):
        """Run it to its end; how that was."""
        return self.finish(self.begin(script, **more))

    def text(self, name="out"):
        return (self.place / name).read_text()

    def there(self, name):
        return (self.place / name).exists()


@pytest.fixture
def place():
    """Where anybody may write, and whose path anybody may enter."""
    path = Path(tempfile.mkdtemp(prefix="aemd-runner-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def rig(loop, place):
    rig = Rig(loop, place)
    yield rig
    rig.runner.close()
