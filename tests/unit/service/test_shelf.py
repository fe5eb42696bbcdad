"""How the service manager is told what to keep: in turn, bounded, and never waited for."""

import pytest

from aemd.loop.loop import Loop
from aemd.service import shelf as shelf_file
from aemd.service.shelf import BATCH, KEPT_MAX, Shelf


class Manager:
    """Takes so many messages."""

    def __init__(self):
        self.takes = 1_000_000
        self.said = []

    def _take(self, what, name):
        if not self.takes:
            return False
        self.takes -= 1
        self.said.append((what, name))
        return True

    def store(self, name, _descriptors, *, poll, wait):
        assert not poll
        return self._take("store", name)

    def forget(self, name, *, wait):
        return self._take("forget", name)

    def begin_barrier(self):
        return -1


@pytest.fixture
def manager():
    return Manager()


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def shelf(manager, loop):
    return Shelf(manager, loop)


def settle(shelf, loop):
    """Until nothing is due any more."""
    shelf.flush()
    while shelf._timer is not None:
        loop.turn(10**9)


def test_no_more_than_a_batch_is_told_in_a_moment(shelf, manager, loop):
    for number in range(3 * BATCH):
        shelf.put(f"{number}", 0, (0,))
    shelf.flush()
    shelf.flush()
    assert len(manager.said) == BATCH
    settle(shelf, loop)
    assert manager.said == [("store", f"{number}") for number in range(3 * BATCH)]


def test_users_are_told_of_in_turn(shelf, manager, loop):
    for number in range(5):
        shelf.put(f"many-{number}", 1, (0,))
    shelf.put("one", 2, (0,))
    shelf.flush()
    assert manager.said[:3] == [("store", "many-0"), ("store", "one"), ("store", "many-1")]


def test_nobody_takes_all_the_room_and_who_waits_gets_what_is_given_back(shelf, manager, loop, monkeypatch):
    monkeypatch.setattr(shelf_file, "PAUSE_NS", 0)
    for number in range(KEPT_MAX):
        shelf.put(f"many-{number}", 1, (0,))
    settle(shelf, loop)
    assert 0 < shelf.kept <= KEPT_MAX // 2
    assert shelf.waiting == KEPT_MAX - shelf.kept
    shelf.put("another", 2, (0,))
    settle(shelf, loop)
    assert "another" in shelf
    kept = shelf.kept
    assert shelf.drop("many-0")
    settle(shelf, loop)
    assert manager.said[-2:] == [("forget", "many-0"), ("store", f"many-{kept - 1}")]


def test_what_is_dropped_before_its_turn_is_never_told_of(shelf, manager, loop):
    shelf.put("one", 1, (0,))
    assert not shelf.drop("one")
    settle(shelf, loop)
    assert manager.said == []
    assert shelf.waiting == 0


def test_a_manager_that_takes_nothing_is_asked_again_more_and_more_seldom(shelf, manager, loop):
    manager.takes = 0
    shelf.put("one", 1, (0,))
    shelf.flush()
    pauses = [shelf._pause_ns]
    while len(pauses) < 3:
        loop.turn(10**9)
        if shelf._pause_ns != pauses[-1]:
            pauses.append(shelf._pause_ns)
    assert pauses == sorted(pauses)
    assert shelf.waiting == 1
    manager.takes = 1
    settle(shelf, loop)
    assert manager.said == [("store", "one")]
    assert shelf._pause_ns == shelf_file.PAUSE_NS


def test_who_waits_for_a_manager_that_cannot_be_asked_waits_a_bounded_time(shelf, loop, monkeypatch):
    monkeypatch.setattr(shelf_file, "READ_NS", 1_000_000)
    done = []
    shelf.await_read(lambda: done.append(True))
    shelf.flush()
    while not done:
        loop.turn(10**9)
    assert shelf._unread == []


def test_the_end_tells_all_that_has_room_and_keeps_nothing_waiting(shelf, manager, loop):
    for number in range(3 * BATCH):
        shelf.put(f"{number}", 0, (0,))
    shelf.settle(1e12)
    assert len(manager.said) == 3 * BATCH
    shelf.put("late", 0, (0,))
    manager.takes = 0
    shelf.settle(1e12)
    assert shelf.waiting == 0
