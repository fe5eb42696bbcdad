"""What right() allows to whom, with and without what a rule grants."""

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.patterns import Patterns
from aemd.core.policy import GRANTS, Rule, Ruling, Subject
from aemd.core.principal import Owner, Principal
from aemd.core.right import Act, right

USER = Principal(Owner(1000), 1000, (), 77, 1, administrator=False)
ELSEWHERE = Principal(Owner(1000), 1000, (), 77, 1, administrator=False, network_namespace=0xF000_0001)
ROOT = Principal(Owner(0), 0, (), 78, 1, administrator=True)
CONTAINER_ROOT = Principal(Owner(0, 0xF000_0002), 0, (), 79, 1, administrator=False)

REFUSED = [
    (USER, Act("bind", port=1023)),
    (USER, Act("bind", path=b"/tmp/x")),
    (USER, Act("look", owner=Owner(1001))),
    (USER, Act("look", owner=Owner(1000, user_namespace=0xF000_0002))),
    (USER, Act("look", owner=Owner(1000, pid_namespace=0xF000_0003))),
    (USER, Act("load", privileged=True)),
    (ELSEWHERE, Act("bind", port=8080, network=True)),
    (ELSEWHERE, Act("bind", network=True)),
    (CONTAINER_ROOT, Act("bind", port=80)),
    (CONTAINER_ROOT, Act("load", privileged=True)),
    (CONTAINER_ROOT, Act("look", owner=Owner(0))),
]
ALLOWED = [
    (USER, Act("bind", port=1024, network=True)),
    (USER, Act("bind", port=0)),
    (USER, Act("look", owner=Owner(1000))),
    (ELSEWHERE, Act("look", owner=Owner(1000))),
    *[(ROOT, act) for _, act in REFUSED],
]


@pytest.mark.parametrize(("who", "act"), REFUSED)
def test_what_a_caller_could_not_do_itself_is_refused(who, act):
    with pytest.raises(AemError) as caught:
        right(who, act)
    assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, "NOT_ALLOWED")


@pytest.mark.parametrize(("who", "act"), ALLOWED)
def test_own_things_and_the_administrators_are_allowed(who, act):
    right(who, act)


def test_hidden_refusal_looks_like_absence():
    with pytest.raises(AemError) as caught:
        right(USER, Act("process 1", owner=Owner(0), hidden=True))
    assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "NOT_FOUND")
    assert "1000" not in caught.value.message


def ruling(*grants):
    return Ruling(Rule("it", Subject(everyone=True), Patterns(("*",)), allow=True, grants=frozenset(grants)))


GRANTABLE = {
    "port": (USER, Act("bind", port=80)),
    "network": (ELSEWHERE, Act("bind", network=True)),
    "process": (USER, Act("watch", owner=Owner(0), of="process", hidden=True)),
    "channel": (USER, Act("listen", owner=Owner(1001), of="channel")),
}


def test_there_is_a_case_for_every_grant():
    assert set(GRANTABLE) == set(GRANTS)


@pytest.mark.parametrize("grant", GRANTABLE)
def test_a_grant_gives_what_it_names_and_nothing_else(grant):
    who, act = GRANTABLE[grant]
    assert set(right(who, act, ruling(grant))) == {grant}
    for others in (ruling(), ruling(*set(GRANTS) - {grant})):
        with pytest.raises(AemError):
            right(who, act, others)


def test_all_that_is_lacking_must_be_granted():
    act = Act("bind", port=80, network=True)
    assert set(right(ELSEWHERE, act, ruling("port", "network"))) == {"port", "network"}
    for one in ("port", "network"):
        with pytest.raises(AemError, match="rule it does not grant it"):
            right(ELSEWHERE, act, ruling(one))


@pytest.mark.parametrize(("who", "act"), [each for each in REFUSED if not (each[1].port or each[1].network)])
def test_what_has_no_grant_is_given_by_none(who, act):
    with pytest.raises(AemError):
        right(who, act, ruling(*GRANTS))


def test_own_things_need_no_grant_and_use_none():
    assert not right(USER, Act("bind", port=1024), ruling(*GRANTS))
    assert not right(ROOT, Act("bind", port=80), ruling(*GRANTS))
