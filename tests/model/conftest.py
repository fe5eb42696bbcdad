"""Runs by their seeds: those of the suite, or those that `make model SEEDS=…` names.

A seed that failed once is added to those of its file, for ever.
"""

import os

import pytest

from tests.integration.conftest import new_folder
from tests.model.run import Run


def seeds(default):
    """1-20,45 of MODEL_SEEDS, or the default."""
    named = os.environ.get("MODEL_SEEDS")
    if not named:
        return default
    found = []
    for part in named.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@pytest.fixture
def hold():
    """Plays a run and holds what was delivered against what happened."""

    async def play(seed, faults, plan=None):
        with new_folder() as folder:
            run = Run(seed, folder, faults)
            run.plan = plan or run.plan
            verdict = await run.play()
        told = "\n".join([f"seed {seed}: {', '.join(run.plan)}", *verdict.faults])
        assert verdict.faults == [], told
        return verdict

    return play
