"""What a module needs done as the caller, and what it is given for it.

A module never opens a path itself: the daemon's rights are not the caller's, nor is its root directory. It
states a need; the daemon has it done by a process that is the caller (`aemd/deputy/`), and hands back what
came out. Who was given something closes it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from aemd.modules.left import Left
from aemd.sources.bound import Place


class Access(IntEnum):
    """What a path is opened for. The numbers are those of `aemd.deputy.protocol.Access`."""

    PATH = 0  # it may be searched for
    WATCH = 1  # and it may be read; what inotify_add_watch(2) asks for
    READ = 2  # it is read; a regular file or a directory


@dataclass(frozen=True, slots=True)
class BindPath:
    """A Unix socket of `type` at `place.path`; becomes a BoundPath.

    `mode`: permission bits; None: as the caller's umask says. `backlog`: let it listen at once.
    """

    place: Place
    type: int
    mode: int | None = None
    backlog: int | None = None


@dataclass(frozen=True, slots=True)
class ListenPath:
    """The path of `bound` still leads the caller to it. `backlog`: and let it listen. Becomes None."""

    bound: BoundPath
    backlog: int | None = None


@dataclass(frozen=True, slots=True)
class AdoptPath:
    """What was `left` of a socket at a path, if that still leads the caller to it; else as `bind`. Becomes a
    BoundPath.
    """

    left: Left
    bind: BindPath


@dataclass(frozen=True, slots=True)
class Vacancy:
    """Nobody holds what a job had at `place` any more; see Host.vacating. Becomes None."""

    place: str


@dataclass(frozen=True, slots=True)
class OpenPath:
    """A path of the caller's, absolute; becomes an OpenedPath. `field`: what a refusal is about."""

    path: bytes
    access: Access = Access.PATH
    field: str = "params.path"


@dataclass(frozen=True, slots=True)
class SendPath:
    """One datagram from `socket` to the socket at `path`; becomes None."""

    socket: socket.socket
    path: bytes
    data: bytes


Errand = BindPath | ListenPath | AdoptPath | OpenPath | SendPath  # for the deputy
Need = Errand | Vacancy


@dataclass(slots=True, eq=False)
class OpenedPath:
    """A descriptor: O_PATH, or for READ open for reading. `identity`: device and inode."""

    descriptor: int
    identity: tuple[int, int]

    def close(self) -> None:
        """Close it; once is enough."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(slots=True, eq=False)
class BoundPath:
    """A socket that was bound as the caller, and the directory (O_PATH) that its name is in."""

    socket: socket.socket
    place: Place
    directory: int
    identity: tuple[int, int]
    listens: bool
    remove: Callable[[BoundPath], None]  # has the name removed as the caller, and closes `directory`
    adopted: bool = False

    def close(self) -> None:
        """Close the socket and let its name go, if it is still its own; once is enough."""
        if self.directory < 0:
            return
        self.socket.close()
        self.remove(self)
        self.directory = -1

    def leave(self) -> None:
        """Close the socket, and leave the name: the next daemon has it."""
        if self.directory < 0:
            return
        self.socket.close()
        os.close(self.directory)
        self.directory = -1


Given = BoundPath | OpenedPath | None
