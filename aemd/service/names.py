"""Users and groups by name, as passwd(5), group(5) and the name services of the machine know them."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Literal

_FILES = {"user": "/etc/passwd", "group": "/etc/group"}


class Names:
    """Asks the machine. A name service that does not answer is waited for, as everywhere else."""

    def uid(self, name: str) -> int | None:
        """The number of a user; None if there is none."""
        try:
            return pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError):
            return None

    def gid(self, name: str) -> int | None:
        """The number of a group; None if there is none."""
        try:
            return grp.getgrnam(name).gr_gid
        except (KeyError, ValueError):
            return None

    def groups_of(self, uid: int) -> tuple[int, tuple[int, ...]] | None:
        """The group of a user and all that he is in; None if the machine does not know him."""
        try:
            entry = pwd.getpwuid(uid)
        except (KeyError, ValueError):
            return None
        return entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))

    def known(self, what: Literal["user", "group"]) -> list[str]:
        """The names of this machine's own file, to guess what was meant; name services are not asked for
        all that they have.
        """
        try:
            with open(_FILES[what], encoding="utf-8", errors="replace") as file:
                return [line.partition(":")[0] for line in file]
        except OSError:
            return []
