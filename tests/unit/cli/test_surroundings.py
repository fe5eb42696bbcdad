"""What a command has around it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from aemd.cli.handler import Command
from aemd.cli.surroundings import PATH_DEFAULT, environment

HERE = {
    "PATH": "/opt/bin:/bin",
    "HOME": "/home/x",
    "LANG": "C.UTF-8",
    "LC_TIME": "de_DE.UTF-8",
    "AEMD_ADDRESS": "unix:/x",
    "LD_PRELOAD": "/tmp/evil.so",
    "SECRET": "token",
    "AEM_TYPE": "forged",
}
UID_WITHOUT_ENTRY = 3_999_999_999


def test_only_what_every_command_needs_comes_through() -> None:
    assert environment(HERE, [], uid=UID_WITHOUT_ENTRY) == {
        "PATH": "/opt/bin:/bin",
        "HOME": "/home/x",
        "LANG": "C.UTF-8",
        "LC_TIME": "de_DE.UTF-8",
        "AEMD_ADDRESS": "unix:/x",
    }


def test_what_is_missing_comes_from_the_user_database() -> None:
    found = environment({}, [], uid=0)
    assert (found["USER"], found["LOGNAME"]) == ("root", "root")
    assert found["HOME"].startswith("/")
    assert found["SHELL"].startswith("/")
    assert found["PATH"] == PATH_DEFAULT


def test_more_is_let_through_by_name_or_set() -> None:
    found = environment(HERE, ["SECRET", "MODE=a=b", "EMPTY="], uid=UID_WITHOUT_ENTRY)
    assert (found["SECRET"], found["MODE"], found["EMPTY"]) == ("token", "a=b", "")
    assert "LD_PRELOAD" not in found
    assert environment(HERE, ["LANG=C"], keep=True) == {**HERE, "LANG": "C"}


@pytest.mark.parametrize("word", ["", "=x", "ABSENT", "A\0B=x"])
def test_what_is_no_variable_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"NAME|no variable"):
        environment(HERE, [word])


def test_command_gets_the_facts_of_the_event_whatever_is_here(tmp_path: Any) -> None:
    row = {
        "module": "user", "type": "raised", "job": 1, "seq": 1, "epoch": 1, "count": 1, "attempts": 1,
        "real_time_ns": 5, "payload": {},
    }  # fmt: skip
    script = f"env > {tmp_path}/env; ps -o sid= -p $$ > {tmp_path}/sid; echo $$ > {tmp_path}/pid"
    Command(["sh", "-c", script], environment={"PATH": os.environ["PATH"], "AEM_TYPE": "forged"}).run(row)
    said = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert said["AEM_TYPE"] == "raised"
    assert {name for name in said if not name.startswith("AEM_")} <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}
    assert (tmp_path / "sid").read_text().strip() == (tmp_path / "pid").read_text().strip()


@pytest.mark.parametrize(("size", "wanted"), [("0", 0), ("4096", 4_096), ("None", None)])
def test_privileges_and_core_dumps_are_given_up_for_all_that_is_started(
    size: str, wanted: int | None
) -> None:
    script = "grep NoNewPrivs /proc/self/status; ulimit -Sc; ulimit -Hc"
    code = (
        "import subprocess\n"
        "from aemd.cli import surroundings\n"
        f"surroundings.limit_core({size})\n"
        "surroundings.give_up_privileges()\n"
        f"subprocess.run(['sh', '-c', {script!r}], check=True)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    privileges, soft, hard = ran.stdout.splitlines()
    assert privileges.split() == ["NoNewPrivs:", "1"]
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert hard == ("unlimited" if most == resource.RLIM_INFINITY else str(most // 512))
    if wanted is None:
        assert soft == hard
    else:
        assert int(soft) == wanted // 512
