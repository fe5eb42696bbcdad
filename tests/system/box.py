"""A box: a machine of the test's own with a real systemd as its first process, in half a second.

No container manager and no virtual machine: namespaces (pid, mount, uts, ipc, net, cgroup), an overlay over
the root directory that the host has, and a cgroup2 directory of our own. What it writes is in memory and gone
with it. `stage.py` builds it from inside.

Needed: root, with the right to make namespaces and mounts; unshare(1), setpriv(1) and systemd; a cgroup2
hierarchy. `missing()` says which of them is not there.

The project is shown read-only below /opt/aemd, with an interpreter that is not in anybody's home, as on a
machine where it was installed; the units are put there by `aemctl install-units`, as users do.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

STAGE = Path(__file__).with_name("stage.py")
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 30  # seconds until what should happen counts as not happening
LOOK_SECONDS = 0.01
SIGRTMIN_PLUS_4 = signal.SIGRTMIN + 4  # systemd(1): poweroff.target
UNITS = (  # of those that systemd starts by itself, the ones that a service needs
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-tmpfiles-setup.service",
)
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")
PYTHON = "/opt/aemd/bin/python"
ENVIRONMENT = {"PATH": "/opt/aemd/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


def missing() -> str:
    """What this machine lacks for a box; empty if nothing."""
    if os.geteuid() != 0:
        return "needs root: namespaces, mounts and a systemd are made"
    for program in ("unshare", "setpriv", "nsenter", "systemctl"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not os.path.exists("/lib/systemd/systemd"):
        return "needs /lib/systemd/systemd"
    if not _cgroup2():
        return "needs a cgroup2 hierarchy"
    tried = subprocess.run(
        ["unshare", "--fork", *NAMESPACES, "mount", "-t", "tmpfs", "none", "/tmp"],
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        f"needs the right to make namespaces and mounts: {tried.stderr.strip()}" if tried.returncode else ""
    )


def _cgroup2() -> str:
    """Where the unified hierarchy is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return place
    return ""


