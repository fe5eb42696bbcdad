"""Who may have commands run, and how long they wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aemd.core.errors import AemError
from aemd.core.limits import SECOND
from aemd.core.quota import Quota
from aemd.service.execution import Execution, check_owner, parse_exec
from aemd.v1 import job_pb2
from tests.unit.service.conftest import principal


def execution(**given: int) -> Execution:
    return parse_exec(job_pb2.Exec(command=["true"], **given))


def test_defaults_are_filled_in_and_say_so() -> None:
    said = execution().to_pb()
    assert (said.mode, said.timeout_ns, said.directory) == (job_pb2.EXEC_MODE_QUEUE, 3_600 * SECOND, "/")
    assert (said.backoff_min_ns, said.backoff_max_ns) == (SECOND, 300 * SECOND)
    assert parse_exec(said) == execution()


def test_backoff_doubles_up_to_the_most() -> None:
    found = execution(backoff_min_ns=SECOND, backoff_max_ns=10 * SECOND)
    assert [found.backoff_ns(failures) // SECOND for failures in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]
    assert found.backoff_ns(1 << 31) == 10 * SECOND


def test_daemon_of_a_user_runs_for_that_user_only() -> None:
    check_owner(principal(1000), Quota(), 1000)
    check_owner(principal(1000), Quota(), 0)
    for uid in (0, 1001):
        with pytest.raises(AemError, match="runs no commands as uid"):
            check_owner(principal(uid), Quota(), 1000)


def test_who_lives_in_another_network_namespace_makes_no_command_job() -> None:
    with pytest.raises(AemError, match="another network namespace"):
        check_owner(replace(principal(1000), network_namespace=4711), Quota(), 0)


def test_who_may_have_no_children_makes_no_command_job() -> None:
    with pytest.raises(AemError, match="children"):
        check_owner(principal(1000), Quota(children=0), 0)
