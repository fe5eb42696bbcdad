"""Invariants: however the bytes are cut, verdict and progress are the same; any bytes are survived."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aemd.front import accountant as module
from aemd.front.accountant import PREFACE, Accountant, Budget
from aemd.link import Cut

CUTS = st.lists(st.integers(1, 40), max_size=60)


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + bytes(4) + payload


frames = st.builds(frame, st.integers(0, 12), st.sampled_from((0, 1, 4, 5)), st.binary(max_size=30))
speech = st.one_of(
    st.lists(frames, max_size=30).map(lambda said: PREFACE + frame(4, 0, b"") + b"".join(said)),
    st.lists(frames, max_size=5).map(lambda said: PREFACE + b"".join(said)),
    st.binary(max_size=100),
    st.binary(max_size=100).map(lambda junk: PREFACE + frame(4, 0, b"") + junk),
)


def tell(data: bytes, cuts: list[int]) -> tuple[Cut | None, bool, bool]:
    accountant = Accountant(0)
    cut, offset = None, 0
    for size in [*cuts, len(data)]:
        cut = accountant.feed(data[offset : offset + size], 0)
        offset += size
        if cut is not None or offset >= len(data):
            break
    return cut, accountant.settled, accountant.called


@given(speech, CUTS)
def test_pieces_do_not_matter(data: bytes, cuts: list[int]) -> None:
    assert tell(data, cuts) == tell(data, [])


@given(st.lists(frames, max_size=60), CUTS, st.integers(1, 5))
def test_no_more_than_the_budget_passes(said: list[bytes], cuts: list[int], burst: int) -> None:
    budgets = module.BUDGETS
    try:
        module.BUDGETS = (*(Budget(cut, 1, burst) for cut, _, _ in budgets[:-1]), budgets[-1])  # type: ignore[misc]
        accountant = Accountant(0)
        accountant.feed(PREFACE + frame(4, 0, b""), 0)
        for sent, each in enumerate(said):
            if accountant.feed(each, 0) is not None:
                said = said[:sent]
                break
    finally:
        module.BUDGETS = budgets  # type: ignore[misc]
    for kind in range(10):
        if kind in (0, 9):
            continue
        assert sum(each[3] == kind for each in said) <= burst - (kind == 4)
    assert sum(each[3] == 0 and each[:3] == b"\0\0\0" for each in said) <= burst
