"""Which daemons answer on this machine, and what they think of the caller."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aemd import __version__
from aemd.cli.doctor.finding import Check, Finding, fail, ok, warn
from aemd.service.config import service_uid

if TYPE_CHECKING:
    from aem.v1 import admin_pb2

ANSWER_SECONDS = 5.0
DESCRIPTORS_MIN = 4_096
START = "`systemctl start aemd`, or `aemd --user` for a daemon of your own"


def checks(address: str | None) -> list[tuple[str, Check]]:
    """One, over all addresses at which a daemon may be."""
    return [("daemon", lambda: daemons(address))]


def daemons(address: str | None) -> Iterator[Finding]:
    """What is at each address; a FAIL if there is none at the one that aemctl would take."""
    from aem._channel import find_address

    chosen = find_address(address)
    for target in dict.fromkeys([chosen, *candidates()]):
        yield from daemon(target, chosen=target == chosen)


def candidates() -> Sequence[str]:
    """The user's own socket and the system's."""
    from aem._channel import SYSTEM_SOCKET

    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    own = [f"unix:{runtime}/aemd/aemd.sock"] if runtime else []
    return [*own, f"unix:{SYSTEM_SOCKET}"]


def daemon(target: str, *, chosen: bool) -> Iterator[Finding]:
    """What is at one address. That nothing is there is a fault only where aemctl would look."""
    what = f"daemon at {target}"
    path = target.removeprefix("unix:").replace("//", "/", 1) if target.startswith("unix:/") else ""
    bad = fail if chosen else warn
    if path:
        refusal = _listens(path)
        if refusal == "nothing":
            yield bad(what, "there is none", START) if chosen else ok(what, "there is none")
            return
        if refusal:
            yield bad(what, refusal, START)
            return
        yield from _folder(path)
    status = _ask(target)
    if isinstance(status, str):
        yield bad(what, status, "look into its log: `journalctl -u aemd`; then restart it")
        return
    yield ok(
        what,
        f"aemd {status.version}, pid {status.pid}, uid {status.uid}"
        + (", used by default" if chosen else ""),
    )
    yield from _judge(what, status)


def _listens(path: str) -> str:
    """Why nobody listens at `path`; empty if somebody does."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISSOCK(mode):
        return f"{path} is no socket"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return "a socket that nobody listens on: its daemon was killed"
        except TimeoutError:
            return "it takes no connections: its backlog is full"
        except OSError as error:
            return f"connect: {error.strerror}"
    return ""


def _folder(path: str) -> Iterator[Finding]:
    """Who can put another socket in the place of this one."""
    folder = os.path.dirname(path)
    found = os.stat(folder)
    shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if shared or found.st_uid not in (0, os.geteuid(), service_uid()):
        yield warn(
            folder,
            f"uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}: others can put a socket there",
            f"chmod go-w {folder}",
        )


def _ask(target: str) -> admin_pb2.DaemonStatus | str:
    """The daemon's status, or why there is none. On a thread: one that hangs must not hang the doctor."""
    import aem

    answer: list[Any] = []

    def run() -> None:
        client = aem.Client(target, label="aemctl doctor", reconnect=False)
        try:
            answer.append(client.status())
        except aem.AemError as error:
            answer.append(f"{error.message} [{error.reason}]")
        finally:
            client.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answer[0] if answer else f"it took the connection and did not answer within {ANSWER_SECONDS:g} s"


def _judge(what: str, status: admin_pb2.DaemonStatus) -> Iterator[Finding]:
    """What of a daemon's status is worth a word."""
    if status.version != __version__:
        yield warn(
            what,
            f"its version is {status.version}, that of aemctl {__version__}",
            "restart the daemon after an upgrade, or call the aemctl beside it",
        )
    if status.draining:
        yield warn(what, "it is about to end", "wait for the next one")
    if status.configuration.error:
        yield warn(
            what,
            f"its files have changed, and it goes on with what it had: {status.configuration.error}",
            "mend them (`aemctl policy check`), then `aemctl reload`",
        )
    if 0 < status.descriptors_max < DESCRIPTORS_MIN:
        yield warn(what, f"it may have {status.descriptors_max} descriptors", "LimitNOFILE= of aemd.service")
    if status.fronts_replaced:
        yield warn(
            what,
            f"{status.fronts_replaced} fronts have died or were ended for what they said",
            "its log says why: `journalctl -u aemd`",
        )
    caller, place = status.caller, what.removeprefix("daemon ")
    if caller.administrator:
        yield ok("rights", f"uid {caller.uid}: administrator {place}")
    elif caller.uid == 0:
        yield warn(
            "rights",
            f"you are root, but no administrator {place}: {caller.not_administrator}",
            "ask from the host, outside of the container",
        )
    else:
        yield ok("rights", f"uid {caller.uid}: your own jobs {place}")
