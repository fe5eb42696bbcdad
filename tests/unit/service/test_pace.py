from hypothesis import given
from hypothesis import strategies as st

from aemd.service.pace import SECOND, Pace


def test_burst_is_there_at_once_and_then_the_rate_holds():
    pace = Pace(rate=10, burst=5, now_ns=0)
    assert [pace.take(0) for _ in range(6)] == [True] * 5 + [False]
    assert not pace.take(SECOND // 10 - 1)
    assert pace.take(SECOND // 10)
    assert not pace.take(SECOND // 10)


def test_idle_time_fills_the_bucket_no_further_than_the_burst():
    pace = Pace(rate=10, burst=5, now_ns=0)
    assert sum(pace.take(1_000 * SECOND) for _ in range(100)) == 5


def test_ready_at_says_when_tokens_will_be_there():
    pace = Pace(rate=10, burst=5, now_ns=0)
    while pace.take(0):
        pass
    due_ns = pace.ready_at_ns(3)
    assert [pace.take(due_ns) for _ in range(4)] == [True, True, True, False]


@given(
    st.integers(1, 1_000),
    st.integers(1, 50),
    st.lists(st.integers(0, SECOND), min_size=1, max_size=200),
)
def test_never_more_than_burst_and_rate_allow(rate, burst, steps):
    pace = Pace(rate=rate, burst=burst, now_ns=0)
    now_ns = taken = 0
    for step in steps:
        now_ns += step
        taken += pace.take(now_ns)
        assert taken <= burst + now_ns // (SECOND // rate) + 1
