"""What the service manager has kept of a job since the daemon before this one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Left:
    """Descriptors; -1 and none where there is nothing. Who uses one takes it out and closes it; the rest is
    closed by close().

    `directory` (O_PATH) is where the name of the listener at a path is, `identity` its device and inode.
    """

    listener: int = -1
    directory: int = -1
    identity: tuple[int, int] = (0, 0)
    connections: dict[int, int] = field(default_factory=dict)  # by number

    def take(self) -> tuple[int, int]:
        """Listener and directory, the caller's from now on."""
        taken = self.listener, self.directory
        self.listener = self.directory = -1
        return taken

    def close(self) -> None:
        """Close what nobody took."""
        for fd in (*self.take(), *self.connections.values()):
            if fd >= 0:
                os.close(fd)
        self.connections.clear()
