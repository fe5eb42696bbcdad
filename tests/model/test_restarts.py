"""Daemons that end in order or are killed, under traffic."""

import pytest

from tests.model.conftest import seeds

pytestmark = pytest.mark.timeout(180)
SEEDS = (*range(101, 111),)
FAULTS = (
    "restart",
    "restart",
    "kill_daemon",
    "kill_both",
    "restart_while_paused",
    "cut_by_client",
    "begin_process",
    "end_process",
)


@pytest.mark.parametrize("seed", seeds(SEEDS))
async def test_what_a_restart_leaves_is_told_exactly(hold, seed):
    await hold(seed, FAULTS)


async def test_at_each_of_the_four_stages_something_is_lost_and_counted(hold):
    plan = ["pause_client", "cut_while_paused", "pause_daemon", "restart"]
    verdict = await hold(0, (), plan)
    assert all(verdict.gaps.values()), verdict.gaps
