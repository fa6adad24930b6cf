"""Quantizers of others take what we write, and what they write is read again: ONNX Runtime, ModelOpt, NNCF.

Those that are not installed are skipped.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime.quantization as ort_quantization
import pytest

from models.digits import MODEL, TEST_DATA
from onnxdecomp import compress
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from tests.builders.running import run

Quantize = Callable[[Path, Path, Array], None]
"""From a file to a file, with images [n, 1, 8, 8] to take ranges from."""


class _Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Array) -> None:
        self._feeds = iter([{"image": images[k : k + 1]} for k in range(len(images))])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _static(source: Path, target: Path, images: Array, *, form: str) -> None:
    ort_quantization.quantize_static(
        source,
        target,
        _Reader(images),
        quant_format=ort_quantization.QuantFormat[form],
        per_channel=True,
    )


def _dynamic(source: Path, target: Path, images: Array) -> None:
    ort_quantization.quantize_dynamic(source, target, per_channel=True)


def _modelopt(source: Path, target: Path, images: Array) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        calibration_data={"image": images},
        output_path=str(target),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
    )


def _nncf(source: Path, target: Path, images: Array) -> None:
    import nncf

    data = nncf.Dataset([{"image": images[k : k + 1]} for k in range(len(images))])
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=len(images)), target)


def _where(package: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed")


QUANTIZERS = [
    pytest.param(partial(_static, form="QDQ"), id="static-qdq"),
    pytest.param(partial(_static, form="QOperator"), id="static-qoperator"),
    pytest.param(_dynamic, id="dynamic"),
    pytest.param(_modelopt, id="modelopt", marks=_where("modelopt")),
    pytest.param(_nncf, id="nncf", marks=_where("nncf")),
]

CHAINS: dict[str, set[str]] = {"static-qoperator": set(), "dynamic": {"svd"}}
"""The methods of the chains; in QDQ files, the others, all layers are read. Convolutions of integers stay."""

STEPS = 4 * 3 + 2 + 2
"""Products of the decomposed network: chains of three steps, of two, and layers that were kept."""

LAYERS = {"conv1_1", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "fc1", "fc2"}


@pytest.fixture(scope="module")
def images() -> Array:
    with np.load(TEST_DATA) as data:
        return np.asarray(data["image"])


@pytest.fixture(scope="module")
def decomposed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network with Tucker chains in five layers."""
    target = tmp_path_factory.mktemp("digits") / "small.onnx"
    compress(MODEL, target, method="tucker", rank="0.375", verify=False, bench=False)
    return target


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_chains_are_quantized(quantize: Quantize, decomposed: Path, images: Array, tmp_path: Path) -> None:
    """The quantized file computes what the chains do, as near as 8 bits let it, step by step."""
    target = tmp_path / "int8.onnx"
    quantize(decomposed, target, images[:32])
    (found,), (wanted,) = run(target, {"image": images}), run(decomposed, {"image": images})
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)
    assert np.mean(found.argmax(1) == wanted.argmax(1)) > 0.98
    operators = [node.op_type for node in onnx.load(target).graph.node]
    integers = [name for name in operators if re.search("QuantizeLinear|^QLinear|QGemm|Integer", name)]
    assert len(integers) >= STEPS


@pytest.mark.parametrize(
    ("quantize", "chains"),
    [
        pytest.param(*p.values, CHAINS.get(str(p.id), {"tucker", "svd"}), id=p.id, marks=p.marks)
        for p in QUANTIZERS
    ],
)
def test_what_they_write_is_read_again(
    quantize: Quantize, chains: set[str], images: Array, tmp_path: Path
) -> None:
    """Every layer of a quantized file is found; it is decomposed, or its reason says why it stays."""
    source, target = tmp_path / "int8.onnx", tmp_path / "small.onnx"
    quantize(save(load(MODEL), tmp_path / "float.onnx"), source, images[:32])
    result = compress(source, target, method="tucker", rank="0.75", must_save="none", bench=False)
    assert [layer.op for layer in result.layers if not (layer.status == "decomposed" or layer.reason)] == []
    assert len(result.layers) == len(LAYERS)
    taken = {layer.method for layer in result.layers if layer.status == "decomposed"}
    assert taken == chains
    assert max(layer.lowering or 0.0 for layer in result.layers) < 1e-4
    with np.load(TEST_DATA) as data:
        (found,) = run(target, {"image": images})
        assert np.mean(found.argmax(1) == data["labels"]) > 0.9
