"""What came of targets, from the other parts of a record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxdecomp.record.schema.checks import (
    AccuracyChange,
    OutputDifference,
    RecordedMetric,
    RecordedVerification,
)
from onnxdecomp.record.schema.layers import LayerCount, Total, Totals
from onnxdecomp.record.schema.timing import Interval, Latency, TimedFile
from onnxdecomp.record.targets import target_results
from onnxdecomp.search.metrics.registry import METRICS
from onnxdecomp.search.targets import parse_budget

TOTALS = Totals(
    params=Total(before=300, after=100, ratio=3.0),
    macs=Total(before=2000, after=1000, ratio=2.0),
    bytes=Total(before=1500, after=1000, ratio=1.5),
    layers=LayerCount(all=2, decomposed=1),
)
FILE = TimedFile(
    **dict.fromkeys(("min", "mean", "stdev", "p50", "p90", "p95", "p99"), 4.0),
    unit="ms",
    count=9,
    throughput=250.0,
    nodes={"cpu": 3},
)
LATENCY = Latency(
    provider="cpu",
    threads=1,
    batch=1,
    shapes={"x": (1, 3)},
    inputs="random",
    original=replace(FILE, p50=5.0),
    compressed=FILE,
    speedup=Interval(value=1.25, low=1.2, high=1.3, confidence=0.95),
)
OUTPUT = OutputDifference(
    name="y",
    dtype="float32",
    values=30,
    max_abs=0.2,
    p99_abs=0.1,
    rel_l2=0.04,
    cosine=0.99,
    sqnr_db=30.0,
    agreement=None,
    top1_agreement=0.75,
    nonfinite=0,
    nonfinite_original=0,
)
CHECKED = RecordedVerification(
    status="passed",
    reason=None,
    original=None,
    new=None,
    provider="cpu",
    data="random",
    samples=8,
    shapes=(),
    max_error=None,
    interface=(),
    notes=(),
    outputs=(OUTPUT,),
    rel_l2=0.03,
    worst=0.04,
    worst_output="y",
    accuracy=AccuracyChange(output="y", samples=8, original=0.75, new=0.5, change=-0.25),
)
METRIC = RecordedMetric(
    name="wer",
    samples=8,
    labels=True,
    original=0.3,
    new=0.36,
    change=0.06,
    low=0.01,
    high=0.09,
    loss=0.06,
    lower_is_better=True,
    points=False,
)

REACHED: dict[str, tuple[float, bool]] = {
    "macs=2x": (2.0, True),
    "macs=2.5x": (2.0, False),
    "macs=1K": (1000, True),
    "params=3x": (3.0, True),
    "params=99": (100, False),
    "size=2x": (1.5, False),
    "size=1KB": (1000, True),
    "latency=1.2x": (1.25, True),
    "latency=3ms": (4.0, False),
    "error=0.05": (0.04, True),
    "drop=0.1": (0.25, False),
    "disagreement=25%": (0.25, True),
}


@pytest.mark.parametrize("target", REACHED)
def test_what_a_target_came_to(target: str) -> None:
    (found,) = target_results(target, TOTALS, CHECKED, LATENCY)
    assert (found.reached, found.kept) == REACHED[target]
    assert found.relative == target.endswith("x")


OF_A_METRIC: dict[str, tuple[float, bool]] = {
    "drop=0.1": (0.06, True),
    "drop=0.05": (0.06, False),
    "drop=10%": (0.2, False),
    "drop=25%": (0.2, True),
    "metric<=0.4": (0.36, True),
    "metric<=0.35": (0.36, False),
}


@pytest.mark.parametrize("target", OF_A_METRIC)
def test_what_a_target_of_a_metric_came_to(target: str) -> None:
    (found,) = target_results(target, TOTALS, replace(CHECKED, metric=METRIC), LATENCY)
    assert found.target == target
    assert found.reached == pytest.approx(OF_A_METRIC[target][0])
    assert found.kept == OF_A_METRIC[target][1]
    share = replace(METRIC, name="top1", original=0.5, new=0.44, lower_is_better=False, points=True)
    (found,) = target_results("drop=10%", TOTALS, replace(CHECKED, metric=share), LATENCY)
    assert (found.reached, found.kept) == (0.06, True)  # in points
    (found,) = target_results("metric>=0.5", TOTALS, replace(CHECKED, metric=share), LATENCY)
    assert (found.reached, found.kept) == (0.44, False)


def test_every_kind_of_target_is_known() -> None:
    assert {parse_budget(target).quantity for target in (*REACHED, *OF_A_METRIC)} == set(METRICS)


def test_several_targets_and_what_was_not_measured() -> None:
    target = "macs=2x,size=2x,latency=2x,error=0.1,drop=0.1,disagreement=0.1"
    planned = target_results(target, replace(TOTALS, bytes=None), None, None)
    assert [(one.quantity, one.kept) for one in planned] == [
        ("macs", True),
        *((name, None) for name in ("size", "latency", "error", "drop", "disagreement")),
    ]
