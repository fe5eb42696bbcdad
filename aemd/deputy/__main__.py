"""`python -m aemd.deputy SECONDS CONTROL`: the deputy, started by the core and by nobody else."""

from __future__ import annotations

import sys

from aemd.deputy import server

if len(sys.argv) != 3:
    sys.exit(__doc__)
server.main(float(sys.argv[1]), int(sys.argv[2]))
