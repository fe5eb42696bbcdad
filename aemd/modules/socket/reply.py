"""Answers to datagrams whose senders have a path for a name.

A path means something to whoever looks it up: to the sender in its own mount namespace, to the daemon in
its own, where it may lead to another socket altogether, and root may write to all of them. (A sender that
calls itself /run/systemd/notify in a mount namespace of its own would have the daemon answer to PID 1.) So
the owner of the job sends, below its root directory and with its rights, by the deputy.

That takes a moment, and an answer is not waited for. One at a time is under way, so that they arrive in
order; what is refused is told with the next answer to the same sender, as the errors of a socket are
(ip(7)).
"""

from __future__ import annotations

from collections import OrderedDict, deque

from aemd.core.errors import AemError, Code
from aemd.modules.contract import Host, Job
from aemd.modules.need import Given, SendPath
from aemd.sources.bound import Bound

WAITING_MAX = 64  # answers of one job; Limits.room_bytes bounds their bytes
ERRORS_MAX = 64  # senders whose refusals are remembered


class Replies:
    """Those of one job."""

    def __init__(self, host: Host, job: Job, bound: Bound) -> None:
        self._host = host
        self._job = job
        self._socket = bound.socket
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._bytes = 0
        self._errors: OrderedDict[bytes, AemError] = OrderedDict()
        self._under_way = False

    @property
    def waits(self) -> bool:
        """Whether some have not left yet."""
        return self._under_way

    def waiting(self) -> list[tuple[bytes, bytes]]:
        """Those that are not under way, in their order."""
        return list(self._waiting)

    def send(self, path: bytes, data: bytes) -> None:
        """Have `data` sent. AemError for what became of the last one to this path, or if too many wait."""
        error = self._errors.pop(path, None)
        if error is not None:
            raise error
        if len(self._waiting) >= WAITING_MAX or self._bytes + len(data) > self._host.limits.room_bytes:
            raise AemError(
                Code.RESOURCE_EXHAUSTED,
                "PEER_BUSY",
                f"{len(self._waiting)} answers of this job wait to be sent; send again later",
            )
        self._waiting.append((path, data))
        self._bytes += len(data)
        self._next()

    def close(self) -> None:
        """Send no more."""
        self._waiting.clear()
        self._bytes = 0

    def _next(self) -> None:
        if self._under_way or not self._waiting:
            return
        path, data = self._waiting.popleft()
        self._bytes -= len(data)
        self._under_way = True

        def sent(result: Given | AemError) -> None:
            self._under_way = False
            if isinstance(result, AemError):
                self._errors[path] = result
                if len(self._errors) > ERRORS_MAX:
                    self._errors.popitem(last=False)
            self._next()

        self._host.ask(self._job, SendPath(self._socket, path, data), sent)
