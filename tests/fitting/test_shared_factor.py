"""The first factor that siblings have in common, fitted to moments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxdecomp.calibration.im2col import conv_rows, kernel_first
from onnxdecomp.calibration.statistics import observe_unchanged
from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import MatMul
from onnxdecomp.decompositions.registry import get
from onnxdecomp.decompositions.shared import Shared, by_channel, sibling_factors
from onnxdecomp.fitting.fit import dense_rows, fit
from onnxdecomp.fitting.moments import Gatherer, Moments, features, merged
from onnxdecomp.fitting.quadratic_loss import as_rows, problem
from onnxdecomp.fitting.shared_factor import SiblingProblem, fit_first, fit_last, nearest
from onnxdecomp.layers.find import find
from onnxdecomp.layers.siblings import siblings
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.tensor.linalg import singular_values
from tests.builders.feeds import calibration, normal
from tests.builders.layers import conv_layer, linear_layer

S = 12
MINILM = Path("~/.cache/onnxdecomp-corpus-large/models/minilm_l6.onnx").expanduser()


def moments(layer: Layer, x: Array) -> Moments:
    """Of rows [n, S], or of the windows of images [N, S, H, W]."""
    if layer.conv is None:
        rows = x[None]
    else:
        at = tuple(axis.ravel() for axis in np.indices((6, 6)))
        rows = conv_rows(layer, x, at)[:, :, np.argsort(kernel_first(layer))]
    gatherer = Gatherer(1, layer.outputs, features(layer))
    gatherer.add(rows, rows[0] @ as_rows(layer.weight, layer)[0].T.astype(np.float32))
    return gatherer.moments()


def coloured(n: int, seed: int = 0) -> Array:
    """Rows whose features are of very different sizes and go together."""
    return np.asarray(normal(n, S, seed=seed) @ (normal(S, S) * np.geomspace(3, 0.05, S).astype(np.float32)))


def posed(layers: list[Layer], x: Array) -> SiblingProblem:
    found = [problem(moments(layer, x), as_rows(layer.weight, layer)) for layer in layers]
    return SiblingProblem(tuple(layers), tuple(found), (1.0,) * len(layers))


def fitted(layers: list[Layer], x: Array, held: Array, rank: int) -> list[float]:
    """The losses of layers that are fitted together."""
    halves = [(moments(layer, x), moments(layer, held)) for layer in layers]
    first = fit_first(layers, halves, rank, centred=[True] * len(layers))
    assert first.shape == (rank, S)
    return [fit_last(layer, first, *half).loss for layer, half in zip(layers, halves, strict=True)]


MATRICES = [linear_layer(8, S), linear_layer(20, S, seed=1), linear_layer(5, S, seed=2)]
BRANCHES = [conv_layer(7, S, (1, 1)), conv_layer(9, S, (3, 3), seed=1)]
BRANCHES = [
    replace(layer, conv=replace(layer.conv, pads=(k // 2,) * 4))
    for layer, k in zip(BRANCHES, (1, 3), strict=True)
    if layer.conv
]


def images(seed: int) -> Array:
    mixed = np.einsum(
        "nshw,st->nthw", normal(40, S, 6, 6, seed=seed), normal(S, S) * np.geomspace(3, 0.05, S)
    )
    return np.asarray(mixed, np.float32)


def test_the_optimum_in_the_metric_of_the_data() -> None:
    """Reduced-rank regression of the stacked outputs, each over its energy: nothing is better at the rank."""
    problem_ = posed(MATRICES, coloured(500))
    for rank in (1, 3, 7):
        losses = problem_.losses(problem_.first(rank))
        stack = np.concatenate(
            [
                layer.weight / np.sqrt(own.energy)
                for layer, own in zip(MATRICES, problem_.problems, strict=True)
            ]
        )
        values, vectors = np.linalg.eigh(problem_.problems[0].second[0])
        root = vectors * np.sqrt(values) @ vectors.T
        tail = singular_values(stack @ root)[rank:]
        np.testing.assert_allclose(sum(losses), np.square(tail).sum(), rtol=1e-4)


def test_outputs_of_variance_one() -> None:
    own = posed(MATRICES, coloured(500))
    spread = own.first(4) @ own.problems[0].second[0] @ own.first(4).T
    np.testing.assert_allclose(spread, np.eye(4), atol=1e-6)


@pytest.mark.parametrize("layers", [MATRICES, BRANCHES], ids=["matrices", "convolutions"])
def test_better_than_the_factors_of_the_weights_alone_and_exact_at_full_rank(layers: list[Layer]) -> None:
    x, held = (coloured(400), coloured(200, 1)) if layers is MATRICES else (images(0), images(1))
    assert max(fitted(layers, x, held, S)) < 1e-5
    for rank in (3, 6):
        first = sibling_factors(layers, rank)[0]
        plain = by_channel(first) if layers[0].conv else first.T
        alone = [fit_last(layer, plain, moments(layer, x), moments(layer, held)).loss for layer in layers]
        assert sum(fitted(layers, x, held, rank)) < 0.9 * sum(alone)


def test_turns_over_the_factors_bring_convolutions_below_their_start() -> None:
    own = posed(BRANCHES, images(0))
    for rank in (3, 6):
        start, found = (sum(own.losses(first)) for first in (own.directions[:rank], own.first(rank)))
        assert found < start


def test_as_good_as_alone_where_the_layers_need_the_same_directions() -> None:
    """Layers of about one row space: shared loses what svds of the same rank do, which cost much more."""
    x, held = coloured(400), coloured(200, 1)
    inner = normal(4, S, seed=9)
    layers = [
        replace(layer, weight=normal(layer.outputs, 4, seed=k) @ inner + np.float32(0.05) * layer.weight)
        for k, layer in enumerate(MATRICES)
    ]
    alone = [fit(get("svd"), layer, (4,), moments(layer, x), moments(layer, held)).loss for layer in layers]
    assert sum(fitted(layers, x, held, 4)) < 2 * sum(alone)
    outputs = sum(layer.outputs for layer in layers)
    assert 4 * S + 4 * outputs < 3 * 3 * S + 3 * outputs  # what svds of rank 3 cost
    fewer = [fit(get("svd"), layer, (3,), moments(layer, x), moments(layer, held)).loss for layer in layers]
    assert sum(fitted(layers, x, held, 4)) < 0.1 * sum(fewer)


@pytest.mark.parametrize("layers", [MATRICES, BRANCHES], ids=["matrices", "convolutions"])
def test_a_curve_is_what_fits_lose(layers: list[Layer]) -> None:
    own = posed(layers, coloured(500) if layers is MATRICES else images(0))
    ranks = [11, 1, 2, 4, 5, 6, 8, 9]
    fits = np.array([own.losses(own.directions[:rank]) for rank in ranks])
    np.testing.assert_allclose(own.curve(ranks), fits, rtol=0.25 if layers is BRANCHES else 1e-5, atol=1e-7)


def test_weights_say_what_counts() -> None:
    x = coloured(400)
    losses = {}
    for counts in ((100.0, 1.0, 1.0), (1.0, 1.0, 100.0)):
        halves = [(moments(layer, x), None) for layer in MATRICES]
        first = fit_first(MATRICES, halves, 3, weights=counts, centred=[True] * 3)
        losses[counts] = [
            fit_last(layer, first, *half).loss for layer, half in zip(MATRICES, halves, strict=True)
        ]
    favoured, neglected = losses.values()
    assert favoured[0] < neglected[0]
    assert favoured[2] > neglected[2]


def test_nearest_is_the_projection_of_the_weight() -> None:
    first = normal(5, S)
    chain = nearest(MATRICES[1], first)
    left = dense_rows(chain, MATRICES[1])[0] - MATRICES[1].weight
    np.testing.assert_allclose(left @ first.T, 0, atol=1e-4)
    assert isinstance(chain, Chain)
    assert isinstance(chain.steps[0], MatMul)
    assert Shared().shapes(MATRICES[1], (5,)) == tuple(step.weight.shape for step in chain.weighted)


@pytest.mark.skipif(not MINILM.is_file(), reason=f"no {MINILM}")
def test_queries_keys_and_values_of_a_sentence_encoder() -> None:
    """At equal multiplications a factor of 1.5 times the rank loses less than three svds, on unseen rows."""
    model = ir.load(MINILM)
    names = {f"/m/encoder/layer.0/attention/self/{name}/MatMul" for name in ("query", "key", "value")}
    matched = [match for match in find(model)[0] if match.layer.name in names]
    assert siblings(matched, ties(matched)).groups == ((0, 1, 2),)
    halves, unseen = (
        observe_unchanged(model, matched, calibration(sentences(seed), held_out=0.25)) for seed in (0, 1)
    )
    layers = [match.layer for match in matched]
    judges = [
        problem(merged(*half), as_rows(layer.weight, layer), centred=False)
        for half, layer in zip(unseen, layers, strict=True)
    ]
    first = fit_first(layers, halves, 144, centred=[False] * 3)
    together = alone = 0.0
    for layer, half, judge in zip(layers, halves, judges, strict=True):
        own = fit(get("svd"), layer, (96,), *half, centred=False)
        together += judge.relative(dense_rows(fit_last(layer, first, *half, centred=False).chain, layer))
        alone += judge.relative(dense_rows(own.chain, layer))
    assert together < 0.95 * alone


def sentences(seed: int) -> list[dict[str, Array]]:
    """Words by chance, eight to a row."""
    ids = np.random.default_rng(seed).integers(1000, 20000, (40, 1, 48))
    ones = np.ones_like(ids[0])
    return [{"input_ids": row, "attention_mask": ones, "token_type_ids": 0 * ones} for row in ids]
