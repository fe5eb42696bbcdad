"""What the operator is told of who got, was refused, or looked at what is not his own.

Three kinds of lines: `granted`, something allowed only because a rule grants it; `denied`; and `looked`, the
administrator reading or changing what belongs to somebody else. Each cause (who, what, which rule) is told
once in WINDOW_NS, with how often it was repeated meanwhile the next time. A healthy system is silent.

Causes come from clients, who may invent as many as they like. So the memory is bounded, and so are the lines
of one user and of all users together; what is left out is counted, and the count is told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Set

from aemd.core.policy import Ruling
from aemd.core.principal import Owner, Principal
from aemd.service import log

SECOND = 1_000_000_000
WINDOW_NS = 60 * SECOND
CAUSES_MAX = 1_024
LINES_PER_WINDOW = 20  # of one user
LINES_PER_WINDOW_ALL = 200
WHAT_CHARS_MAX = 200  # some of it is a client's text

_Cause = tuple[str, int, str, str]


class Audit:
    """Tells each cause once in a window. `now_ns` is CLOCK_MONOTONIC."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._causes: OrderedDict[_Cause, list[int]] = OrderedDict()  # when told, how often since
        self._window_ns = 0  # when the counts below began
        self._lines: dict[int, int] = {}  # told in this window, by uid
        self._left_out = 0

    def granted(self, principal: Principal, what: str, grants: Set[str], ruling: Ruling | None) -> None:
        """`principal` may do `what` only because of what a rule grants."""
        rule = ruling.rule.name if ruling is not None else ""
        self._tell("granted", principal, what, rule, **{log.GRANT: " ".join(sorted(grants))})

    def denied(self, principal: Principal, what: str, reason: str, rule: str = "") -> None:
        """`principal` may not do `what`; `rule` says so, if it is a rule."""
        self._tell("denied", principal, what, rule, **{log.REASON: reason})

    def looked(self, principal: Principal, what: str, owner: Owner) -> None:
        """`principal` did `what` with something of `owner`; nothing is told if that is himself."""
        if owner != principal.owner:
            self._tell("looked", principal, f"{what} of uid {owner.uid}", "")

    def close(self) -> None:
        """Tell what was left out: nothing comes after it."""
        self._begin_window(self._now_ns())

    def _tell(self, kind: str, principal: Principal, what: str, rule: str, **more: str) -> None:
        now_ns = self._now_ns()
        if now_ns - self._window_ns >= WINDOW_NS:
            self._begin_window(now_ns)
        what = what[:WHAT_CHARS_MAX]
        cause = (kind, principal.uid, what, rule)
        known = self._causes.get(cause)
        if known is not None and now_ns - known[0] < WINDOW_NS:
            known[1] += 1
            return
        lines = self._lines.get(principal.uid, 0)
        if lines >= LINES_PER_WINDOW or sum(self._lines.values()) >= LINES_PER_WINDOW_ALL:
            self._left_out += 1
            return
        self._lines[principal.uid] = lines + 1
        repeated = known[1] if known is not None else 0
        self._causes[cause] = [now_ns, 0]
        self._causes.move_to_end(cause)
        if len(self._causes) > CAUSES_MAX:
            self._causes.popitem(last=False)
        fields = {log.UID: principal.uid, log.PID: principal.pid, log.WHAT: what, **more}
        if rule:
            fields[log.RULE] = rule
        if repeated:
            fields[log.REPEATED] = repeated
        log.get().warning(kind, **fields)

    def _begin_window(self, now_ns: int) -> None:
        self._window_ns = now_ns
        self._lines.clear()
        if self._left_out:
            log.get().warning("audit lines left out", **{log.LEFT_OUT: self._left_out})
            self._left_out = 0
