"""What a child does: look at the caller, become it, do one thing, say how it went, exit.

Binding. The socket's name is the path as the caller gave it: clients see it (getpeername, the address of a
datagram, ss(8)) and may use it. So bind(2) gets the path, below the caller's root, and the directory is
opened besides, for the day when the name has to go again: then the caller may be gone, with its root.
Whoever exchanges directories between the two gets an error (MOVED), and what was made lies where its own
rights let it be.

A file without a holder (its daemon was killed) refuses connections, and so does a socket that is bound and
does not listen yet. Only the core knows which is which, therefore it is told (STALE) and asks again with
REPLACE. A socket of another user's is never replaced, whatever the directory allows.

Listening. unix(7): whoever connects sees the credentials of the process that called listen(2) (SO_PEERCRED).
So it is called here: a program that trusts what root serves must not take a user's job for that.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import stat
from dataclasses import replace

from aemd.deputy import caller
from aemd.deputy.caller import FaultError
from aemd.deputy.paths import check_readable, identity, open_below, split
from aemd.deputy.protocol import BECOMING, NOBODY_SAYS, Access, Answer, Fault, Flag, Kind, Request, State

SUN_PATH_BYTES_MAX = 107  # unix(7), without the NUL
_READABLE = stat.S_IFREG, stat.S_IFDIR


def perform(request: Request, descriptors: list[int]) -> tuple[Answer, list[int]]:
    """Do what is asked; the answer, and what goes with it. To be called once, in a process of its own."""
    answer = Answer(request.number)
    try:
        capable = _enter(request, descriptors)
        return _TASKS[request.kind](request, descriptors, replace(answer, state=answer.state | capable))
    except FaultError as error:
        return replace(answer, error=int(error.fault)), []
    except OSError as error:
        call = error.filename if isinstance(error.filename, str) else request.kind.name.lower()
        return replace(answer, error=error.errno or errno.EIO, call=call), []


def _enter(request: Request, descriptors: list[int]) -> int:
    """Become who asks. Returns State.CAPABLE if it may override permissions."""
    gid, groups, root = request.gid, request.groups, None
    capabilities = caller.CAPABLE
    if Flag.DATABASE & request.flags:
        gid, groups = _groups(request.uid, request.gid)
    elif request.pid:
        pidfd = descriptors.pop(0)
        found = caller.look_at(request.pid, pidfd)
        if Flag.HOME & request.flags and not caller.is_at_home(request.pid, found.root):
            raise FaultError(Fault.AWAY)
        os.close(pidfd)
        os.umask(found.umask if request.mode < 0 else 0)
        root, capabilities = found.root, found.capabilities & caller.CAPABLE
    if root is None and request.kind is not Kind.REMOVE:
        root = caller.machine_root()
        os.umask(caller.UMASK_DEFAULT if request.mode < 0 else 0)
    if not Flag.CAPABLE & request.flags:
        capabilities = 0
    try:
        caller.become(request.uid, gid, groups, root=root, capabilities=capabilities)
    except OSError as error:
        raise OSError(error.errno, error.strerror, BECOMING) from error
    if root is not None:
        os.close(root)
    return State.CAPABLE if capabilities else 0


def _groups(uid: int, gid: int) -> tuple[int, tuple[int, ...]]:
    """Group and groups of a user as its next login would have them. The database may be a slow network."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        if gid == NOBODY_SAYS:
            raise FaultError(Fault.UNKNOWN) from None
        return gid, ()
    gid = entry.pw_gid if gid == NOBODY_SAYS else gid
    return gid, tuple(os.getgrouplist(entry.pw_name, gid))


def _root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _directory(path: bytes) -> tuple[int, bytes]:
    folder, name = split(path)
    return open_below(_root(), folder, os.O_PATH | os.O_DIRECTORY), name


def _bind(request: Request, _descriptors: list[int], answer: Answer) -> tuple[Answer, list[int]]:
    sock = socket.socket(socket.AF_UNIX, request.type | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if request.type == socket.SOCK_DGRAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    if request.mode >= 0:
        os.fchmod(sock.fileno(), request.mode)  # of the path to come; unix(7) says nothing, the kernel does
    if len(request.path) > SUN_PATH_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "bind")
    directory, name = _directory(request.path)
    if Flag.REPLACE & request.flags and identity(name, directory) == (request.device, request.inode):
        os.unlink(name, dir_fd=directory)
    try:
        sock.bind(request.path)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            found = _stale(request, name, directory)
            if found is not None:
                state = answer.state | State.STALE
                return replace(
                    answer, error=errno.EADDRINUSE, call="bind", state=state, device=found[0], inode=found[1]
                ), []
        raise OSError(error.errno, error.strerror, "bind") from error
    try:
        device, inode = identity(name, directory)
    except OSError:
        raise FaultError(Fault.MOVED) from None
    if request.backlog >= 0:
        sock.listen(request.backlog)
    return replace(answer, device=device, inode=inode), [sock.detach(), directory]


def _stale(request: Request, name: bytes, directory: int) -> tuple[int, int] | None:
    """A socket of the caller's own that refuses connections."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != request.uid:
            return None
        with socket.socket(socket.AF_UNIX, request.type | socket.SOCK_NONBLOCK) as probe:
            refused = probe.connect_ex(request.path) == errno.ECONNREFUSED
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if refused else None


def _listen(request: Request, descriptors: list[int], answer: Answer) -> tuple[Answer, list[int]]:
    directory, name = _directory(request.path)
    if identity(name, directory) != (request.device, request.inode):
        raise FaultError(Fault.MOVED)
    if request.backlog >= 0:
        with socket.socket(fileno=descriptors[0]) as sock:
            sock.listen(request.backlog)
    return answer, []


def _remove(request: Request, descriptors: list[int], answer: Answer) -> tuple[Answer, list[int]]:
    _, name = split(request.path)
    if identity(name, descriptors[0]) == (request.device, request.inode):
        os.unlink(name, dir_fd=descriptors[0])
    return answer, []


def _open(request: Request, _descriptors: list[int], answer: Answer) -> tuple[Answer, list[int]]:
    root = _root()
    found = open_below(root, request.path, os.O_PATH)
    status = os.fstat(found)
    if request.access == Access.READ:
        if stat.S_IFMT(status.st_mode) not in _READABLE:
            raise FaultError(Fault.KIND)  # opening a device may do something
        opened = open_below(root, request.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        if os.path.sameopenfile(found, opened):
            return replace(answer, device=status.st_dev, inode=status.st_ino), [opened]
        raise FaultError(Fault.MOVED)
    if request.access == Access.WATCH:
        check_readable(found)
    return replace(answer, device=status.st_dev, inode=status.st_ino), [found]


def _send(request: Request, descriptors: list[int], answer: Answer) -> tuple[Answer, list[int]]:
    with socket.socket(fileno=descriptors[0]) as sock:
        try:
            sock.sendto(request.data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT, request.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "sendto") from error
    return answer, []


_TASKS = {Kind.BIND: _bind, Kind.LISTEN: _listen, Kind.REMOVE: _remove, Kind.OPEN: _open, Kind.SEND: _send}