def _interpreter() -> tuple[str, list[tuple[str, str]]]:
    """(its path in the box, what is to be shown for that): that of this process, out of anybody's home."""
    real = os.path.realpath(sys.executable)
    if real.startswith(("/usr/", "/opt/")):
        return real, []
    prefix = os.path.realpath(sys.base_prefix)
    return "/opt/python" + real.removeprefix(prefix), [(prefix, "/opt/python")]


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Box:
    """One box, from start() to stop()."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0  # of its systemd, as the host counts
        self._cgroup = f"{_cgroup2()}/aemd-box-{name}"
        self._home = ""
        self._outer: subprocess.Popen[bytes] | None = None

    # -- life

    def start(self) -> None:
        """Boot, and wait until its systemd has nothing more to start."""
        self._home = tempfile.mkdtemp(prefix="aemd-box-")
        for folder in (self._cgroup, f"{self._cgroup}/visitors"):
            os.mkdir(folder)
        python, binds = _interpreter()
        binds += [(str(REPOSITORY), "/opt/aemd/src"), (sysconfig.get_path("purelib"), "/opt/aemd/packages")]
        plan = {"home": self._home, "units": UNITS, "binds": binds}
        with open(f"{self._home}.log", "wb") as log:
            self._outer = subprocess.Popen(
                ["unshare", "--fork", "--kill-child=SIGKILL", "--propagation", "private", *NAMESPACES,
                 sys.executable, "-I", "-S", str(STAGE), json.dumps(plan)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: self._join(self._cgroup),
            )  # fmt: skip
        self.until(self._has_manager, "its systemd")
        state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        assert state == "running", f"{state}\n{self.run('systemctl', '--failed', check=False).stdout}"
        self._install(python)

    def stop(self) -> None:
        """Power it off, and remove what it was made of."""
        if self._outer is not None:
            if self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, SIGRTMIN_PLUS_4)
            try:
                self._outer.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                Path(f"{self._cgroup}/cgroup.kill").write_text("1")
                self._outer.kill()
                self._outer.wait(PATIENCE)
        if os.path.isdir(self._cgroup):
            self.until(self._remove_cgroups, "the end of its processes")
        shutil.rmtree(self._home, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._home}.log")

    def leftovers(self) -> list[str]:
        """What is left of it on the host, after stop()."""
        mounts = [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self._home in line
        ]
        processes = [
            command.decode()
            for command in map(_command_line, filter(str.isdigit, os.listdir("/proc")))
            if self._home.encode() in command
        ]
        paths = [path for path in (self._cgroup, self._home, f"{self._home}.log") if os.path.exists(path)]
        return [line for line in mounts if self._home in line] + processes + paths

    def _has_manager(self) -> bool:
        assert self._outer is not None
        assert self._outer.poll() is None, Path(f"{self._home}.log").read_text()
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
            self.pid = int(children[0]) if children else 0
        return self.pid > 0 and os.path.exists(self.path("/run/systemd/private"))

    def _remove_cgroups(self) -> bool:
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not os.path.isdir(self._cgroup)

    def _join(self, cgroup: str) -> None:
        with open(f"{cgroup}/cgroup.procs", "w") as procs:
            procs.write(str(os.getpid()))

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for what the box does by itself."""
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"{what} did not come within {PATIENCE} s"
            time.sleep(LOOK_SECONDS)

    def _install(self, python: str) -> None:
        """What `pip install` into a virtual environment below /opt leaves."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for folder in ("bin", f"lib/{version}/site-packages"):
            os.makedirs(self.path(f"/opt/aemd/{folder}"))
        os.symlink(python, self.path(PYTHON))
        self.write("/opt/aemd/pyvenv.cfg", f"home = {os.path.dirname(python)}\n")
        paths = ("/opt/aemd/src", "/opt/aemd/src/clients/python", "/opt/aemd/packages")
        self.write(f"/opt/aemd/lib/{version}/site-packages/aemd.pth", "".join(f"{path}\n" for path in paths))
        for name, module in (("aemd", "aemd"), ("aemctl", "aemd.cli.ctl")):
            self.write(f"/opt/aemd/bin/{name}", f'#!/bin/sh\nexec {PYTHON} -P -m {module} "$@"\n', mode=0o755)

    # -- use

    def path(self, path: str) -> str:
        """A path of the box, as the host reaches it."""
        return f"/proc/{self.pid}/root{path}"

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file in the box."""
        outer = self.path(path)
        os.makedirs(os.path.dirname(outer), exist_ok=True)
        Path(outer).write_text(text)
        os.chmod(outer, mode)

    def command(self, *command: str) -> list[str]:
        """What runs a command in the box."""
        return ["nsenter", "--target", str(self.pid), "--all", "--", *command]

    def run(self, *command: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command in the box, as its root."""
        done = subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=PATIENCE, check=False,
            env=ENVIRONMENT, preexec_fn=lambda: self._join(f"{self._cgroup}/visitors"), **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def show(self, unit: str, *properties: str) -> Mapping[str, str]:
        """Properties of a unit."""
        shown = self.run("systemctl", "show", unit, "--property", ",".join(properties)).stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    def journal_end(self) -> str:
        """Where the journal ends now."""
        shown = self.run("journalctl", "--lines", "0", "--show-cursor").stdout
        return shown.partition("-- cursor: ")[2].strip()

    def journal(self, unit: str, *, after: str) -> str:
        """What a unit, and systemd about it, has logged since then."""
        return self.run("journalctl", "--unit", unit, "--output", "cat", "--after-cursor", after).stdout

    def children(self, pid: int) -> list[int]:
        """The children of a process, as the box counts; none if it has ended."""
        try:
            found = Path(self.path(f"/proc/{pid}/task/{pid}/children")).read_text()
        except OSError:
            return []
        return [int(child) for child in found.split()]

    def name_of(self, pid: int) -> str:
        """What a process is called; empty if it has ended."""
        try:
            return Path(self.path(f"/proc/{pid}/comm")).read_text().strip()
        except OSError:
            return ""
