from __future__ import annotations

from datetime import UTC, datetime

import click
import pytest
from aem.v1 import module_pb2

from aemd.cli.failure import Exit, Failure
from aemd.cli.parameters import (
    SIZE,
    SPAN,
    JobName,
    ResourceId,
    Start,
    check_parameters,
    nearest,
    parse_cursor,
    split_parameters,
    unknown_module,
)

TIMER = module_pb2.Module(
    id="timer",
    parameters=[module_pb2.Parameter(name=name) for name in ("after", "every", "calendar", "clock")],
)


def test_words_become_parameters_and_values_keep_their_equals_signs() -> None:
    assert split_parameters(["every=1s", "note=a=b", "empty="]) == {"every": "1s", "note": "a=b", "empty": ""}


def test_a_key_given_several_times_becomes_a_list() -> None:
    assert split_parameters(["a=1", "a=2", "a=3"]) == {"a": ["1", "2", "3"]}


@pytest.mark.parametrize("word", ["every", "=1s", ""])
def test_word_that_is_no_parameter_is_a_usage_error(word: str) -> None:
    with pytest.raises(Failure) as caught:
        split_parameters([word])
    assert caught.value.exit_code == Exit.USAGE


def test_unknown_parameter_names_the_nearest_and_all() -> None:
    with pytest.raises(Failure) as caught:
        check_parameters(TIMER, {"evry": "1s"})
    assert caught.value.message == "module timer has no parameter 'evry'; did you mean every=?"
    assert "after, every, calendar, clock" in caught.value.hint
    assert caught.value.exit_code == Exit.USAGE
    assert caught.value.reason == "UNKNOWN_PARAMETER"


def test_unknown_parameter_that_resembles_nothing_still_names_all() -> None:
    with pytest.raises(Failure, match=r"has no parameter 'zzz'$"):
        check_parameters(TIMER, {"zzz": "1"})
    with pytest.raises(Failure) as caught:
        check_parameters(module_pb2.Module(id="bare"), {"x": "1"})
    assert caught.value.hint.startswith("it has none")


def test_known_parameters_pass() -> None:
    check_parameters(TIMER, {"every": "1s", "clock": "boottime"})


def test_unknown_module_names_what_is_loaded() -> None:
    failure = unknown_module("timr", ["socket", "timer"])
    assert failure.message == "no module 'timr' is loaded; did you mean timer?"
    assert failure.hint == "loaded: socket, timer"
    assert failure.exit_code == Exit.NOT_FOUND
    assert unknown_module("x", []).hint == "no module is loaded"


def test_nearest_takes_the_only_word_that_begins_so() -> None:
    assert nearest("cal", ["calendar", "clock"]) == "calendar"
    assert nearest("c", ["calendar", "clock"]) is None
    assert nearest("", ["calendar"]) is None


def test_quantities() -> None:
    assert SPAN.convert("1h 30min", None, None) == 5_400_000_000_000
    assert SPAN.convert("2", None, None) == 2_000_000_000
    assert SIZE.convert("64K", None, None) == 65_536
    assert SPAN.convert(5, None, None) == 5
    for wrong in ("soon", "10 parsecs", ""):
        with pytest.raises(click.BadParameter):
            SPAN.convert(wrong, None, None)


def test_jobs_have_numbers_or_names() -> None:
    kind = JobName()
    assert [kind.convert(text, None, None) for text in ("17", "jobs/17", "backup", "jobs/a-b.c_1")] == [
        17,
        17,
        "backup",
        "a-b.c_1",
    ]
    for wrong in ("sessions/17", "", "jobs/", "a b", "x" * 65, "١٧", "ä"):
        with pytest.raises(click.BadParameter):
            kind.convert(wrong, None, None)


def test_a_history_begins_at_a_word_a_cursor_a_time_or_so_long_ago() -> None:
    kind = Start()
    assert [kind.convert(text, None, None) for text in ("oldest", "now", "2:17")] == ["oldest", "now", "2:17"]
    moment = kind.convert("2026-01-31T09:00+01:00", None, None)
    assert isinstance(moment, datetime)
    assert moment.timestamp() == 1_769_846_400
    local = kind.convert("2026-01-31 09:00", None, None)
    assert isinstance(local, datetime)
    assert local.tzinfo is not None
    ago = kind.convert("1h", None, None)
    assert isinstance(ago, datetime)
    assert abs((datetime.now(UTC) - ago).total_seconds() - 3_600) < 60
    for wrong in ("yesterday", "1:", "", "99999999999h"):
        with pytest.raises(click.BadParameter, match="write oldest"):
            kind.convert(wrong, None, None)


def test_a_cursor_is_two_numbers() -> None:
    assert parse_cursor("1:17") == (1, 17)
    for wrong in ("1", "1:", "a:1", "1:1:1"):
        with pytest.raises(Failure) as failed:
            parse_cursor(wrong)
        assert failed.value.exit_code == Exit.USAGE


def test_ids_with_and_without_their_collection() -> None:
    kind = ResourceId("jobs")
    assert kind.convert("17", None, None) == 17
    assert kind.convert("jobs/17", None, None) == 17
    for wrong in ("sessions/17", "-1", "jobs/", "x", "١٧"):
        with pytest.raises(click.BadParameter):
            kind.convert(wrong, None, None)
