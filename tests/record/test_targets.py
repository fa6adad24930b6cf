"""What came of targets, from the other parts of a record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxdecomp.record.schema.checks import AccuracyChange, OutputDifference, RecordedVerification
from onnxdecomp.record.schema.layers import LayerCount, Total, Totals
from onnxdecomp.record.schema.timing import Interval, Latency, TimedFile
from onnxdecomp.record.targets import target_results
from onnxdecomp.search.metrics.registry import METRICS

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


def test_every_kind_of_target_is_known() -> None:
    assert {target.partition("=")[0] for target in REACHED} == set(METRICS)


def test_several_targets_and_what_was_not_measured() -> None:
    target = "macs=2x,size=2x,latency=2x,error=0.1,drop=0.1,disagreement=0.1"
    planned = target_results(target, replace(TOTALS, bytes=None), None, None)
    assert [(one.quantity, one.kept) for one in planned] == [
        ("macs", True),
        *((name, None) for name in ("size", "latency", "error", "drop", "disagreement")),
    ]
