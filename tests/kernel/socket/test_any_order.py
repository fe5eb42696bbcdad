"""Whatever both ends do, in whatever order: each connection has one story with one end."""

from __future__ import annotations

import contextlib
import random
import re

import pytest

from aemd.core.errors import AemError

STORY = re.compile(r"accepted( data)*( end)? closed")
ADDRESSES = ("tcp:127.0.0.1:0", "unix:@{}/s", "unix-seqpacket:@{}/s")


def client_step(rig, chance, client):
    step = chance.randrange(5)
    with contextlib.suppress(OSError):
        if step == 0:
            client.send(b"line\n" * chance.randrange(1, 2000))
        elif step == 1:
            client.recv(chance.randrange(1, 100_000))
        elif step == 2 and chance.random() < 0.2:
            client.shutdown(1)
        elif step == 3 and chance.random() < 0.1:
            client.close()
        elif step == 4 and chance.random() < 0.1:
            rig.hard_close(client)


def daemon_step(rig, chance, job, key):
    step = chance.choice(
        ("write",) * 6 + ("pause", "resume") * 3 + ("shutdown", "write-close", "close", "abort")
    )
    data = bytes(chance.randrange(60_000)) if step.startswith("write") else b""
    with contextlib.suppress(AemError):
        rig.op(job, key, step, data)


def job_step(rig, chance, job):
    step = chance.choice((rig.module.pause, rig.module.resume, rig.module.stop, rig.module.start))
    if chance.random() < 0.2:
        step(job)


@pytest.mark.parametrize("listen", ADDRESSES)
@pytest.mark.parametrize("seed", range(20))
def test_every_connection_has_one_story_with_one_end(rig, tmp_path, listen, seed):
    chance = random.Random(seed)
    framing = "raw" if "seqpacket" in listen else chance.choice(("raw", "line"))
    job = rig.open(listen.format(tmp_path), framing=framing, message_max=64)
    pairs = [rig.connect(job) for _ in range(4)]
    for _ in range(120):
        client, key = chance.choice(pairs)
        client_step(rig, chance, client)
        daemon_step(rig, chance, job, key)
        job_step(rig, chance, job)
        rig.loop.turn(0)
    rig.module.start(job)
    rig.module.resume(job)
    for client, key in pairs:
        client.close()
        with contextlib.suppress(AemError):
            rig.op(job, key, "close")
    rig.until(lambda: not job.data.connections and not job.data.discards)
    assert rig.host.charged[job.id] == 1
    for _, key in pairs:
        assert STORY.fullmatch(" ".join(rig.types(key)))
        assert rig.of("closed", key)[0].socket.bytes_in >= len(rig.data(key))
