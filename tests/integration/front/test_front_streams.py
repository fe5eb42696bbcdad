"""RPCs through a front: what arrives, in which order, how they end, and what waits for whom."""

import asyncio
import json
import os
import signal
import threading

import grpc
import grpc.aio
import pytest

WINDOW_BYTES = 256 * 1024


def test_unary_is_answered(echo):
    with echo.channel() as channel:
        assert echo.echo(channel, b"hello") == b"hello"
        assert echo.echo(channel, b"") == b""


def test_stream_keeps_order_and_sizes(echo):
    messages = [bytes([number % 100]) * (number * 37 % 5000 + 1) for number in range(500)]
    with echo.channel() as channel:
        talk = echo.session(channel)
        for message in messages:
            talk.send(message)
        assert [next(talk.call) for _ in messages] == messages
        talk.half_close()
        assert list(talk.call) == []
        assert talk.call.code() == grpc.StatusCode.OK


def test_messages_far_above_the_window_pass_both_ways(echo):
    large = bytes(range(256)) * 4000
    with echo.channel() as channel:
        talk = echo.session(channel)
        for _ in range(10):
            talk.send(large)
        for _ in range(10):
            assert next(talk.call) == large
        assert echo.echo(channel, large) == large


def test_message_above_the_limit_is_refused_and_others_go_on(start):
    echo = start(message_bytes=100_000)
    with echo.channel() as channel:
        assert len(echo.echo(channel, b"x" * 99_000)) == 99_000
        with pytest.raises(grpc.RpcError) as refused:
            echo.echo(channel, b"x" * 101_000)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert echo.echo(channel, b"y") == b"y"


def test_error_reaches_the_client_with_its_details(echo):
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.say("end", code=9, message="nöt yet", status="details")
        with pytest.raises(grpc.RpcError) as ended:
            next(talk.call)
        assert ended.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert ended.value.details() == "nöt yet"
        assert dict(ended.value.trailing_metadata())["grpc-status-details-bin"] == b"details"


def test_message_too_long_for_trailers_is_cut(echo):
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.say("end", code=3, message="x" * 100_000, status="y" * 100_000)
        with pytest.raises(grpc.RpcError) as ended:
            next(talk.call)
        assert ended.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert ended.value.details().startswith("xxx")


def test_what_was_sent_before_the_end_arrives(echo):
    with echo.channel() as channel:
        talk = echo.session(channel)
        talk.say("flood", count=5, size=100)
        talk.say("end", code=0, message="")
        assert [len(message) for message in talk.call] == [100] * 5


def test_handler_that_raises_ends_its_stream_only(echo):
    with echo.channel() as channel:
        other = echo.session(channel)
        assert other.ask("echo", text="before") == b"before"
        talk = echo.session(channel)
        connection = talk.who()["connection"]
        talk.say("raise")
        with pytest.raises(grpc.RpcError) as ended:
            next(talk.call)
        assert ended.value.code() == grpc.StatusCode.INTERNAL
        assert echo.wait("closed", connection=connection)["reason"] == "internal error"
        assert other.ask("echo", text="after") == b"after"


def test_unknown_method_is_unimplemented(echo):
    with echo.channel() as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/aem.v1.JobService/Nonsense")(b"")
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_cancel_closes_the_handler(echo):
    with echo.channel() as channel:
        talk = echo.session(channel)
        number = talk.who()["connection"]
        talk.cancel()
        assert echo.wait("closed", connection=number)["reason"] == "cancelled"
        assert echo.session(channel).who()["connection"] == number


def test_channel_that_closes_takes_its_streams_along(echo):
    with echo.channel() as channel:
        connection = echo.session(channel).who()["connection"]
    assert echo.wait("closed", connection=connection)["reason"] in ("cancelled", "connection gone")


def test_connection_that_breaks_is_no_orderly_end(echo):
    with echo.client(os.geteuid()) as client:
        connection = json.loads(client.stdout.readline())["connection"]
        client.send_signal(signal.SIGKILL)
        assert echo.wait("closed", connection=connection)["reason"] in (
            "connection gone",
            "client process gone",
        )


def test_client_that_does_not_read_holds_up_nobody_and_costs_little(echo):
    with echo.channel() as channel, echo.channel() as other:
        lazy = echo.session(channel)
        lazy.who()
        before = echo.counters(other)
        lazy.say("flood", count=4000, size=100_000)  # 400 MB, all one object in the daemon
        brisk = echo.session(other)
        for number in range(200):
            assert brisk.ask("echo", text=str(number)) == str(number).encode()
        after = echo.counters(other)
        assert after["sent"] - before["sent"] < 40_000_000  # gRPC's buffers on both sides, and one window
        assert after["rss_kib"] - before["rss_kib"] < 20_000
        assert len(next(lazy.call)) == 100_000
        lazy.cancel()


def test_handler_that_does_not_consume_stops_its_client_only(echo):
    produced = 0
    enough = threading.Event()

    def messages():
        nonlocal produced
        yield b'{"do": "hold"}'
        while not enough.is_set():
            produced += 1
            yield b"x" * 50_000

    with echo.channel() as channel, echo.channel() as other:
        before = echo.counters(other)["sent"]
        call = channel.stream_stream("/aem.v1.EventService/Session")(messages())
        brisk = echo.session(other)
        while echo.counters(other)["sent"] - before < WINDOW_BYTES:
            assert brisk.ask("echo", text="x") == b"x"
        for _ in range(200):
            assert brisk.ask("echo", text="x") == b"x"
        assert echo.counters(other)["sent"] - before < 2 * WINDOW_BYTES
        assert produced * 50_000 < 40_000_000
        enough.set()
        call.cancel()


async def test_hundred_streams_of_an_asyncio_client_at_once(echo):
    async with grpc.aio.insecure_channel(f"unix:{echo.path}") as channel:

        async def talk(number):
            call = channel.stream_stream("/aem.v1.EventService/Session")()
            for count in range(20):
                await call.write(json.dumps({"do": "echo", "text": f"{number}.{count}"}).encode())
            said = [await call.read() for _ in range(20)]
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            return said

        everything = await asyncio.gather(*(talk(number) for number in range(100)))
    for number, said in enumerate(everything):
        assert said == [f"{number}.{count}".encode() for count in range(20)]
