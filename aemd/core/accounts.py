"""What each user has, charged before it is allocated and refunded by the object that holds it.

A user is a uid, whatever namespaces its processes are in: who makes a namespace gets no second quota. What
there may be is that of the principal who asks, and is looked at then: a lower limit takes nothing away from
who has more already, and gives nothing more.

An account is *held* by whatever may have something charged: sessions, connections, every `Charge`. When
the last one lets go everything must have come back; what has not is a bug of whoever forgot it, and is
reported, as is a refund of what was never charged. The model is dbus-broker's util/user.c.

The bytes of queues are the hot path, and so are fires: of both an account has some at hand, `bytes_free` and
`events_free`, that the engine takes from by itself. Only when those do not suffice the account is asked.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aemd.core.bucket import Bucket, burst
from aemd.core.errors import AemError, over_quota, over_rate
from aemd.core.pool import Pool
from aemd.core.principal import Owner, Principal
from aemd.core.quota import RESOURCES, DefaultQuotas, Quota, Quotas

if TYPE_CHECKING:
    from aemd.core.waiting import Waiting

IDLE_MAX = 1_024  # users who have nothing, whose rates and refusals are remembered
ENTRY_BYTES = 256  # what an entry costs beside its event, with its place in queue and flight
PIECE_BYTES = 128 * 1024  # an account takes bytes of its quota, and of the pool, in pieces of this size
EVENTS_PIECE_SHARE = 1_024  # and events in this part of what there may be in a second

EVENTS = "events_per_second"
BYTES = "queue_bytes"
HISTORY = "history_bytes"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one principal may have, and by resource the quota that says so."""

    quota: Quota
    origins: Mapping[str, str]
    administrator: bool


@dataclass(frozen=True, slots=True)
class Use:
    """One resource of one user, as lists show it; of a rate `used` is what has not come back yet."""

    resource: str
    used: int
    limit: int
    refused: int
    origin: str


