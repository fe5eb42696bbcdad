import pytest

from aemd.core.errors import AemError, Code
from aemd.service.descriptors import Descriptors


def budget(limit=20, reserve=5, others=0):
    return Descriptors(limit=limit, reserve=reserve, others=lambda: others)


def test_charge_is_refused_while_the_reserve_is_untouched():
    descriptors = budget()
    descriptors.charge(1, 10)
    descriptors.charge(2, 5)
    with pytest.raises(AemError) as caught:
        descriptors.charge(3, 1)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    assert caught.value.details["limit"] == "15"
    assert "LimitNOFILE" in caught.value.details["key"]
    assert descriptors.held(3) == 0


def test_what_others_hold_is_not_given_to_jobs():
    descriptors = budget(others=10)
    descriptors.charge(1, 5)
    with pytest.raises(AemError):
        descriptors.charge(1, 1)


def test_release_gives_back_what_a_job_still_holds():
    descriptors = budget()
    descriptors.charge(1, 10)
    descriptors.refund(1, 4)
    assert (descriptors.charged, descriptors.held(1)) == (6, 6)
    descriptors.release(1)
    descriptors.release(1)
    assert (descriptors.charged, descriptors.held(1)) == (0, 0)


def test_refund_of_more_than_was_charged_takes_nothing_from_others():
    descriptors = budget()
    descriptors.charge(1, 3)
    descriptors.charge(2, 3)
    descriptors.refund(1, 100)
    assert (descriptors.charged, descriptors.held(2)) == (3, 3)


def test_one_user_leaves_half_for_the_next_one():
    descriptors = budget(limit=45)
    descriptors.charge(1, 20, uid=1000)
    with pytest.raises(AemError) as caught:
        descriptors.charge(1, 1, uid=1000)
    assert caught.value.details["subject"] == "uid 1000"
    assert (caught.value.details["limit"], caught.value.details["used"]) == ("20", "20")
    descriptors.charge(2, 10, uid=1001)
    with pytest.raises(AemError):
        descriptors.charge(2, 1, uid=1001)
    descriptors.charge(3, 10)  # the administrator has the rest


def test_share_of_a_user_is_given_back_with_the_job():
    descriptors = budget(limit=45)
    descriptors.charge(1, 20, uid=1000)
    descriptors.refund(1, 5)
    descriptors.charge(2, 5, uid=1000)
    descriptors.release(1)
    descriptors.release(2)
    descriptors.charge(3, 20, uid=1000)
    assert descriptors.charged == 20
