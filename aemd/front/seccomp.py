"""Calls that no front makes, refused for good by a seccomp filter; seccomp(2), classic BPF.

The point is that a front stays one process. A child of one that was taken over would outlive it: ending the
front ends the process that the core knows and nothing else, and the child would go on in the front's network
namespace as the user that fronts run as. Threads are needed (gRPC has some), so clone(2) is allowed with
CLONE_THREAD. The flags of clone3(2) lie in memory, where a filter cannot look; it answers ENOSYS, and libc
falls back to clone(2). The others here would lead to other processes' memory, into other namespaces, or
around the filter (io_uring has calls of its own).

A filter sees the number of a call, which means something else in each calling convention: an unexpected one
(32-bit code, x32) ends the process, or is refused. It holds for the calling thread and all that it starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping, Sequence

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_NOT_LESS, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FLAGS = 0, 4, 16  # offsets in struct seccomp_data; the low half of args[0]
_CLONE_THREAD = 0x10000
_X32 = 0x40000000

_GENERIC: Mapping[str, int] = {
    "clone": 220, "clone3": 435, "execve": 221, "execveat": 281, "unshare": 97, "setns": 268, "ptrace": 117,
    "process_vm_readv": 270, "process_vm_writev": 271, "io_uring_setup": 425, "bpf": 280, "pidfd_getfd": 438,
    "keyctl": 219, "add_key": 217, "request_key": 218, "userfaultfd": 282, "perf_event_open": 241,
}  # fmt: skip
_X86_64: Mapping[str, int] = {
    "clone": 56, "clone3": 435, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "unshare": 272,
    "setns": 308, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "io_uring_setup": 425,
    "bpf": 321, "pidfd_getfd": 438, "keyctl": 250, "add_key": 248, "request_key": 249, "userfaultfd": 323,
    "perf_event_open": 298,
}  # fmt: skip
_MACHINES: Mapping[str, tuple[int, Mapping[str, int]]] = {  # AUDIT_ARCH_* of linux/audit.h
    "x86_64": (0xC000003E, _X86_64),
    "aarch64": (0xC00000B7, _GENERIC),
    "riscv64": (0xC00000F3, _GENERIC),
}

_libc = ctypes.CDLL(None, use_errno=True)
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def install() -> bool:
    """Restrict the calling thread, which has no_new_privs. False: this kernel or machine has no filter."""
    found = _MACHINES.get(os.uname().machine)
    if found is None:
        return False
    instructions = program(*found)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    header = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    done: int = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)
    return done == 0


def program(arch: int, numbers: Mapping[str, int]) -> Sequence[Instruction]:
    """The filter for one machine."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    instructions: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_NOT_LESS, 0, 1, _X32),
        refuse,
        (_JUMP_EQUAL, 0, 1, numbers["clone3"]),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for name, number in numbers.items():
        if name not in ("clone", "clone3"):
            instructions += [(_JUMP_EQUAL, 0, 1, number), refuse]
    return [
        *instructions,
        (_JUMP_EQUAL, 0, 3, numbers["clone"]),
        (_LOAD, 0, 0, _FLAGS),
        (_JUMP_SET, 1, 0, _CLONE_THREAD),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
