"""Who a client is for the daemon, and which front serves whom."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys

import grpc
import pytest

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
NOBODY = 65534
PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21
STRANGER = """
import ctypes, os, sys, grpc
namespace = os.open(f"/proc/{sys.argv[1]}/ns/net", os.O_RDONLY)
assert ctypes.CDLL(None).setns(namespace, 0) == 0
with grpc.insecure_channel(f"unix-abstract:{sys.argv[2]}") as channel:
    try:
        channel.unary_unary("/aem.v1.AdminService/GetStatus")(b"", timeout=15)
    except grpc.RpcError as error:
        print(error.code())
"""
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def test_own_process_is_recognised(echo):
    with echo.channel() as channel:
        who = echo.session(channel).who()
    assert who["uid"] == os.geteuid()
    assert who["gid"] == os.getegid()
    assert sorted(who["groups"]) == sorted(os.getgroups())
    assert who["pid"] == os.getpid()
    assert who["administrator"]


def test_connections_have_numbers_of_their_own(echo):
    numbers = []
    for _ in range(3):
        with echo.channel() as channel:
            numbers.append(echo.session(channel).who()["connection"])
    assert numbers == sorted(set(numbers))


@root
def test_without_peer_pidfd_everybody_is_served_and_nobody_is_proven(start):
    echo = start(peer_pidfd=False)
    with echo.channel() as channel, echo.client(f"{NOBODY}:") as client:
        assert not echo.session(channel).who()["proven"]
        who = json.loads(client.stdout.readline())
        assert (who["uid"], who["proven"]) == (NOBODY, False)
        client.kill()
        assert echo.wait("gone", pid=client.pid)


@root
def test_other_user_has_another_principal_and_another_front(start):
    echo = start()
    with echo.channel() as channel, echo.client(f"{NOBODY}:7,9") as client:
        echo.counters(channel)
        who = json.loads(client.stdout.readline())
        assert who["uid"] == who["gid"] == NOBODY
        assert who["groups"] == [7, 9]
        assert who["pid"] == client.pid
        assert not who["administrator"]
        assert echo.counters(channel)["fronts"] == 2


@root
def test_users_beyond_the_fronts_share_one_and_root_keeps_its_own(start):
    echo = start(fronts=3)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(echo.client(uid)) for uid in (2001, 2002, 2003, 2004)]
        uids = [json.loads(client.stdout.readline())["uid"] for client in clients]
        assert uids == [2001, 2002, 2003, 2004]
        with echo.channel() as channel:
            counters = echo.counters(channel)
            assert counters["fronts"] == 4  # two users, the shared one, root
            assert echo.session(channel).who()["administrator"]


@root
def test_private_socket_is_for_its_owner_only(start):
    echo = start(public=False)
    assert os.stat(echo.path).st_mode & 0o777 == 0o600
    with echo.client(NOBODY) as client:
        assert client.stdout.readline() == b""
        assert "Permission denied" in client.stderr.read().decode()


def test_public_socket_is_for_everybody(echo):
    assert os.stat(echo.path).st_mode & 0o777 == 0o666


@root
def test_front_is_locked_up(echo):
    (front,) = echo.counters()["front_pids"]
    with open(f"/proc/{front}/status") as file:
        status = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
    assert status["Uid"].split() != ["0"] * 4
    assert len(set(status["Uid"].split())) == 1
    assert status["Groups"].strip() == ""
    assert all(int(status[name], 16) == 0 for name in CAPABILITIES)
    assert status["NoNewPrivs"].strip() == "1"
    assert os.readlink(f"/proc/{front}/ns/net") != os.readlink("/proc/self/ns/net")
    assert os.stat(f"/proc/{front}/fd").st_uid == 0  # as of a process that is not dumpable; proc(5)
    inherited = []
    for fd in os.listdir(f"/proc/{front}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            inherited.append(os.readlink(f"/proc/{front}/fd/{fd}"))
    assert "/dev/null" in inherited
    assert not [name for name in inherited if name.startswith("/") and name != "/dev/null"]


@root
def test_private_listening_socket_cannot_be_reached(echo):
    (front,) = echo.counters()["front_pids"]
    with open(f"/proc/{front}/net/unix") as file:
        names = [line.split()[-1] for line in file if "@aemd-" in line]
    assert names
    for name in names:
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect("\0" + name[1:])


# Becomes a user, joins a network namespace if one is given, and connects: prints what came of it.
NEIGHBOUR = """
import ctypes, errno, os, socket, sys
uid, namespace, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
try:
    if namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(os.open(namespace, os.O_RDONLY), 0):
            raise OSError(ctypes.get_errno(), "setns")
    socket.socket(socket.AF_UNIX).connect(name.replace("@", chr(0)))
    print("connected")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def neighbour(uid, name, namespace=""):
    command = [sys.executable, "-c", NEIGHBOUR, str(uid), namespace, name]
    return subprocess.run(command, capture_output=True, timeout=20, check=True).stdout.decode().strip()


