"""The exposition, read back by the parsers of the library that defines it."""

from __future__ import annotations

import pytest
from aem.v1 import admin_pb2
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from aemd.cli.exposition import exposition

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
COUNTER, GAUGE, HISTOGRAM = 1, 2, 3


def answer(*metrics):
    return admin_pb2.GetMetricsResponse(metrics=metrics)


def metric(name, kind, *samples, labels=()):
    return admin_pb2.Metric(name=name, help=f"Says {name}.", kind=kind, labels=labels, samples=samples)


def sample(value, *labels):
    return admin_pb2.Sample(value=value, labels=labels)


def read(text, parse):
    return {(s.name, *sorted(s.labels.items())): s.value for family in parse(text) for s in family.samples}


@pytest.mark.parametrize(("accept", "parse"), [("", parse_prometheus), (OPENMETRICS, parse_openmetrics)])
def test_every_kind_is_read_back_as_it_was(accept, parse):
    spread = admin_pb2.Distribution(bounds=[0.001, 0.002], counts=[3, 0, 2], sum=1.5)
    body, content_type = exposition(
        answer(
            metric("aemd_fires", COUNTER, sample(7, "timer"), sample(9, "user"), labels=["module"]),
            metric("aemd_open", GAUGE, sample(2.5)),
            metric("aemd_took_seconds", HISTOGRAM, admin_pb2.Sample(distribution=spread)),
        ),
        accept,
    )
    assert content_type.startswith(accept.partition(";")[0] or "text/plain; version=0.0.4")
    assert read(body.decode(), parse) == {
        ("aemd_fires_total", ("module", "timer")): 7,
        ("aemd_fires_total", ("module", "user")): 9,
        ("aemd_open",): 2.5,
        ("aemd_took_seconds_bucket", ("le", "0.001")): 3,
        ("aemd_took_seconds_bucket", ("le", "0.002")): 3,
        ("aemd_took_seconds_bucket", ("le", "+Inf")): 5,
        ("aemd_took_seconds_count",): 5,
        ("aemd_took_seconds_sum",): 1.5,
    }
    assert "# HELP aemd_open Says aemd_open.\n" in body.decode()


@pytest.mark.parametrize("label", ['a"b', "a\\b", "a\nb", "a\x1b[31mb", "x} 1\naemd_fires 5", "ü\u202ex"])
def test_no_label_breaks_out_of_its_quotes_or_reaches_a_terminal(label):
    body, _ = exposition(answer(metric("aemd_fires", GAUGE, sample(1, label), labels=["label"])))
    text = body.decode()
    assert len([line for line in text.splitlines() if not line.startswith("#")]) == 1
    assert len(read(text, parse_prometheus)) == 1
    assert text.replace("\n", "").isprintable()


def test_what_a_newer_daemon_calls_something_else_is_left_out():
    body, _ = exposition(answer(metric("aemd_summary", 99, sample(1)), metric("aemd_open", GAUGE, sample(1))))
    assert b"aemd_summary" not in body
    assert b"aemd_open 1.0" in body
