"""The frontier: what speed costs which loss, over all plans that a survey allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.plan.plan import Cost, Plan
from onnxdecomp.plan.survey import Survey, Surveyed

_PRICES = 200
_MOST = 32
"""Plans that are kept: enough to draw a curve."""


@dataclass(frozen=True)
class Point:
    """A plan that no mixture of others beats.

    Attributes:
        loss: The squared relative error of the output that is expected of it, layers added up.
        latency: Over the original's; None where nothing was timed.
        macs: Over the original's.
        layers: Decomposed ones.
    """

    loss: float
    latency: float | None
    macs: float
    layers: int


def frontier(survey: Survey) -> tuple[Point, ...]:
    """The lower hull of loss against latency (MACs where nothing was timed), from the original on.

    At every price of the cost in losses, each layer takes what is cheapest for it alone (Everett 1963); the
    plans of all prices are the corners of the hull.
    """
    entries = [entry for entry in survey.layers if entry.candidates]
    timed = any(entry.part for entry in entries)
    tables = [_table(entry, timed) for entry in entries]
    total = sum(entry.dense.macs for entry in survey.layers) or 1
    whole = survey.whole_ms / survey.original_ms if survey.original_ms else 1.0
    ratios = [gain / loss for table in tables for loss, gain, _ in table[1:] if loss > 0 and gain > 0]
    points: dict[tuple[int, ...], Point] = {}
    for price in _prices(ratios):
        picks = tuple(int(np.argmin([loss * price - gain for loss, gain, _ in table])) for table in tables)
        chosen = [table[pick] for table, pick in zip(tables, picks, strict=True)]
        points[picks] = Point(
            loss=sum(loss for loss, _, _ in chosen),
            latency=(1.0 - sum(gain for _, gain, _ in chosen)) * whole if timed else None,
            macs=1.0 - sum(saved for _, _, saved in chosen) / total,
            layers=sum(pick > 0 for pick in picks),
        )
    return _thinned(sorted(points.values(), key=lambda point: point.loss))


def _table(entry: Surveyed, timed: bool) -> list[tuple[float, float, int]]:
    """Loss, what is gained, and MACs saved: of the layer as it is, and with each candidate."""
    rows = [(0.0, 0.0, 0)]
    parts = entry.parts or (entry.part,) * len(entry.candidates)
    for candidate, loss, part in zip(entry.candidates, entry.losses(), parts, strict=True):
        saved = entry.dense.macs - candidate.outline.cost.macs
        rows.append((loss, entry.part - part if timed else float(saved), saved))
    return rows


def _prices(ratios: Sequence[float]) -> Sequence[float]:
    """Prices of the loss from one at which nothing pays to one at which all that gains does."""
    if not ratios:
        return (0.0,)
    return tuple(np.geomspace(2 * max(ratios), min(ratios) / 2, _PRICES).tolist())


def _thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    picks = np.unique(np.linspace(0, len(points) - 1, min(len(points), _MOST)).round().astype(int))
    return tuple(points[int(pick)] for pick in picks)


def macs_left(plan: Plan) -> float:
    """The plan's multiply-accumulates over the original's."""
    none = Cost(0, 0)
    before = sum((choice.before or none).macs for choice in plan.choices)
    after = sum(((choice.after if choice.method else choice.before) or none).macs for choice in plan.choices)
    return after / before if before else 1.0
