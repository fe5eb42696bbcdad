from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aemd.core.deadlines import SLACK, Deadlines, Due


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 100))), max_size=60))
def test_keys_come_out_in_order_whatever_was_moved_or_cancelled(steps):
    deadlines, model = Deadlines(), {}
    for subject, due_ns in steps:
        key = (Due.ACK, subject)
        if due_ns is None:
            deadlines.cancel(key)
            model.pop(key, None)
        else:
            deadlines.set(key, due_ns)
            model[key] = due_ns
        assert deadlines.next_ns() == min(model.values(), default=None)
    out = []
    while (key := deadlines.pop_due(50)) is not None:
        out.append(model.pop(key))
    assert out == sorted(out)
    assert all(due_ns > 50 for due_ns in model.values())
    assert len(deadlines) == len(model)


def test_deadlines_that_move_for_ever_take_bounded_memory():
    deadlines = Deadlines()
    for number in range(10_000):
        deadlines.set((Due.ACK, "one"), number)
    assert len(deadlines._heap) <= 2 + SLACK + 1
