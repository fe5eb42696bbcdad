"""Calls of one connection wait while it does not read its answers; those of others do not."""

import asyncio

import pytest

from aemd.front.unread import BYTES_MAX, CALL_BYTES, Unread

AT_ONCE = BYTES_MAX // CALL_BYTES


@pytest.fixture
def unread():
    return Unread()


async def turns():
    """As many turns of the loop as it takes for who was woken to run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_calls_at_once_and_one_more_waits(unread):
    rooms = [await unread.enter(1) for _ in range(AT_ONCE)]
    late = asyncio.create_task(unread.enter(1))
    await turns()
    assert not late.done()
    await unread.enter(2)
    rooms[0].leave()
    (await late).leave()


async def test_answers_take_room_until_their_calls_are_over(unread):
    room = await unread.enter(1)
    room.grow(BYTES_MAX)
    late = [asyncio.create_task(unread.enter(1)) for _ in range(AT_ONCE + 1)]
    await turns()
    assert not any(task.done() for task in late)
    room.leave()
    await turns()
    assert [task.done() for task in late] == [True] * AT_ONCE + [False]
    late[0].result().leave()
    for task in late[1:]:
        (await task).leave()
    assert len(unread) == 0


async def test_cancelled_call_gives_its_turn_to_the_next(unread):
    room = await unread.enter(1)
    room.grow(BYTES_MAX)
    late = [asyncio.create_task(unread.enter(1)) for _ in range(AT_ONCE + 1)]
    await turns()
    room.leave()
    for task in late[:-1]:
        task.cancel()  # in the very turn in which all of them were woken
    (await asyncio.wait_for(late[-1], 10)).leave()
    assert len(unread) == 0
    assert unread._waiting == {}
