"""What `aemctl top` shows, without a terminal."""

from __future__ import annotations

from collections import Counter

import pytest
from aem.v1 import admin_pb2
from hypothesis import given
from hypothesis import strategies as st

from aemd.cli.board import HELP, ORDERS, Board, Sample, Totals, clip, quantile, totals
from aemd.cli.output import width

SECOND = 1_000_000_000


def job(number, *, fires=0, label="", **stats):
    counts = {"lag": 0, "queued": 0, "lost": 0, "failed": 0, **stats, "fires": fires}
    return {"id": number, "module": "timer", "state": "armed", "uid": 7, "label": label, "stats": counts}


def sample(seconds, *jobs, told=None, jobs_there=None):
    status = {
        "version": "1.0",
        "jobs": len(jobs) if jobs_there is None else jobs_there,
        "sessions": 1,
        "address": "unix:/x",
        "start_time_ns": 0,
        "time_ns": seconds * SECOND,
    }
    return Sample(seconds * SECOND, status, jobs, told or Totals())


def board(*samples, order="r"):
    made = Board(order)
    for one in samples:
        made.take(one)
    return made


def text(made, columns=200, rows=24):
    return "\n".join(line.text for line in made.lines(columns, rows))


def test_a_rate_is_what_happened_between_the_samples():
    rows = board(sample(10, job(1, fires=5)), sample(12, job(1, fires=25), job(2, fires=6))).rows()
    assert {row["job"]: row["rate"] for row in rows} == {1: 10.0, 2: 3.0}


def test_the_first_sample_has_no_rates():
    made = board(sample(10, job(1, fires=1_000_000)))
    assert made.rows()[0]["rate"] == 0
    assert made.summary()["fires_per_second"] == 0
    assert "delivery -" in text(made)


def test_after_a_daemon_that_was_away_nothing_is_compared_with_what_was_before():
    made = board(
        sample(1, job(1, fires=9)), Sample(2 * SECOND, error="no daemon"), sample(3, job(1, fires=4))
    )
    assert made.rows()[0]["rate"] == 0
    made.take(sample(4, job(1, fires=6)))
    assert made.rows()[0]["rate"] == 2


def test_an_error_is_shown_and_no_jobs_of_before():
    made = board(sample(1, job(17)), Sample(2 * SECOND, error="no daemon at \x1b[2J"))
    assert "no daemon at \\x1b" in text(made)
    assert "17" not in text(made)
    assert made.lines(80, 24)[0].style == "alarm"


@pytest.mark.parametrize(("key", "first"), [("r", 3), ("l", 2), ("w", 1), ("x", 2), ("f", 3), ("j", 1)])
def test_every_key_sorts_by_its_column_the_largest_first(key, first):
    before = sample(1, job(1), job(2), job(3))
    now = sample(2, job(1, queued=3), job(2, lag=5, lost=1), job(3, fires=9, queued=1, failed=4))
    made = board(before, now, order="l")
    assert made.sort(key)
    assert made.rows()[0]["job"] == first
    title = next(order.title for order in ORDERS if order.key == key)
    assert f"{title}*" in text(made)


def test_arrows_sort_by_the_column_beside_and_other_keys_by_none():
    made = Board("j")
    made.sort(">")
    assert ORDERS[made.order].key == "r"
    made.sort("<")
    made.sort("<")
    assert ORDERS[made.order].key == "f"
    assert not made.sort("z")


def test_equal_jobs_stay_in_order():
    made = board(sample(1, *(job(number) for number in (5, 3, 9))))
    assert [row["job"] for row in made.rows()] == [3, 5, 9]


def test_scrolling_stays_within_the_jobs():
    made = board(sample(1, *(job(number) for number in range(100))))
    made.scroll(-5)
    assert made.first == 0
    made.scroll(1_000)
    assert made.first == 99
    assert " 99  timer" in text(made)
    made.take(sample(2, job(1)))
    assert "  1  timer" in text(made)


def test_losses_name_their_stages_and_new_ones_are_an_alarm():
    lost = Counter({"kernel": 2, "session": 1})
    made = board(sample(1), sample(2, told=Totals(lost=lost)))
    line = made.lines(100, 24)[1]
    assert "lost 2 kernel, 1 session" in line.text
    assert line.style == "alarm"
    made.take(sample(3, told=Totals(lost=lost)))
    assert made.lines(100, 24)[1].style == "plain"


def test_more_jobs_than_are_looked_at_are_said_to_be_there():
    assert "1 of 5000 jobs" in text(board(sample(1, job(1), jobs_there=5000)))


LABELS = st.text(max_size=30)


@given(st.integers(1, 200), st.integers(1, 60), st.lists(LABELS, max_size=70), st.integers(0, 80))
def test_the_picture_has_the_size_of_the_terminal_whatever_jobs_are_called(columns, rows, labels, first):
    made = board(sample(1, *(job(number, label=label) for number, label in enumerate(labels))))
    made.first = first
    lines = made.lines(columns, rows)
    assert len(lines) == rows
    assert all(width(line.text) <= columns and line.text.isprintable() for line in lines)


def test_the_help_fits_a_terminal_of_eighty_columns():
    assert len(HELP) <= 80
    assert Board().lines(80, 24)[-1].text == HELP


@pytest.mark.parametrize(
    ("shown", "columns", "kept"),
    [("abc", 2, "ab"), ("日本", 3, "日"), ("e\u0301x", 1, "e\u0301"), ("", 5, "")],
)
def test_clip_counts_cells(shown, columns, kept):
    assert clip(shown, columns) == kept


@pytest.mark.parametrize(("share", "bound"), [(0.5, 1.0), (0.9, 2.0), (0.99, float("inf"))])
def test_a_quantile_is_the_bound_of_its_bucket(share, bound):
    assert quantile(Counter({1.0: 50, 2.0: 45, float("inf"): 5}), share) == bound


def test_there_is_no_quantile_of_nothing():
    assert quantile(Counter(), 0.5) is None


def test_totals_are_read_from_the_metrics():
    def metric(name, labels, *samples):
        return admin_pb2.Metric(name=name, labels=labels, samples=samples)

    spread = admin_pb2.Distribution(bounds=[0.1], counts=[3, 1])
    told = totals(
        admin_pb2.GetMetricsResponse(
            metrics=[
                metric("aemd_job_fires", ["module"], *(admin_pb2.Sample(labels=["a"], value=2),) * 2),
                metric("aemd_lost", ["module", "stage"], admin_pb2.Sample(labels=["a", "job"], value=7)),
                metric("aemd_session_delivery_seconds", ["module"], admin_pb2.Sample(distribution=spread)),
            ]
        )
    )
    assert told.fires == 4
    assert told.lost == {"job": 7}
    assert told.delivery == {0.1: 3, float("inf"): 1}
    assert told.delivered == 0
