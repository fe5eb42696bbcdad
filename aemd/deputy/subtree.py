"""Control groups of runs: in one of its own, a run ends with everything that it has started.

A process can leave its session and its process group, and be forgotten; it cannot leave its control group
without a right to another one. cgroup.kill (Linux 5.14) ends all that is in one at once, also what forks
meanwhile. That needs a subtree which is ours: systemd says so with the attribute user.delegate
(Delegate=yes). Without it, or with the older hierarchy, process groups have to do.

No controller is enabled below, so that the daemon's own processes may stay where they are ("no internal
processes", cgroups(7)). The unit's own mount of the hierarchy is read-only (ProtectControlGroups=); that of
the machine is found from the root of PID 1.

man: cgroups(7); systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

_MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_ATTRIBUTES = ("user.delegate", "trusted.delegate")
PREFIX = "job-"


@dataclass(frozen=True, slots=True)
class Subtree:
    """The control group that is ours. `path`: where."""

    path: str

    def make(self, name: str) -> None:
        """A group for a run, empty. OSError if there can be none."""
        self.kill(name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._of(name))

    def enter(self, name: str) -> None:
        """Let this process live there."""
        _write(f"{self._of(name)}/cgroup.procs", b"0")

    def kill(self, name: str) -> None:
        """End all that is in it."""
        with contextlib.suppress(OSError):
            _write(f"{self._of(name)}/cgroup.kill", b"1")

    def remove(self, name: str) -> bool:
        """Remove it; False while something in it still dies."""
        try:
            os.rmdir(self._of(name))
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def sweep(self) -> None:
        """End what runs of a runner before this one have left."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path):
                if name.startswith(PREFIX):
                    self.kill(name)
                    self.remove(name)

    def _of(self, name: str) -> str:
        return f"{self.path}/{name}"


def find(root: str, cgroups: str) -> Subtree | None:
    """The group of this process, if it was given to it. `cgroups`: what /proc/self/cgroup says; `root`: below
    which the hierarchy is mounted as everybody sees it.
    """
    own = next((line[3:] for line in cgroups.splitlines() if line.startswith("0::/")), "/")
    if own == "/":
        return None
    for mount in _MOUNTS:
        path = f"{root}{mount}{own}"
        if os.path.exists(f"{path}/cgroup.kill") and _is_given(path):
            return Subtree(path)
    return None


def _is_given(path: str) -> bool:
    for attribute in _ATTRIBUTES:
        with contextlib.suppress(OSError):
            if os.getxattr(path, attribute) == b"1":
                return os.access(path, os.W_OK, effective_ids=True)
    return False


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
