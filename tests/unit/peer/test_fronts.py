"""Which front serves whom; the zygote is fake, so that fronts are asked for and never come."""

import pytest

from aemd.core.accounts import Accounts
from aemd.core.limits import Limits
from aemd.core.principal import Owner, Principal
from aemd.loop.loop import Loop
from aemd.peer import fronts as module
from aemd.peer.front import Connection
from aemd.peer.fronts import Fronts
from aemd.peer.processes import Process


def principal(uid, *, administrator=False, user_namespace=0):
    return Principal(Owner(uid, user_namespace), uid, (), 17, 4242, administrator=administrator)


ROOT = principal(0, administrator=True)


class Zygote:
    def __init__(self):
        self.asked = []

    def fork(self, number, ends):
        self.asked.append((number, ends))

    def close(self):
        for _, ends in self.asked:
            for end in ends:
                end.close()


class Owned:
    """Passes on what Peers would."""

    def before_sending(self):
        pass

    def connection_over(self, connection):
        if not connection.front.connections:
            self.fronts.unused(connection.front)

    def front_ready(self, front):
        self.fronts.served(front)

    def front_lost(self, front, reason):
        if self.fronts.living(front):
            self.fronts.lost(front, reason)


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def make(loop):
    made = []

    def make(**limits):
        owner, zygote = Owned(), Zygote()
        owner.fronts = fronts = Fronts(loop, Limits(**limits), owner, zygote)
        made.append((fronts, zygote))
        return fronts, zygote

    yield make
    for fronts, zygote in made:
        fronts.close()
        zygote.close()


def use(front, number=1):
    charge = Accounts().charge(ROOT, "connections")
    connection = Connection(
        number=number, principal=ROOT, charge=charge, process=Process(ROOT, -1), front=front
    )
    front.connections[number] = connection
    return connection


def test_same_user_has_the_same_front(make):
    fronts, zygote = make()
    assert fronts.choose(principal(1000)) is fronts.choose(principal(1000))
    assert [number for number, _ in zygote.asked] == [1]
    assert len(fronts) == 1


@pytest.mark.parametrize(
    "other",
    [principal(1001), principal(1000, user_namespace=4026532000), principal(1000, administrator=True)],
    ids=["another uid", "another namespace", "the administrator"],
)
def test_other_user_has_another_front(make, other):
    fronts, _ = make()
    assert fronts.choose(principal(1000)) is not fronts.choose(other)


def test_root_of_a_container_never_has_the_front_of_the_administrator(make):
    fronts, _ = make(fronts=1)
    contained = principal(0, user_namespace=0)
    assert fronts.choose(contained) is not fronts.choose(ROOT)


def test_users_beyond_the_places_share_one(make):
    fronts, _ = make(fronts=3)
    chosen = [fronts.choose(principal(uid)) for uid in (1, 2, 3, 4)]
    for front in chosen:
        use(front)
    assert len(set(chosen)) == 3
    assert chosen[2] is chosen[3]
    assert fronts.choose(ROOT) not in chosen
    assert fronts.choose(principal(1)) is chosen[0]


def test_place_of_an_unused_front_is_given_away(make):
    fronts, _ = make(fronts=2)
    first = fronts.choose(principal(1))
    fronts.unused(first)
    second = fronts.choose(principal(2))
    assert not fronts.living(first)
    assert second is not first
    assert fronts.replaced == 0
    use(second)
    shared = fronts.choose(principal(1))
    assert shared is fronts.choose(principal(3))


def test_unused_front_ends_after_a_while(make, loop, monkeypatch):
    monkeypatch.setattr(module, "IDLE_NS", 1)
    fronts, _ = make()
    front = fronts.choose(principal(1))
    fronts.unused(front)
    while len(fronts):
        loop.turn()
    assert fronts.replaced == 0


def test_front_that_is_used_again_stays(make, loop, monkeypatch):
    fronts, _ = make()
    front = fronts.choose(principal(1))
    fronts.unused(front)
    assert fronts.choose(principal(1)) is front
    monkeypatch.setattr(module, "IDLE_NS", 1)
    other = fronts.choose(principal(2))
    fronts.unused(other)
    while fronts.living(other):
        loop.turn()
    assert fronts.living(front)


def test_lost_front_is_replaced_and_counted(make):
    fronts, _ = make()
    front = fronts.choose(principal(1))
    front.ready = True
    front.lose("it is gone")
    assert fronts.replaced == 1
    assert fronts.choose(principal(1)) is not front


def test_front_that_never_served_is_not_tried_again_at_once(make, loop, monkeypatch):
    monkeypatch.setattr(module, "AGAIN_MIN_NS", 3_600_000_000_000)
    fronts, _ = make()
    fronts.choose(principal(1)).lose("it is gone")
    assert fronts.choose(principal(1)) is None
    assert fronts.choose(principal(2)) is not None


def test_front_that_could_not_be_forked_is_lost(make):
    fronts, _ = make()
    front = fronts.choose(principal(1))
    fronts.exited(front.number, -1)
    assert not fronts.living(front)
    fronts.exited(front.number, 0)
    fronts.exited(12345, 0)
    assert fronts.replaced == 1
