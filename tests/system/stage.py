"""From an empty set of namespaces to a running systemd: the part of `box.py` that is on the other side.

Run by unshare(1) as the first process of the box, while the root directory is still the host's. Nothing but
the standard library: this file is executed by itself. Argument: a JSON object with `home`, an empty directory
to build in, `binds`, [source, target] pairs that the box sees read-only, and `units`, the names of the units
that the box starts by itself.

The order matters:

- a tmpfs of our own first: an overlay cannot have its upper directory on an overlay, and what is written
  in the box must vanish with it. `index` and `nfs_export` make file handles work, which fanotify needs;
- /proc/sys read-only but for what belongs to our network namespace, or the box would set the host's sysctls;
- /sys read-only: systemd-udevd and what else manages hardware then stays away by itself;
- a machine of its own: no fstab, no generators, an identity, a journal in memory, and no units that were not
  asked for;
- pivot_root(2) into it, and the mounts shared again: credentials come up empty otherwise;
- systemd last, without the capabilities that reach beyond namespaces: clock, power, modules, audit, log.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import struct
import sys
import uuid
from collections.abc import Iterable

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_SHARED = 4096, 16384, 1 << 20
MNT_DETACH = 2
SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
HOST_ONLY = ("sys_boot", "sys_time", "sys_module", "audit_control", "audit_read", "syslog", "wake_alarm")
UNITS = "usr/lib/systemd/system"
JOURNALD = "[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\nRateLimitBurst=0\nForwardToSyslog=no\n"

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    arguments = (text.encode() for text in (source, target, kind))
    if libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mount {kind or 'bind'} {target}")


def write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def bind(source: str, target: str) -> None:
    """Show `source` at `target`, read-only."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        write(target, "")
    mount(source, target, "", MS_BIND)
    mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def make_root(home: str) -> str:
    root = f"{home}/root"
    mount("tmpfs", home, "tmpfs", 0, "mode=755,size=512m")
    for name in ("root", "upper", "work"):
        os.mkdir(f"{home}/{name}")
    layers = f"lowerdir=/,upperdir={home}/upper,workdir={home}/work"
    try:
        mount("overlay", root, "overlay", 0, f"{layers},index=on,nfs_export=on")
    except OSError:
        mount("overlay", root, "overlay", 0, layers)
    for name in ("proc", "sys", "dev", "run", "tmp"):
        os.makedirs(f"{root}/{name}", exist_ok=True)
    return root


def mount_kernel(root: str) -> None:
    mount("proc", f"{root}/proc", "proc", SAFE)
    mount(f"{root}/proc/sys", f"{root}/proc/sys", "", MS_BIND)
    mount("", f"{root}/proc/sys", "", MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE)
    if os.path.exists(f"{root}/proc/sysrq-trigger"):
        bind(f"{root}/proc/sysrq-trigger", f"{root}/proc/sysrq-trigger")
    mount("sysfs", f"{root}/sys", "sysfs", SAFE | MS_RDONLY)
    mount("cgroup2", f"{root}/sys/fs/cgroup", "cgroup2", SAFE)


def mount_devices(root: str) -> None:
    mount("dev", f"{root}/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=4m")
    mask = os.umask(0)
    for name, (major, minor) in DEVICES.items():
        os.mknod(f"{root}/dev/{name}", 0o020666, os.makedev(major, minor))
    os.umask(mask)
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"{root}/dev/{name}")
    mount("devpts", f"{root}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    mount("shm", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m")
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in links.items():
        os.symlink(target, f"{root}/dev/{name}")


def make_machine(root: str, units: Iterable[str]) -> None:
    """No units but `units`, and nothing of the host's own identity and history."""
    mount("run", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64m")
    mount("tmp", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m")
    mount("units", f"{root}/etc/systemd/system", "tmpfs", 0, "mode=755,size=4m")
    os.symlink("/" + UNITS + "/multi-user.target", f"{root}/etc/systemd/system/default.target")
    for name in sorted(os.listdir(f"{root}/{UNITS}")):
        if name.endswith((".wants", ".requires")):
            for unit in os.listdir(f"{root}/{UNITS}/{name}"):
                if unit not in units:
                    os.unlink(f"{root}/{UNITS}/{name}/{unit}")
    for place in ("usr/lib/systemd/system-generators", "usr/lib/systemd/system-environment-generators"):
        mount("none", f"{root}/{place}", "tmpfs", MS_RDONLY, "mode=755,size=4k")
    for path in ("etc/fstab", "etc/machine-id", "etc/hostname"):
        if os.path.lexists(f"{root}/{path}"):
            os.unlink(f"{root}/{path}")
    write(f"{root}/etc/machine-id", f"{uuid.uuid4().hex}\n")
    write(f"{root}/etc/hostname", "box\n")
    shutil.rmtree(f"{root}/var/log/journal", ignore_errors=True)
    write(f"{root}/run/systemd/journald.conf.d/box.conf", JOURNALD)


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh22x", b"lo", 1)  # IFF_UP; netdevice(7)
        import fcntl

        fcntl.ioctl(sock, 0x8914, request)  # SIOCSIFFLAGS


def enter(root: str) -> None:
    os.chdir(root)
    if libc.syscall(155 if os.uname().machine == "x86_64" else 41, b".", b"."):  # pivot_root(2)
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "pivot_root")
    if libc.umount2(b".", MNT_DETACH):  # the old root lies on top of the new one now
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "umount2")
    os.chroot(".")
    os.chdir("/")
    mount("", "/", "", MS_REC | MS_SHARED)


def main() -> None:
    plan = json.loads(sys.argv[1])
    root = make_root(plan["home"])
    mount_kernel(root)
    mount_devices(root)
    make_machine(root, plan["units"])
    for source, target in plan["binds"]:
        bind(source, root + target)
    loopback_up()
    socket.sethostname("box")
    enter(root)
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container": "box"}
    os.execvpe(
        "setpriv",
        [
            "setpriv",
            "--bounding-set=" + ",".join(f"-{name}" for name in HOST_ONLY),
            "/lib/systemd/systemd",
            "--show-status=false",
        ],
        environment,
    )


if __name__ == "__main__":
    main()
