"""One time limit for many; the loop's clock is real, the limits are nothing or for ever."""

import asyncio

from aemd.front.patience import Patience


async def test_those_who_were_not_forgotten_are_over_in_order():
    over = asyncio.Queue()
    patience = Patience(0, over.put_nowait)
    for number in (3, 1, 2):
        patience.add(number)
    patience.forget(1)
    patience.forget(99)
    assert [await over.get(), await over.get()] == [3, 2]
    assert len(patience) == 0
    patience.add(4)
    assert await over.get() == 4


async def test_nobody_is_over_before_his_time():
    over = asyncio.Queue()
    patience = Patience(3_600, over.put_nowait)
    patience.add(1)
    soon = Patience(0, over.put_nowait)
    soon.add(2)
    assert await over.get() == 2
    assert over.empty()
    patience.forget(1)


async def test_one_who_is_over_may_forget_the_others():
    over = []
    patience = Patience(0, lambda number: (over.append(number), patience.forget(2)))
    patience.add(1)
    done = asyncio.Event()
    Patience(0, lambda _number: done.set()).add(1)
    await done.wait()
    assert over == [1]
