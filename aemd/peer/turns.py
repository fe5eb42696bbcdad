"""Whose turn it is: many users wait for few places, each in a queue of its own.

Users take turns. Nobody has more places than his limit, nor more than half of what the others leave, so that
whoever comes next finds one; the first place of a user needs only be free. RESERVED places are kept for the
administrator. An item that must be `alone` waits until its user has nothing else running, and nothing else of
the user's begins before it is done.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

RESERVED = 4


class Waiting(Protocol):
    """What waits for a place."""

    @property
    def user(self) -> tuple[int, bool]:
        """Uid, and whether it is the administrator."""

    @property
    def limit(self) -> int:
        """How many places its user may have."""

    @property
    def alone(self) -> bool:
        """Nothing else of the user's may run beside it."""

    @property
    def wanted(self) -> bool:
        """False: it is no longer waited for."""


_Item = TypeVar("_Item", bound=Waiting)


class _User(Generic[_Item]):
    __slots__ = ("alone", "queue", "running")

    def __init__(self) -> None:
        self.queue: deque[_Item] = deque()
        self.running = 0
        self.alone = False  # what runs wants to be alone


class Turns(Generic[_Item]):
    """The queues of all users."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._users: OrderedDict[tuple[int, bool], _User[_Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(user.queue) for user in self._users.values())

    def __iter__(self) -> Iterator[_Item]:
        """What waits."""
        return (item for user in list(self._users.values()) for item in list(user.queue))

    def add(self, item: _Item, *, first: bool = False) -> None:
        """Let it wait; `first`: before everything else of its user."""
        user = self._users.setdefault(item.user, _User())
        if first:
            user.queue.appendleft(item)
        else:
            user.queue.append(item)

    def next(self) -> _Item | None:
        """The next one, which has a place from now on; None: there is no place, or nobody waits."""
        for key in list(self._users):
            user = self._users[key]
            while user.queue and not user.queue[0].wanted:
                user.queue.popleft()
            if user.queue and self._has_place(key, user):
                item = user.queue.popleft()
                user.running += 1
                user.alone = item.alone
                self._free -= 1
                self._users.move_to_end(key)
                return item
            if not user.queue and not user.running:
                del self._users[key]
        return None

    def done(self, item: _Item) -> None:
        """Its place is free."""
        user = self._users[item.user]
        user.running -= 1
        user.alone = False
        self._free += 1
        if not user.running and not user.queue:
            del self._users[item.user]

    def _has_place(self, key: tuple[int, bool], user: _User[_Item]) -> bool:
        item = user.queue[0]
        if user.alone or (item.alone and user.running):
            return False
        free = self._free - (0 if key[1] else RESERVED)
        if not user.running:
            return free > 0
        return user.running < min(item.limit, (free + user.running) // 2)
