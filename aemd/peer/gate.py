"""The gate: how fast the processes of one user may connect, and what offences cost them.

A token bucket for each uid, asked before anything else is: to refuse a connection costs what it costs to
accept and to close it. What a second and a half would bring may come at once. An offence (a connection that
a front had to cut off) takes a second's worth, also from an empty bucket; so who offends again and again
connects ever more slowly, to one offence a second, and a single one goes unnoticed.

`Refusals` counts what was turned away and says it in the log: once for each uid and cause in a while.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

import structlog

from aemd.core.limits import SECOND

BURST_NS = 3 * SECOND // 2
OFFENCE_NS = SECOND
DEBT_NS_MAX = 5 * SECOND  # how long a user may be kept out at most
USERS_MAX = 1_024  # remembered while their buckets are not full; beyond it the full ones are forgotten
SAY_AGAIN_NS = 60 * SECOND
SAID_MAX = 1_024


class Gate:
    """Who may come in now; times are CLOCK_MONOTONIC nanoseconds."""

    def __init__(self, per_second: int) -> None:
        """`per_second`: the rate of a user for whom no other was set."""
        self._per_second = per_second
        self._rates: dict[int, int] = {}
        self._free_ns: dict[
            int, int
        ] = {}  # by uid; GCRA: when its bucket will be, or was, full less the burst

    def set_rate(self, uid: int, per_second: int) -> None:
        """From now on a user's rate is this."""
        if per_second == self._per_second:
            self._rates.pop(uid, None)
        else:
            self._rates[uid] = max(per_second, 1)

    def admit(self, uid: int, now_ns: int) -> bool:
        """Whether one more connection of a user may come in; it is counted if so."""
        cost_ns = SECOND // self._rates.get(uid, self._per_second)
        free_ns = max(self._free_ns.get(uid, 0), now_ns - BURST_NS) + cost_ns
        if free_ns > now_ns:
            return False
        self._keep(uid, free_ns, now_ns)
        return True

    def offend(self, uid: int, now_ns: int) -> None:
        """A connection of this user had to be cut off."""
        free_ns = max(self._free_ns.get(uid, 0), now_ns - BURST_NS) + OFFENCE_NS
        self._keep(uid, min(free_ns, now_ns + DEBT_NS_MAX), now_ns)

    def _keep(self, uid: int, free_ns: int, now_ns: int) -> None:
        self._free_ns[uid] = free_ns
        if len(self._free_ns) > USERS_MAX:
            for each, when_ns in tuple(self._free_ns.items()):
                if when_ns <= now_ns - BURST_NS:
                    del self._free_ns[each]
                    self._rates.pop(each, None)


class Refusals:
    """What was turned away or cut off, by cause."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # since the start
        self._said: OrderedDict[tuple[int, str], tuple[int, int]] = OrderedDict()  # (when, how many since)

    def note(self, uid: int, cause: str, now_ns: int) -> None:
        """It has happened once more."""
        self.counts[cause] += 1
        key = (uid, cause)
        when_ns, since = self._said.get(key, (now_ns - SAY_AGAIN_NS, 0))
        if now_ns - when_ns < SAY_AGAIN_NS:
            self._said[key] = when_ns, since + 1
            return
        self._said[key] = now_ns, 0
        self._said.move_to_end(key)
        if len(self._said) > SAID_MAX:
            self._said.popitem(last=False)
        structlog.get_logger().warning(
            "connection refused or cut off", uid=uid, reason=cause, times=since + 1
        )
