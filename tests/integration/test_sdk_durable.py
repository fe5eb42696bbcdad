"""The SDK's hold on durable jobs: it outlives programs and daemons, and nothing is handled twice for that."""

import asyncio
import shutil
import sqlite3
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import aem
import pytest
from aem.v1 import job_pb2

PATIENCE = 20


@pytest.fixture
def client(daemon):
    with aem.Client(daemon.address, label="test") as client:
        yield client


@pytest.fixture
def other(daemon):
    """Somebody who raises events."""
    with aem.Client(daemon.address, label="other") as client:
        yield client


def restart(daemon):
    daemon.stop()
    daemon.start()


def kill(daemon):
    daemon.kill()
    Path(daemon.path).unlink()
    daemon.start()


def written(daemon):
    """How many entries are on disk; the daemon holds the file, so a copy is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(daemon.folder, "state").glob("aemd.db*"):
            shutil.copy(path, folder)
        try:
            database = sqlite3.connect(f"{folder}/aemd.db")
            (count,) = database.execute("SELECT count(*) FROM entries").fetchone()
        except sqlite3.Error:
            return -1
        database.close()
    return count


def test_a_handler_goes_on_where_the_program_before_left_off(daemon, other):
    seen = []

    def program():
        with aem.Client(daemon.address) as client:

            @client.durable("deploys", "user", channel="deploy")
            def deploy(event):
                seen.append((event.data, event.attempts, str(event.cursor)))

            known = len(seen)
            client.run(lambda: len(seen) == known + 2)
            return client.jobs[0].id

    other.create_job("deploys", "user", {"channel": "deploy"})
    other.raise_event("deploy", b"a", b"b")
    first = program()
    other.raise_event("deploy", b"c", b"d")
    assert program() == first
    assert seen == [(b"a", 1, "1:1"), (b"b", 1, "1:2"), (b"c", 1, "1:3"), (b"d", 1, "1:4")]


def test_an_orderly_restart_costs_no_event_no_gap_and_no_second_handling(daemon, client, other):
    seen, gaps = [], []
    followed = []
    client.durable(
        "deploys", "user", lambda event: seen.append(event.data), channel="deploy", on_gap=gaps.append
    )
    job = client.bind("deploys", lambda event: followed.append(event.data), follow=True, on_gap=gaps.append)
    number = job.id
    other.raise_event("deploy", *[b"%d" % n for n in range(100)])
    client.run(lambda: len(seen) >= 40)
    restart(daemon)
    other.raise_event("deploy", *[b"%d" % n for n in range(100, 150)])
    client.run(lambda: len(seen) >= 150 and len(followed) >= 150)
    assert seen == followed == [b"%d" % n for n in range(150)]
    assert gaps == []
    assert (job.id, job.state) == (number, "ARMED")
    client.run(lambda: client.get_job("deploys").stats.acked.seq == 150)


def test_a_handler_that_runs_across_a_restart_answers_for_its_event(daemon, client, other):
    seen = []

    def handle(event):
        seen.append(event.data)
        if event.data == b"slow":
            restart(daemon)

    client.durable("deploys", "user", handle, channel="deploy")
    followed = []
    client.bind("deploys", lambda event: followed.append(event.data), follow=True)
    other.raise_event("deploy", b"slow", b"next")
    client.run(lambda: client.get_job("deploys").stats.acked.seq == 2 and len(followed) >= 2)
    assert seen == followed == [b"slow", b"next"]


def test_answers_given_one_by_one_are_told_again_to_the_next_daemon(daemon, client, other):
    seen = []

    def handle(event):
        seen.append(event.data)
        if event.data == b"1":
            restart(daemon)

    options = aem.Options(acknowledgement=aem.Acknowledgement.EXPLICIT)
    client.durable("deploys", "user", handle, channel="deploy", options=options)
    other.raise_event("deploy", *[b"%d" % n for n in range(5)])
    client.run(lambda: client.get_job("deploys").stats.acked.seq == 5)
    assert seen == [b"%d" % n for n in range(5)]


def test_a_killed_daemon_tells_its_gap_and_nothing_that_was_written_is_lost(
    daemon, client, other, eventually
):
    seen, followed = [], []
    client.durable(
        "deploys", "user", lambda event: seen.append(event.data), channel="deploy", on_gap=seen.append
    )
    client.bind("deploys", lambda event: followed.append(event.data), follow=True, on_gap=followed.append)
    other.raise_event("deploy", b"a", b"b")
    client.run(lambda: len(seen) == 2 and len(followed) == 2)
    eventually(lambda: written(daemon) == 2, "the write")
    kill(daemon)
    other.raise_event("deploy", b"c")
    client.run(lambda: len(seen) == 4 and len(followed) == 4)
    for found in (seen, followed):
        assert found[:2] == [b"a", b"b"]
        assert (found[2].cause, found[2].stage, found[2].count, found[2].epoch) == ("restart", "source", 0, 2)
        assert found[3] == b"c"


def test_followers_begin_where_they_say(client, other, eventually):
    client.create_job("deploys", "user", {"channel": "deploy"})
    other.raise_event("deploy", b"a")
    between = datetime.now(UTC)
    other.raise_event("deploy", b"b", b"c")
    with client.follow("deploys", start_from="oldest") as stream:
        first = stream.next(PATIENCE)
        assert isinstance(first, aem.UserEvent)
        place = str(first.cursor)
    for start_from in (place, aem.Cursor.parse(place), between):
        with client.follow("deploys", start_from=start_from) as stream:
            assert [stream.next(PATIENCE).data for _ in range(2)] == [b"b", b"c"], start_from
    with client.follow("deploys") as stream:
        other.raise_event("deploy", b"d")
        assert stream.next(PATIENCE).data == b"d"
    eventually(lambda: client.get_job("deploys").readers == 0, "the end of the last reader")


def test_a_position_that_is_not_kept_has_an_exception_of_its_own(client, other):
    client.create_job("deploys", "user", {"channel": "deploy"})
    other.raise_event("deploy", b"a")
    with pytest.raises(aem.OutOfRange) as raised:
        client.bind("deploys", print, start_from="1:99")
    assert (raised.value.oldest, raised.value.head) == (aem.Cursor(1, 0), aem.Cursor(1, 1))
    assert raised.value.reason == "CURSOR_UNKNOWN"
    assert client.bind("deploys", print, start_from=raised.value.oldest).state == "ARMED"


def test_a_definition_that_differs_is_refused_and_says_what(client):
    client.durable("deploys", "user", print, channel="deploy")
    with pytest.raises(aem.AemError, match="with other params") as raised:
        client.durable("deploys", "user", print, channel="other", follow=True)
    assert raised.value.code is aem.Code.ALREADY_EXISTS
    with pytest.raises(aem.AemError, match="not found"):
        client.bind("nonesuch", print)


def test_what_was_put_aside_is_listed_retried_and_handled(client, other):
    seen = []

    def handle(event):
        seen.append((event.data, event.attempts))
        if event.data == b"bad" and event.attempts == 1:
            raise aem.Park("not now")

    client.durable("deploys", "user", handle, channel="deploy")
    other.raise_event("deploy", b"a", b"bad", b"b")
    client.run(lambda: len(seen) == 3 and client.get_job("deploys").stats.acked.seq == 3)
    (parked,) = client.list_parked("deploys")
    assert (parked.cursor, parked.reason, parked.attempts, parked.kept) == ((1, 2), "not now", 1, True)
    assert parked.to_dict()["payload"]["payload"] == "bad"
    assert client.retry_parked("deploys", parked.cursor) == 1
    client.run(lambda: len(seen) == 4)
    assert seen[3] == (b"bad", 2)
    client.run(lambda: not client.get_job("deploys").stats.in_flight)
    assert list(client.list_parked("deploys")) == []


def test_what_an_earlier_program_put_aside_is_handled_when_it_is_retried(daemon, other):
    def park(event):
        raise aem.Park

    with aem.Client(daemon.address) as client:
        client.durable("deploys", "user", park, channel="deploy")
        other.raise_event("deploy", b"bad")
        client.run(lambda: client.get_job("deploys").stats.parked == 1)
    seen = []
    with aem.Client(daemon.address) as client:
        client.durable("deploys", "user", lambda event: seen.append(event.data), channel="deploy")
        other.raise_event("deploy", b"good")
        client.run(lambda: seen == [b"good"])
        assert client.retry_parked("deploys") == 1
        client.run(lambda: seen == [b"good", b"bad"])


def test_letting_go_leaves_the_job_and_shutting_down_ends_it(client, other):
    seen = []
    job = client.durable("deploys", "user", seen.append, channel="deploy")
    job.unbind()
    assert job.state == "GONE"
    other.raise_event("deploy", b"a")
    again = client.bind("deploys", seen.append)
    client.run(lambda: len(seen) == 1)
    again.shutdown()
    with pytest.raises(aem.AemError) as raised:
        client.get_job("deploys")
    assert raised.value.code is aem.Code.NOT_FOUND
    with pytest.raises(ValueError, match="not durable"):
        client.register("timer", print, every="1h").unbind()


def test_a_job_that_ended_while_the_client_was_away_is_gone(daemon, client, other, caplog):
    job = client.durable("deploys", "user", print, channel="deploy")
    daemon.stop()
    Path(daemon.folder, "state", "aemd.db").unlink()
    daemon.start()
    client.run(lambda: job.state == "GONE")
    assert "not found" in job.reason
    assert "could not be bound again" in caplog.text


def test_sync_and_stop_work_as_with_any_job(client, other):
    seen = []
    job = client.durable("deploys", "user", seen.append, channel="deploy")
    other.raise_event("deploy", b"a")
    job.sync(PATIENCE)
    client.run(lambda: len(seen) == 1)
    job.stop()
    assert client.get_job("deploys").state == job_pb2.STATE_REGISTERED
    assert job.state == "REGISTERED"


async def test_the_asyncio_face_has_the_same_words(daemon):
    seen, followed = [], []
    async with aem.AsyncClient(daemon.address) as client:

        @client.durable("deploys", "user", channel="deploy")
        async def deploy(event):
            await asyncio.sleep(0)
            seen.append(event.data)

        await client.connect()
        job = await client.bind("deploys", lambda event: followed.append(event.data), follow=True)
        await client.raise_event("deploy", b"a", b"b")
        await client.run(lambda: len(seen) == len(followed) == 2)
        await asyncio.to_thread(restart, daemon)
        async with asyncio.timeout(PATIENCE):
            await client.raise_event("deploy", b"c")
        await client.run(lambda: len(seen) == len(followed) == 3)
        assert seen == followed == [b"a", b"b", b"c"]
        async with client.follow("deploys", start_from="oldest") as stream:
            assert [(await stream.next(PATIENCE)).data for _ in range(3)] == seen
        again = await client.durable("deploys", "user", print, channel="deploy", follow=True)
        assert again.id == job.id
        await again.unbind()
        assert [parked async for parked in client.list_parked("deploys")] == []
        await client.shutdown_job("deploys")
