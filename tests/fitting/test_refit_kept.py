"""Repair: kept layers fitted to what they see by now."""

from __future__ import annotations

import numpy as np
import pytest

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.moments import Gatherer, Moments
from onnxdecomp.fitting.refit_kept import repair

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 6)).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32)
LAYER = Layer(name="layer", op_type="Gemm", weight=WEIGHT, bias=BIAS, dtype="float32")
MEANT = RNG.normal(size=(4000, 6)) @ RNG.normal(size=(6, 6)) + 1.0
SCALED = MEANT * np.array([0.5, 1, 1, 2, 1, 1]) + 0.3
"""What the layer sees now: every feature moved, two scaled. It can be made up for exactly."""


def gathered(seen: Array, meant: Array) -> Moments:
    gather = Gatherer(1, 3, 6)
    gather.add(seen[None], meant @ WEIGHT.T.astype(np.float64) + BIAS)
    return gather.moments()


def test_what_can_be_undone_is_undone() -> None:
    halves = [gathered(SCALED[part], MEANT[part]) for part in (slice(0, 3000), slice(3000, None))]
    found = repair(LAYER, *halves, shrinkages=(0.0, 0.1))
    assert found is not None
    assert found.shrinkage == 0.0
    assert found.plain_loss > 0.01
    assert found.loss < 1e-6
    new = MEANT @ WEIGHT.T.astype(np.float64) + BIAS
    np.testing.assert_allclose(found.chain.forward(SCALED) + found.chain.bias, new, atol=1e-3)


def test_without_held_out_rows_the_bias_alone_is_corrected() -> None:
    found = repair(LAYER, gathered(MEANT + 0.3, MEANT))
    assert found is not None
    np.testing.assert_array_equal(found.chain.dense(), WEIGHT)
    assert found.chain.bias is not None
    np.testing.assert_allclose(found.chain.bias, BIAS - WEIGHT @ np.full(6, 0.3), atol=1e-4)


def test_weights_that_do_no_better_elsewhere_are_not_taken() -> None:
    """Few rows with noise of their own: what fits them is worse on others."""
    noise = RNG.normal(size=MEANT.shape) * 0.1
    few, others = slice(0, 7), slice(100, None)
    halves = (
        gathered(MEANT[few] + noise[few], MEANT[few]),
        gathered(MEANT[others] + noise[others], MEANT[others]),
    )
    found = repair(LAYER, *halves, shrinkages=(1e-9,))
    assert found is not None
    np.testing.assert_array_equal(found.chain.dense(), WEIGHT)


def test_nothing_is_done_where_nothing_was_lost() -> None:
    assert repair(LAYER, gathered(MEANT, MEANT)) is None


def test_a_layer_with_no_bias_to_correct_and_no_proof_stays() -> None:
    assert repair(LAYER, gathered(SCALED, MEANT), centred=False) is None


@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_the_chosen_strength_pulls_towards_the_weight(strength: float) -> None:
    halves = [gathered(SCALED[part], MEANT[part]) for part in (slice(0, 3000), slice(3000, None))]
    found = repair(LAYER, *halves, shrinkages=(strength,))
    free = repair(LAYER, *halves, shrinkages=(0.0,))
    assert found is not None
    assert free is not None
    far = [np.linalg.norm(fit.chain.dense() - WEIGHT) for fit in (found, free)]
    assert far[0] < far[1]
