"""Sources that rest because their user has no bytes of queues, or no events a second, left.

A job that can pause its source loses nothing to a quota: the source is not read while there is less room than
one read may need, and is read again when there is. What was fired all the same (a source gives several events
at once) is paid for later. The jobs of a user that wait are fed in turn, only as many as what has come free
feeds, so that a thousand of them do not all wake up for the bytes of one.

What brings bytes: the user's own entries that are dealt with, and, where the pool is short, those of others.
What brings events: time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aemd.core.accounts import ENTRY_BYTES, EVENTS, Account, Accounts
from aemd.core.deadlines import Deadlines, Due
from aemd.core.limits import MS

if TYPE_CHECKING:
    from aemd.core.session import Session
    from aemd.core.waiting import Waiting

ENCODING_BYTES = 1_024  # of an event beside what was read; a socket's needs some 100
READS = 2  # so many reads must fit before a source that rests is read again
AGAIN_NS = 10 * MS  # after which those who were fed have taken what they need
EVENTS_SHARE = 16  # and this part of a second's events must be there


class Throttle:
    """Who rests, and until when."""

    __slots__ = ("_accounts", "_deadlines", "_read_bytes")

    def __init__(self, accounts: Accounts, deadlines: Deadlines, *, event_bytes: int) -> None:
        """`event_bytes`: how many one read of a source may give."""
        self._accounts = accounts
        self._deadlines = deadlines
        self._read_bytes = event_bytes + ENCODING_BYTES + ENTRY_BYTES

    def spare(self, session: Session, largest: int, now_ns: int) -> int:
        """How many more events of `largest` bytes, or of one read, the user of `session` has room for."""
        account, allowance = session.account, session.allowance
        if account.events_free <= 0 and not account.prepay(1, allowance, now_ns):
            return 0
        room = account.room(allowance)
        event_bytes = max(self._read_bytes, largest + ENCODING_BYTES + ENTRY_BYTES)
        return 0 if room < _least(account, room, event_bytes) else max(room // event_bytes, 1)

    def is_short(self, session: Session, now_ns: int) -> bool:
        """Whether a source of the session is to rest. If not, what one read needs is at hand."""
        account, allowance = session.account, session.allowance
        if account.events_free <= 0 and not account.prepay(1, allowance, now_ns):
            return True
        if account.bytes_free >= self._read_bytes:
            return False
        least = _least(account, account.room(allowance), self._read_bytes)
        return not account.grant(least, allowance)

    def rest(self, binding: Waiting, now_ns: int) -> None:
        """`binding` is paused until `next` gives it."""
        account, allowance = binding.session.account, binding.session.allowance
        account.starve(binding)
        rate = allowance.quota.events_per_second
        if account.events_free <= 0:
            wait_ns = account.bucket(EVENTS).wait_ns(_enough(rate), rate, now_ns)
            if wait_ns:
                self._deadlines.set((Due.QUOTA, account), now_ns + wait_ns)

    def forget(self, binding: Waiting) -> None:
        """`binding` does not wait any more."""
        account = binding.session.account
        if binding in account.starved:
            account.feed(binding)
            if not account.starved:
                self._deadlines.cancel((Due.QUOTA, account))

    def fed(self, now_ns: int) -> Iterator[Waiting]:
        """Those that wait no more, as many as there is something for."""
        relieved = self._accounts.relieved
        while relieved:
            account = next(iter(relieved))
            del relieved[account]
            yield from self._feed(account, now_ns)

    def _feed(self, account: Account, now_ns: int) -> Iterator[Waiting]:
        given = 0
        while account.starved:
            binding = next(iter(account.starved))
            allowance = binding.session.allowance
            room = account.room(allowance) - given
            if room < _least(account, room, READS * self._read_bytes):
                if given:  # perhaps those who were fed need nothing, and then nothing comes back either
                    self._deadlines.set((Due.QUOTA, account), now_ns + AGAIN_NS)
                return
            rate = allowance.quota.events_per_second
            if account.events_free <= 0 and not account.prepay(_enough(rate), allowance, now_ns):
                self.rest(binding, now_ns)
                return
            given += self._read_bytes
            self.forget(binding)
            yield binding


def _least(account: Account, room: int, wanted: int) -> int:
    """So many bytes are wanted; of a user who may have but little, half of that."""
    return min(wanted, (account.used_bytes + room) // 2 + 1)


def _enough(rate: int) -> int:
    return max(rate // EVENTS_SHARE, 1)
