"""AEMhttpd over a real daemon, tried with the clients that a user has: curl and wrk."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BIG_BYTES = 20_000_000


@pytest.fixture(scope="module", params=["aemd", "asyncio", "select"])
def server(
    request: pytest.FixtureRequest, shared_daemon: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The URL of a server and its root."""
    root = tmp_path_factory.mktemp("root")
    (root / "index.html").write_text("<h1>hello</h1>\n")
    (root / "big").write_bytes(os.urandom(BIG_BYTES))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "aemhttpd.main", "--root", str(root), "--engine", request.param]
    command += ["--listen", f"tcp:127.0.0.1:{port}", "--address", shared_daemon.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("aemhttpd: serving")
        yield f"http://127.0.0.1:{port}", root
    finally:
        process.terminate()
        status = process.wait(timeout=20)
        if process.stdout is not None:
            process.stdout.close()
    assert status == 0


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return subprocess.run(["curl", "-sS", "--max-time", "30", *arguments], capture_output=True, check=False)


def test_file_far_longer_than_the_room_arrives_whole(server: tuple[str, Path]) -> None:
    url, root = server
    assert curl(f"{url}/big").stdout == (root / "big").read_bytes()


def test_several_requests_on_one_connection_are_answered(server: tuple[str, Path]) -> None:
    url, _ = server
    done = curl("-v", f"{url}/", f"{url}/missing", f"{url}/")
    assert done.stdout.count(b"<h1>hello</h1>") == 2
    assert b"404 Not Found: no such file" in done.stdout
    assert done.stderr.count(b"Re-using existing connection") == 2


def test_range_head_and_chunked_upload(server: tuple[str, Path]) -> None:
    url, root = server
    assert curl("-r", "1000-1999", f"{url}/big").stdout == (root / "big").read_bytes()[1000:2000]
    assert f"Content-Length: {BIG_BYTES}".encode() in curl("-I", f"{url}/big").stdout
    upload = curl("-T", "-", "-X", "POST", "-H", "Transfer-Encoding: chunked", f"{url}/")
    assert b"405 Method Not Allowed" in upload.stdout or upload.returncode == 0


def test_client_that_hangs_up_in_the_middle_harms_nobody(server: tuple[str, Path]) -> None:
    url, _ = server
    host, port = url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000)
    assert b"hello" in curl(f"{url}/").stdout


def test_hundred_connections_are_served_without_an_error(server: tuple[str, Path]) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    url, _ = server
    done = subprocess.run(
        ["wrk", "-t1", "-c100", "-d2s", f"{url}/"], capture_output=True, text=True, check=True
    )
    assert "Requests/sec" in done.stdout
    assert "Non-2xx" not in done.stdout
    assert "Socket errors" not in done.stdout


def test_browser_shows_the_page(server: tuple[str, Path], tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    url, root = server
    (root / "page.html").write_text(
        "<title>page</title><img src=big><p id=text>waits</p><script src=script.js></script>"
    )
    (root / "script.js").write_text("document.getElementById('text').textContent = 'was here'")
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
    command += [f"--user-data-dir={tmp_path}", "--dump-dom", f"{url}/page.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert '<p id="text">was here</p>' in done.stdout
