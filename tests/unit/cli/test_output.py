from __future__ import annotations

import json

import pytest

from aemd.cli.output import Column, Output, align, color_wanted

COLUMNS = (
    Column("ID", lambda row: row["id"], right=True),
    Column("NAME", lambda row: row["name"]),
    Column("NOTE", lambda row: row.get("note", "")),
)
ROWS = [{"id": 1, "name": "ab"}, {"id": 100, "name": "日本", "note": "x"}]


def test_table_is_aligned_columns_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows(ROWS, COLUMNS, empty="none")
    assert capsys.readouterr().out == " ID  NAME  NOTE\n  1  ab    \n100  日本  x\n"


def test_empty_table_says_so_beside_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows([], COLUMNS, empty="none")
    assert capsys.readouterr() == ("", "none\n")


def test_json_list_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("json")
    output.rows(ROWS, COLUMNS, empty="none")
    assert json.loads(capsys.readouterr().out) == ROWS
    output.rows(iter(()), COLUMNS, empty="none")
    assert json.loads(capsys.readouterr().out) == []


def test_jsonl_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output("jsonl").rows(ROWS, COLUMNS, empty="none")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_control_characters_of_a_cell_are_shown_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows([{"id": 1, "name": "\x1b[31m\n"}], COLUMNS, empty="")
    assert "\x1b" not in capsys.readouterr().out


def test_colors_only_when_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    column = Column("STATE", lambda row: row["state"])
    Output(color=True).rows([{"state": "armed"}], [column], empty="")
    assert "\x1b[32marmed" in capsys.readouterr().out
    Output().rows([{"state": "armed"}], [column], empty="")
    assert "\x1b" not in capsys.readouterr().out


def test_no_color_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not color_wanted(forbidden=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert color_wanted(forbidden=False)
    assert not color_wanted(forbidden=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not color_wanted(forbidden=False)


def test_record_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    facts = [("job", "17"), ("state", "armed"), ("", "more")]
    Output().record({"id": 17}, facts)
    assert capsys.readouterr().out == "  job  17\nstate  armed\n  more\n"
    Output("json").record({"id": 17}, facts)
    assert capsys.readouterr().out == '{"id":17}\n'


def test_align_of_nothing() -> None:
    assert align([], [True]) == []
