"""The published sizes are ours too."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bench.literature import ROOT, VGG_MODES, Row, convolution, evbmf_ranks, linear, parameters, sizes
from onnxdecomp.decompositions.base import refusal_of
from onnxdecomp.decompositions.registry import get


def number(text: str) -> float:
    found = re.match(r"~?([\d,.]+)", text)
    assert found is not None
    return float(found[1].replace(",", ""))


@pytest.mark.parametrize("row", sizes(), ids=lambda row: row.job)
def test_ours_is_the_published_figure(row: Row) -> None:
    assert number(row.ours) == number(row.published)


def test_tt_layer_of_mnist_by_hand() -> None:
    # 4 cores [r, i, j, r]: 4·5·r + 7·5·r² + 4·5·r² + 7·5·r, and 625 biases
    for rank in (2, 4, 16):
        cores = 20 * rank + 35 * rank**2 + 20 * rank**2 + 35 * rank
        method = get("tt", shape="4x7x4x7:5x5x5x5")
        assert parameters(method, linear(784, 625, bias=True), (rank,) * 3) == cores + 625


def test_counts_are_those_of_the_fitted_factors() -> None:
    layer = convolution(64, 3, (3, 3))
    layer = type(layer)(
        "conv", "Conv", np.random.default_rng(0).standard_normal((64, 3, 3, 3)), None, layer.conv
    )
    factors = get("cp", split_kernel=True).fit(layer, (16,))
    assert sum(f.size for f in factors) == 1168


def test_vgg_modes_are_those_of_the_layer() -> None:
    assert refusal_of(get("tt", shape=VGG_MODES), linear(25088, 4096, bias=False)) is None


def test_evbmf_ranks_of_a_trained_network_compress_it() -> None:
    (row,) = evbmf_ranks(ROOT / "models" / "digits.onnx", "digits")
    assert number(row.ours) > 1
