"""`python -m aemd.deputy.looker CONTROL`: looks at processes for a core that may not.

It answers one question after the other, from what proc(5) says at once; nothing here waits for anything but
the next question. End of file means that the core is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

from aemd.deputy import looking
from aemd.deputy.caller import name_process
from aemd.deputy.looking import What

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def main(control_fd: int) -> None:
    """Serve the core until it is gone."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir("/")
    name_process("aemd-looker")
    with socket.socket(fileno=control_fd) as control:
        control.setblocking(True)
        serve(control)


def serve(control: socket.socket) -> None:
    """Answer until there are no more questions."""
    while True:
        try:
            pid, what = looking.parse_question(control.recv(looking.QUESTION_BYTES))
            with contextlib.ExitStack() as stack:
                answer = looking.pack_answer(pid, looking.look(pid, what))
                socket.send_fds(control, [answer], _open(pid, what, stack))
        except (OSError, looking.LookingError):
            return


def _open(pid: int, what: What, stack: contextlib.ExitStack) -> list[int]:
    """The descriptor that is asked for, closed with `stack`."""
    if not what & What.PID_NAMESPACE:
        return []
    try:
        fd = looking.open_pid_namespace(pid)
    except OSError:
        return []
    stack.callback(os.close, fd)
    return [fd]


if __name__ == "__main__":
    main(int(sys.argv[1]))
