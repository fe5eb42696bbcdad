"""Paths, looked up by somebody who is the caller already.

openat2(2), Linux 5.6: RESOLVE_IN_ROOT keeps `..` and absolute symbolic links below the root whatever is
renamed meanwhile; where the kernel cannot rule out that something was, it says EAGAIN, and the lookup begins
again. RESOLVE_NO_MAGICLINKS refuses the links of /proc that are not paths (/proc/PID/root, cwd, exe, fd/N)
with ELOOP: behind them may be what no path leads to. What lies in a proc file system itself is refused after
the lookup: there "self" would be us.

What may be said about a path is what the kernel says to the caller. Below a directory that may not be
searched everything is EACCES, whether it exists or not, because the kernel looks no further.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from aemd.deputy.caller import FaultError
from aemd.deputy.protocol import Fault

ATTEMPTS = 1_000  # of a lookup that something is renamed under; each is some microseconds
_SYS_OPENAT2 = 437  # the same on every architecture
_SYS_FACCESSAT2 = 439  # Linux 5.8
_AT_EACCESS = 0x200
_AT_EMPTY_PATH = 0x1000
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_PROC_SUPER_MAGIC = 0x9FA0
_HOW = struct.Struct("=QQQ")
_STATFS_BYTES = 256  # more than struct statfs has on any architecture; f_type comes first

_libc = ctypes.CDLL(None, use_errno=True)


def open_below(root: int, path: bytes, flags: int) -> int:
    """A descriptor for the absolute `path` below the directory `root`. OSError; FaultError PROCFS."""
    if not path.startswith(b"/") or b"\0" in path:  # IN_ROOT takes a relative path for one from the root
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "openat2")
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    for _ in range(ATTEMPTS):
        found: int = _libc.syscall(_SYS_OPENAT2, root, path, how, ctypes.c_size_t(len(how)))
        if found >= 0:
            break
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number), "openat2")
    else:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "openat2")
    if _is_proc(found):
        os.close(found)
        raise FaultError(Fault.PROCFS)
    return found


def check_readable(descriptor: int) -> None:
    """OSError EACCES if what an O_PATH descriptor stands for may not be read."""
    if _libc.syscall(_SYS_FACCESSAT2, descriptor, b"", os.R_OK, _AT_EMPTY_PATH | _AT_EACCESS):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "faccessat2")


def _is_proc(descriptor: int) -> bool:
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(descriptor, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "fstatfs")
    return ctypes.c_long.from_buffer(buffer).value == _PROC_SUPER_MAGIC


def split(path: bytes) -> tuple[bytes, bytes]:
    """The directory of a path, and the last part of it."""
    folder, _, name = path.rpartition(b"/")
    return folder or b"/", name


def identity(name: bytes, directory: int) -> tuple[int, int]:
    """Device and inode of a name in a directory, itself and not what it may point to."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return found.st_dev, found.st_ino
