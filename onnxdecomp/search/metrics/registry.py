"""The kinds of targets, one line each."""

from __future__ import annotations

from collections.abc import Mapping

from onnxdecomp.search.metrics.base import Metric
from onnxdecomp.search.metrics.costs import FileSize, Latency, Macs, Parameters
from onnxdecomp.search.metrics.losses import Disagreement, Drop, Error, TaskValue

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Macs(),
        Parameters(),
        FileSize(),
        Latency(),
        Error(),
        Drop(),
        TaskValue(),
        Disagreement(),
    )
}
"""By name, in the order in which messages and help show them."""
