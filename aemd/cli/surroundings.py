"""What a command that is run for events has around it: its environment, its limits, its privileges.

It is run by its own user, so none of this is a boundary against that user. It is there because events come
from others: a command gets the same few variables wherever aemctl was started, so that nothing of a login
shell (LD_PRELOAD, PYTHONPATH, tokens) decides what it does; it gains no privilege by executing set-user-ID
programs (no_new_privs, prctl(2)); and what makes it crash does not fill the disk with core dumps.

no_new_privs and the limit are set for aemctl itself, before it has started a thread, and inherited: what runs
between fork(2) and execve(2) in a process with threads may hang on their locks.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
from collections.abc import Mapping, Sequence

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "AEMD_ADDRESS")
KEPT_BEGINNINGS = ("LC_",)
PATH_DEFAULT = "/usr/local/bin:/usr/bin:/bin"  # what systemd gives services, without its sbin
_PR_SET_NO_NEW_PRIVS = 38


def environment(
    here: Mapping[str, str], wanted: Sequence[str], *, keep: bool = False, uid: int | None = None
) -> dict[str, str]:
    """The variables of a command, of those that are `here`.

    `wanted`: NAME lets one more through, NAME=VALUE sets one. `keep`: let all through. ValueError for what is
    neither, or is not here.
    """
    found = dict(here) if keep else _clean(here, os.getuid() if uid is None else uid)
    for word in wanted:
        name, given, value = word.partition("=")
        if not name or "\0" in word:
            raise ValueError(f"{word!r} is neither NAME nor NAME=VALUE")
        if given:
            found[name] = value
        elif name in here:
            found[name] = here[name]
        else:
            raise ValueError(f"there is no variable {name} here; set one with {name}=VALUE")
    return found


def _clean(here: Mapping[str, str], uid: int) -> dict[str, str]:
    found = {name: value for name, value in here.items() if name in KEPT or name.startswith(KEPT_BEGINNINGS)}
    found.setdefault("PATH", PATH_DEFAULT)
    try:
        user = pwd.getpwuid(uid)
    except KeyError:  # a number without an entry
        return found
    for name, value in (
        ("HOME", user.pw_dir),
        ("USER", user.pw_name),
        ("LOGNAME", user.pw_name),
        ("SHELL", user.pw_shell),
    ):
        found.setdefault(name, value)
    return found


def give_up_privileges() -> None:
    """From now on no program that this one executes gains privileges, nor those that it executes; for ever.

    To be called before threads are started: it is a thread's own.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_SET_NO_NEW_PRIVS)")


def limit_core(size_bytes: int | None) -> None:
    """The most that a core dump of a program started from here takes; None: as much as there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = resource.RLIM_INFINITY if size_bytes is None else size_bytes
    if hard != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > hard):
        wanted = hard
    resource.setrlimit(resource.RLIMIT_CORE, (wanted, hard))
