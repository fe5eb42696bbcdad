"""How far a job is, from the core to a handle of either face."""

from __future__ import annotations

import asyncio
from typing import Any

import aem
from aem.v1 import job_pb2

LIMIT = 30
MIN_NS = 100_000_000


def test_a_client_that_does_not_read_its_events_is_told_how_they_become_more(client):
    session = client.session(progress_ns=MIN_NS)
    job = session.register("user", channel="c", credit=job_pb2.Credit(events=1, bytes=1 << 20))
    for lag in (1, 2, 3):
        session.ask(**{"raise": {"channel": "c", "payloads": [b"x"]}})
        told = session.skip_to("progress")
        assert (told.binding, told.head.seq, told.acked.seq) == (job.binding, lag, 0)
        assert (told.lag, told.lost) == (lag, 0)


def test_the_last_word_comes_when_all_is_dealt_with_and_nothing_after_it(client):
    session = client.session(progress_ns=MIN_NS)
    job = session.register("user", channel="c")
    session.ask(**{"raise": {"channel": "c", "payloads": [b"1", b"2"]}})
    session.send(ack={"binding": job.binding, "cursor": {"epoch": 1, "seq": 2}})
    while (told := session.skip_to("progress")).lag:
        pass
    assert (told.head.seq, told.acked.seq) == (2, 2)
    session.send(sync={}, request_id=9)
    assert session.next().HasField("sync_done")  # no Progress stands before it


def test_a_negative_interval_is_refused(client):
    session = client.raw()
    session.send(hello={"version_min": 1, "version_max": 1, "progress_ns": -1})
    assert "progress_ns" in session.end()[1]


def test_a_job_of_the_sync_face_knows_its_lag(daemon):
    with aem.Client() as client:
        job = client.register("user", lambda event: None, channel="c")
        client.raise_event("c", b"1")
        client.raise_event("c", b"2")
        client.run(lambda: job.progress.acked == 2)
        assert (job.progress.head, job.lag, job.lost) == (2, 0, 0)


async def test_a_job_of_the_asyncio_face_knows_its_lag(daemon):
    async with aem.AsyncClient() as client:
        seen: list[Any] = []

        async def handler(event: Any) -> None:
            seen.append(event)

        job = await client.register("user", handler, channel="c")
        await client.raise_event("c", b"1")
        await asyncio.wait_for(client.run(lambda: job.progress.acked == 1), LIMIT)
        assert (job.progress.head, job.lag, len(seen)) == (1, 0, 1)
