"""The frontier where channels can be cut: what speed costs which loss, plan by plan."""

from __future__ import annotations

from dataclasses import replace

from onnxdecomp.search.joint_options import JointOptions
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.pareto import Point, macs_left
from onnxdecomp.search.select import choose

_ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Relative errors of the output at which plans are looked for."""

_ROUNDS = 1
"""As for `allocate_jointly`: a curve takes no more."""


def joint_frontier(options: JointOptions) -> tuple[Point, ...]:
    """The plans of least cost that are expected to lose no more than so much, from the original on.

    As `pareto.frontier` where no channel can be cut, but at a few losses: each takes a choice of its own.
    """
    profiles, options = options.profiles, replace(options, rounds=_ROUNDS)
    points: dict[float, Point] = {}
    for error in (0.0, *_ERRORS):
        found = choose(profiles, (), (), max_loss=error**2, options=options)
        if not isinstance(found, OutOfReach):
            plan = found.plan
            changed = sum(bool(choice.method or choice.narrowed) for choice in plan.choices)
            points.setdefault(found.loss, Point(found.loss, found.latency, macs_left(plan), changed))
    return tuple(points.values())
