"""Whose turn it is."""

from dataclasses import dataclass

import pytest

from aemd.peer.turns import RESERVED, Turns

PLACES = 64


@dataclass(eq=False)
class Item:
    user: tuple
    limit: int = 16
    alone: bool = False
    wanted: bool = True


def user(uid):
    return (uid, False)


def take_all(turns):
    taken = []
    while (item := turns.next()) is not None:
        taken.append(item)
    return taken


def test_user_has_no_more_places_than_its_limit():
    turns = Turns(PLACES)
    items = [Item(user(1), limit=3) for _ in range(5)]
    for item in items:
        turns.add(item)
    taken = take_all(turns)
    assert taken == items[:3]
    turns.done(taken[0])
    assert take_all(turns) == items[3:4]


def test_users_take_turns():
    turns = Turns(PLACES)
    for uid in (1, 1, 1, 2, 2, 3):
        turns.add(Item(user(uid)))
    assert [item.user[0] for item in take_all(turns)] == [1, 2, 3, 1, 2, 1]


def test_newcomer_always_finds_a_place_and_the_administrator_too():
    turns = Turns(PLACES)
    newcomers = 0
    for uid in range(1, 200):
        for _ in range(PLACES):
            turns.add(Item(user(uid), limit=PLACES))
        taken = take_all(turns)
        if not taken:
            break
        newcomers += 1
        assert uid == 1 or len(taken) <= (PLACES + 1) // 2
    assert newcomers >= 5
    for _ in range(2 * RESERVED):
        turns.add(Item((0, True), limit=PLACES))
    assert 1 <= len(take_all(turns)) <= RESERVED


def test_what_wants_to_be_alone_waits_and_makes_wait():
    turns = Turns(PLACES)
    before, alone, behind = Item(user(1)), Item(user(1), alone=True), Item(user(1))
    other = Item(user(2))
    turns.add(before)
    assert take_all(turns) == [before]
    turns.add(behind)
    turns.add(alone, first=True)
    turns.add(other)
    assert take_all(turns) == [other]
    turns.done(before)
    assert take_all(turns) == [alone]
    turns.done(alone)
    assert take_all(turns) == [behind]


@pytest.mark.parametrize("count", [1, 5])
def test_what_is_not_wanted_any_more_takes_no_place(count):
    turns = Turns(PLACES)
    for _ in range(count):
        turns.add(Item(user(1), wanted=False))
    last = Item(user(1), limit=1)
    turns.add(last)
    assert take_all(turns) == [last]
    turns.done(last)
    assert len(turns) == 0
    assert turns._users == {}
