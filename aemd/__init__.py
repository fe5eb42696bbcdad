"""aemd: one daemon per Linux host that owns the kernel event core and keeps jobs for client programs.

`ARCHITECTURE.md` is the map. The packages are layers; imports go one way only:

    cli -> service -> {peer, loop} -> modules -> sources -> core

and `front` beside them, which shares only `aemd.link` with the rest.
"""

__version__ = "0.1.0"
