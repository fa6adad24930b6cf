"""The frontier: what speed costs which loss, over all plans that the profiles allow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.search.layer_profiles import LayerProfile, LayerProfiles
from onnxdecomp.search.plan import Cost, Plan

_MOST = 32
"""Plans that are kept: enough to draw a curve."""


@dataclass(frozen=True)
class Point:
    """A plan that no mixture of others beats.

    Attributes:
        loss: The squared relative error of the output that is expected of it, layers added up.
        latency: Over the original's; None where nothing was timed.
        macs: Over the original's.
        layers: How many are decomposed or cut.
    """

    loss: float
    latency: float | None
    macs: float
    layers: int


def frontier(profiles: LayerProfiles) -> tuple[Point, ...]:
    """The lower hull of loss against latency (MACs where nothing was timed), from the original on.

    Every layer's own hull is a chain of steps that gain ever less for their loss; taking the steps of all
    layers in the order of what they gain for their loss gives the hull of whole plans (Everett 1963). What is
    done to several layers at once is not in it: plans with that may lie below.
    """
    timed = any(entry.part for entry in profiles.layers)
    steps = sorted(
        (step for place, entry in enumerate(profiles.layers) for step in _steps(place, entry, timed)),
        key=lambda step: -step.worth,
    )
    total = sum(entry.dense.macs for entry in profiles.layers) or 1
    whole = profiles.whole_ms / profiles.original_ms if profiles.original_ms else 1.0
    loss, gain, saved = 0.0, 0.0, 0
    changed: set[int] = set()
    points = [Point(0.0, whole if timed else None, 1.0, 0)]
    for step in steps:
        loss, gain, saved = loss + step.loss, gain + step.gain, saved + step.saved
        changed.add(step.place)
        left = (1.0 - gain) * whole if timed else None
        points.append(Point(loss, left, 1.0 - saved / total, len(changed)))
    return _thinned(points)


@dataclass(frozen=True)
class _Step:
    """From one candidate of a layer to the next: what that loses and gains, and the MACs that it saves."""

    place: int
    loss: float
    gain: float
    saved: int

    @property
    def worth(self) -> float:
        return self.gain / self.loss if self.loss > 0 else math.inf


def _steps(place: int, entry: LayerProfile, timed: bool) -> Iterator[_Step]:
    """Along the layer's hull, from the layer as it is to what gains most."""
    parts = entry.parts or (entry.part,) * len(entry.candidates)
    rows = []
    for candidate, loss, part in zip(entry.candidates, entry.losses(), parts, strict=True):
        if candidate.group:
            continue
        saved = entry.dense.macs - candidate.outline.cost.macs
        rows.append((loss, entry.part - part if timed else float(saved), saved))
    at = (0.0, 0.0, 0)
    while better := [row for row in rows if row[1] > at[1]]:
        steps = [_Step(place, max(0.0, row[0] - at[0]), row[1] - at[1], row[2] - at[2]) for row in better]
        step, at = max(zip(steps, better, strict=True), key=lambda pair: (pair[0].worth, pair[0].gain))
        yield step


def _thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    picks = np.unique(np.linspace(0, len(points) - 1, min(len(points), _MOST)).round().astype(int))
    return tuple(points[int(pick)] for pick in picks)


def macs_left(plan: Plan) -> float:
    """The plan's multiply-accumulates over the original's."""
    none = Cost(0, 0)
    before = sum((choice.before or none).macs for choice in plan.choices)
    left = (choice.after if choice.method or choice.narrowed else choice.before for choice in plan.choices)
    return sum((cost or none).macs for cost in left) / before if before else 1.0
