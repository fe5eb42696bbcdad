"""The public socket: taking it, and accepting from it without ever spinning or starving.

Taking it. Two daemons must not serve one path, and a path that a killed daemon left must not stop the next
one. connect(2) alone cannot tell, because another daemon may be between its check and its bind(2). So
whoever wants the path first takes flock(2) on `PATH.lock`, which the kernel drops with the process, and
keeps it for life; the lock file itself stays, because removing it would let two daemons lock two files of
one name. Under the lock a socket that refuses connections is stale and goes; one that answers belongs to
somebody who does not know our lock, and stays.

Given. A service manager may have made the listener and passed it on (socket activation). It keeps a copy,
so clients can connect before the daemon is up and while it is replaced: they wait in the backlog. Then the
file is the manager's and stays; the lock is taken all the same, or two daemons would share one queue.

Accepting. A bounded batch a turn. When the descriptors run out accept(2) fails with EMFILE and the listener
stays readable, so a naive loop spins; here the listener is laid aside until a descriptor has been given
back, or a short time has passed (others give descriptors back without telling). It is laid aside before the
table is full, so that a reserve remains for the daemon itself. Descriptors are handed out lowest first: the
number of a new one says how full the table is. Connections that are turned away at once change nothing in
the table, and in a flood they are nearly all; so the table is looked at again only after one that was not.

They must go fast: while the backlog is full a connect(2) that does not block, and gRPC's do not, fails with
EAGAIN, whoever makes it. To let them wait there would cost the core less and keep everybody else out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import socket
import stat
import struct
from collections.abc import Callable

from aemd.core.limits import MS
from aemd.sources.reactor import Reactor, Timer
from aemd.sources.socket import ACCEPT_AGAIN, SHORTAGE, leave

BATCH = 16  # connections taken in one turn; with all that is read about each, 2 ms
TURNED_AWAY_BATCH = 100  # beside them, 1 ms
BACKLOG = 4_096  # cut to net.core.somaxconn
RETRY_NS = 200 * MS
PATH_BYTES_MAX = 107  # sun_path of unix(7), without its NUL

TURNED_AWAY = object()
_UCRED = struct.Struct("iII")


class SocketTaken(Exception):  # noqa: N818 - a state that callers ask for by this name
    """The path cannot be served from here; the message says who has it."""


class UnfitListenerError(Exception):
    """What was passed on is not what is to be served; the message says why, and what to change."""


class Place:
    """The right to serve a path, from `take` to `give_back`.

    `given`: the listener's file is somebody else's, and stays.
    """

    def __init__(self, path: bytes, lock: int, listener: socket.socket, *, given: bool = False) -> None:
        self.path = path
        self.listener = listener
        self._lock = lock
        self._identity = None if given else _identity(path)

    def stop_listening(self) -> None:
        """Close the listener and remove its file; the path stays ours, so nobody else takes it yet.

        One that was given stays where it is, and so do those who connect to it.
        """
        if self.listener.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            if self._identity is not None and _identity(self.path) == self._identity:
                os.unlink(self.path)
        self.listener.close()

    def give_back(self) -> None:
        """Let the next daemon have the path."""
        self.stop_listening()
        os.close(self._lock)


def take(path: bytes, *, public: bool, given: socket.socket | None = None) -> Place:
    """Listen on `path`, with mode 0666 if `public`, else 0600; or on the listener that was `given` for it.

    SocketTaken if it is served already, or is something else than a socket, or too long; OSError if the
    folder does not allow it; UnfitListenerError if what was given does not fit.
    """
    if len(path) > PATH_BYTES_MAX:
        raise SocketTaken(f"{os.fsdecode(path)}: a socket's path has at most {PATH_BYTES_MAX} bytes")
    lock = os.open(path + b".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _check_lock(path, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SocketTaken(_taken(path, _holder(path) or _read_pid(lock))) from None
        if given is None:
            _remove_stale(path)
            listener = _listen(path, 0o666 if public else 0o600)
        else:
            listener = _adopt(path, given, public=public)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BaseException:
        os.close(lock)
        raise
    return Place(path, lock, listener, given=given is not None)


def _adopt(path: bytes, given: socket.socket, *, public: bool) -> socket.socket:
    name, bound = os.fsdecode(path), given.getsockname()
    if given.family != socket.AF_UNIX or given.type != socket.SOCK_STREAM:
        raise UnfitListenerError(
            f"the listener that was passed on is no Unix stream socket (ListenStream={name})"
        )
    if not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise UnfitListenerError("the socket that was passed on does not listen (Accept=no is needed)")
    if os.fsencode(bound) != path:
        raise UnfitListenerError(
            f"the listener that was passed on is bound to {os.fsdecode(bound)!r}, and {name} is to be served;"
            f" make ListenStream= of the socket unit and --socket the same"
        )
    mode = stat.S_IMODE(os.lstat(path).st_mode)
    if not public and mode & 0o077:
        raise UnfitListenerError(f"{name}: mode {mode:04o} lets other users in; set SocketMode=0600")
    given.setblocking(False)
    return given


def _check_lock(path: bytes, lock: int) -> None:
    """Refuse what somebody else has put there: it will be written to, and who holds it could keep us out.
    Whose the folder is could do so anyway.
    """
    found, folder = os.fstat(lock), os.stat(os.path.dirname(path) or b".")
    owners = (os.geteuid(), folder.st_uid)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in owners or found.st_nlink > 1:
        raise SocketTaken(
            f"{os.fsdecode(path)}.lock is not ours: it is of uid {found.st_uid}, or no file of its own;"
            " remove it, or take a folder that nobody else can write to"
        )


def _taken(path: bytes, pid: int) -> str:
    return f"aemd already serves {os.fsdecode(path)}: " + (f"pid {pid}" if pid else "it is just starting")


def _holder(path: bytes) -> int:
    """The pid that listens on `path`; 0 if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # its backlog is full; the credentials are known all the same
        except OSError:
            return 0
        pid: int = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
        return max(pid, 0)


