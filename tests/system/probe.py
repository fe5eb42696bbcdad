"""What a process may do, found out by trying; run in the place of the daemon, with its unit's protection.

Nothing but the standard library. The arguments are names of ATTEMPTS; each is made in a child of its own, as
a filter of system calls may kill it. Prints one JSON object: the outcome of each attempt, "allowed", or the
name of what stopped it (an errno, a signal, or a word of the attempt's own).

An attempt must succeed where nothing protects. Where this machine would refuse it anyway, one is made that
fails later than the protection would: with an argument that the kernel calls invalid (EFAULT, EINVAL), which
then counts as allowed.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import sys

STRANGER = 4_242  # a user that nobody is
CANARY = "canary"  # what test_hardening.py has put in places
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000
SYSCALLS = {
    "x86_64": {
        "clock_settime": 227, "sched_setscheduler": 144, "umount2": 166, "personality": 135, "fchownat": 260,
    },
    "aarch64": {
        "clock_settime": 112, "sched_setscheduler": 119, "umount2": 39, "personality": 92, "fchownat": 54,
    },
}[os.uname().machine]  # fmt: skip
SCHED_FIFO, PER_LINUX32 = 1, 8

libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """The attempt failed; the message says how."""


def call(name, *arguments, invalid=0):
    """A system call. Failing with `invalid` means that nothing stood before the kernel's own checks."""
    if libc.syscall(SYSCALLS[name], *arguments) < 0 and ctypes.get_errno() != invalid:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def be_root():
    os.setresuid(0, 0, 0)


def give_a_file_away():
    call("fchownat", -1, None, STRANGER, STRANGER, 0, invalid=errno.EFAULT)


def share_mounts_with_the_machine():
    same_namespace("mnt")


def share_network_with_the_machine():
    same_namespace("net")


def same_namespace(name):
    if os.stat(f"/proc/1/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
        raise RefusedError("another")


def send_a_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", ("127.0.0.1", 9))


def open_internet():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def make_set_user_id_file():
    path = f"/run/{CANARY}-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    try:
        os.chmod(path, 0o4700)
    finally:
        os.unlink(path)


def read_uptime():
    with open("/proc/uptime") as file:
        file.read()


def read_foreign_folder():
    os.listdir("/opt/foreign")


def gain_by_set_user_id():
    os.setgroups([])
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)
    shown = subprocess.run(["/opt/set-user-id", "-u"], capture_output=True, text=True, check=True).stdout
    if shown.strip() != "0":
        raise RefusedError("nothing gained")


def unmount():
    call("umount2", None, 0, invalid=errno.EFAULT)


def set_priority():
    os.setpriority(os.PRIO_PROCESS, 0, 0)


def call_of_another_abi():
    """getpid(2) as a 32-bit process calls it; the code lies in a file, as memory must not become code."""
    libc.mmap.restype = ctypes.c_void_p
    with open("/opt/int80", "rb") as file:
        protection, flags = mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE
        start = libc.mmap(None, ctypes.c_size_t(4096), protection, flags, file.fileno(), ctypes.c_long(0))
    if ctypes.CFUNCTYPE(ctypes.c_int)(start)() != os.getpid():
        raise RefusedError("no such ABI")


def change_personality():
    call("personality", PER_LINUX32)


def write_code():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def be_real_time():
    call("sched_setscheduler", 0, SCHED_FIFO, None, invalid=errno.EINVAL)


def new_host_name_space():
    if libc.unshare(CLONE_NEWUTS):
        raise OSError(ctypes.get_errno(), "unshare")


def new_network():
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def open_netlink():
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def make_readable_file():
    path = f"/var/lib/aemd/readable-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    mode = os.stat(path).st_mode & 0o777
    os.unlink(path)
    if not mode & 0o044:
        raise RefusedError("for nobody else")


def write_to_system():
    for path in (f"/opt/{CANARY}-{os.getpid()}", f"/etc/{CANARY}-{os.getpid()}"):
        with open(path, "w"):
            pass
        os.unlink(path)


def see_home():
    os.stat(f"/home/{CANARY}")


def see_temporary_files():
    os.stat(f"/tmp/{CANARY}")


def see_device():
    os.stat(f"/dev/{CANARY}")


def open_device():
    os.close(os.open("/dev/kmsg", os.O_WRONLY))


def set_clock():
    call("clock_settime", 0, None, invalid=errno.EFAULT)


def set_host_name():
    socket.sethostname(socket.gethostname())


def write_kernel_log():
    os.close(os.open("/dev/kmsg", os.O_WRONLY))


def see_modules():
    os.stat(f"/usr/lib/modules/{CANARY}")


def read_symbols():
    with open("/proc/kallsyms", "rb") as file:
        if not file.read(1):
            raise RefusedError("empty")


def make_control_group():
    path = f"/sys/fs/cgroup/{CANARY}-{os.getpid()}"
    os.mkdir(path)
    os.rmdir(path)


def see_processes_as_a_stranger():
    os.setgroups([])
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)
    os.stat("/proc/1")


ATTEMPTS = {name: made for name, made in list(globals().items()) if callable(made)}


def attempt(name):
    """The outcome of one attempt."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ATTEMPTS[name]()
            outcome = "allowed"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno, str(error))
        except BaseException as error:
            outcome = str(error) or repr(error)
        os.write(writer, outcome.encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    outcome = os.read(reader, 4096).decode()
    os.close(reader)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else outcome


if __name__ == "__main__":
    print(json.dumps({name: attempt(name) for name in sys.argv[1:]}))
