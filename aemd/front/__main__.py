"""`python -m aemd.front FOLDER MESSAGE_BYTES FRONT_BYTES CONTROL`: the zygote; the core starts it."""

from __future__ import annotations

import os
import sys

from aemd.front import server, zygote

if len(sys.argv) != 5:
    sys.exit(__doc__)
zygote.main(os.fsencode(sys.argv[1]), server.Bounds(int(sys.argv[2]), int(sys.argv[3])), int(sys.argv[4]))
