"""The way that the compression benchmark compares with is a right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bench.dense import weight_error
from bench.straightforward import Ranks, compress
from models import shapes


def _ranks(path: Path, fraction: float) -> Ranks:
    graph = onnx.load(path).graph
    sizes = {tensor.name: tensor.dims for tensor in graph.initializer}
    ranks: Ranks = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        outputs, inputs, *kernel = sizes[node.input[1]]
        if node.op_type == "Conv" and kernel[0] > 1:
            ranks[node.name] = (max(1, int(outputs * fraction)), max(1, int(inputs * fraction)))
        else:
            ranks[node.name] = (max(1, int(min(outputs, inputs) * fraction)),)
    return ranks


@pytest.mark.parametrize(
    "model",
    [
        shapes.resnet18(batch_norm=False, width=1 / 16, size=32, classes=8),
        shapes.vgg16(width=1 / 16, size=32, classes=8),
    ],
    ids=["resnet18", "vgg16"],
)
def test_full_rank_keeps_the_function_and_half_rank_loses_what_is_said(
    model: ir.Model, tmp_path: Path
) -> None:
    source, target = shapes.save(model, tmp_path / "model.onnx"), tmp_path / "new.onnx"
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    full = _ranks(source, 1)
    compress(source, target, full)
    before, after = (
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for path in (source, target)
    )
    np.testing.assert_allclose(after, before, atol=1e-4 * float(np.abs(before).max()))
    assert weight_error(source, target, full) < 1e-5

    half = _ranks(source, 0.5)
    compress(source, target, half)
    # Random weights have flat spectra: a truncation cannot be near, and cannot lose everything.
    assert 0.3 < weight_error(source, target, half) < 0.9
