"""How much all sessions and calls of one user may say in a second, in frames and in bytes.

Like `Pace`, and unlike other quotas, it refuses nothing: what a user has said too fast is dealt with later,
and meanwhile the windows of his streams stop him. It is asked before each message and told after it, since
nobody knows before how many frames a message holds; so it may be exceeded by one message.

Of both rates a user has some at hand, in pieces, so that a message costs two subtractions and no account.
"""

from __future__ import annotations

from collections.abc import Callable

from aemd.core.accounts import Accounts
from aemd.core.principal import Principal
from aemd.service.pace import Shares
from aemd.sources.reactor import Reactor

FRAMES, BYTES = "frames_per_second", "bytes_per_second"
PIECE_SHARE = 1_024  # a piece is this part of what there may be in a second
USERS_MAX = 1_024  # whose pieces are remembered; forgetting one costs its user a piece


class _Hand:
    """What a user has at hand; negative: owed."""

    __slots__ = ("bytes", "frames")

    def __init__(self) -> None:
        self.frames = self.bytes = 0


class Intake:
    """The intake of all users."""

    def __init__(self, accounts: Accounts, reactor: Reactor, shares: Shares) -> None:
        self._accounts = accounts
        self._reactor = reactor
        self._shares = shares
        self._hands: dict[int, _Hand] = {}

    def due_ns(self, principal: Principal) -> int:
        """When a message of this user may be looked at, of CLOCK_MONOTONIC; 0: now."""
        hand = self._hands.get(principal.uid)
        if hand is None:
            if len(self._hands) >= USERS_MAX:
                self._hands.clear()
            hand = self._hands[principal.uid] = _Hand()
        if hand.frames > 0 and hand.bytes > 0:
            return 0
        quota = self._accounts.allowance(principal).quota
        hand.frames, frames_ns = self._refill(principal, FRAMES, quota.frames_per_second, hand.frames)
        hand.bytes, bytes_ns = self._refill(principal, BYTES, quota.bytes_per_second, hand.bytes)
        return max(frames_ns, bytes_ns)

    def took(self, principal: Principal, *, frames: int, size_bytes: int) -> None:
        """A message was taken, after due_ns() said now."""
        hand = self._hands.get(principal.uid)
        if hand is not None:
            hand.frames -= frames
            hand.bytes -= size_bytes

    def run(self, principal: Principal, size_bytes: int, work: Callable[[], None]) -> None:
        """Do a call's work when its user may be dealt with."""
        due_ns = self.due_ns(principal)
        if due_ns:
            timers = self._reactor.clock("monotonic")
            timers.call_at(due_ns, lambda _now_ns: self.run(principal, size_bytes, work))
            return
        self.took(principal, frames=1, size_bytes=size_bytes)
        self._shares.run(principal.uid, work)

    def _refill(self, principal: Principal, resource: str, rate: int, left: int) -> tuple[int, int]:
        """(what is at hand then, when to ask again or 0)."""
        if left > 0:
            return left, 0
        now_ns = self._reactor.mono_ns()
        bucket = self._accounts.of(principal).bucket(resource)
        piece = max(rate // PIECE_SHARE, 1)
        bucket.owe(-left, rate, now_ns)
        if bucket.take(piece, rate, now_ns):
            return piece, 0
        return 0, now_ns + max(bucket.wait_ns(piece, rate, now_ns), 1)
