"""A tape: records behind one another, in memory that outlives the process because somebody else keeps it too.

The memory is a memfd, memfd_create(2): a file of tmpfs without a name. A page of header says from where to
where there are records; each is a length and its bytes. Records are written behind the last one first, and
the header after that, in one write of some bytes of one page: the kernel copies such a piece as a whole, a
process that is killed has written all of it or nothing (a larger write may end between two pages). So what
was not committed is never read, whatever is there.

What lies before the first record is given back (MADV_REMOVE, which makes a hole): positions only grow, the
memory does not. It counts as the memory of whoever writes.

What is read is data, whoever wrote it: `TapeError` says what is wrong with it.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = b"aemdtape"
VERSION = 1  # of the tape, and of what its records say
RECORDS_AT = mmap.PAGESIZE
RECORD_BYTES_MAX = 72 * 1024 * 1024  # more than a client's message may have
READ_BYTES = 256 * 1024
FREE_BYTES = 1024 * 1024  # given back at once
MFD_NOEXEC_SEAL = 0x0008  # linux/memfd.h; not in the os module
_HEADER = struct.Struct("<8sIIQQQQ")
_LENGTH = struct.Struct("<I")


class TapeError(Exception):
    """What is there is no tape, or not of this version, or damaged."""


class Header(NamedTuple):
    """What was committed last: records from `begin` to `end`, the next numbers of jobs and sessions, and how
    often it was taken up since.
    """

    begin: int = RECORDS_AT
    end: int = RECORDS_AT
    next_job: int = 1
    next_session: int = 1
    tries: int = 0


class Tape:
    """One tape. Takes over `fd`. OSError as of the system calls, ENOSPC for what is short."""

    def __init__(self, fd: int) -> None:
        """TapeError, and the descriptor stays the caller's, if there is none."""
        self.header = _parse_header(os.pread(fd, _HEADER.size, 0), os.fstat(fd).st_size)
        self.fd = fd
        self._end = self.header.end  # of what was written
        self._freed = self.header.begin // FREE_BYTES * FREE_BYTES or RECORDS_AT

    @classmethod
    def create(cls) -> Tape:
        """An empty one."""
        fd = _memory("aemd-registrations")
        try:
            _write(fd, _pack(Header()), 0)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def end(self) -> int:
        """Where the next record will be written."""
        return self._end

    def write(self, records: bytes) -> None:
        """Add framed records; they count from commit() on."""
        _write(self.fd, records, self._end)
        self._end += len(records)

    def commit(self, header: Header) -> None:
        """From now on this is true; its `end` is not behind what was written."""
        _write(self.fd, _pack(header), 0)
        self.header = header
        if header.begin - self._freed >= FREE_BYTES:
            self._free()

    def records(self, begin: int, end: int) -> Iterator[tuple[bytes, int]]:
        """The records between two positions, each with where the next one begins."""
        at, size = begin, READ_BYTES
        while at < end:
            piece, used = os.pread(self.fd, min(size, end - at), at), 0
            if len(piece) < min(size, end - at):
                raise TapeError(f"{end - at} bytes at {at} are not there")
            size = READ_BYTES
            while used + _LENGTH.size <= len(piece):
                (length,) = _LENGTH.unpack_from(piece, used)
                behind = used + _LENGTH.size + length
                if length > RECORD_BYTES_MAX or at + behind > end:
                    raise TapeError(f"a record of {length} bytes at {at + used} ends behind {end}")
                if behind > len(piece):
                    size = max(READ_BYTES, _LENGTH.size + length)
                    break
                yield piece[used + _LENGTH.size : behind], at + behind
                used = behind
            if not used and size == READ_BYTES:
                raise TapeError(f"{end - at} bytes at {at} are no record")
            at += used

    def _free(self) -> None:
        until = self.header.begin // FREE_BYTES * FREE_BYTES
        first = self._freed // FREE_BYTES * FREE_BYTES
        with mmap.mmap(self.fd, until - first, offset=first) as memory:
            memory.madvise(mmap.MADV_REMOVE, self._freed - first)
        self._freed = until

    def close(self) -> None:
        """Give this process's descriptor back."""
        os.close(self.fd)


def _memory(name: str) -> int:
    """A memfd that cannot be executed, as vm.memfd_noexec=2 wants it."""
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Linux 6.3
            raise
        return os.memfd_create(name, os.MFD_CLOEXEC)


def framed(record: bytes) -> bytes:
    """A record as it is written."""
    return _LENGTH.pack(len(record)) + record


def _parse_header(data: bytes, size_bytes: int) -> Header:
    if len(data) < _HEADER.size:
        raise TapeError(f"it has {len(data)} bytes, a header has {_HEADER.size}")
    magic, version, tries, begin, end, next_job, next_session = _HEADER.unpack(data)
    if magic != MAGIC:
        raise TapeError(f"it begins with {magic!r}, which is no tape")
    if version != VERSION:
        raise TapeError(f"it is of version {version}, this daemon reads {VERSION}")
    if not RECORDS_AT <= begin <= end <= max(size_bytes, RECORDS_AT):
        raise TapeError(f"its records are from {begin} to {end} of {size_bytes} bytes")
    if not 0 < next_job < 1 << 63 or not 0 < next_session < 1 << 63:
        raise TapeError(f"its next numbers are {next_job} and {next_session}")
    return Header(begin, end, next_job, next_session, tries)


def _pack(header: Header) -> bytes:
    return _HEADER.pack(
        MAGIC, VERSION, header.tries, header.begin, header.end, header.next_job, header.next_session
    )


def _write(fd: int, data: bytes, at: int) -> None:
    if os.pwrite(fd, data, at) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
