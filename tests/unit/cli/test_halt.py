from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from aemd.cli.failure import Exit
from aemd.cli.halt import Halt, Halted


def test_signal_before_the_wait_is_not_lost() -> None:
    halt = Halt()
    with halt.armed():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Halted) as caught:
            halt.wait(threading.Event().wait)
    assert caught.value.reason is Exit.TERMINATED


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGALRM, Exit.TIMEOUT)]
)
def test_signal_ends_the_wait(number: signal.Signals, reason: Exit) -> None:
    halt = Halt()

    def what() -> None:
        os.kill(os.getpid(), number)
        threading.Event().wait()

    with halt.armed(), pytest.raises(Halted) as caught:
        halt.wait(what)
    assert caught.value.reason is reason


def test_time_limit_ends_the_wait_and_leaves_no_timer() -> None:
    halt = Halt()
    with halt.armed(20_000_000), pytest.raises(Halted) as caught:
        halt.wait(threading.Event().wait)
    assert caught.value.reason is Exit.TIMEOUT
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_second_signal_does_not_wait() -> None:
    halt = Halt()
    with halt.armed():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Halted) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.reason is Exit.TERMINATED


def test_handlers_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Halt().armed():
        assert signal.getsignal(signal.SIGINT) != before
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == before


def test_standard_output_that_nobody_reads_ends_the_wait() -> None:
    code = (
        "import sys, threading\n"
        "from aemd.cli.halt import Halt, Halted\n"
        "halt = Halt()\n"
        "with halt.armed(stdout=True):\n"
        "    try: halt.wait(threading.Event().wait)\n"
        "    except Halted as halted: sys.exit(int(halted.reason))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == Exit.BROKEN_PIPE


def test_what_is_shielded_is_finished_first() -> None:
    halt = Halt()
    done = []

    def what() -> None:
        with halt.shielded():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the step")
        done.append("what stands behind it")

    with halt.armed(), pytest.raises(Halted) as caught:
        halt.wait(what)
    assert (done, caught.value.reason) == (["the step"], Exit.TERMINATED)
