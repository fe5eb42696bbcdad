"""Who has what: exactly N, never N + 1, and everything comes back."""

from __future__ import annotations

import pytest

from aemd.core.accounts import IDLE_MAX, Accounts
from aemd.core.errors import AemError, Code
from aemd.core.limits import SECOND
from aemd.core.pool import Pool
from aemd.core.principal import Owner, Principal
from aemd.core.quota import RESOURCES, DefaultQuotas, Quota

COUNTED = [name for name in RESOURCES if not name.endswith("_per_second") and name != "queue_bytes"]
RATES = [name for name in RESOURCES if name.endswith("_per_second")]


def who(uid: int, *, administrator: bool = False) -> Principal:
    return Principal(Owner(uid), uid, (), 7, 1, administrator)


def accounts(pool: Pool | None = None, **quota: int) -> Accounts:
    return Accounts(DefaultQuotas(Quota(**quota)), queue_pool=pool)


@pytest.mark.parametrize("resource", COUNTED)
def test_as_many_as_the_quota_says_and_not_one_more(resource):
    test = accounts(**{resource: 3})
    charges = [test.charge(who(1000), resource) for _ in range(3)]
    with pytest.raises(AemError) as refused:
        test.charge(who(1000), resource)
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    facts = refused.value.details
    assert (facts["used"], facts["limit"], facts["subject"]) == ("3", "3", "uid 1000")
    assert facts["key"] == f"quota.{resource}"
    assert f"raise {resource} in a [[quota]]" in refused.value.message
    other = test.charge(who(1001), resource, 3)  # another user notices nothing
    charges.pop().refund()
    charges.append(test.charge(who(1000), resource))
    assert [account.refused[resource] for account in test.in_use()] == [1, 0]
    for charge in (*charges, other):
        charge.refund()
    assert not test.in_use()


@pytest.mark.parametrize("resource", RATES)
def test_a_second_and_a_half_at_once_and_then_as_time_goes(resource):
    test = accounts(**{resource: 10})
    now_ns = 5 * SECOND
    for _ in range(15):
        test.take(who(1000), resource, now_ns)
    with pytest.raises(AemError) as refused:
        test.take(who(1000), resource, now_ns)
    assert refused.value.details["key"] == f"quota.{resource}"
    wait_ns = int(refused.value.details["retry_ns"])
    assert wait_ns == SECOND // 10
    test.take(who(1001), resource, now_ns)
    with pytest.raises(AemError):
        test.take(who(1000), resource, now_ns + wait_ns - 1)
    test.take(who(1000), resource, now_ns + wait_ns)


def test_more_at_once_than_a_bucket_holds_is_not_to_be_tried_again():
    with pytest.raises(AemError) as refused:
        accounts(events_per_second=10).take(who(1000), "events_per_second", 0, 16)
    assert "retry_ns" not in refused.value.details


def test_rate_of_half_a_billion_is_exact():
    bucket = accounts().of(who(1000)).bucket("bytes_per_second")
    rate = 536_870_912
    assert bucket.take(rate * 3 // 2, rate, 0)
    assert not bucket.take(rate + 1, rate, SECOND)
    assert bucket.take(rate, rate, SECOND)


def test_users_who_have_nothing_are_remembered_up_to_a_limit():
    test = accounts()
    for uid in range(IDLE_MAX + 10):
        test.charge(who(uid), "sessions").refund()
    assert test.find(0) is None
    assert test.find(IDLE_MAX) is not None


def test_charge_that_does_not_come_back_is_a_fault_and_is_taken_back():
    faults: list[str] = []
    test = Accounts(fault=faults.append)
    test.pools["descriptors"] = pool = Pool(lambda: 100, key="k")
    session = test.charge(who(1000), "sessions")
    account = session.account
    account.charge("descriptors", test.allowance(who(1000)), 5)
    session.refund()
    assert "{'descriptors': 5}" in faults[0]
    assert (account.used("descriptors"), pool.used) == (0, 0)


def test_refund_of_what_was_not_charged_is_a_fault_and_nothing_becomes_negative():
    faults: list[str] = []
    test = Accounts(fault=faults.append)
    session = test.charge(who(1000), "sessions")
    session.account.charge("jobs", test.allowance(who(1000)))
    session.account.refund("jobs", 2)
    assert len(faults) == 1
    assert session.account.used("jobs") == 0
    session.refund()
    assert len(faults) == 1


def test_charge_is_refunded_once():
    test = accounts()
    first, second = test.charge(who(1000), "children"), test.charge(who(1000), "children")
    first.refund()
    first.refund()
    assert second.account.used("children") == 1


def test_pool_leaves_half_for_whoever_comes_next_and_a_reserve_for_the_administrator():
    pool = Pool(lambda: 160, key="k")
    shares = []
    for _ in range(20):
        share = pool.share(0, administrator=False)
        pool.used += share
        shares.append(share)
    assert shares[:4] == [75, 37, 19, 9]
    assert pool.used <= 150
    assert pool.share(0, administrator=True) == 160 - pool.used >= 10


def test_refusal_for_a_short_pool_says_nothing_about_others():
    test = accounts()
    test.pools["descriptors"] = Pool(lambda: 160, key="LimitNOFILE")
    test.charge(who(1001), "descriptors", 23)
    mine = test.charge(who(1000), "descriptors", 50)
    with pytest.raises(AemError) as refused:
        test.charge(who(1000), "descriptors", 20)
    facts = refused.value.details
    assert (facts["used"], facts["limit"], facts["key"]) == ("50", "50", "LimitNOFILE")
    assert "23" not in refused.value.message
    assert mine.account.refused["descriptors"] == 1
