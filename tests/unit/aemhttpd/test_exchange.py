"""HTTP on one connection, without a socket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aemhttpd.exchange import PIPELINED_BYTES_MAX, Exchange
from aemhttpd.files import Files, parse_range
from hypothesis import given
from hypothesis import strategies as st

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text("hello\n")
    (tmp_path / "big").write_bytes(os.urandom(300_000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("inside\n")
    return tmp_path


def talk(exchange: Exchange, *requests: bytes, room: int = 4096) -> bytes:
    """Feed requests and collect what is to be written, `room` bytes at a time."""
    answer = b""
    for request in requests:
        exchange.receive(request)
        while piece := exchange.output(room):
            answer += piece
    return answer


@pytest.fixture
def exchange(root: Path) -> Exchange:
    return Exchange(Files(str(root)))


def test_get_gives_the_file_and_keeps_the_connection(exchange: Exchange) -> None:
    answer = talk(exchange, GET)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nhello\n")
    assert not exchange.finished


def test_request_split_at_every_byte_gives_the_same_answer(root: Path) -> None:
    for cut in range(1, len(GET)):
        answer = talk(Exchange(Files(str(root))), GET[:cut], GET[cut:])
        assert answer.endswith(b"hello\n")


def test_head_has_the_length_and_no_body(exchange: Exchange) -> None:
    answer = talk(exchange, GET.replace(b"GET", b"HEAD"))
    assert b"Content-Length: 6\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_thousands_of_pipelined_requests_are_answered_in_order(exchange: Exchange, method: bytes) -> None:
    answer = talk(exchange, GET.replace(b"GET", method) * 3000)
    assert answer.count(b"HTTP/1.1 200 OK") == 3000


def test_pipelined_requests_wait_for_the_response_before_them(exchange: Exchange, root: Path) -> None:
    answer = talk(exchange, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" + GET, room=1000)
    big = (root / "big").read_bytes()
    assert answer.index(big) < answer.index(b"hello\n")


def test_client_that_pipelines_and_never_reads_is_cut_off(exchange: Exchange) -> None:
    exchange.receive(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
    sent = 0
    while not exchange.finished:
        exchange.receive(GET * 1000)
        sent += len(GET) * 1000
        assert sent < 2 * PIPELINED_BYTES_MAX


def test_chunked_body_is_read_and_the_connection_goes_on(exchange: Exchange) -> None:
    post = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    answer = talk(exchange, post + GET)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD\r\n" in answer
    assert answer.endswith(b"hello\n")


def test_expectation_of_100_is_met_before_the_body(exchange: Exchange) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert talk(exchange, head).startswith(b"HTTP/1.1 100 ")
    assert talk(exchange, b"hi").startswith(b"HTTP/1.1 405 ")


def test_range_gives_206_with_those_bytes(exchange: Exchange, root: Path) -> None:
    answer = talk(exchange, b"GET /big HTTP/1.1\r\nHost: x\r\nRange: bytes=1000-1999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 206 ")
    assert b"Content-Range: bytes 1000-1999/300000\r\n" in answer
    assert answer.endswith(b"\r\n\r\n" + (root / "big").read_bytes()[1000:2000])


def test_range_beyond_the_file_gives_416_with_its_size(exchange: Exchange) -> None:
    answer = talk(exchange, b"GET / HTTP/1.1\r\nHost: x\r\nRange: bytes=100-\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 416 ")
    assert b"Content-Range: bytes */6\r\n" in answer


def test_matching_tag_gives_304_without_a_body(exchange: Exchange) -> None:
    tag = next(line for line in talk(exchange, GET).split(b"\r\n") if line.startswith(b"ETag: "))[6:]
    answer = talk(exchange, b"GET / HTTP/1.1\r\nHost: x\r\nIf-None-Match: " + tag + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 304 ")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /missing HTTP/1.1", b"404"),
        (b"GET /../../../../etc/passwd HTTP/1.1", b"404"),
        (b"GET /%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd HTTP/1.1", b"404"),
        (b"GET /%00 HTTP/1.1", b"400"),
        (b"GET /folder HTTP/1.1", b"301"),
        (b"GET /folder/ HTTP/1.1", b"200"),
        (b"DELETE / HTTP/1.1", b"405"),
        (b"NONSENSE", b"400"),
    ],
)
def test_status_of_a_request(exchange: Exchange, request_line: bytes, status: bytes) -> None:
    answer = talk(exchange, request_line + b"\r\nHost: x\r\n\r\n")
    assert answer.split(b" ")[1] == status


def test_link_out_of_the_root_is_not_followed(exchange: Exchange, root: Path) -> None:
    (root / "passwd").symlink_to("/etc/passwd")
    assert talk(exchange, b"GET /passwd HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 404 ")


def test_head_that_is_too_long_gives_431_and_ends(exchange: Exchange) -> None:
    answer = talk(exchange, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert exchange.finished


def test_file_that_shrinks_while_it_is_sent_ends_the_connection(exchange: Exchange, root: Path) -> None:
    exchange.receive(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
    exchange.output(1000)
    os.truncate(root / "big", 10)
    while exchange.output(100_000):
        pass
    assert exchange.finished


def test_http_1_0_ends_after_its_answer(exchange: Exchange) -> None:
    assert talk(exchange, b"GET / HTTP/1.0\r\n\r\n").endswith(b"hello\n")
    assert exchange.finished


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_whatever_comes_never_raises(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    exchange = Exchange(Files("/nonexistent"))
    talk(exchange, *pieces, b"")


@given(st.text(max_size=40), st.integers(0, 1 << 40))
def test_a_range_lies_within_the_file(text: str, size: int) -> None:
    span = parse_range(f"bytes={text}", size)
    if isinstance(span, tuple):
        assert 0 <= span[0] <= span[1] < size
