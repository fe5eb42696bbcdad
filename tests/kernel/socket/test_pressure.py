"""Reading and accepting stop and go on, and the loop rests meanwhile."""

from __future__ import annotations

import contextlib
import os
import resource

import pytest

ROOM = 256 * 1024


def test_paused_job_reads_and_accepts_nothing_and_the_loop_rests(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    gone, gone_key = rig.connect(job)
    rig.module.pause(job)
    client.send(b"x" * 1000)
    rig.hard_close(gone)
    late = rig.client(job)
    late.send(b"hello")
    rig.quiet()
    assert rig.types() == ["listening", "accepted", "accepted"]
    rig.module.resume(job)
    assert len(rig.wait_data(1005)) == 1005
    assert rig.closed(gone_key).socket.reason == "reset"
    assert rig.data(key) == b"x" * 1000


def test_connection_asks_before_it_reads_and_what_waits_in_the_kernel_is_not_lost(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    other, _ = rig.connect(rig.open("tcp:127.0.0.1:0"))
    rig.host.fired_max = len(rig.host.fired)  # another job's events have used up what their user may have
    client.send(b"x" * 1000)
    other.send(b"y")
    rig.quiet()
    assert not rig.of("data")
    rig.host.fired_max += 100
    rig.module.resume(job)
    assert len(rig.wait_data(1000)) == 1000
    assert rig.data(key) == b"x" * 1000


def test_paused_job_still_writes(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    rig.module.pause(job)
    rig.op(job, key, "write", b"x" * ROOM)
    rig.op(job, key, "write", b"y" * 10_000)
    assert len(rig.receive(client, ROOM + 10_000)) == ROOM + 10_000


def test_half_closed_connection_of_a_paused_job_does_not_spin(rig, tmp_path):
    job = rig.open(f"unix:{tmp_path}/s")
    client, key = rig.connect(job)
    rig.op(job, key, "pause")
    client.send(b"x")
    client.close()
    rig.quiet()
    assert rig.types(key) == ["accepted"]
    rig.op(job, key, "resume")
    rig.closed(key)
    assert rig.types(key) == ["accepted", "data", "end", "closed"]


def test_connection_that_begins_paused_waits_for_resume(rig):
    job = rig.open("tcp:127.0.0.1:0", paused=True)
    client, key = rig.connect(job)
    client.send(b"x")
    rig.quiet()
    assert rig.types(key) == ["accepted"]
    rig.op(job, key, "resume")
    assert rig.wait_data(1) == b"x"


def test_listener_paused_by_operation_accepts_later(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.op(job, b"", "pause")
    rig.client(job)
    rig.quiet()
    assert not rig.of("accepted")
    rig.op(job, b"", "resume")
    rig.until(lambda: rig.of("accepted"))


def test_stopped_job_is_quiet_and_goes_on_where_it_was(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, key = rig.connect(job)
    _, other_key = rig.connect(job)
    rig.module.stop(job)
    client.send(b"while stopped")
    rig.client(job)
    rig.op(job, other_key, "close")
    rig.quiet()
    assert rig.types() == ["listening", "accepted", "accepted"]
    rig.module.start(job)
    rig.wait_data(13, key)
    rig.until(lambda: len(rig.of("accepted")) == 3)
    assert len(rig.of("closed", other_key)) == 1
    assert rig.types().count("listening") == 2


@pytest.mark.parametrize("framing", ["raw", "line"])
def test_full_queue_stops_the_job_at_that_very_event(rig, framing):
    job = rig.open("tcp:127.0.0.1:0", framing=framing, data_max=5)
    pairs = [rig.connect(job) for _ in range(20)]
    for client, _ in pairs:
        client.send(b"data\n" * 10)
    before = len(rig.host.fired)
    size = 5 if framing == "raw" else 4
    while len(rig.of("data")) < 200:
        rig.host.fired_max = len(rig.host.fired) + 7
        rig.module.resume(job)
        rig.quiet()
        rig.until(lambda: len(rig.host.fired) >= min(rig.host.fired_max, before + 200))
        assert len(rig.host.fired) <= rig.host.fired_max
    assert [len(rig.data(key)) for _, key in pairs] == [10 * size] * 20


def test_full_queue_stops_accepting_at_that_very_connection(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.host.fired_max = len(rig.host.fired) + 3
    for _ in range(5):
        rig.client(job)
    rig.until(lambda: len(rig.of("accepted")) == 3)
    rig.quiet()
    assert len(rig.of("accepted")) == 3
    rig.host.fired_max += 100
    rig.module.resume(job)
    rig.until(lambda: len(rig.of("accepted")) == 5)


def test_closed_is_kept_while_the_queue_is_full(rig):
    job = rig.open("tcp:127.0.0.1:0")
    pairs = [rig.connect(job) for _ in range(3)]
    rig.module.pause(job)
    for _, key in pairs:
        rig.op(job, key, "close")
    assert not rig.of("closed")
    rig.host.fired_max = len(rig.host.fired) + 2
    rig.module.resume(job)
    assert len(rig.of("closed")) == 2
    rig.host.fired_max += 100
    rig.module.resume(job)
    assert len(rig.of("closed")) == 3


def test_pausing_touches_no_idle_connection(rig):
    """The cost of back-pressure is that of what happens: a thousand idle ones stay where they are."""
    job = rig.open("tcp:127.0.0.1:0")
    idle = [rig.connect(job)[0] for _ in range(50)]
    rig.module.pause(job)
    assert sum(c.sock.fileno() in rig.loop for c in job.data.connections.values()) == 50
    idle[0].send(b"x")
    rig.quiet()
    assert sum(c.sock.fileno() in rig.loop for c in job.data.connections.values()) == 49
    rig.module.resume(job)
    assert rig.wait_data(1) == b"x"


def test_two_thousand_connections(rig):
    job = rig.open("tcp:127.0.0.1:0", backlog=4096)
    clients = [rig.client(job) for _ in range(2000)]
    rig.until(lambda: len(rig.of("accepted")) == 2000)
    assert rig.host.charged[job.id] == 2001
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    rig.until(lambda: len(rig.of("data")) == 2000)
    by_peer = {e.socket.peer.port: e.key for e in rig.of("accepted")}
    got = {e.key: e.socket.data for e in rig.of("data")}
    for number, client in enumerate(clients):
        assert got[by_peer[client.getsockname()[1]]] == b"%d" % number
        client.close()
    rig.until(lambda: len(rig.of("end")) == 2000)
    for event in rig.of("end"):
        rig.op(job, event.key, "close")
    assert len(rig.of("closed")) == 2000
    assert rig.host.charged[job.id] == 1
    assert rig.module.details(job)["connections"] == "0"


def test_refused_charge_keeps_the_backlog_until_one_is_freed(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.host.descriptors_max = 3
    first, first_key = rig.connect(job)
    _, _ = rig.connect(job)
    rig.client(job).send(b"patience")
    rig.until(lambda: "stalled" in rig.module.details(job))
    rig.quiet()
    assert len(rig.of("accepted")) == 2
    first.close()
    rig.until(lambda: rig.of("end", first_key))
    rig.op(job, first_key, "close")
    assert rig.wait_data(8) == b"patience"


def test_descriptor_that_somebody_else_frees_is_noticed(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.host.descriptors_max = 1
    rig.client(job)
    rig.until(lambda: "stalled" in rig.module.details(job))
    rig.host.descriptors_max = 2
    rig.until(lambda: rig.of("accepted"))


def test_connections_max_keeps_the_rest_in_the_backlog(rig):
    job = rig.open("tcp:127.0.0.1:0", connections_max=1)
    client, key = rig.connect(job)
    rig.client(job)
    rig.until(lambda: "stalled" in rig.module.details(job))
    rig.quiet()
    assert len(rig.of("accepted")) == 1
    client.close()
    rig.until(lambda: rig.of("end", key))
    rig.op(job, key, "close")
    rig.until(lambda: len(rig.of("accepted")) == 2)


def open_all() -> list[int]:
    """Every descriptor that the process may still open."""
    hoard = []
    with contextlib.suppress(OSError):
        while True:
            hoard.append(os.open("/dev/null", os.O_RDONLY))
    return hoard


def test_no_free_descriptor_in_the_process_stalls_without_spinning(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.loop.clock("monotonic").call_at(0, lambda _: None)  # has its descriptor already
    client = rig.client(job)
    hoard = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
        hoard = open_all()
        rig.until(lambda: "stalled" in job.data.details())
        assert not rig.of("accepted")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in hoard:
            os.close(fd)
    rig.until(lambda: rig.of("accepted"))
    client.send(b"x")
    rig.wait_data(1)
