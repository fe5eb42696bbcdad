"""Who is calling, as the kernel says it.

A principal is read once, when its connection is accepted (`peer/principal.py`), and held for the life of
the connection. Nothing that a client says about itself goes in here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Owner:
    """What jobs and channels belong to: a user of one user and pid namespace.

    The namespaces are inode numbers of nsfs; 0 stands for the daemon's own.
    """

    uid: int
    user_namespace: int = 0
    pid_namespace: int = 0


@dataclass(frozen=True, slots=True)
class Principal:
    """The process at the other end of a connection.

    `pid` and `start_time_ticks` (field 22 of /proc/PID/stat) name the process for good; `start_time_ticks`
    is 0 where it could not be read. `administrator`: root in the daemon's own user, pid and mount
    namespaces, or the daemon's own user. `network_namespace`: as those of the owner, but the process's own: 0
    is the daemon's.

    `security_label` is that of the security module (SO_PEERSEC), `executable` what /proc/PID/exe names,
    `cgroup` the path in the unified hierarchy, `unit` the systemd unit of that path; each empty where there
    is none or it could not be read. `proven`: the kernel named the very process that connected
    (SO_PEERPIDFD). Without that these are what the process with this pid has now, and nothing may be granted
    for them.

    `own_pid`: what the process calls itself, in its own pid namespace. `not_administrator`: why it is not, in
    a few words; empty if it is.
    """

    owner: Owner
    gid: int
    groups: tuple[int, ...]
    pid: int
    start_time_ticks: int
    administrator: bool
    network_namespace: int = 0
    security_label: str = ""
    executable: str = ""
    cgroup: str = ""
    unit: str = ""
    proven: bool = False
    own_pid: int = 0
    not_administrator: str = ""

    @property
    def uid(self) -> int:
        """The effective user id."""
        return self.owner.uid

    def pid_for(self, viewer: Owner) -> int:
        """Its pid as `viewer` knows it; 0 if it has none in the viewer's pid namespace.

        The daemon's own pid namespace sees everybody; any other only its own processes.
        """
        if not viewer.pid_namespace:
            return self.pid
        return self.own_pid if viewer.pid_namespace == self.owner.pid_namespace else 0
