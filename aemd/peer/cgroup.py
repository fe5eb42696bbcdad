"""Where a process stands in the control groups, and which systemd unit that is.

/proc/PID/cgroup (cgroups(7)) has one line a hierarchy, `NUMBER:CONTROLLERS:PATH`. The unified hierarchy is
`0::PATH`. On a host that runs systemd on the first version of cgroups the processes are sorted in a
hierarchy without controllers, `name=systemd`; the unified one is absent there, or mounted by somebody else
and everything in its root. The path is relative to the reader's own cgroup namespace: a process outside of it
has one that begins with /.., and stands in no unit that could be known here. A removed group shows as
`PATH (deleted)`, which is no unit either. The kernel takes no newline in a name.

Who may make a name. A user owns what is below his user@UID.service, a container manager what is below its
own unit, and both may make a group there that is called cron.service. So the unit is not the innermost
name that looks like one: as in systemd's cg_path_get_unit() it is the first one that is no slice, from the
root down, and what is below it is that unit's own affair. Below user@UID.service the user's own manager
gives out units in the same way; such a one is named with its manager in front,
`user@1000.service/sync.service`, so that it is never taken for a unit of the system. A process that was only
put below a slice is in no unit.

systemd puts a `_` in front of a name that could be one of the kernel's files (cg_escape()). Sources:
systemd's basic/cgroup-util.c, systemd.unit(5), systemd.slice(5).
"""

from __future__ import annotations

import re

CGROUP_BYTES = 65_536  # the unified path is PATH_MAX at most; the older hierarchies have a line each

_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap)")
_SLICE = re.compile(r"[A-Za-z0-9:_.\\-]+\.slice")
_USER_MANAGER = re.compile(r"user@[0-9]+\.service")
_UNIT_BYTES_MAX = 255  # UNIT_NAME_MAX


def parse_cgroup(content: bytes) -> str:
    """The path of the unified hierarchy, or of systemd's own where that one has nothing to say."""
    unified = named = ""
    for line in content.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if number == b"0" and not controllers:
            unified = path.decode("utf-8", "backslashreplace")
        elif controllers == b"name=systemd":
            named = path.decode("utf-8", "backslashreplace")
    return named if unified in ("", "/") and named else unified


def unit_of(cgroup: str) -> str:
    """The unit that a control group belongs to, or is below of; empty if there is none."""
    names = cgroup.split("/")[1:]
    unit, below = _first_unit(names)
    if not _USER_MANAGER.fullmatch(unit):
        return unit
    inner, _ = _first_unit(below)
    return f"{unit}/{inner}" if inner else unit


def _first_unit(names: list[str]) -> tuple[str, list[str]]:
    """The first name that is no slice, if it is that of a unit, and those below it."""
    for depth, name in enumerate(names):
        if _SLICE.fullmatch(name):
            continue
        unit = name.removeprefix("_")
        if len(unit) > _UNIT_BYTES_MAX or not _UNIT.fullmatch(unit):
            break
        return unit, names[depth + 1 :]
    return "", []
