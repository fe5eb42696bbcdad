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
PIECE_BYTES = 64 * 1024  # an account takes bytes of its quota, and of the pool, in pieces of this size
EVENTS_PIECE_SHARE = 1_024  # and events in this part of what there may be in a second

EVENTS = "events_per_second"
BYTES = "queue_bytes"


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
        return self._granted - self.bytes_free if resource == BYTES else self._used.get(resource, 0)

    def charge(self, resource: str, allowance: Allowance, count: int = 1) -> None:
        """`count` more of `resource`; AemError RESOURCE_EXHAUSTED, and nothing is charged."""
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
        if self.used(BYTES):
            left[BYTES] = self.used(BYTES)
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

    def give_back(self) -> None:
        """Return what is free of the bytes."""
        self._accounts.queue_pool.used -= self.bytes_free
        self._granted -= self.bytes_free
        self.bytes_free = 0


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

    def take(self, principal: Principal, resource: str, now_ns: int, count: int = 1) -> None:
        """`count` tokens of a rate; AemError RESOURCE_EXHAUSTED with the time to wait."""
        self.of(principal).take(resource, self.allowance(principal), now_ns, count)

    def in_use(self) -> list[Account]:
        """The users that have anything, by uid."""
        return sorted((account for account in self._accounts.values() if account.holders), key=_uid)

    def uses(self, account: Account, now_ns: int) -> Iterator[Use]:
        """Every resource of one user, as the principal who asked last may have it."""
        allowance = self.allowance(account.principal)
        for resource in RESOURCES:
            limit: int = getattr(allowance.quota, resource)
            rate = resource.endswith("_per_second")
            yield Use(
                resource,
                account.bucket(resource).taken(limit, now_ns) if rate else account.used(resource),
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
