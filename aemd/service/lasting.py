"""Sockets that outlast the daemon: the service manager keeps them from one to the next.

Where a job listens or receives is given to the manager as soon as it does (`shelf.py`), so that it is there
whatever becomes of the daemon: who connects meanwhile waits in the backlog, and what is sent waits in the
queue. Connections follow when the daemon ends in order; a daemon that is killed could not say how far they
are.

The next daemon finds all of it among the descriptors that it is started with, by names that say whose it is.
Each job takes over what is its own while it is opened; what nobody asked for by then is closed and forgotten,
and its path removed.

The manager has a socket open a moment longer than its job, and nobody can bind the address in that moment. So
what is let go of is silenced at once, and who asks for its place waits: `vacating`, Need `Vacancy`.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aemd.core.errors import AemError
from aemd.core.job import Job
from aemd.modules.contract import Address
from aemd.modules.left import Left
from aemd.modules.need import BoundPath, Given
from aemd.service.notify import Notifier
from aemd.service.shelf import READ_NS, Shelf
from aemd.sources.bound import Bound, occupied_by, silence
from aemd.sources.reactor import Reactor

LEAVE_SECONDS = 1.0  # a daemon ends within 5 s
STORED_MAX = 496  # at an orderly end; of the unit's FileDescriptorStoreMax=512
Remove = Callable[[int, int, BoundPath], None]
_NAME = re.compile(r"job-(\d+)(?:-path-(\d+)-(\d+)-(\d+)-(\d+)|-connection-(\d+))?")


@dataclass(slots=True, eq=False)
class _Found:
    """What was found of a job. `uid`, `gid`: whose path it is."""

    left: Left = field(default_factory=Left)
    uid: int = -1
    gid: int = -1
    asked: bool = False


@dataclass(slots=True, eq=False)
class Waits:
    """Somebody who waits for a place. `cancel()`: no longer."""

    answered: Callable[[Given | AemError], None] | None

    def cancel(self) -> None:
        """The answer is not wanted any more."""
        self.answered = None

    def answer(self) -> None:
        """The place is free, as far as anybody knows."""
        if self.answered is not None:
            self.answered(None)


class Lasting:
    """What the manager kept for this daemon, and what it is to keep for the next."""

    def __init__(
        self,
        notifier: Notifier,
        reactor: Reactor,
        found: Iterable[tuple[str, int]] = (),
        *,
        remove: Remove = lambda _uid, _gid, bound: bound.leave(),
    ) -> None:
        """`remove`: closes a socket at a path, and removes its name as a user."""
        self._notifier = notifier
        self._remove = remove
        self.shelf = Shelf(notifier, reactor)
        self._found: dict[int, _Found] = {}
        self._names: dict[int, set[str]] = defaultdict(set)  # by job
        self._places: dict[str, str] = {}  # of names
        self._vacating: dict[str, int] = {}  # places, and since when
        self._gone_on: set[int] = set()  # jobs that are the next daemon's
        self._strange: dict[str, list[int]] = {}
        for name, fd in found:
            self._note_found(name, fd)

    # -- from the daemon before

    def _note_found(self, name: str, fd: int) -> None:
        match = _NAME.fullmatch(name)
        if match is None:
            self._strange.setdefault(name, []).append(fd)
            return
        job, uid, gid, device, inode, connection = (int(part or -1) for part in match.groups())
        found = self._found.setdefault(job, _Found())
        left = found.left
        if connection >= 0 and connection not in left.connections:
            left.connections[connection] = fd
        elif connection < 0 and left.listener < 0 and stat.S_ISSOCK(os.fstat(fd).st_mode):
            left.listener = fd
        elif uid >= 0 and left.directory < 0:
            left.directory, left.identity = fd, (device, inode)
            found.uid, found.gid = uid, gid
        else:
            os.close(fd)  # of a name given twice
        if name not in self.shelf:
            self.shelf.has(name, 2 if uid >= 0 else 1)
            self._names[job].add(name)

    def of(self, job_id: int) -> Left | None:
        """What the daemon before left of a job, for whoever opens it; it is there until release()."""
        found = self._found.get(job_id)
        if found is None:
            return None
        found.asked = True
        return found.left

    def clear(self) -> None:
        """Every job was offered its own: have nothing else kept, and close it."""
        for job_id, found in list(self._found.items()):
            if not found.asked:
                self._give_up(job_id)
                continue
            for name in [name for name in self._names[job_id] if "-connection-" in name]:
                self._drop(job_id, name)
        for name, fds in self._strange.items():
            self.shelf.has(name, len(fds))
            self.shelf.drop(name)
            for fd in fds:
                os.close(fd)
        self._strange.clear()

    def _give_up(self, job_id: int) -> None:
        """Forget all of a job, and what it left with it."""
        found = self._found.pop(job_id, None)
        if found is not None:
            self._abandon(found)
        for name in list(self._names.get(job_id, ())):
            self._drop(job_id, name)

    def _abandon(self, found: _Found) -> None:
        listener, directory = found.left.take()
        found.left.close()
        if listener < 0:
            if directory >= 0:
                os.close(directory)
            return
        sock = socket.socket(fileno=listener)
        silence(sock)
        self._vacate(occupied_by(sock))
        if directory < 0:
            sock.close()
            return
        place = Address("unix", path=os.fsencode(sock.getsockname()))
        bound = BoundPath(sock, place, directory, found.left.identity, True, BoundPath.leave)
        self._remove(found.uid, found.gid, bound)

    # -- while it runs

    def keep(self, job: Job, bound: Bound) -> None:
        """Have the address of `job` kept from now on, if there is room."""
        if not self._notifier:
            return
        name, descriptors = f"job-{job.id}", [bound.socket.fileno()]
        if isinstance(bound.held, BoundPath):
            device, inode = bound.held.identity
            name += f"-path-{job.owner.uid}-{job.owner.gid}-{device}-{inode}"
            descriptors.append(bound.held.directory)
        for other in [other for other in self._names[job.id] if other != name or not bound.adopted]:
            if other not in self._places and "-connection-" not in other:
                self._drop(job.id, other)  # of the daemon before, and not what it has now
        if name in self._places:
            return
        self._names[job.id].add(name)
        self._places[name] = bound.occupies
        self.shelf.put(name, job.owner.uid, descriptors)

    def release(self, job_id: int) -> None:
        """The job is closed, or was never opened: nothing of it is kept."""
        if job_id in self._gone_on:
            return
        self._give_up(job_id)

    def _drop(self, job_id: int, name: str) -> None:
        names = self._names[job_id]
        names.discard(name)
        if not names:
            del self._names[job_id]
        place = self._places.pop(name, "")
        if self.shelf.drop(name):
            self._vacate(place)

    def _vacate(self, place: str) -> None:
        if not place:
            return
        now_ns = time.monotonic_ns()
        for old in [old for old, since_ns in self._vacating.items() if since_ns < now_ns - READ_NS]:
            del self._vacating[old]
        self._vacating[place] = now_ns

    def vacating(self, place: str) -> bool:
        """Whether a job has let go of `place`, and the manager may still have it."""
        return place in self._vacating

    def await_vacancy(self, place: str, answered: Callable[[Given | AemError], None]) -> Waits:
        """Tell `answered`, in a later turn, when the manager has let go of `place`, or does not say so."""
        waits = Waits(answered)

        def read() -> None:
            self._vacating.pop(place, None)
            waits.answer()

        self.shelf.await_read(read)
        return waits

    # -- the end

    def leave(self, connections: Mapping[Job, Mapping[int, int]]) -> dict[Job, set[int]]:
        """Have kept what there still is for the next daemon, of each job its address and these connections,
        by number; which of them are, as far as anybody can know. All that is kept of these jobs stays.
        """
        kept: dict[Job, set[int]] = {job: set() for job in connections}
        if not self._notifier:
            return kept
        until = time.monotonic() + LEAVE_SECONDS
        self.shelf.settle(until)
        count = self.shelf.kept
        for job, number, fd in _in_turn(connections):
            if count >= STORED_MAX or time.monotonic() > until:
                break
            if not self._notifier.store(f"job-{job.id}-connection-{number}", (fd,), poll=False):
                break
            kept[job].add(number)
            count += 1
        if count:
            self._notifier.barrier()
        self._gone_on.update(job.id for job in connections)
        return kept

    def keeps(self, job: Job) -> bool:
        """Whether the manager was told to keep the address of `job`."""
        return any(name in self.shelf for name in self._names.get(job.id, ()))

    def close(self) -> None:
        """Say what is still to be forgotten, and close what is left of the daemon before."""
        self.shelf.close()
        for found in self._found.values():
            found.left.close()
        self._found.clear()


def _in_turn(connections: Mapping[Job, Mapping[int, int]]) -> Iterable[tuple[Job, int, int]]:
    """One of each user after the other."""
    users: dict[int, deque[tuple[Job, int, int]]] = defaultdict(deque)
    for job, those in connections.items():
        for number, fd in those.items():
            users[job.owner.uid].append((job, number, fd))
    while users:
        for uid in list(users):
            yield users[uid].popleft()
            if not users[uid]:
                del users[uid]