@root
@pytest.mark.parametrize("who", ["the fronts' user", "another user"])
def test_private_listening_socket_cannot_be_reached_from_another_process(echo, who):
    """Not by its name, and nobody can enter the namespace where that name is one: not even the same user, who
    may not look at a process that is not dumpable.
    """
    (front,) = echo.counters()["front_pids"]
    uid = front_uid(front) if who == "the fronts' user" else 4_242
    for name in listening(front):
        assert neighbour(uid, name) == "ECONNREFUSED"
        assert neighbour(uid, name, f"/proc/{front}/ns/net") == "EACCES"


def front_uid(front):
    with open(f"/proc/{front}/status") as file:
        return int(next(line for line in file if line.startswith("Uid:")).split()[1])


def listening(front):
    """The names on which a front listens in its namespace."""
    with open(f"/proc/{front}/net/unix") as file:
        found = [line.split()[-1] for line in file if "@aemd-" in line and line.split()[3] == "00010000"]
    assert found
    return found


@root
def test_private_folder_is_closed_to_other_users_and_the_fronts_own_is_nobody_behind_it(start):
    """Without a network namespace. Its user can connect from elsewhere; who does is not in its table."""
    echo = start(before=drop_sys_admin)
    folder = os.path.dirname(echo.path)
    with echo.channel() as channel:
        (front,) = echo.counters(channel)["front_pids"]
        (name,) = [name for name in os.listdir(folder) if ".front-" in name]
        assert neighbour(4_242, f"{folder}/{name}/grpc") == "EACCES"
        assert neighbour(front_uid(front), f"{folder}/{name}/grpc") == "connected"
        with grpc.insecure_channel(f"unix:{folder}/{name}/grpc") as stranger:
            with pytest.raises(grpc.RpcError) as caught:
                stranger.unary_unary("/aem.v1.AdminService/GetStatus")(b"", timeout=15)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@root
def test_stranger_on_the_private_socket_is_unauthenticated(echo):
    """Should a front's listening socket be reached after all, nobody stands behind its connections."""
    (front,) = echo.counters()["front_pids"]
    (name,) = listening(front)
    said = subprocess.run(
        [sys.executable, "-c", STRANGER, str(front), name[1:]], capture_output=True, timeout=20, check=False
    )
    assert said.stdout.decode().strip() == "StatusCode.UNAUTHENTICATED", said.stderr.decode()


def drop_sys_admin():
    """For a program that is started next, and its children: no CAP_SYS_ADMIN, so no unshare(CLONE_NEWNET)."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) == 0


@root
def test_without_a_network_namespace_the_front_listens_in_a_private_folder(start):
    echo = start(before=drop_sys_admin)
    folder = os.path.dirname(echo.path)
    with echo.channel() as channel:
        assert echo.echo(channel, b"x" * 300_000) == b"x" * 300_000
        (front,) = echo.counters(channel)["front_pids"]
        assert os.readlink(f"/proc/{front}/ns/net") == os.readlink("/proc/self/ns/net")
        (name,) = [name for name in os.listdir(folder) if ".front-" in name]
        status = os.stat(f"{folder}/{name}")
        assert status.st_mode & 0o777 == 0o700
        assert status.st_uid != 0
        os.kill(front, signal.SIGKILL)
        echo.wait("front lost")
        assert name not in os.listdir(folder)
        assert echo.session(channel).ask("echo", text="again") == b"again"
        assert len([name for name in os.listdir(folder) if ".front-" in name]) == 1
        echo.kill()
    assert len([name for name in os.listdir(folder) if ".front-" in name]) == 1
    start(before=drop_sys_admin)
    assert not [name for name in os.listdir(folder) if ".front-" in name]
