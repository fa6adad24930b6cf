"""The random networks have the published structure and run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from models.shapes import MODELS, parameter_count, resnet18, resnet50, save, vgg16

# torchvision's counts of trainable parameters
PUBLISHED = {"resnet18": 11_689_512, "resnet50": 25_557_032, "vgg16": 138_357_544}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert parameter_count(MODELS[name]()) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"Conv": 20, "Gemm": 1, "Add": 8, "Relu": 17, "MaxPool": 1}),
        ("resnet50", {"Conv": 53, "Gemm": 1, "Add": 16, "Relu": 49, "MaxPool": 1}),
        ("vgg16", {"Conv": 13, "Gemm": 3, "Add": 0, "Relu": 15, "MaxPool": 5}),
    ],
)
def test_operators_are_the_published_ones(name: str, expected: dict[str, int]) -> None:
    model = MODELS[name](width=1 / 16)
    counts = Counter(node.op_type for node in model.graph)
    assert {op: counts[op] for op in expected} == expected
    assert counts["BatchNormalization"] == (0 if name == "vgg16" else counts["Conv"])


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        resnet18(width=1 / 8, size=64, classes=7),
        resnet50(width=1 / 16, size=64, classes=7, batch_norm=False),
        vgg16(width=1 / 16, size=64, classes=7),
    ],
    ids=["resnet18", "resnet50 folded", "vgg16"],
)
def test_runs_in_onnxruntime(model: ir.Model, external: bool, tmp_path: Path) -> None:
    path = save(model, tmp_path / "model.onnx", external=external)
    assert (tmp_path / "model.onnx.data").exists() == external
    onnx.checker.check_model(path, full_check=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    (scores,) = session.run(None, {"image": image})
    assert scores.shape == (3, 7)
    assert np.isfinite(scores).all()
    # He's scale keeps the signal alive: different images have different scores.
    assert 1e-3 < float(np.std(scores, axis=0).max()) < 1e3


def test_one_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        save(resnet18(width=1 / 16, seed=seed), tmp_path / f"{i}.onnx").read_bytes()
        for i, seed in enumerate((1, 1, 2))
    )
    assert first == again
    assert first != other
