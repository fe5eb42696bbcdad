"""What right() allows to whom: the whole policy that there is."""

import pytest

from aemd.core.errors import AemError, Code
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
