"""Shrinkage brings noisy estimates nearer to the truth, and leaves sure ones alone."""

from __future__ import annotations

import numpy as np

from bench.candidate_shrinkage import Estimates, shrunk
from onnxdecomp.core.layer import Array

COSTS = np.log(np.linspace(10, 100, 12))


def layers(noise: float, rng: np.random.Generator) -> tuple[list[Estimates], Array]:
    """Sixteen layers of one method, whose levels wander slowly, and the truth, [layers, candidates]."""
    levels = np.cumsum(rng.normal(0, 0.1, 16))
    alone = -2 * COSTS
    truth = levels[:, None] + alone
    folds = truth[:, None] + rng.normal(0, noise, (16, 4, 1)) + rng.normal(0, noise, (16, 4, len(COSTS)))
    one = truth + rng.normal(0, noise, (16, 1)) + rng.normal(0, noise, truth.shape)
    methods = ("svd",) * len(COSTS)
    return [Estimates(methods, COSTS, alone, *pair) for pair in zip(one, folds, strict=True)], truth


def test_noise_is_taken_off() -> None:
    found, truth = layers(0.4, np.random.default_rng(0))
    raw = np.array([layer.losses for layer in found])
    error, before = (float(np.sqrt(np.mean((x - truth) ** 2))) for x in (np.array(shrunk(found, 1)), raw))
    assert error < 0.7 * before


def test_without_noise_nothing_moves() -> None:
    found, truth = layers(0.0, np.random.default_rng(1))
    np.testing.assert_allclose(shrunk(found, 1), truth, atol=1e-9)
