"""The tour behind `make demo`: a daemon of its own, several client programs, their events.

Runs what a user would type and shows it. Ends with 0 only if every event arrived.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

BIN = Path(sys.executable).parent
LIMIT_S = 20.0

PROGRAM = """
import aem

client = aem.Client(label="demo")

@client.on("timer", every="100ms")
def tick(event):
    print(f"tick: {event.expirations} expiration, {event.lateness_ns / 1e6:.2f} ms late", flush=True)

@client.on("user", channel="deploy")
def deploy(event):
    print(f"deploy: version {event.json()['version']}, raised by process {event.sender_pid}", flush=True)
    client.stop()

client.run_forever()
"""


class Tour:
    """One daemon and what is done with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "aemd.sock"
        self.environment = os.environ | {
            "AEMD_ADDRESS": f"unix:{self.socket}",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        self.running: list[subprocess.Popen[str]] = []
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str) -> None:
        """A heading."""
        print(f"\n\x1b[1m{text}\x1b[0m" if self.colour else f"\n{text}", flush=True)

    def start(self, command: str, *, quiet: bool = False) -> subprocess.Popen[str]:
        """Start a command in the background, as typed."""
        if not quiet:
            print(f"  $ {command} &", flush=True)
        process = subprocess.Popen(
            shlex.split(command), env=self.environment, cwd=self.folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.running.append(process)
        return process

    def run(self, command: str) -> str:
        """Run a command to its end and show what it prints."""
        print(f"  $ {command}", flush=True)
        done = subprocess.run(
            shlex.split(command), env=self.environment, cwd=self.folder, text=True, timeout=LIMIT_S,
            capture_output=True, check=False,
        )  # fmt: skip
        self.show(done.stdout + done.stderr)
        if done.returncode != 0:
            raise RuntimeError(f"{command}: exit status {done.returncode}")
        return done.stdout

    def finish(self, process: subprocess.Popen[str]) -> str:
        """Wait for a background command and show what it printed."""
        output, _ = process.communicate(timeout=LIMIT_S)
        self.running.remove(process)
        self.show(output)
        if process.returncode != 0:
            raise RuntimeError(f"{shlex.join(process.args)}: exit status {process.returncode}")  # type: ignore[arg-type]
        return output

    def show(self, text: str) -> None:
        """Print a command's output, set in."""
        for line in text.splitlines():
            print(f"    {line}", flush=True)

    def until(self, what: str, *words: str) -> None:
        """Wait until `aemctl list-jobs` shows a line with all of `words`."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            done = subprocess.run(
                ["aemctl", "list-jobs"], env=self.environment, capture_output=True, text=True, check=False
            )
            if any(all(word in line for word in words) for line in done.stdout.splitlines()):
                return
        raise RuntimeError(f"{what}: no such job within {LIMIT_S:.0f} s")

    def end(self, process: subprocess.Popen[str]) -> None:
        """End a background command as Ctrl-C would."""
        process.send_signal(signal.SIGINT)
        self.finish(process)

    def close(self) -> None:
        """End what still runs."""
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tour(it: Tour) -> None:
    """The tour itself."""
    it.say("A daemon")
    user = "" if os.geteuid() == 0 else " --user"
    daemon = it.start(f"aemd{user} --socket {it.socket} --state-dir {it.folder}")
    end = time.monotonic() + LIMIT_S
    while not it.socket.exists():
        if daemon.poll() is not None or time.monotonic() > end:
            it.finish(daemon)
            raise RuntimeError("the daemon did not start")
        time.sleep(0.02)
    it.run("aemctl status")
    it.run("aemctl list-modules")

    it.say("A timer: three events, with their lateness")
    it.run("aemctl watch timer every=200ms --count 3")

    it.say("A process that is not ours: how it ended")
    victim = it.start("sleep 300", quiet=True)
    watcher = it.start(f"aemctl watch process pid={victim.pid} -o json --count 1")
    it.until("the process job", "process")
    victim.kill()
    it.finish(watcher)
    victim.wait()
    it.running.remove(victim)

    it.say("A TCP listener: the daemon accepts and reads")
    port = free_port()
    watcher = it.start(f"aemctl watch socket listen=tcp:127.0.0.1:{port} --count 4")
    it.until("the socket job", "socket", "armed")
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        connection.sendall(b"hello, aemd\n")
        connection.shutdown(socket.SHUT_WR)
        it.finish(watcher)

    it.say("A program in Python, and an event from another one")
    (it.folder / "program.py").write_text(PROGRAM)
    it.show(PROGRAM.strip())
    program = it.start("python program.py")
    it.until("the program's job", "user", "armed")
    it.run("""aemctl raise deploy '{"version": 7}'""")
    it.finish(program)

    it.say("AEMhttpd: a web server whose sockets belong to the daemon")
    (it.folder / "public").mkdir()
    (it.folder / "public" / "index.html").write_text("<h1>Served through aemd</h1>\n")
    server = it.start(f"aemhttpd --root public --listen tcp:127.0.0.1:{port}")
    it.until("the server's job", "socket", "armed")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=LIMIT_S) as page:
        it.show(f"GET / -> {page.status} {page.read().decode()}")
    it.run("aemctl list-jobs")
    it.end(server)

    it.say("The end: nothing is left")
    it.run("aemctl list-jobs")
    daemon.terminate()
    it.finish(daemon)


def main() -> int:
    """Give the tour."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aemd-demo-") as folder:
        it = Tour(Path(folder))
        try:
            tour(it)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        finally:
            it.close()
    print(f"\nAll events arrived, in {time.monotonic() - begin:.0f} s. Next: README.md, and `aemctl --help`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
