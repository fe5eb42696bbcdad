"""The life of the service under a real systemd."""

import json

from tests.system.conftest import UNITS

EXPOSURE_MAX = 28  # tenths
SOCKET = "/run/aemd/aemd.sock"


def test_start_returns_when_the_daemon_answers(aemd):
    assert aemd.state == "active"
    status = json.loads(aemd.ctl("status", "-o", "json").stdout)
    assert status["pid"] == aemd.pid
    assert status["caller"]["administrator"]  # although the daemon lives in a mount namespace of its own
    assert aemd.box.show("aemd.service", "StatusText")["StatusText"] == f"serving {SOCKET}"


def test_units_are_found_good(service):
    verified = service.box.run("systemd-analyze", "verify", *UNITS, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_exposure_is_bounded(service):
    rated = service.box.run(
        "systemd-analyze",
        "security",
        "--no-pager",
        f"--threshold={EXPOSURE_MAX}",
        "aemd.service",
        check=False,
    )
    assert rated.returncode == 0, rated.stdout