class Account:
    """What one uid has now."""

    __slots__ = (
        "_accounts",
        "_buckets",
        "_granted",
        "_used",
        "bytes_free",
        "bytes_free_max",
        "events_free",
        "holders",
        "principal",
        "refused",
        "starved",
        "uid",
    )

    def __init__(self, accounts: Accounts, principal: Principal) -> None:
        self._accounts = accounts
        self.uid = principal.uid
        self.principal = principal  # who asked last
        self.holders = 0
        self.refused: Counter[str] = Counter()
        self._used: dict[str, int] = {}
        self._buckets: dict[str, Bucket] = {}
        self._granted = 0  # bytes that were taken of quota and pool
        self.bytes_free = 0  # of these, those that nothing needs
        self.bytes_free_max = 2 * PIECE_BYTES  # more than this goes back
        self.events_free = 0  # fires that are paid for; negative where a source was read once too often
        self.starved: dict[Waiting, None] = {}  # are paused until there are bytes or events again

    def __repr__(self) -> str:
        return f"<Account uid {self.uid} {self._used}>"

    # -- what is counted -----------------------------------------------------------------------------

    def used(self, resource: str) -> int:
        """How much of a resource that is counted is charged."""
        return self.used_bytes if resource == BYTES else self._used.get(resource, 0)

    def charge(self, resource: str, allowance: Allowance, count: int = 1) -> None:
        """`count` more of `resource`; AemError RESOURCE_EXHAUSTED, and nothing is charged."""
        if not count:
            return  # also for who has more than it may have by now
        used = self._used.get(resource, 0)
        limit: int = getattr(allowance.quota, resource)
        if used + count > limit:
            self.refused[resource] += 1
            raise over_quota(resource, uid=self.uid, used=used, limit=limit, more=count)
        pool = self._accounts.pools.get(resource)
        if pool is not None:
            if used + count > pool.share(used, administrator=allowance.administrator):
                self.refused[resource] += 1
                raise _short(resource, pool, allowance, uid=self.uid, used=used, more=count)
            pool.used += count
        self._used[resource] = used + count

    def restore(self, resource: str, count: int) -> None:
        """As charge(), of what is there already, as after a restart: there is no refusal."""
        pool = self._accounts.pools.get(resource)
        if pool is not None:
            pool.used += count
        self._used[resource] = self._used.get(resource, 0) + count

    def try_charge(self, resource: str, allowance: Allowance, count: int = 1) -> bool:
        """As charge(), for who can do without."""
        try:
            self.charge(resource, allowance, count)
        except AemError:
            return False
        return True

    def refund(self, resource: str, count: int = 1) -> None:
        """`count` less of `resource`."""
        left = self._used.get(resource, 0) - count
        if left < 0:
            self._accounts.fault(f"uid {self.uid}: {count} {resource} refunded, {left + count} were charged")
            count += left
            left = 0
        pool = self._accounts.pools.get(resource)
        if pool is not None:
            pool.used -= count
        self._used[resource] = left

    # -- bytes of queues -----------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """How many bytes its queues hold."""
        return self._granted - self.bytes_free

    def room(self, allowance: Allowance) -> int:
        """How many bytes more there may be."""
        return self.bytes_free + self._grantable(allowance)

    def grant(self, cost: int, allowance: Allowance) -> bool:
        """Have `cost` bytes in `bytes_free`, if there may be so many."""
        missing = cost - self.bytes_free
        if missing <= 0:
            return True
        most = self._grantable(allowance)
        if missing > most:
            return False
        piece = min(max(missing, PIECE_BYTES), most)
        self._granted += piece
        self._accounts.queue_pool.used += piece
        self.bytes_free += piece
        return True

    def _grantable(self, allowance: Allowance) -> int:
        pool = self._accounts.queue_pool
        share = pool.share(self._granted, administrator=allowance.administrator)
        return max(min(allowance.quota.queue_bytes, share) - self._granted, 0)

    def refund_bytes(self, cost: int) -> None:
        """So many bytes were dealt with."""
        self.bytes_free += cost
        if self.bytes_free > self.bytes_free_max:
            self._give_back_some()

    def _give_back_some(self) -> None:
        if self.bytes_free > self._granted:
            self._accounts.fault(
                f"uid {self.uid}: {self.bytes_free} bytes of queues are free, {self._granted} were taken"
            )
            self.bytes_free = self._granted
        if self.starved:
            self._accounts.relieved[self] = None
        if self.bytes_free > 2 * PIECE_BYTES:
            self.give_back(keep=PIECE_BYTES)

    def give_back(self, keep: int = 0) -> None:
        """Return what is free, but for so much, to the pool."""
        surplus = self.bytes_free - keep
        self._accounts.queue_pool.used -= surplus
        self._granted -= surplus
        self.bytes_free = keep
        self._accounts.relieved.update(self._accounts.starving)

    def starve(self, binding: Waiting) -> None:
        """It waits for bytes or events: whatever comes back is news now."""
        self.starved[binding] = None
        self.bytes_free_max = -1
        self._accounts.starving[self] = None

    def feed(self, binding: Waiting) -> None:
        """It waits no more."""
        del self.starved[binding]
        if not self.starved:
            self.bytes_free_max = 2 * PIECE_BYTES
            del self._accounts.starving[self]
            self._accounts.relieved.pop(self, None)

    # -- rates ---------------------------------------------------------------------------------------

    def bucket(self, resource: str) -> Bucket:
        """The bucket of a rate."""
        bucket = self._buckets.get(resource)
        if bucket is None:
            bucket = self._buckets[resource] = Bucket()
        return bucket

    def take(self, resource: str, allowance: Allowance, now_ns: int, count: int = 1) -> None:
        """`count` tokens of the rate `resource`; AemError RESOURCE_EXHAUSTED, with the time to wait, and none
        is taken.
        """
        rate: int = getattr(allowance.quota, resource)
        bucket = self.bucket(resource)
        if not bucket.take(count, rate, now_ns):
            self.refused[resource] += 1
            raise over_rate(
                resource,
                uid=self.uid,
                rate=rate,
                more=count,
                wait_ns=bucket.wait_ns(count, rate, now_ns) if count <= burst(rate) else 0,
            )

    def rate_used(self, resource: str, rate: int, now_ns: int) -> int:
        """How many tokens of a rate have not come back yet."""
        taken = self.bucket(resource).taken(rate, now_ns)
        return max(taken - self.events_free, 0) if resource == EVENTS else taken

    def prepay(self, count: int, allowance: Allowance, now_ns: int) -> bool:
        """Have `count` fires in `events_free`, if there may be so many now. What is owed is paid first."""
        rate = allowance.quota.events_per_second
        bucket = self.bucket(EVENTS)
        if self.events_free < 0:
            bucket.owe(-self.events_free, rate, now_ns)
            self.events_free = 0
        missing, left = count - self.events_free, bucket.left(rate, now_ns)
        if missing > left:
            return False
        piece = min(max(missing, rate // EVENTS_PIECE_SHARE), left)
        bucket.owe(piece, rate, now_ns)
        self.events_free += piece
        return True

    def payable(self, count: int, allowance: Allowance, now_ns: int) -> int:
        """How many of `count` fires may be now; they are in `events_free` then."""
        if self.prepay(count, allowance, now_ns):
            return count
        left = self.bucket(EVENTS).left(allowance.quota.events_per_second, now_ns)
        count = self.events_free + left
        self.prepay(count, allowance, now_ns)
        return count

    # -- holding -------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Something may be charged until release()."""
        self.holders += 1
        if self.holders == 1:
            self._accounts.busy(self)

    def release(self) -> None:
        """One holder less; with the last one everything must have come back."""
        self.holders -= 1
        if self.holders > 0:
            return
        left = {resource: count for resource, count in self._used.items() if count}
        if self.used_bytes:
            left[BYTES] = self.used_bytes
        if left or self.holders < 0:
            self._accounts.fault(f"uid {self.uid} has gone, and these did not come back: {left}")
            self.holders = 0
            for resource, count in left.items():
                if resource != BYTES:
                    self.refund(resource, count)
        self._used.clear()
        self.bytes_free = self._granted
        self.give_back()
        self._accounts.idle(self)


class Charge:
    """Some of a resource, in the hands of the object that needs it, until that refunds it."""

    __slots__ = ("account", "count", "resource")

    def __init__(self, account: Account, resource: str, count: int) -> None:
        """It is charged already, and the account held."""
        self.account = account
        self.resource = resource
        self.count = count

    def refund(self) -> None:
        """Give it back. A second time changes nothing."""
        count, self.count = self.count, 0
        if count:
            self.account.refund(self.resource, count)
            self.account.release()


class Accounts:
    """The accounts of all users.

    `fault` is told of charges that did not come back, or came back twice. `queue_pool` is what all queues
    together may hold; `pools` are those of what is counted.
    """

    def __init__(
        self,
        quotas: Quotas | None = None,
        *,
        queue_pool: Pool | None = None,
        fault: Callable[[str], None] | None = None,
    ) -> None:
        self.fault = fault or _raise
        self.queue_pool = queue_pool or Pool(lambda: 1 << 62, key="limits.queue_pool_bytes")
        self.pools: dict[str, Pool] = {}
        self.starving: dict[Account, None] = {}  # have bindings that wait for bytes or events
        self.relieved: dict[Account, None] = {}  # of these, those for which something may have come
        self._quotas: Quotas = quotas or DefaultQuotas()
        self._accounts: dict[int, Account] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def find(self, uid: int) -> Account | None:
        """The account of `uid`, if it has or had anything."""
        return self._accounts.get(uid)

    def seen_by(self, principal: Principal) -> list[Account]:
        """The accounts that `principal` may know of, by uid: its own, if it has or had anything, for the
        administrator all in use. A uid pays for all its namespaces, so who lives in another one than the
        daemon would see what the user has elsewhere, and sees none.
        """
        if principal.administrator:
            return self.in_use()
        owner = principal.owner
        own = self._accounts.get(owner.uid) if owner == Owner(owner.uid) else None
        return [] if own is None else [own]

    def of(self, principal: Principal) -> Account:
        """The account of the user of `principal`."""
        account = self._accounts.get(principal.uid)
        if account is None:
            account = self._accounts[principal.uid] = Account(self, principal)
            self.idle(account)
        else:
            account.principal = principal
        return account

    def allowance(self, principal: Principal) -> Allowance:
        """What `principal` may have now."""
        quota, origins = self._quotas.quota(principal)
        return Allowance(quota, origins, principal.administrator)

    def charge(self, principal: Principal, resource: str, count: int = 1) -> Charge:
        """`count` of `resource` for whoever keeps the Charge; AemError RESOURCE_EXHAUSTED."""
        account = self.of(principal)
        account.charge(resource, self.allowance(principal), count)
        account.hold()
        return Charge(account, resource, count)

    def restore(self, principal: Principal, resource: str, count: int = 1) -> Charge:
        """As charge(), of what is there already: there is no refusal."""
        account = self.of(principal)
        account.restore(resource, count)
        account.hold()
        return Charge(account, resource, count)

    def take(self, principal: Principal, resource: str, now_ns: int, count: int = 1) -> None:
        """`count` tokens of a rate; AemError RESOURCE_EXHAUSTED with the time to wait."""
        self.of(principal).take(resource, self.allowance(principal), now_ns, count)

    def afford(self, principal: Principal, fires: int, now_ns: int) -> None:
        """Have so many fires of a user paid for; AemError RESOURCE_EXHAUSTED with the time to wait."""
        account, allowance = self.of(principal), self.allowance(principal)
        if account.prepay(fires, allowance, now_ns):
            return
        account.refused[EVENTS] += fires
        rate = allowance.quota.events_per_second
        wait_ns = account.bucket(EVENTS).wait_ns(fires - account.events_free, rate, now_ns)
        raise over_rate(
            EVENTS, uid=account.uid, rate=rate, more=fires, wait_ns=wait_ns if fires <= burst(rate) else 0
        )

    def reload(self) -> None:
        """Who may have how much has changed: what nobody needs is returned, and who waits is looked at."""
        for account in self.in_use():
            account.give_back()
        self.relieved.update(self.starving)

    def in_use(self) -> list[Account]:
        """The users that have anything, by uid."""
        return sorted((account for account in self._accounts.values() if account.holders), key=_uid)

    def uses(self, account: Account, now_ns: int, principal: Principal | None = None) -> Iterator[Use]:
        """Every resource of one user, as `principal`, if it is of that user, may have it; else as whoever of
        it was charged last.
        """
        own = principal is not None and principal.uid == account.uid
        allowance = self.allowance(principal if principal is not None and own else account.principal)
        for resource in RESOURCES:
            limit: int = getattr(allowance.quota, resource)
            rate = resource.endswith("_per_second")
            yield Use(
                resource,
                account.rate_used(resource, limit, now_ns) if rate else account.used(resource),
                limit,
                account.refused[resource],
                allowance.origins.get(resource, "default"),
            )

    # -- for an account

    def busy(self, account: Account) -> None:
        """It has something."""
        self._accounts[account.uid] = account
        self._idle.pop(account.uid, None)

    def idle(self, account: Account) -> None:
        """It has nothing, and is kept for a while: who comes back finds its rates as they were."""
        self._idle[account.uid] = None
        self._idle.move_to_end(account.uid)
        if len(self._idle) > IDLE_MAX:
            del self._accounts[self._idle.popitem(last=False)[0]]


def _short(resource: str, pool: Pool, allowance: Allowance, *, uid: int, used: int, more: int) -> AemError:
    """The pool is short. How much others have is nothing for anybody but the administrator."""
    if allowance.administrator:
        size = pool.size()
        return over_quota(resource, uid=None, used=pool.used, limit=size, more=more, key=pool.key)
    return over_quota(resource, uid=uid, used=used, limit=used, more=more, key=pool.key)


def _uid(account: Account) -> int:
    return account.uid


def _raise(message: str) -> None:
    raise AssertionError(message)
