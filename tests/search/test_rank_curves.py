"""Losses between fits: a spectrum's cliff is seen, wherever it lies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxdecomp.calibration.statistics import observe_unchanged
from onnxdecomp.core.layer import Array
from onnxdecomp.decompositions.registry import get
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.search import candidates as module
from onnxdecomp.search.candidates import candidates, outlines
from onnxdecomp.search.rank_curves import filled_in
from tests.builders import graphs
from tests.builders.feeds import calibration, normal

NOISE = 1e-4
"""Of what lies below the cliff, over what lies above."""

RANK = 9
METHODS = ("svd", "svd:kernel-first", "spatial", "tucker", "tt")


def cliff(method: str) -> Array:
    """A 3x3 kernel that the method gives with little loss at RANK, and with much below it."""
    rng = np.random.default_rng(2)
    t, s = 40, 32
    forms: dict[str, tuple[Any, ...]] = {
        "svd": ("trkl,rs->tskl", (t, RANK, 3, 3), (RANK, s)),
        "svd:kernel-first": ("tr,rskl->tskl", (t, RANK), (RANK, s, 3, 3)),
        "spatial": ("trl,rsk->tskl", (t, RANK, 3), (RANK, s, 3)),
        "tucker": ("tp,pqkl,qs->tskl", (t, RANK), (RANK, RANK, 3, 3), (RANK, s)),
        "tt": ("trl,rsk->tskl", (t, RANK, 3), (RANK, s, 3)),
    }
    form, *shapes = forms[method]
    low = np.einsum(form, *(rng.standard_normal(shape) for shape in shapes))
    noise = rng.standard_normal(low.shape)
    noise *= NOISE * np.linalg.norm(low) / np.linalg.norm(noise)
    return np.asarray((low + noise) / 40, np.float32)


def weighed(method: str, calibrated: bool) -> tuple[LayerMatch, Moments | None]:
    weight = cliff(method)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="one", pads=[1] * 4)
    model = graphs.from_x([node], {"w": weight}, ["N", 32, 6, 6])
    (match,), _ = find(model)
    if not calibrated:
        return match, None
    scales = np.exp(-np.arange(32) / 8).astype(np.float32)[None, :, None, None]
    feeds = [{"x": scales * normal(1, 32, 6, 6, seed=index)} for index in range(40)]
    ((train, held),) = observe_unchanged(model, [match], calibration(feeds))
    return match, merged(train, held)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_expected_is_what_a_fit_loses(method: str, calibrated: bool) -> None:
    match, moments = weighed(method, calibrated)
    name, _, order = method.partition(":")
    options = outlines(match, [get(name, **({"order": order} if order else {}))])
    found = candidates(match, options, moments)
    # Fitted at every rank, nothing is left to be expected.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ANCHORS", tuple(module.REDUCTIONS))
        fitted = candidates(match, options, moments)
    expected = {candidate.outline.ranks: candidate for candidate in found}
    guessed = [candidate for candidate in fitted if expected[candidate.outline.ranks].fitted is None]
    losses = [candidate.loss for candidate in fitted]
    assert max(losses) > 1e4 * min(losses)
    assert len(guessed) > 3
    for candidate in guessed:
        known, told = max(candidate.loss, 1e-8), max(expected[candidate.outline.ranks].loss, 1e-8)
        assert 1 / 6 < told / known < 6, (candidate.outline.ranks, told, known)


def test_gaps_with_a_cliff_in_them_are_looked_into() -> None:
    costs: dict[Any, float] = {(rank,): float(rank) for rank in range(1, 33)}
    fits: dict[Any, float] = {(1,): 0.9, (32,): 1e-8}

    def fit(ranks: tuple[int, ...]) -> float:
        fits[ranks] = 0.9 if ranks[0] < 20 else 1e-8
        return fits[ranks]

    filled_in(costs, fits, fit)
    edges = sorted(ranks[0] for ranks in fits)
    assert len(fits) == 6
    assert any(low < 20 <= high and high - low <= 3 for low, high in itertools.pairwise(edges))
    smooth: dict[Any, float] = {(1,): 0.9, (32,): 0.1}
    filled_in(costs, smooth, fit)
    assert len(smooth) == 2
