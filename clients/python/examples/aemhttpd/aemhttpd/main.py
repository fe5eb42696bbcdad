"""The command line of AEMhttpd."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable

import aem

from aemhttpd import over_aemd, over_asyncio, over_select
from aemhttpd.exchange import Exchange
from aemhttpd.files import Files

EPILOG = """\
examples:
  aemhttpd --root ./public
  aemhttpd --root ./public --listen tcp:[::1]:8080 --access-log
  aemhttpd --root ./public --engine asyncio

exit status: 0 ended by SIGINT or SIGTERM, 1 it could not serve, 2 wrong usage
"""


def main() -> int:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(
        prog="aemhttpd",
        description="A single-threaded HTTP/1.1 file server whose sockets belong to aemd.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", default=".", help="the folder to serve (default: this one)")
    parser.add_argument(
        "--listen", default="tcp:127.0.0.1:8080", help="where to listen (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", choices=["aemd", "select", "asyncio"], default="aemd", help="what waits for the sockets"
    )
    parser.add_argument(
        "--address", help="the daemon's socket (default: AEMD_ADDRESS, else the usual places)"
    )
    parser.add_argument("--access-log", action="store_true", help="a line per request on standard output")
    arguments = parser.parse_args()
    if not os.path.isdir(arguments.root):
        print(f"aemhttpd: --root {arguments.root}: not a folder", file=sys.stderr)
        return 1
    files = Files(arguments.root)
    log = (lambda line: print(line, flush=True)) if arguments.access_log else None
    try:
        _serve(arguments.engine, arguments.listen, arguments.address, lambda: Exchange(files, log))
    except aem.AemError as error:
        print(f"aemhttpd: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"aemhttpd: {arguments.listen}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def announce(where: str) -> None:
    """Say that it serves."""
    print(f"aemhttpd: serving on {where}", flush=True)


def _serve(engine: str, listen: str, address: str | None, new_exchange: Callable[[], Exchange]) -> None:
    if engine == "aemd":
        over_aemd.serve(aem.Client(address, label="aemhttpd"), listen, new_exchange, announce)
        return
    listener = _listen(listen)
    announce(listen)
    if engine == "select":
        ended: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: ended.append(number))
        over_select.serve(listener, new_exchange, lambda: bool(ended))
    else:
        asyncio.run(_asyncio(listener, new_exchange))


async def _asyncio(listener: socket.socket, new_exchange: Callable[[], Exchange]) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await over_asyncio.serve(listener, new_exchange, stopped)


def _listen(text: str) -> socket.socket:
    """A listening TCP socket for the engines that own their sockets."""
    host, _, port = text.removeprefix("tcp:").rpartition(":")
    if not port.isdigit():
        raise OSError(0, "not an address; say tcp:HOST:PORT")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen(1024)
    return listener


if __name__ == "__main__":
    sys.exit(main())
