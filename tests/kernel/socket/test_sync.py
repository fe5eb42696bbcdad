"""Sync, and operations that make no sense."""

from __future__ import annotations

import os
import socket

import pytest

from aemd.core.errors import AemError


def test_sync_comes_after_everything_that_had_been_sent(rig):
    job = rig.open("tcp:127.0.0.1:0", data_max=1000)
    client, _ = rig.connect(job)
    client.send(os.urandom(20_000))
    late = rig.client(job)
    late.send(b"late")
    late.shutdown(socket.SHUT_WR)
    done = []
    rig.module.sync(job, lambda: done.append(len(rig.data())))
    rig.until(lambda: done)
    assert done[0] >= 20_004
    assert rig.of("end")


def test_sync_of_a_paused_job_waits_for_resume(rig):
    job = rig.open("tcp:127.0.0.1:0")
    client, _ = rig.connect(job)
    rig.module.pause(job)
    client.send(b"x" * 10)
    done = []
    rig.module.sync(job, lambda: done.append(len(rig.data())))
    rig.quiet()
    assert not done
    rig.module.resume(job)
    rig.until(lambda: done)
    assert done == [10]


def test_sync_with_nothing_waiting_and_of_a_stopped_job_is_done_at_once(rig):
    job = rig.open("tcp:127.0.0.1:0")
    rig.connect(job)
    done = []
    rig.module.sync(job, lambda: done.append(1))
    rig.module.stop(job)
    rig.module.sync(job, lambda: done.append(2))
    assert done == [1, 2]


@pytest.mark.parametrize(
    ("key", "name", "reason"),
    [
        (b"short", "write", "INVALID_FIELD"),
        (bytes(7) + b"\xff", "write", "CONNECTION_CLOSED"),
        (b"", "write", "INVALID_FIELD"),
        (bytes(8), "fly", "OPERATION_UNKNOWN"),
        (bytes(8), "shutdown", "INVALID_FIELD"),
    ],
)
def test_wrong_operation_is_refused(rig, key, name, reason):
    job = rig.open("tcp:127.0.0.1:0")
    with pytest.raises(AemError) as caught:
        rig.op(job, key, name, b"data")
    assert caught.value.reason == reason


def test_connections_of_another_job_cannot_be_reached(rig):
    job, other = rig.open("tcp:127.0.0.1:0"), rig.open("tcp:127.0.0.1:0")
    _, key = rig.connect(job)
    with pytest.raises(AemError) as caught:
        rig.op(other, key, "write", b"x")
    assert caught.value.reason == "CONNECTION_CLOSED"
