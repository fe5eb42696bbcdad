"""Which front serves whom, and the life of the fronts.

One front for each (owner, administrator or not), so that a front that was taken over has the rights of the
very user who took it over. That is finer than one for each uid: root in a container and root on the host
have one uid and not one right. There are at most `limits.fronts`; whoever comes later shares one, except
administrators, who always have their own. A front without connections ends after a while, and earlier if
its place is wanted.

A front that dies before it ever served is not asked for again at once: something is wrong with the machine,
and each connection would fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import structlog

from aemd.core.limits import MS, SECOND, Limits
from aemd.core.principal import Owner, Principal
from aemd.peer.front import Front, FrontOwner
from aemd.peer.linkend import Traffic
from aemd.peer.principal import NAMESPACE_UNKNOWN
from aemd.peer.zygote import Zygote
from aemd.sources.reactor import Reactor, Timer

IDLE_NS = 60 * SECOND
AGAIN_MIN_NS = 50 * MS  # after a front that never served, doubled each time
AGAIN_MAX_NS = 5 * SECOND
FRAME_SLACK_BYTES = 64 * 1024  # a frame's payload beyond the largest message: method paths, readiness

Key = tuple[Owner, bool] | None  # None: the front that is shared


class Fronts:
    """All fronts."""

    def __init__(self, reactor: Reactor, limits: Limits, owner: FrontOwner, zygote: Zygote) -> None:
        self.replaced = 0
        self._past = Traffic()  # of fronts that are gone
        self._reactor = reactor
        self._limits = limits
        self._owner = owner
        self._zygote = zygote
        self._last = 0
        self._by_key: dict[Key, Front] = {}
        self._keys: dict[int, Key] = {}  # by number, of those that live
        self._unborn: dict[int, Front] = {}  # asked of the zygote
        self._idle: dict[int, Timer] = {}
        self._failed: dict[Key, tuple[int, int]] = {}  # (next delay, not before), ns

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Front]:
        return iter(tuple(self._by_key.values()))

    def traffic(self) -> Traffic:
        """What went over the links of all fronts that there have been."""
        total = Traffic()
        for traffic in (self._past, *(front.traffic for front in self)):
            total.add(traffic)
        return total

    def choose(self, principal: Principal) -> Front | None:
        """The front for a new connection; None: it failed just now and is not to be tried again yet."""
        key: Key = (principal.owner, principal.administrator)
        front = self._by_key.get(key)
        if front is None and not principal.administrator and not self._has_place():
            key = None
            front = self._by_key.get(key)
        if front is None:
            if self._reactor.mono_ns() < self._failed.get(key, (0, 0))[1]:
                return None
            front = self._begin(key)
        timer = self._idle.pop(front.number, None)
        if timer is not None:
            timer.cancel()
        return front

    def live_in(self, network: int) -> bool:
        """Whether this network namespace, 0 for the daemon's own, is that of a front. Nobody else is in one,
        so who connects from there is a front that was taken over, and would pass for the user that fronts run
        as.
        """
        return network > NAMESPACE_UNKNOWN and any(front.network() == network for front in self)

    def unused(self, front: Front) -> None:
        """Its last connection is gone, or the first never came."""
        if front.number not in self._keys or front.number in self._idle:
            return
        clock = self._reactor.clock("monotonic")
        due_ns = clock.now_ns() + IDLE_NS
        self._idle[front.number] = clock.call_at(due_ns, lambda _now_ns: self._retire(front))

    def served(self, front: Front) -> None:
        """It has come up."""
        self._failed.pop(self._keys.get(front.number), None)

    def lost(self, front: Front, reason: str) -> None:
        """It is finished, and not because we wanted it."""
        key = self._keys[front.number]
        self._drop(front)
        self.replaced += 1
        if not front.full:  # else it is its clients' doing, and said of them
            structlog.get_logger().error("front lost", pid=front.pid, reason=reason)
        if front.ready:
            return
        delay_ns = self._failed.get(key, (AGAIN_MIN_NS, 0))[0]
        self._failed[key] = (min(2 * delay_ns, AGAIN_MAX_NS), self._reactor.mono_ns() + delay_ns)

    def left(self, front: Front) -> None:
        """It has exited because it was told to."""
        self._drop(front)

    def living(self, front: Front) -> bool:
        """Whether it still serves; False once it is retired or lost."""
        return front.number in self._keys

    def forked(self, number: int, pid: int, pidfd: int) -> None:
        """The zygote has forked a front."""
        front = self._unborn.pop(number, None)
        if front is None:
            os.close(pidfd)
            return
        front.forked(pid, pidfd)

    def exited(self, number: int, status: int) -> None:
        """The zygote has reaped a front, or could not fork it."""
        front = self._unborn.pop(number, None) or self._living(number)
        if front is not None:
            front.lose(f"exit status {status}" if status >= 0 else "it could not be forked")

    def close(self) -> None:
        """End them all."""
        for front in self:
            self._retire(front)

    def _living(self, number: int) -> Front | None:
        return self._by_key.get(self._keys[number]) if number in self._keys else None

    def _has_place(self) -> bool:
        """Whether one more user may have a front of its own. One place is kept for the administrator."""
        taken = [front for key, front in self._by_key.items() if key is not None and not key[1]]
        if len(taken) < self._limits.fronts - 1:
            return True
        for front in taken:
            if front.number in self._idle:
                self._retire(front)
                return True
        return False

    def _begin(self, key: Key) -> Front:
        self._last += 1
        front = Front(
            self._reactor,
            self._owner,
            number=self._last,
            message_bytes=self._limits.message_bytes + FRAME_SLACK_BYTES,
        )
        self._by_key[key] = front
        self._keys[front.number] = key
        self._unborn[front.number] = front
        self._zygote.fork(front.number, front.ends)
        return front

    def _retire(self, front: Front) -> None:
        self._drop(front)
        front.lose("no longer needed")

    def _drop(self, front: Front) -> None:
        key = self._keys.pop(front.number, None)
        if self._by_key.get(key) is front:
            del self._by_key[key]
            self._past.add(front.traffic)
        timer = self._idle.pop(front.number, None)
        if timer is not None:
            timer.cancel()
