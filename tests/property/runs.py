"""How many runs of the simulated core each test makes: those of the suite, or as many as are asked for."""

import os


def runs(default: int) -> int:
    """SIMULATED_RUNS, or the default."""
    return int(os.environ.get("SIMULATED_RUNS", default))
