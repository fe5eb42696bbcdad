"""What the core must know of an event module, and no more."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Traits:
    """The facts of a module's Description that decide about delivery.

    `coalesce`: events are levels, any number of them while the handler runs gives one more run. `replies`:
    handlers answer, so acknowledgement is explicit. `pausable`: a source belongs to one job, so that it may
    be paused when the job's queue is full; `pause_by_default`: and is, unless the options say otherwise.
    `needs`: it may have something done as the caller before a job is open.
    `module` is opaque here: it comes back in the effects, for whoever applies them.
    """

    name: str
    coalesce: bool = False
    keyed: bool = False
    replies: bool = False
    pausable: bool = False
    pause_by_default: bool = False
    needs: bool = False
    module: object = field(default=None, compare=False)
