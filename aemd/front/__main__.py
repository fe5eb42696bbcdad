"""`python -m aemd.front FOLDER MESSAGE_BYTES CONTROL`: the zygote, started by the core and by nobody else."""

from __future__ import annotations

import os
import sys

from aemd.front import zygote

if len(sys.argv) != 4:
    sys.exit(__doc__)
zygote.main(os.fsencode(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
