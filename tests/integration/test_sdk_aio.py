"""The SDK's asyncio face against a real daemon: the same words, awaited."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import aem
import pytest

PATIENCE = 20


@pytest.fixture
async def client(daemon):
    async with aem.AsyncClient(daemon.address, label="test") as client:
        yield client


async def until(condition):
    """Ask the daemon until it says so."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            pass


async def test_functions_and_coroutines_handle_events(client):
    seen = []

    @client.on("timer", every="5ms")
    async def tick(event):
        await asyncio.sleep(0)
        seen.append(type(event))

    @client.on("user", channel="c")
    def plain(event):
        seen.append(event.data)

    await client.connect()
    await client.raise_event("c", "x")
    await client.run(lambda: aem.TimerEvent in seen and b"x" in seen)
    assert len(client.jobs) == 2


async def test_coroutines_of_one_job_run_one_by_one_and_of_two_overlap(client):
    running, most = [], {}

    async def slow(event):
        running.append(event.job.id)
        for job in client.jobs:
            most[job.id] = max(most.get(job.id, 0), running.count(job.id))
        most["all"] = max(most.get("all", 0), len(running))
        await asyncio.sleep(0.005)
        running.remove(event.job.id)

    for channel in ("a", "b"):
        await client.register("user", slow, channel=channel)
        await client.raise_event(channel, *[b"x"] * 10)
    jobs = client.jobs

    async def done():
        return [(await job.stats()).acknowledged for job in jobs] == [10, 10]

    running_client = asyncio.create_task(client.run(PATIENCE))
    await until(done)
    client.stop()
    await running_client
    assert [most[job.id] for job in jobs] == [1, 1]
    assert most["all"] == 2


async def test_coroutines_of_different_connections_overlap(client):
    ports = asyncio.Queue()
    both = asyncio.Barrier(2)

    async def answer(event):
        if event.type == "listening":
            ports.put_nowait(int(event.local.rpartition(":")[2]))
        if event.type == "data":
            await both.wait()
            return aem.Reply("write-close", event.data)
        return None

    await client.register("socket", answer, listen="tcp:127.0.0.1:0")
    running = asyncio.create_task(client.run(PATIENCE))
    port = await ports.get()

    async def talk(text):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text)
        answered = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answered

    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(talk(b"1"), talk(b"2")) == [b"1", b"2"]
    client.stop()
    await running


async def test_iterator_ends_with_the_job(client):
    process = await asyncio.create_subprocess_exec("sh", "-c", "read x; kill -9 $$", stdin=-1)
    stream = await client.events("process", pid=process.pid).open()
    await process.communicate(b"go\n")
    events = [event async for event in stream]
    assert [(event.signal, event.signal_name) for event in events] == [(9, "SIGKILL")]


async def test_leaving_the_iteration_ends_the_job(client):
    async with client.events("timer", every="1ms") as stream:
        async for event in stream:
            assert isinstance(event, aem.TimerEvent)
            break
    assert [job async for job in client.list_jobs()] == []
    with pytest.raises(aem.AemError):
        async for _ in client.events("timer", every="nonsense"):
            pass


async def test_time_limit_of_next_leaves_the_stream_usable(client):
    async with client.events("user", channel="c") as stream:
        with pytest.raises(TimeoutError):
            await stream.next(0.01)
        await client.raise_event("c", b"x")
        assert (await stream.next(PATIENCE)).data == b"x"


async def test_failing_coroutine_is_in_the_jobs_statistics(client):
    async def broken(event):
        raise ValueError("no good")

    job = await client.register("timer", broken, every="5ms")

    async def failed():
        return (await job.stats()).failed >= 1

    running = asyncio.create_task(client.run(PATIENCE))
    await until(failed)
    client.stop()
    await running
    assert (await job.stats()).last_error == "ValueError: no good"


async def test_job_life_and_lists(client):
    job = await client.register("timer", print, every="1h", start=False)
    await job.start()
    await job.set_priority(7)
    await job.sync(PATIENCE)
    assert (await client.get_job(job.id)).options.priority == 7
    assert [found.id async for found in client.list_jobs(module="timer")] == [job.id]
    assert "timer" in [module.id async for module in client.list_modules()]
    assert (await client.status()).caller.pid == os.getpid()
    (session,) = [session async for session in client.list_sessions()]
    assert session.label == "test"
    (quota,) = [user async for user in client.list_quotas()]
    assert {use.resource: use.used for use in quota.uses}["jobs"] == 1
    await job.stop()
    await job.shutdown()
    assert client.jobs == []


async def test_no_daemon_is_a_clear_error(tmp_path):
    client = aem.AsyncClient(f"unix:{tmp_path}/none.sock")
    with pytest.raises(aem.ConnectionLost, match="no daemon at unix:"):
        await client.connect()
    with pytest.raises(aem.ConnectionLost, match="no daemon at unix:"):
        await client.status()
    await client.close()


async def test_no_event_is_lost_or_handled_twice_when_fronts_die(launch):
    daemon = await asyncio.to_thread(launch)
    async with aem.AsyncClient(daemon.address) as client:
        seen = []

        async def note(event):
            seen.append(event.data)
            if len(seen) in (50, 500):
                kill_fronts(daemon)

        options = aem.Options(queue_depth=10_000, acknowledgement=aem.Acknowledgement.EXPLICIT)
        await client.register("user", note, channel="c", options=options)
        sent = [b"%d" % number for number in range(1_000)]
        await client.raise_event("c", *sent)
        await client.run(lambda: len(seen) >= len(sent))
        assert seen == sent


def kill_fronts(daemon):
    def children(pid):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    for zygote in children(daemon.pid):
        for front in children(zygote):
            os.kill(front, signal.SIGKILL)


FOREVER = """
import asyncio, os, sys, aem

async def main():
    client = aem.AsyncClient(sys.argv[1])

    @client.on("timer", every="5ms")
    async def tick(event):
        os.write(1, b"tick\\n")

    @client.on("user", channel="c", run="capsule", pool=1)
    async def elsewhere(event):
        os.write(1, b"elsewhere\\n" if os.getpid() != main_pid else b"here\\n")

    main_pid = os.getpid()
    await client.connect()
    await client.raise_event("c", b"x")
    await client.run_forever()
    print("over", len([job async for job in client.list_jobs()]))
    await client.close()
    with open(f"/proc/{main_pid}/task/{main_pid}/children") as left:
        print("children", left.read().split())

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_forever_ends_on_a_signal_and_leaves_nothing(daemon, number):
    command = [sys.executable, "-c", FOREVER, daemon.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            lines = set()
            while not {"tick\n", "elsewhere\n"} <= lines:
                lines.add(program.stdout.readline())
            program.send_signal(number)
            output, _ = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert output.splitlines()[-2:] == ["over 0", "children []"]
    assert program.returncode == 0
