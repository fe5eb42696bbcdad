"""What a front can still do after it has locked itself up, tried by one that wants to."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LANDLOCK_CREATE_RULESET, LANDLOCK_CREATE_RULESET_VERSION = 444, 1
ESCAPES = """
import ctypes, json, mmap, os, resource, signal, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from aemd.front import sandbox

elsewhere = socket.socket(socket.AF_UNIX)
elsewhere.bind(b"\\0" + os.urandom(8).hex().encode())
elsewhere.listen()
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
cell = sandbox.enter(os.fsencode(sys.argv[2]), sandbox.find_lodger(), data_bytes=512 << 20)

def inet():
    sock = socket.socket()
    sock.settimeout(2)
    sock.connect(("127.0.0.1", int(sys.argv[3])))

def connect_elsewhere():
    socket.socket(socket.AF_UNIX).connect(elsewhere.getsockname())

def bind_file():
    socket.socket(socket.AF_UNIX).bind(sys.argv[2] + ".sock")

def own_socket():
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(cell.connect)
        listener.listen()
        client.bind(b"\\0" + os.urandom(8).hex().encode())
        client.connect(cell.connect)

def fork():
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def fork_by_clone3():
    arguments = (ctypes.c_uint64 * 8)(0, 0, 0, 0, signal.SIGCHLD)
    pid = libc.syscall(435, arguments, ctypes.c_size_t(64))
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise PermissionError
    os.waitpid(pid, 0)

def thread():
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()

def new_namespaces():
    if libc.unshare(0x50000000):  # CLONE_NEWUSER | CLONE_NEWNET
        raise PermissionError

def ptrace():
    if libc.ptrace(16, parent, 0, 0):  # PTRACE_ATTACH
        raise PermissionError

def map_private(size):
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()

def raise_limit():
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))
    except ValueError:
        raise PermissionError

tries = {
    "some memory": lambda: map_private(256 << 20),
    "too much memory": lambda: map_private(512 << 20),
    "a higher limit": raise_limit,
    "own socket": own_socket,
    "thread": thread,
    "fork": fork,
    "clone3": fork_by_clone3,
    "new namespaces": new_namespaces,
    "random": lambda: open("/dev/urandom", "rb").read(1),
    "read": lambda: open("/etc/passwd").read(),
    "read itself": lambda: open(sandbox.__file__).read(),
    "list": lambda: os.listdir("/"),
    "write": lambda: open("/tmp/aemd-escape", "w"),
    "execute": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "memory": lambda: open("/proc/self/mem", "rb"),
    "setuid": lambda: os.setuid(12345),
    "kill": lambda: os.kill(parent, 0),
    "ptrace": ptrace,
    "tcp": inet,
    "abstract socket": connect_elsewhere,
    "socket file": bind_file,
}
done = {"words": cell.words, "uid": os.getuid()}
for name, what in tries.items():
    try:
        what()
        done[name] = True
    except OSError:
        done[name] = False
print(json.dumps(done))
"""


def landlock_abi() -> int:
    libc = ctypes.CDLL(None)
    abi: int = libc.syscall(
        LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION
    )
    return max(abi, 0)


@pytest.fixture
def locked_up(tmp_path: Path) -> dict[str, object]:
    """What of the tries worked."""
    import socket

    os.chmod(tmp_path, 0o755)
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", ESCAPES, str(Path(__file__).parents[2]), str(tmp_path / "front-1")]
        run = subprocess.run(
            [*command, str(server.getsockname()[1])], capture_output=True, timeout=30, check=False
        )
    assert run.returncode == 0, run.stderr.decode()
    result: dict[str, object] = json.loads(run.stdout)
    return result


def test_front_can_serve(locked_up: dict[str, object]) -> None:
    assert locked_up["own socket"]
    assert locked_up["random"]
    assert locked_up["thread"]


@pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "aarch64", "riscv64"), reason="no filter for this machine"
)
def test_it_stays_one_process_in_its_namespaces(locked_up: dict[str, object]) -> None:
    assert "seccomp=yes" in str(locked_up["words"])
    for what in ("fork", "clone3", "execute", "new namespaces"):
        assert not locked_up[what], what


@pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")
def test_files_are_out_of_reach(locked_up: dict[str, object]) -> None:
    for what in ("read", "read itself", "list", "write", "execute", "memory", "socket file", "ptrace"):
        assert not locked_up[what], what


@pytest.mark.skipif(landlock_abi() < 6, reason="this kernel's Landlock has no scopes")
def test_processes_and_networks_outside_are_out_of_reach(locked_up: dict[str, object]) -> None:
    for what in ("kill", "tcp", "abstract socket"):
        assert not locked_up[what], what


def test_memory_has_a_limit(locked_up: dict[str, object]) -> None:
    assert locked_up["some memory"]
    assert not locked_up["too much memory"]
    if os.geteuid() == 0:
        assert not locked_up["a higher limit"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to drop it")
def test_root_is_gone(locked_up: dict[str, object]) -> None:
    assert locked_up["uid"] != 0
    assert not locked_up["setuid"]
    assert "netns=own" in str(locked_up["words"])


WITHOUT_FOLDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from aemd.front import sandbox
sandbox.become(sandbox.Lodger(65_534, 65_534))
try:
    sandbox.enter(b"", None, data_bytes=512 << 20)
except PermissionError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody without the right to namespaces")
def test_front_without_a_network_of_its_own_and_without_a_folder_does_not_serve():
    command = [sys.executable, "-c", WITHOUT_FOLDER, str(Path(__file__).parents[2])]
    tried = subprocess.run(command, capture_output=True, text=True, check=True)
    assert tried.stdout == "unshare: no network namespace, and no folder instead\n"
