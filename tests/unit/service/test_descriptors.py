import pytest

from aemd.core.accounts import Accounts
from aemd.core.errors import AemError, Code
from aemd.core.principal import Owner, Principal
from aemd.core.quota import DefaultQuotas, Quota
from aemd.service.descriptors import Descriptors

ROOT = Principal(Owner(0), 0, (), 1, 1, administrator=True)
ALICE = Principal(Owner(1000), 1000, (), 2, 1, administrator=False)
BOB = Principal(Owner(1001), 1001, (), 3, 1, administrator=False)


def budget(limit=20, reserve=5, others=0, **quota):
    accounts = Accounts(DefaultQuotas(Quota(**quota)))
    return Descriptors(limit=limit, reserve=reserve, others=lambda: others, accounts=accounts)


def test_charge_is_refused_while_the_reserve_is_untouched():
    descriptors = budget()
    descriptors.charge(1, 10, owner=ROOT)
    descriptors.charge(2, 5, owner=ROOT)
    with pytest.raises(AemError) as caught:
        descriptors.charge(3, 1, owner=ROOT)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    assert caught.value.details["limit"] == "15"
    assert "LimitNOFILE" in caught.value.details["key"]
    assert descriptors.held(3) == 0


def test_what_others_hold_is_not_given_to_jobs():
    descriptors = budget(others=10)
    descriptors.charge(1, 5, owner=ROOT)
    with pytest.raises(AemError):
        descriptors.charge(1, 1, owner=ROOT)


def test_release_gives_back_what_a_job_still_holds():
    descriptors = budget()
    descriptors.charge(1, 10, owner=ROOT)
    descriptors.refund(1, 4)
    assert (descriptors.charged, descriptors.held(1)) == (6, 6)
    descriptors.release(1)
    descriptors.release(1)
    assert (descriptors.charged, descriptors.held(1)) == (0, 0)


def test_refund_of_more_than_was_charged_takes_nothing_from_others():
    descriptors = budget()
    descriptors.charge(1, 3, owner=ROOT)
    descriptors.charge(2, 3, owner=ROOT)
    descriptors.refund(1, 100)
    assert (descriptors.charged, descriptors.held(2)) == (3, 3)


def test_one_user_leaves_half_for_the_next_one():
    descriptors = budget(limit=47)  # a sixteenth, 2, is the administrator's
    descriptors.charge(1, 20, owner=ALICE)
    with pytest.raises(AemError) as caught:
        descriptors.charge(1, 1, owner=ALICE)
    assert caught.value.details["subject"] == "uid 1000"
    assert (caught.value.details["limit"], caught.value.details["used"]) == ("20", "20")
    descriptors.charge(2, 10, owner=BOB)
    with pytest.raises(AemError):
        descriptors.charge(2, 1, owner=BOB)
    descriptors.charge(3, 10, owner=ROOT)  # the administrator has the rest


def test_sources_are_charged_with_descriptors_and_neither_without_the_other():
    descriptors = budget(limit=200, descriptors=5, sources=2)
    account = descriptors._accounts.of(ALICE)
    for job in (1, 2):
        descriptors.charge(job, 1, owner=ALICE, sources=1)
    with pytest.raises(AemError) as caught:
        descriptors.charge(3, 1, owner=ALICE, sources=1)
    assert caught.value.details["key"] == "quota.sources"
    assert (account.used("descriptors"), account.used("sources")) == (2, 2)
    descriptors.charge(1, 3, owner=ALICE)  # connections of a listener
    with pytest.raises(AemError) as caught:
        descriptors.charge(2, 1, owner=ALICE)
    assert caught.value.details["key"] == "quota.descriptors"
    descriptors.refund(1, 1, sources=1)
    assert (account.used("descriptors"), account.used("sources")) == (4, 1)
    for job in (1, 2, 3):
        descriptors.release(job)
    assert not descriptors._accounts.in_use()


def test_who_has_more_sources_than_it_may_by_now_still_gets_descriptors():
    descriptors = budget(limit=200, sources=2)
    descriptors.charge(1, 2, owner=ALICE, sources=2)
    descriptors._accounts._quotas = DefaultQuotas(Quota(sources=1))
    descriptors.charge(1, 1, owner=ALICE)
    assert descriptors.held(1) == 3


def test_share_of_a_user_is_given_back_with_the_job():
    descriptors = budget(limit=47)  # a sixteenth, 2, is the administrator's
    descriptors.charge(1, 20, owner=ALICE)
    descriptors.refund(1, 5)
    descriptors.charge(2, 5, owner=ALICE)
    descriptors.release(1)
    descriptors.release(2)
    descriptors.charge(3, 20, owner=ALICE)
    assert descriptors.charged == 20
