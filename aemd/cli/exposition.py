"""What the daemon counts, in the exposition formats of Prometheus.

The daemon's answer describes itself; here it only becomes the text that scrapers read, with the library that
defines it. Values of labels come from strangers (what jobs are called), so they are made safe for a terminal
before they are escaped for the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from aemd.cli.text import safe

if TYPE_CHECKING:
    from aem.v1 import admin_pb2


def exposition(answer: admin_pb2.GetMetricsResponse, accept: str = "") -> tuple[bytes, str]:
    """The text and its content type: of the formats that an Accept header names, or Prometheus 0.0.4."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Answer(answer))
    return encode(registry), content_type


class _Answer(Collector):
    """One answer, as the library wants to have it."""

    def __init__(self, answer: admin_pb2.GetMetricsResponse) -> None:
        self._answer = answer

    def collect(self) -> Iterator[Family]:
        """The families."""
        from aem.v1 import admin_pb2

        make: dict[int, Callable[[admin_pb2.Metric], Family]] = {
            admin_pb2.METRIC_KIND_COUNTER: _counter,
            admin_pb2.METRIC_KIND_GAUGE: _gauge,
            admin_pb2.METRIC_KIND_HISTOGRAM: _histogram,
        }
        for metric in self._answer.metrics:
            if metric.kind in make:  # else a newer daemon's
                yield make[metric.kind](metric)


def _counter(metric: admin_pb2.Metric) -> Family:
    family = CounterMetricFamily(metric.name, metric.help, labels=list(metric.labels))
    for sample in metric.samples:
        family.add_metric(_labels(sample), sample.value)
    return family


def _gauge(metric: admin_pb2.Metric) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=list(metric.labels))
    for sample in metric.samples:
        family.add_metric(_labels(sample), sample.value)
    return family


def _histogram(metric: admin_pb2.Metric) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=list(metric.labels))
    for sample in metric.samples:
        told = sample.distribution
        bounds = [*map(str, told.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(told.counts), strict=True))
        family.add_metric(_labels(sample), buckets=buckets, sum_value=told.sum)
    return family


def _labels(sample: admin_pb2.Sample) -> list[str]:
    return [safe(label) for label in sample.labels]
