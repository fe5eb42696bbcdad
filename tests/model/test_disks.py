"""A disk that is full, beside everything else that may happen to a durable job."""

import os
import shutil

import pytest

from tests.model.conftest import seeds

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("unshare") is None,
        reason="needs root and unshare: mounts a file system",
    ),
    pytest.mark.timeout(180),
]
SEEDS = (*range(201, 207),)
FAULTS = (
    "fill_disk",
    "fill_disk",
    "fill_disk",
    "kill_daemon",
    "restart",
    "kill_client",
    "cut_by_front",
    "pause_client",
)


@pytest.mark.parametrize("seed", seeds(SEEDS))
async def test_what_a_full_disk_costs_is_told_exactly(hold, seed):
    await hold(seed, FAULTS)
