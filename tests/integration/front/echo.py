"""A daemon without a service: Loop and Peers, and handlers that do what the messages of a test say.

Usage: echo.py SOCKET LIMITS-AS-JSON PUBLIC PEER_PIDFD QUOTA-AS-JSON. Says what happens as JSON lines on
stdout. Each message of a Session is JSON too: {"do": "echo"|"who"|"flood"|"hold"|"end"|"raise", ...}; unary
calls are echoed, but for AdminService/GetStatus, which answers with counters.
"""

import json
import os
import resource
import signal
import sys

import structlog

from aemd.core.accounts import Accounts
from aemd.core.limits import Limits
from aemd.core.quota import DefaultQuotas, Quota
from aemd.loop.loop import Loop
from aemd.peer.accept import SocketTaken
from aemd.peer.peers import Peers


def say(**fields):
    print(json.dumps(fields), flush=True)


class Session:
    """Obeys messages."""

    def __init__(self, stream):
        self.stream = stream
        self.waiting = []
        self.holding = False
        Daemon.peers.hold_process(stream.principal)  # for good, as a session would for its lease

    def data(self, message):
        self.stream.consumed(0 if self.holding else len(message))
        if message[:1] != b"{":
            self.waiting.append(message)
        else:
            request = json.loads(message)
            getattr(self, "do_" + request.pop("do"))(**request)
        self.writable()

    def writable(self):
        while self.waiting and self.stream.room > 0 and not self.stream.ended:
            Daemon.sent += len(self.waiting[0])
            self.stream.send(self.waiting.pop(0))

    def half_closed(self):
        self.stream.end(0)

    def closed(self, reason):
        say(event="closed", connection=self.stream.connection, reason=reason)

    def do_who(self):
        self.waiting.append(json.dumps(who(self.stream)).encode())

    def do_flood(self, count, size):
        self.waiting += [b"\1" * size] * count

    def do_hold(self):
        self.holding = True

    def do_end(self, code, message, status=""):
        self.stream.end(code, message, status.encode())

    def do_raise(self):
        raise RuntimeError("as the test wished")

    def do_echo(self, text):
        self.waiting.append(text.encode())


class Unary:
    """Echoes."""

    def __init__(self, stream):
        self.stream = stream
        self.message = b""

    def data(self, message):
        self.stream.consumed(len(message))
        self.message = message

    def half_closed(self):
        self.stream.send(
            json.dumps(Daemon.counters()).encode() if "GetStatus" in self.stream.method else self.message
        )
        self.stream.end(0)

    def closed(self, reason):
        say(event="closed", connection=self.stream.connection, reason=reason)

    def writable(self):
        pass


class Daemon:
    """The one daemon of this process."""

    sent = 0

    @classmethod
    def counters(cls):
        peers = cls.peers
        return {
            "sent": cls.sent,
            "connections": peers.connections,
            "fronts": peers.fronts,
            "replaced": peers.fronts_replaced,
            "front_pids": peers.front_pids(),
            "zygote": peers.zygote_pid,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "rss_kib": resident_kib(),
            "wakeups": cls.loop.wakeups,
        }


def resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def who(stream):
    principal = stream.principal
    return {
        "connection": stream.connection,
        "uid": principal.uid,
        "gid": principal.gid,
        "groups": principal.groups,
        "pid": principal.pid,
        "administrator": principal.administrator,
        "proven": principal.proven,
        "user_namespace": principal.owner.user_namespace,
        "pid_namespace": principal.owner.pid_namespace,
    }


def open_stream(stream):
    say(event="open", method=stream.method, **who(stream))
    return (Session if stream.method.endswith("/Session") else Unary)(stream)


def main():
    socket_path, limits, public, peer_pidfd, quota = sys.argv[1:]
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    Daemon.loop = loop = Loop()
    Daemon.peers = peers = Peers(
        loop,
        Limits(**json.loads(limits)),
        socket_path=os.fsencode(socket_path),
        public=public == "public",
        peer_pidfd=peer_pidfd == "peer_pidfd",
        open_stream=open_stream,
        process_gone=lambda principal: say(event="gone", pid=principal.pid),
        accounts=Accounts(DefaultQuotas(Quota(**json.loads(quota)))),
    )
    try:
        peers.start()
    except SocketTaken as taken:
        sys.exit(str(taken))
    loop.on_signal(signal.SIGTERM, lambda _: loop.stop())
    loop.on_signal(signal.SIGUSR1, lambda _: peers.stop_accepting())
    say(event="serving")
    loop.run()
    peers.close()
    loop.close()
    say(event="ended", descriptors=len(os.listdir("/proc/self/fd")))


main()
