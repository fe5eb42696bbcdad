from __future__ import annotations

import json
from pathlib import Path

import pytest

from aemd.cli.ctl import run
from aemd.cli.failure import Exit

EXAMPLES = Path(__file__).resolve().parents[3] / "docs/examples"
GOOD = '[[rule]]\nname = "a"\nsubject = { uid = 1 }\nmodule = "timer"\neffect = "deny"\n'


def test_check_takes_files_and_folders_without_a_daemon(capsys, tmp_path) -> None:
    assert run(["policy", "check", str(EXAMPLES)]) == Exit.OK
    assert capsys.readouterr().out == "5 rules, 3 jobs, nothing wrong\n"
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "b.toml").write_text(GOOD.replace('"a"', '"b"').replace("1", "2"))
    assert run(["policy", "check", str(tmp_path / "a.toml"), str(tmp_path / "b.toml")]) == Exit.OK
    assert capsys.readouterr().out == "2 rules, nothing wrong\n"


def test_check_tells_all_errors_at_once_whoever_owns_the_file(capsys, tmp_path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(GOOD.replace("effect", "efekt"))
    second.write_text("[limits]\n")
    first.chmod(0o666)
    missing = tmp_path / "c.toml"
    assert run(["policy", "check", str(first), str(second), str(missing)]) == Exit.REFUSED
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{missing}: cannot be read: No such file or directory"
    assert told[1].startswith(f"{first}:5: rule[1].efekt: no such key; did you mean effect?")
    assert told[2] == f"{first}:1: rule[1].effect: is missing"
    assert told[3].startswith(f"{second}:1: limits: only aemd.toml may have it")
    assert len(told) == 4


def test_warnings_are_told_and_are_no_errors(capsys, tmp_path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(GOOD.replace("timer", "timr"))
    assert run(["policy", "check", str(file)]) == Exit.OK
    assert "did you mean timer?" in capsys.readouterr().out


def test_check_as_json_has_an_object_for_each(capsys, tmp_path) -> None:
    file = tmp_path / "aemd.toml"
    file.write_text("[limits]\nfronts = 0\n" + GOOD.replace("timer", "timr"))
    assert run(["policy", "check", "-o", "json", str(tmp_path)]) == Exit.REFUSED
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["line"], found["key"], found["severity"]) == (2, "limits.fronts", "error")
    assert found["message"] == "0: must be 1 to 1024"
    file.write_text(GOOD.replace("timer", "timr"))
    assert run(["-o", "jsonl", "policy", "check", str(tmp_path)]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["severity"] == "warning"


def test_explain_refuses_a_user_that_nobody_knows(capsys) -> None:
    assert run(["policy", "explain", "--user", "no such user", "timer"]) == Exit.USAGE
    assert "[USER_UNKNOWN]" in capsys.readouterr().err
    assert run(["policy", "explain", "--user", "root", "--uid", "0", "timer"]) == Exit.USAGE


@pytest.mark.parametrize("words", [["policy"], ["policy", "--help"], ["policy", "explain", "--help"]])
def test_help_is_there_for_the_verbs_within(capsys, words) -> None:
    run(words)
    captured = capsys.readouterr()
    assert "explain" in captured.out + captured.err
