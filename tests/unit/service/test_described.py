"""A module that describes itself wrongly is refused when it is loaded, with what is wrong."""

from __future__ import annotations

import dataclasses

import pytest

from aemd.core.errors import AemError
from aemd.modules.contract import Delivery, Description, Kind, Parameter
from aemd.service.described import check_module

TEXT, CHOICE, DURATION = (
    Kind.PARAMETER_KIND_TEXT,
    Kind.PARAMETER_KIND_CHOICE,
    Kind.PARAMETER_KIND_DURATION,
)
GOOD = Description(
    name="sample",
    summary="A sample",
    description="A sample.",
    delivery=Delivery.QUEUE,
    parameters=(Parameter("colour", CHOICE, "Which.", choices=("red", "green"), default="red"),),
    events={"happened": "It happened."},
    operations={"undo": ("Undoes it.", False)},
)


class Sample:
    def __init__(self, description: object) -> None:
        self.description = description

    def start(self) -> None: ...

    stop = close = operate = pause = resume = sync = busy = details = shutdown = start
    open = acts = opens = start


def refusal(**changes: object) -> str:
    with pytest.raises(AemError) as caught:
        check_module("sample", Sample(dataclasses.replace(GOOD, **changes)))
    return caught.value.message


def parameter_refusal(*parameters: Parameter) -> str:
    return refusal(parameters=parameters)


def test_a_good_description_passes() -> None:
    check_module("sample", Sample(GOOD))


def test_names_must_fit_the_command_line() -> None:
    assert "entry point 'sample'" in refusal(name="other")
    assert "event 'Has Space'" in refusal(events={"Has Space": ""})
    assert "operation '1st'" in refusal(operations={"1st": ("", False)})
    assert "parameter 'a=b'" in parameter_refusal(Parameter("a=b", TEXT, ""))


def test_a_parameter_described_twice_is_refused() -> None:
    assert "described twice" in parameter_refusal(Parameter("a", TEXT, ""), Parameter("a", TEXT, ""))


def test_a_default_that_does_not_parse_is_refused() -> None:
    assert "its default is wrong" in parameter_refusal(Parameter("a", DURATION, "", default="soon"))


def test_contradictions_are_refused() -> None:
    assert "no events" in refusal(events={})
    assert "pausable" in refusal(pause_by_default=True)
    assert "has choices" in parameter_refusal(Parameter("a", CHOICE, ""))
    assert "has choices" in parameter_refusal(Parameter("a", TEXT, "", choices=("x",)))
    assert "no default" in parameter_refusal(Parameter("a", TEXT, "", required=True, default="x"))
    assert "above maximum" in parameter_refusal(Parameter("a", TEXT, "", minimum=2, maximum=1))
    assert "no kind" in parameter_refusal(Parameter("a", Kind.PARAMETER_KIND_UNSPECIFIED, ""))


def test_a_class_that_is_no_module_is_refused() -> None:
    with pytest.raises(AemError, match=r"no method open\(\)"):
        check_module("sample", object())
    with pytest.raises(AemError, match="Description"):
        check_module("sample", Sample("a sample"))
