"""What the child of a run does before it is the owner's program: become the owner, and let go of all else.

It is what `caller.py` makes of a process, with other limits, for this one is to do something. What the
program has is said here: its variables, its limits, its directory, where its output goes. It inherits nothing
that it was not given: no descriptor, no ignored signal, no privilege, now or later (no_new_privs), no
terminal, and not the daemon's place before others when memory is short.

It dies with the runner (PR_SET_PDEATHSIG, which an ordinary execve(2) keeps). The service's own sandbox holds
for it too: system calls that the service may not make, it may not make.

man: execve(2), setsid(2), environ(7), capabilities(7).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import signal
from collections.abc import Iterator
from typing import NoReturn

from aemd.deputy import caller
from aemd.deputy.caller import FaultError
from aemd.deputy.orders import Start
from aemd.deputy.output import connect_journal
from aemd.deputy.protocol import BECOMING
from aemd.deputy.subtree import Subtree

PATH = "/usr/local/bin:/usr/bin:/bin"
UMASK = 0o022
DESCRIPTORS = 1_024  # select(2) knows no more; a program that needs more raises it itself
DESCRIPTORS_MAX = 524_288  # what systemd gives services
PROCESSES = 4_096  # of its user; the tasks of the service are everybody's
LIMITS = (
    (resource.RLIMIT_NPROC, PROCESSES, PROCESSES),
    (resource.RLIMIT_CORE, 0, 0),
    (resource.RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS_MAX),
)


class NotExecutedError(Exception):
    """It came to nothing; errno, and what said so."""

    def __init__(self, error: int, call: str) -> None:
        super().__init__(error, call)
        self.error = error
        self.call = call


def execute(
    order: Start, *, runner: int, stdin: int, stdout: int, says: int, subtree: Subtree | None
) -> NoReturn:
    """Be the program of `order`; NotExecutedError if that fails. `stdout`: what its output goes to where
    there is no journal. `says`: stays open until it is executed. `runner`: the pid of who has forked this
    process.
    """
    os.setsid()
    if subtree is not None:
        with _said("cgroup.procs"):
            subtree.enter(order.place)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(b"0")
    environment = _environment(order)
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(stdout, 2)
    os.closerange(3, says)
    os.closerange(says + 1, 1 << 30)
    _become(order)
    if os.getppid() != runner:  # it was gone before this process was to die with it
        os._exit(1)
    os.umask(UMASK)
    with _said("chdir"):
        os.chdir(order.directory)
    journal = connect_journal(order.name)
    if journal is not None:
        os.dup2(journal.fileno(), 1)
        os.dup2(journal.fileno(), 2)
        journal.close()
    with _said("execve"):
        os.execvpe(order.command[0], order.command, environment)  # noqa: S606 - what it is for


def _become(order: Start) -> None:
    root = caller.machine_root()
    capabilities = caller.CAPABLE if order.capable else 0
    try:
        caller.become(
            order.uid,
            order.gid,
            tuple(order.groups),
            root=root,
            capabilities=capabilities,
            limits=LIMITS,
            handed_on=True,
        )
    except FaultError as error:
        raise NotExecutedError(int(error.fault), BECOMING) from None
    except OSError as error:
        raise NotExecutedError(error.errno or 0, BECOMING) from error
    if root is not None:
        os.close(root)


def _environment(order: Start) -> dict[str, str]:
    """The variables: those that every program expects, then those of the job."""
    found = {"PATH": PATH, "LANG": os.environ.get("LANG") or "C.UTF-8"}
    with contextlib.suppress(KeyError):  # a number without an entry
        user = pwd.getpwuid(order.uid)
        found |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": user.pw_shell}
    return found | order.environment


@contextlib.contextmanager
def _said(call: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotExecutedError(error.errno or 0, call) from error
