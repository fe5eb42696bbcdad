"""Found by PYTHONPATH: gives fronts the code of hostile_front.py, and leaves every other program alone."""

import sys

if "aemd.front" in sys.orig_argv:
    import hostile_front

    from aemd.front import server

    hostile_front.honest = server._serve
    server._serve = hostile_front.serve