def _read_pid(lock: int) -> int:
    text = os.pread(lock, 20, 0).strip()
    return int(text) if text.isdigit() else 0


def _remove_stale(path: bytes) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketTaken(f"{os.fsdecode(path)} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass
    raise SocketTaken(_taken(path, _holder(path)))


def _listen(path: bytes, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o777 & ~mode)
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _identity(path: bytes) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


class Acceptor:
    """Hands every new connection to `accepted`, which owns it from then on."""

    def __init__(
        self,
        reactor: Reactor,
        listener: socket.socket,
        *,
        reserve: int,
        accepted: Callable[[socket.socket], object],
    ) -> None:
        """`reserve`: how many descriptors are never used for connections. `laid_aside` counts how often there
        were no more. `accepted` returns TURNED_AWAY if it has closed the connection and kept nothing.
        """
        self.laid_aside = 0
        self._reactor = reactor
        self._listener = listener
        self._reserve = reserve
        self._accepted = accepted
        self._retry: Timer | None = None
        self._laid_aside = False
        self._open = True
        reactor.add(listener.fileno(), select.EPOLLIN, self._ready)

    def descriptor_freed(self) -> None:
        """Somebody gave a descriptor back."""
        if self._laid_aside and self._open:
            self._resume()

    def close(self) -> None:
        """Accept no more. The listener stays open; it is its Place's."""
        if not self._open:
            return
        self._open = False
        if self._retry is not None:
            self._retry.cancel()
        leave(self._reactor, self._listener)

    def _ready(self, _events: int) -> None:
        look, taken = True, 0
        try:
            for _ in range(BATCH + TURNED_AWAY_BATCH):
                if look and self._nearly_full():
                    self._lay_aside()
                    return
                connection, _ = self._listener.accept()
                look = self._accepted(connection) is not TURNED_AWAY
                taken += look
                if not self._open or taken >= BATCH:
                    return
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in ACCEPT_AGAIN:
                return  # what else waits is told again
            if error.errno not in SHORTAGE:
                raise
            self._lay_aside()

    def _nearly_full(self) -> bool:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # The lowest free number is the hole that the last connection left when it was handed over.
        hole = os.dup(self._listener.fileno())
        try:
            above = os.dup(hole)
        finally:
            os.close(hole)
        os.close(above)
        # A small table keeps a quarter: a reserve as large as the table would accept nobody at all.
        return above >= soft - min(self._reserve, soft // 4)

    def _lay_aside(self) -> None:
        self._laid_aside = True
        self.laid_aside += 1
        self._reactor.modify(self._listener.fileno(), 0)
        clock = self._reactor.clock("monotonic")
        self._retry = clock.call_at(clock.now_ns() + RETRY_NS, lambda _now_ns: self._resume())

    def _resume(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._laid_aside = False
        self._reactor.modify(self._listener.fileno(), select.EPOLLIN)
