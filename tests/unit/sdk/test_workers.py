"""Handler processes, without a daemon: each case runs in a program of its own, which never had a channel."""

import json
import subprocess
import sys

import pytest

PATIENCE = 20
PRELUDE = """
import json, os, signal, sys, threading, time
from pathlib import Path
from aem._binding import Binding, Entry, Window
from aem._registration import Registration
from aem._workers import Workers
from aem.options import Options
from aem.v1 import event_pb2, user_pb2
import aem

def make(handler, run, pool=0, module="user"):
    return Registration(module, {}, options=Options(), label="h", armed=True, sink=None, handler=handler,
                        run=run, pool=pool)

def entry(registration, payload):
    event = event_pb2.Event(type="raised", user=user_pb2.UserEvent(payload=payload))
    binding = Binding(1, registration, epoch=1, acknowledgement=2, window=Window(10, 10))
    return Entry(binding, 1, 1, 1, 1, event.SerializeToString())

def submit(workers, registration, *payloads):
    done = []
    for payload in payloads:
        workers.submit(entry(registration, payload), lambda e, o: done.append((e.parse().user.payload, o)))
    workers.settle(20)
    return done

def children(pid):
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
"""


def run(body):
    """Run a program; what it prints last, as JSON."""
    program = subprocess.run(
        [sys.executable, "-c", PRELUDE + body], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert program.returncode == 0, program.stderr
    return json.loads(program.stdout.splitlines()[-1])


def test_forked_handlers_have_a_process_for_each_event():
    found = run("""
h = make(lambda event: str(os.getpid()).encode(), "fork")
workers = Workers([h])
workers.adopt(h)
done = submit(workers, h, b"1", b"2", b"3")
workers.close()
pids = {outcome.reply.data for _, outcome in done}
print(json.dumps([len(pids), str(os.getpid()).encode() in pids, children(os.getpid())]))
""")
    assert found == [3, False, []]


def test_capsule_reuses_its_processes_and_replaces_the_dead():
    found = run("""
def handle(event):
    if event.data == b"die":
        os._exit(3)
    return str(os.getpid()).encode()
h = make(handle, "capsule", pool=2)
workers = Workers([h])
workers.adopt(h)
first = {outcome.reply.data for _, outcome in submit(workers, h, *[b"x"] * 20)}
(failed,) = submit(workers, h, b"die")
(zygote,) = children(os.getpid())
while len(children(zygote)) != 2:
    pass
second = {outcome.reply.data for _, outcome in submit(workers, h, *[b"x"] * 20)}
workers.close()
print(json.dumps([len(first) <= 2, len(second) <= 2, failed[1].error.partition(" exited ")[2]]))
""")
    assert found == [True, True, "with status 3 before it answered"]


def test_outcomes_travel_back():
    found = run("""
def handle(event):
    match event.data:
        case b"retry": raise aem.Retry(0.25)
        case b"park": raise aem.Park("poison")
        case b"raise": raise ValueError("bad")
        case b"signal": os.kill(os.getpid(), signal.SIGKILL)
        case b"exit": sys.exit(0)
        case b"exit 4": sys.exit(4)
        case b"odd": return 3
        case b"big": return b"x" * 3_000_000
        case b"reply": return aem.Reply("close")
h = make(handle, "fork")
workers = Workers([h])
workers.adopt(h)
kinds = [b"retry", b"park", b"raise", b"signal", b"exit", b"exit 4", b"odd", b"big", b"reply"]
done = dict(submit(workers, h, *kinds))
workers.close()
print(json.dumps([
    done[b"retry"].nack.delay_ns, done[b"park"].nack.reason, done[b"raise"].error,
    done[b"signal"].error.partition(" was ")[2], done[b"exit"].error, done[b"exit 4"].error,
    done[b"odd"].error, len(done[b"big"].reply.data), done[b"reply"].reply.operation]))
""")
    assert found == [
        250_000_000,
        "poison",
        "ValueError: bad",
        "killed by SIGKILL before it answered",
        None,
        "the handler process exited with 4",
        "TypeError: a handler returns None, bytes or aem.Reply, not int",
        3_000_000,
        "close",
    ]


def test_handlers_run_beside_each_other_up_to_the_pool():
    found = run("""
import socket
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
def handle(event):
    theirs.send(b"in")
    theirs.recv(1)
h = make(handle, "capsule", pool=2)
workers = Workers([h])
workers.adopt(h)
for _ in range(3):
    workers.submit(entry(h, b"x"), lambda e, o: None)
ours.recv(2), ours.recv(2)
ours.settimeout(0.05)
try:
    ours.recv(2)
    third = True
except TimeoutError:
    third = False
ours.settimeout(None)
for _ in range(3):
    ours.send(b"x")
ours.recv(2)
workers.settle(20)
workers.close()
print(json.dumps(third))
""")
    assert found is False


def test_handlers_after_the_zygote_go_by_name():
    found = run("""
import os.path
workers = Workers([])
late = make(os.path.basename, "fork")
workers.adopt(late)
try:
    workers.adopt(make(lambda event: None, "fork"))
    refused = ""
except ValueError as error:
    refused = str(error)
((_, outcome),) = submit(workers, late, b"x")
workers.close()
print(json.dumps(["importable" in refused, outcome.error]))
""")
    assert found == [True, "TypeError: expected str, bytes or os.PathLike object, not UserEvent"]


def test_zygote_ends_with_its_program():
    found = run("""
import subprocess
program = subprocess.Popen([sys.executable, "-c", '''
import sys, signal
sys.argv = [""]
exec(open("/dev/stdin").read())
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
program.stdin.write('''
from aem._workers import Workers
workers = Workers([])
print(workers._zygote, flush=True)
signal.pause()
''')
program.stdin.close()
zygote = int(program.stdout.readline())
pidfd = os.pidfd_open(zygote)
program.kill()
program.wait()
import select
print(json.dumps(bool(select.select([pidfd], [], [], 10)[0])))
""")
    assert found is True


def test_zygote_that_is_killed_fails_events_clearly():
    found = run("""
h = make(lambda event: None, "fork")
workers = Workers([h])
workers.adopt(h)
os.kill(workers._zygote, signal.SIGKILL)
((_, outcome),) = submit(workers, h, b"x")
workers.close()
print(json.dumps([outcome.error, children(os.getpid())]))
""")
    assert found == ["the process that handlers are forked from has ended", []]


def test_no_zygote_once_there_is_a_channel():
    found = run("""
client = aem.Client("unix:/nonexistent")
try:
    client.status()
except aem.ConnectionLost:
    pass
client.on("timer", every="1s", run="fork")(print)
try:
    client.run(1)
    refused = ""
except RuntimeError as error:
    refused = str(error)
print(json.dumps("before the first connection" in refused))
""")
    assert found is True


@pytest.mark.parametrize("word", ["thread", ""])
def test_unknown_way_to_run_is_named(word):
    import aem

    with pytest.raises(ValueError, match="inline, fork, capsule"):
        aem.Client("unix:/nonexistent").on("timer", every="1s", run=word)(print)
