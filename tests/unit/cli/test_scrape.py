"""The HTTP server for scrapers, over real sockets."""

from __future__ import annotations

import http.client
import os
import socket
import stat
import threading

import pytest

from aemd.cli.scrape import REQUESTS_MAX, Place, Scraped, listen, parse_place

LIMIT = 20


@pytest.fixture
def serve():
    """Serves what `answer` gives; the port."""
    running = []

    def start(answer, place=None):
        server = Scraped(listen(place or Place("127.0.0.1", 0)), answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((server, thread))
        return server.socket.getsockname()

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT)


def ask(port, path="/metrics", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers["Content-Type"]
    finally:
        connection.close()


def fixed(accept):
    return 200, f"<{accept}>".encode(), "text/plain"


def test_metrics_are_served_in_the_form_that_was_asked_for(serve):
    _, port = serve(fixed)
    assert ask(port, Accept="x/y") == (200, b"<x/y>", "text/plain")
    assert ask(port, method="HEAD")[:2] == (200, b"")
    assert ask(port, "/metrics?name=x")[0] == 200
    assert ask(port, "/else")[0] == 404
    assert ask(port, method="POST")[0] == 501


def test_a_daemon_that_is_away_is_unavailable(serve):
    _, port = serve(lambda accept: (503, b"no daemon\n", "text/plain"))
    assert ask(port)[:2] == (503, b"no daemon\n")


def test_scrapers_that_hang_do_not_stop_the_others(serve):
    _, port = serve(fixed)
    hanging = [socket.create_connection(("127.0.0.1", port)) for _ in range(REQUESTS_MAX - 1)]
    for one in hanging:
        one.sendall(b"GET /metrics HTTP/1.1\r\n")
    assert ask(port)[0] == 200
    for one in hanging:
        one.close()


def test_the_places_of_scrapers_that_left_are_free_again(serve):
    _, port = serve(fixed)
    for _ in range(3 * REQUESTS_MAX):
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.sendall(b"nonsense\r\n")
    assert ask(port)[0] == 200


def test_a_unix_socket_is_for_its_own_user_and_takes_the_place_of_a_stale_one(serve, tmp_path):
    path = f"{tmp_path}/metrics.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    serve(fixed, Place(path=path))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").read().endswith(b"\r\n\r\n<>")
    with pytest.raises(OSError, match="in use"):
        listen(Place(path=path))


def test_a_file_is_not_taken_for_a_socket(tmp_path):
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(OSError, match="in use"):
        listen(Place(path=str(path)))
    assert path.read_text() == "x"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9464", Place("127.0.0.1", 9464)),
        ("[::1]:9464", Place("::1", 9464)),
        ("unix:/run/x", Place(path="/run/x")),
    ],
)
def test_places_are_read_and_shown_alike(text, place):
    assert parse_place(text) == place
    assert str(place) == text


@pytest.mark.parametrize(
    "text",
    [
        "9464",
        ":9464",
        "localhost:9464",
        "1.2.3.4:",
        "1.2.3.4:65536",
        "1.2.3.4:x",
        "unix:x",
        "unix:" + "/x" * 60,
    ],
)
def test_what_is_no_place_is_refused(text):
    with pytest.raises(ValueError, match=r"ADDRESS:PORT|IP address|absolute path"):
        parse_place(text)
