"""Clients that are cut off, do not read, or are killed; and kernel queues that overflow."""

import pytest

from tests.model.conftest import seeds

pytestmark = pytest.mark.timeout(180)
SEEDS = (*range(1, 17),)
FAULTS = (
    "cut_by_front",
    "cut_by_client",
    "pause_client",
    "cut_while_paused",
    "kill_client",
    "pause_daemon",
    "begin_process",
    "end_process",
)


@pytest.mark.parametrize("seed", seeds(SEEDS))
async def test_what_clients_go_through_is_told_exactly(hold, seed):
    await hold(seed, FAULTS)
