"""aemctl doctor with a real daemon, and without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT = 60


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aemd.cli.ctl", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


def tree(*folders: str) -> dict[str, tuple[int, int, int]]:
    """Everything below, as far as it can be seen: mode, size, time of the last change."""
    found = {}
    for folder in folders:
        for path in [Path(folder), *Path(folder).rglob("*")]:
            if path.exists():
                status = path.lstat()
                found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def test_with_a_daemon_all_is_well_or_said_to_be_missing(daemon: Any) -> None:
    result = doctor("-o", "json")
    rows = json.loads(result.stdout)
    answering = [row for row in rows if "used by default" in row["found"]]
    assert [row["what"] for row in answering] == [f"daemon at {daemon.address}"]
    assert any(row["what"] == "rights" for row in rows)
    failed = [row for row in rows if row["verdict"] == "FAIL"]
    assert result.returncode == (1 if failed else 0), failed
    assert {row["area"] for row in rows} == {"kernel", "machine", "daemons"}


def test_without_a_daemon_it_says_so_and_how_to_start_one(tmp_path: Any) -> None:
    result = doctor("--address", f"unix:{tmp_path}/none.sock")
    assert result.returncode == 1
    assert "there is none" in result.stdout
    assert "systemctl start aemd" in result.stdout
    assert "SO_PEERPIDFD" in result.stdout
    assert result.stderr == ""


def test_nothing_on_the_machine_is_changed(daemon: Any) -> None:
    looked_at = (daemon.folder, "/etc/aemd", "/run/aemd", "/var/lib/aemd")
    log = os.path.join(daemon.folder, "log")  # the daemon's own, which may say that somebody came
    before = {path: seen for path, seen in tree(*looked_at).items() if path != log}
    with daemon.client() as client:
        jobs = client.status().jobs
        doctor()
        assert client.status().jobs == jobs
    assert {path: seen for path, seen in tree(*looked_at).items() if path != log} == before
