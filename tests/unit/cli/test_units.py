"""The units as they would be installed, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aemd.cli import units
from aemd.cli.ctl import run
from aemd.cli.failure import Exit, Failure
from aemd.cli.units import MANUAL, SYSTEM, USER, check_reach, command_line, read_source

Install = Callable[..., int]


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what runs here were installed where the service sees it."""
    monkeypatch.setattr(units, "_code", lambda: iter(["/usr/bin"]))


@pytest.fixture
def install(tmp_path: Path, reachable: None) -> Install:
    return lambda *options: run(["install-units", "--root", str(tmp_path), *options])


def test_every_file_goes_where_systemd_looks(install: Install, tmp_path: Path) -> None:
    assert install() == Exit.OK
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {f"usr/local/{target}" for _, target in SYSTEM + MANUAL}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.rglob("*") if path.is_file())


def test_user_units_go_into_the_users_own_folder(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert install("--user") == Exit.OK
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {f"data/{target}" for _, target in USER}


@pytest.mark.parametrize("arguments", [(), ("--user", "--prefix", "/p")])
def test_units_start_this_interpreter_and_no_other_program(
    install: Install, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert install(*arguments) == Exit.OK
    (unit,) = tmp_path.rglob("aemd.service")
    starts = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    options = (
        " --user"
        if "--user" in arguments
        else " --deputy /run/aemd-deputy.sock --runner /run/aemd-runner.sock"
    )
    assert starts == [f"ExecStart={sys.executable} -P -m aemd{options}"]
    (reloads,) = (line for line in unit.read_text().splitlines() if line.startswith("ExecReload="))
    assert f"{sys.executable} -P -m aemd.cli.ctl --address unix:" in reloads
    assert "/usr/bin/aem" not in unit.read_text()


@pytest.mark.parametrize(
    ("unit", "programs"), [("aemd-deputy", "deputy fronts looker"), ("aemd-runner", "runner")]
)
def test_deputy_and_runner_are_started_by_this_interpreter(
    install: Install, tmp_path: Path, unit: str, programs: str
) -> None:
    assert install() == Exit.OK
    (unit,) = tmp_path.rglob(f"{unit}.service")
    command = f"{sys.executable} -P -m aemd.deputy.office aemd aemd.service {programs}"
    assert f"ExecStart={command}\n" in unit.read_text()
    assert "/usr/lib/aemd" not in unit.read_text()


def test_installing_again_changes_nothing(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install()
    capsys.readouterr()
    assert install("-o", "json") == Exit.OK
    rows = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in rows} == {"unchanged"}


def test_file_that_differs_stops_everything_unless_forced(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "usr/local/lib/systemd/system/aemd.socket"
    changed.parent.mkdir(parents=True)
    changed.write_text("mine")
    assert install() == Exit.REFUSED
    error = capsys.readouterr().err
    assert str(changed) in error
    assert "--force" in error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [changed]
    assert changed.read_text() == "mine"
    assert install("--force") == Exit.OK
    assert "ListenStream" in changed.read_text()


def test_print_shows_and_writes_nothing(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install("--print") == Exit.OK
    shown = capsys.readouterr().out
    assert f"ExecStart={sys.executable} -P -m aemd" in shown
    assert "FileDescriptorName=listener" in shown
    assert list(tmp_path.iterdir()) == []


def test_what_to_do_next_is_said(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install()
    assert "systemctl enable --now aemd.socket aemd.service" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user without root's rights")
def test_folder_that_cannot_be_written_to_names_the_way_out(
    reachable: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["install-units"]) == Exit.REFUSED
    assert "--root" in capsys.readouterr().err


@pytest.mark.parametrize("home", ["/home/alice", "/root", "/run/user/7", "/tmp", "/var/tmp/x"])
def test_interpreter_that_the_service_does_not_see_is_refused(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_code", lambda: iter([f"{home}/venv/bin/python"]))
    with pytest.raises(Failure, match="does not see") as refused:
        check_reach()
    assert "/opt/aemd" in refused.value.hint


def test_folder_with_a_similar_name_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_code", lambda: iter(["/homework"]))
    monkeypatch.setattr(units, "_steps", lambda _path: ["/usr"])
    check_reach()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a folder is given to another user")
@pytest.mark.parametrize(
    ("owner", "mode", "words"), [(65534, 0o755, "belongs to uid 65534"), (0, 0o775, "mode 0775")]
)
def test_code_that_others_can_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, mode: int, words: str
) -> None:
    place = tmp_path / "open"
    (place / "bin").mkdir(parents=True)
    os.chown(place, owner, 0)
    os.chmod(place, mode)
    monkeypatch.setattr(units, "HIDDEN", ())
    monkeypatch.setattr(units, "_code", lambda: iter([str(place / "bin")]))
    with pytest.raises(Failure, match=words):
        check_reach()


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/opt/aemd/bin/python", "/opt/aemd/bin/python"),
        ("/opt/100%/python", "/opt/100%%/python"),
        ("/opt/a b/python", '"/opt/a b/python"'),
        ('/opt/"$x\\/python', '"/opt/\\"$$x\\\\/python"'),
    ],
)
def test_path_is_one_word_for_systemd(path: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", path)
    assert command_line("aemd") == f"{word} -P -m aemd"


def test_every_source_is_there_and_names_the_program_that_is_replaced() -> None:
    for source, _ in SYSTEM + USER + MANUAL:
        text = read_source(source)
        assert source.endswith(".service") == bool(units.PROGRAM.search(text))
    with pytest.raises(Failure, match="did not come"):
        read_source("systemd/nothing")
