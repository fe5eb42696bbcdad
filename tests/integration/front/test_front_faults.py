"""Clients, fronts, zygotes and daemons that misbehave or die: what it costs, and whom."""

import contextlib
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

GARBAGE = [
    b"\0",
    b"\0" * 100,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\xff\xff\1\4\0\0\0\1" + b"\x82" * 300,
    random.Random(7).randbytes(70_000),
]

SILENT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(path)
    return sock


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage[:20]))
def test_garbage_ends_its_connection_only(echo, garbage):
    with echo.channel() as channel:
        until(echo, channel, lambda counters: counters["connections"] == 1)
        talk = echo.session(channel)
        talk.who()
        with connect(echo.path) as sock, contextlib.suppress(OSError):
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        assert talk.ask("echo", text="unharmed") == b"unharmed"
        until(echo, channel, lambda counters: counters["connections"] == 1)
        assert echo.counters(channel)["replaced"] == 0


def until(echo, channel, holds):
    """Ask until it holds; each question is a round trip through the daemon, and their number is limited."""
    for _ in range(5000):
        counters = echo.counters(channel)
        if holds(counters):
            return counters
    raise AssertionError(counters)


def test_thousand_silent_connections_cost_the_core_nothing(echo):
    with echo.channel() as channel, contextlib.ExitStack() as stack:
        before = until(echo, channel, lambda counters: counters["connections"] == 1)
        socks = [stack.enter_context(connect(echo.path)) for _ in range(1000)]
        spare = before["descriptors"] + 1  # the timer that watches the hand-over is made with the first burst
        after = until(
            echo,
            channel,
            lambda counters: counters["connections"] == 1001 and counters["descriptors"] <= spare,
        )
        front = after["front_pids"][0]
        in_front = len(os.listdir(f"/proc/{front}/fd")) if os.geteuid() == 0 else 1000
        assert 1000 <= in_front < 1100
        for sock in socks:
            sock.close()
        until(echo, channel, lambda counters: counters["connections"] == 1)


def test_connections_beyond_the_limit_of_a_user_are_closed(start):
    echo = start(quota={"connections": 5})
    with echo.channel() as channel, contextlib.ExitStack() as stack:
        echo.counters(channel)
        socks = [stack.enter_context(connect(echo.path)) for _ in range(6)]
        for sock in socks[4:]:
            assert sock.recv(1) == b""
        assert echo.counters(channel)["connections"] == 5
        socks[0].close()
        until(echo, channel, lambda counters: counters["connections"] == 4)
        with echo.channel() as other:
            assert echo.echo(other, b"x") == b"x"


def test_killed_front_is_replaced_and_said(start):
    echo = start()
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.who()
        (front,) = echo.counters(channel)["front_pids"]
        os.kill(front, signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as ended:
            next(talk.call)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert echo.wait("closed")["reason"] == "front gone"
        assert echo.wait("front lost")["pid"] == front
        counters = echo.counters(channel)
        assert counters["replaced"] == 1
        assert counters["connections"] == 1
        assert front not in counters["front_pids"]
        assert echo.session(channel).ask("echo", text="again") == b"again"


def test_killed_zygote_is_started_again_and_fronts_live_on(start):
    echo = start()
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.who()
        zygote = echo.counters(channel)["zygote"]
        os.kill(zygote, signal.SIGKILL)
        echo.wait("zygote of the fronts died")
        assert talk.ask("echo", text="still here") == b"still here"
        until(echo, channel, lambda counters: counters["zygote"] not in (0, zygote))
        (front,) = echo.counters(channel)["front_pids"]
        os.kill(front, signal.SIGKILL)
        with pytest.raises(grpc.RpcError):  # now the channel knows, too
            next(talk.call)
        echo.wait("front lost")
        assert echo.session(channel).ask("echo", text="again") == b"again"


def test_front_wanted_while_there_is_no_zygote_comes_with_the_next(start):
    echo = start()
    zygote = echo.counters()["zygote"]
    with echo.channel() as channel:
        (front,) = echo.counters(channel)["front_pids"]
        os.kill(zygote, signal.SIGKILL)
        os.kill(front, signal.SIGKILL)
        echo.wait("front lost")
        assert echo.session(channel).ask("echo", text="again") == b"again"


def test_killed_daemon_leaves_no_process_and_no_obstacle(start):
    echo = start()
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.who()
        counters = echo.counters(channel)
        pidfds = [os.pidfd_open(pid) for pid in (*counters["front_pids"], counters["zygote"])]
        echo.kill()
        with pytest.raises(grpc.RpcError) as ended:
            next(talk.call)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        for pidfd in pidfds:
            assert gone(pidfd)
        assert os.path.exists(echo.path)
        with start().channel() as other:
            assert echo.echo(other, b"x") == b"x"


def gone(pidfd):
    """Whether the process ends within the time limit."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        return bool(poll.poll(20_000))
    finally:
        os.close(pidfd)


def test_ended_daemon_leaves_no_process(start):
    echo = start()
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.who()
        counters = echo.counters(channel)
        pidfds = [os.pidfd_open(pid) for pid in (*counters["front_pids"], counters["zygote"])]
        assert echo.stop() == (0, "")
        with pytest.raises(grpc.RpcError) as ended:
            next(talk.call)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert ended.value.details() == "the daemon is gone"
    for pidfd in pidfds:
        assert gone(pidfd)
    assert not os.path.exists(echo.path)
    assert echo.wait("ended")["descriptors"] <= 5


def test_second_daemon_says_who_serves_and_exits(echo):
    second = subprocess.run(
        [sys.executable, Path(__file__).parent / "echo.py", echo.path, "{}", "public", "peer_pidfd", "{}"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr.decode().strip() == f"aemd already serves {echo.path}: pid {echo.process.pid}"
    with echo.channel() as channel:
        assert echo.echo(channel, b"unharmed") == b"unharmed"


def test_client_process_that_exits_is_noticed_once_and_leaves_nothing(echo):
    with echo.channel() as channel:
        before = until(echo, channel, lambda counters: counters["connections"] == 1)
    with echo.client(os.geteuid()) as client:
        assert client.stdout.readline()
        client.kill()
        echo.wait("gone", pid=client.pid)
    with echo.channel() as channel:
        after = until(echo, channel, lambda counters: counters["connections"] == 1)
    assert after["descriptors"] <= before["descriptors"] + 1


def test_descriptors_short_the_daemon_waits_instead_of_spinning(start):
    """Each client process costs the daemon one descriptor; those beyond wait in the backlog."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    echo = start(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard)))
    with echo.channel() as channel:
        idle = echo.counters(channel)
        command = [sys.executable, "-S", "-c", SILENT, echo.path]
        clients = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(40)
        ]
        for client in clients:
            client.stdout.readline()
        full = until(echo, channel, lambda counters: counters["descriptors"] >= 29)
        assert full["descriptors"] < 40
        wakeups = echo.counters(channel)["wakeups"]
        questions = 50
        for _ in range(questions):
            full = echo.counters(channel)
        assert full["wakeups"] - wakeups < 10 * questions
        for client in clients:
            client.communicate()
        until(echo, channel, lambda counters: counters["descriptors"] <= idle["descriptors"] + 1)
        with echo.channel() as other:
            assert echo.echo(other, b"x") == b"x"
