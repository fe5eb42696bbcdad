from __future__ import annotations

import json

import pytest

from aemd.cli.ctl import cli, run
from aemd.cli.failure import EXIT_HELP, Exit
from aemd.cli.verb import Topic, Verb

NOBODY = "unix:/nonexistent/aemd.sock"


def test_every_verb_has_help_examples_and_a_section() -> None:
    assert all(isinstance(verb, Verb | Topic) for verb in cli.commands.values())
    verbs = [each for section in cli.sections().values() for each in section]
    assert {name.split()[0] for name, _ in verbs} == set(cli.commands)
    for name, verb in verbs:
        assert verb.help, name
        assert verb.examples, name
        assert verb.section, name
        assert all(f"aemctl {name}" in line for line in verb.examples if "completion" not in line), name


def test_help_lists_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == Exit.OK
    shown = capsys.readouterr().out
    assert set(EXIT_HELP) == set(Exit)
    assert all(f"{int(code)}  {text}" in shown for code, text in EXIT_HELP.items())


def test_no_arguments_show_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "list-jobs" in captured.err


def test_usage_errors_name_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch"]) == Exit.USAGE
    assert capsys.readouterr().err == (
        "aemctl: Missing argument 'MODULE'. [USAGE]\n  see `aemctl watch --help`\n"
    )
    assert run(["wtach", "timer"]) == Exit.USAGE
    assert run(["set-priority", "17", "9"]) == Exit.USAGE
    assert run(["show-job", "sessions/17"]) == Exit.USAGE
    assert run(["on", "timer", "every=1s"]) == Exit.USAGE
    assert run(["raise", "deploy", "x", "--lines"]) == Exit.USAGE


def test_usage_errors_are_objects_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["wait", "timer", "--timeout", "soon", "-o", "json"]) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    error = json.loads(captured.err)
    assert error["exit_code"] == Exit.USAGE
    assert error["reason"] == "USAGE"
    assert "soon" in error["error"]


@pytest.mark.parametrize("arguments", [["-o", "json", "version"], ["version", "-o", "json"]])
def test_common_options_stand_before_or_behind_the_verb(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == Exit.OK
    assert set(json.loads(capsys.readouterr().out)) == {"version"}


def test_no_daemon_names_the_socket_and_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--address", NOBODY, "list-jobs"]) == Exit.UNREACHABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    first, hint = captured.err.splitlines()
    assert first.startswith("aemctl: ")
    assert NOBODY in hint
    assert "aemd --user" in hint


@pytest.mark.parametrize("verb", [["watch", "timer", "every=1s"], ["wait", "timer", "after=1s"], ["status"]])
def test_no_daemon_is_the_same_for_all(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb, "--address", NOBODY, "-o", "jsonl"]) == Exit.UNREACHABLE
    error = json.loads(capsys.readouterr().err)
    assert error["exit_code"] == Exit.UNREACHABLE
    assert error["code"] == "UNAVAILABLE"
