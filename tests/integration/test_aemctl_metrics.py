"""aemctl metrics and export-metrics against a real daemon."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import aem
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

LIMIT = 30


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "aemd.cli.ctl", *arguments]


def ctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.fixture
def exporter(tmp_path: Any, daemon: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """An exporter on a Unix socket."""
    path = f"{tmp_path}/metrics.sock"
    process = subprocess.Popen(
        command("export-metrics", "--listen", f"unix:{path}"), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "serving" in process.stderr.readline()
    yield path, process
    process.kill()
    process.wait(LIMIT)
    process.stderr.close()


def scrape(path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("exporter", timeout=LIMIT)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {(s.name, *s.labels.values()): s.value for family in parse(text) for s in family.samples}


def test_metrics_are_what_has_happened(daemon: Any) -> None:
    got: list[Any] = []
    with aem.Client() as client:
        client.register("timer", got.append, every="5ms", label="\x1b]0;title\x07")
        client.run(lambda: len(got) >= 3)
        told = samples(ctl("metrics", "--jobs", "5").stdout)
        text = ctl("metrics", "--jobs", "5").stdout
    assert told["aemd_job_fires_total", "timer"] >= 3
    assert told["aemd_session_delivery_seconds_count", "timer"] >= 3
    assert told["aemd_jobs", "timer"] == 1
    assert "\x1b" not in text
    assert any(name == "aemd_one_job_lag" for name, *_ in told)


def test_exporter_serves_and_ends_cleanly(exporter: tuple[str, subprocess.Popen[str]]) -> None:
    path, process = exporter
    status, text = scrape(path)
    assert status == 200
    assert samples(text)["aemd_session_opened_total",] == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 0
    assert not os.path.exists(path)


def test_exporter_says_that_the_daemon_is_away_and_finds_the_next_one(
    exporter: tuple[str, subprocess.Popen[str]], daemon: Any
) -> None:
    path, _ = exporter
    assert scrape(path)[0] == 200
    daemon.stop()
    status, text = scrape(path)
    assert status == 503
    assert "no daemon" in text
    daemon.start()
    assert scrape(path)[0] == 200


def test_exporter_says_why_it_cannot_listen(daemon: Any, tmp_path: Any) -> None:
    failed = ctl("export-metrics", "--listen", f"unix:{tmp_path}/not/there")
    assert failed.returncode == 1
    assert "LISTEN_FAILED" in failed.stderr
    assert ctl("export-metrics", "--listen", "localhost:1").returncode == 2
