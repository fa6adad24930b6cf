"""Every operator against ONNX Runtime, in the opsets that changed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.training.autograd.operators import operators
from tests.training.autograd.one_node import check

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.abs(normal(*shape)) + np.float32(0.1)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float, kind: Any = np.float32) -> Array:
    return np.array(value, kind)


SMALL = (RNG.random((3, 4)) * 1.8 - 0.9).astype(np.float32)
FLAGS = RNG.random((3, 4)) < 0.5
IMAGE = normal(2, 3, 7, 6)

Case = tuple[str, list[Array | None], dict[str, Any]]


def case(name: str, inputs: Sequence[Array | None], how: Mapping[str, Any]) -> Case:
    """An operator, its inputs, and its attributes."""
    return name, list(inputs), dict(how)


UNARY = "Abs Atan Ceil Cos Erf Exp Floor HardSigmoid HardSwish Neg Relu Round Sigmoid Sign Sin Softplus"
UNARY += " Softsign Tan Tanh Identity Elu Celu Selu LeakyRelu ThresholdedRelu Mish Asin Acos IsNaN Sinh Cosh"
BINARY = "Add Sub Mul Div Max Min Sum Mean PRelu Greater Less Equal GreaterOrEqual LessOrEqual"
REDUCTIONS = "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp"

CASES: list[Case] = [
    *(case(name, [SMALL], {}) for name in UNARY.split()),
    *(case(name, [positive(3, 4)], {}) for name in ("Sqrt", "Log", "Reciprocal")),
    *(case(name, [normal(2, 3, 4), normal(3, 1)], {}) for name in BINARY.split()),
    *(case(name, [FLAGS, ~FLAGS[:1]], {}) for name in ("And", "Or", "Xor")),
    *(case(name, [positive(2, 3, 4)], {"axes": [0, -1], "opset": 11}) for name in REDUCTIONS.split()),
    *(case(name, [positive(2, 3, 4), ints(1)], {"keepdims": 0}) for name in REDUCTIONS.split()),
    *(case(name, [normal(2, 3, 4)], {"axis": 1}) for name in ("Softmax", "LogSoftmax")),
    *(case(name, [normal(2, 3, 4)], {"axis": 1, "opset": 11}) for name in ("Softmax", "LogSoftmax")),
    *(
        case(name, [normal(3, 4)], {"axis": 1, "keepdims": k})
        for name in ("ArgMax", "ArgMin")
        for k in (0, 1)
    ),
    ("ReduceLogSum", [positive(2, 3)], {}),
    ("ReduceSum", [normal(2, 3), ints(1)], {}),
    ("ReduceSum", [normal(2, 3), ints()], {"noop_with_empty_axes": 1}),
    ("ReduceSum", [normal(2, 3)], {"axes": [0], "opset": 11, "keepdims": 0}),
    ("ReduceSum", [ints(3, 4, 5)], {}),
    ("ReduceMax", [ints(3, 4, 5)], {}),
    ("IsInf", [np.array([1, np.inf, -np.inf], np.float32)], {}),
    ("Not", [FLAGS], {}),
    ("Gelu", [SMALL], {"opset": 20}),
    ("Gelu", [SMALL], {"opset": 20, "approximate": "tanh"}),
    ("Gelu", [SMALL], {"domain": "com.microsoft"}),
    ("QuickGelu", [SMALL], {"domain": "com.microsoft"}),
    ("HardSigmoid", [normal(3, 4)], {"alpha": 0.3, "beta": 0.4}),
    ("Elu", [SMALL], {"alpha": 0.5}),
    ("Celu", [SMALL], {"alpha": 0.5}),
    ("Clip", [normal(3, 4), scalar(-0.5), scalar(0.5)], {}),
    ("Clip", [normal(3, 4), None, scalar(0.5)], {}),
    ("Clip", [normal(3, 4)], {"min": -0.25, "max": 0.5, "opset": 9}),
    ("Clip", [ints(3, 4, 5), scalar(4, np.int64)], {}),
    ("Cast", [normal(3, 4) * 5], {"to": 7}),
    ("Cast", [ints(0, 2)], {"to": 9}),
    ("CastLike", [ints(0, 2), normal(1)], {}),
    ("Dropout", [normal(3)], {}),
    ("Div", [ints(7, -7, 9), ints(2, 2, -4)], {}),
    ("Mod", [ints(7, -7, 9), ints(3, 3, -4)], {}),
    ("Mod", [normal(4), positive(4)], {"fmod": 1}),
    ("Pow", [positive(3, 4), normal(4)], {}),
    ("Pow", [normal(3, 4), scalar(2, np.int64)], {}),
    ("Where", [FLAGS, normal(3, 4), normal(4)], {}),
    ("PRelu", [normal(2, 3, 4, 4), positive(3, 1, 1)], {}),
    ("MatMul", [normal(2, 3, 4), normal(4, 5)], {}),
    ("MatMul", [normal(4), normal(4, 5)], {}),
    ("Gemm", [normal(4, 3), normal(5, 4), normal(5)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [normal(3, 4), normal(4, 5)], {}),
    ("Einsum", [normal(2, 3, 4), normal(4, 5)], {"equation": "bij,jk->bik"}),
    ("BatchNormalization", [IMAGE, normal(3), normal(3), normal(3), positive(3)], {"epsilon": 1e-3}),
    ("InstanceNormalization", [IMAGE, normal(3), normal(3)], {}),
    ("LayerNormalization", [normal(2, 3, 4), normal(4), normal(4)], {}),
    ("LayerNormalization", [normal(2, 3, 4), normal(3, 4)], {"axis": 1}),
    ("GroupNormalization", [normal(2, 4, 5), normal(2), normal(2)], {"num_groups": 2, "tolerance": 1e-4}),
    ("GroupNormalization", [normal(2, 4, 5), normal(4), normal(4)], {"num_groups": 2, "opset": 21}),
    ("LRN", [positive(2, 6, 3, 3)], {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}),
    ("LpNormalization", [normal(3, 4)], {"p": 1, "axis": 0}),
    ("GlobalAveragePool", [IMAGE], {}),
    ("GlobalMaxPool", [IMAGE], {}),
    ("Reshape", [normal(2, 3, 4), ints(0, -1)], {}),
    ("Reshape", [normal(2, 0, 4), ints(0, 8)], {"allowzero": 1}),
    ("Transpose", [normal(2, 3, 4)], {}),
    ("Transpose", [normal(2, 3, 4)], {"perm": [1, 2, 0]}),
    *(case("Flatten", [normal(2, 3, 4)], {"axis": axis}) for axis in (0, 1, 2, -1)),
    ("Squeeze", [normal(1, 3, 1)], {}),
    ("Squeeze", [normal(1, 3, 1), ints(-1)], {}),
    ("Squeeze", [normal(1, 3, 1)], {"axes": [0], "opset": 11}),
    ("Unsqueeze", [normal(3, 4), ints(0, -1)], {}),
    ("Unsqueeze", [normal(3, 4)], {"axes": [3, 1], "opset": 11}),
    ("Concat", [normal(2, 3), normal(2, 1)], {"axis": -1}),
    ("Split", [normal(2, 7)], {"axis": 1, "num_outputs": 3, "outputs": 3}),
    ("Split", [normal(2, 6), ints(1, 5)], {"axis": 1, "outputs": 2}),
    ("Split", [normal(2, 6)], {"axis": 1, "split": [4, 2], "opset": 11, "outputs": 2}),
    ("Slice", [normal(5, 6), ints(1), ints(-1), ints(1)], {}),
    ("Slice", [normal(5, 6), ints(4, 10), ints(-10, 0), ints(0, 1), ints(-2, -1)], {}),
    ("Slice", [normal(5, 6)], {"starts": [1, 2], "ends": [3, 1000], "opset": 9}),
    ("Shape", [normal(2, 3, 4)], {}),
    ("Shape", [normal(2, 3, 4)], {"start": 1, "end": -1}),
    ("Size", [normal(2, 3)], {}),
    ("Expand", [normal(3, 1), ints(2, 1, 4)], {}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("Range", [scalar(1, np.int64), scalar(9, np.int64), scalar(3, np.int64)], {}),
    ("Tile", [normal(2, 3), ints(2, 1)], {}),
    *(
        case("Pad", [normal(4, 5), ints(1, 2, 0, 3)], {"mode": mode})
        for mode in ("constant", "reflect", "edge")
    ),
    ("Pad", [normal(4, 5), ints(1, -2, 0, 3), scalar(2.5)], {}),
    ("Pad", [normal(4, 5), ints(1, 2), None, ints(1)], {}),
    ("Pad", [normal(4, 5), ints(1, 2, 2, 1)], {"mode": "wrap", "opset": 21}),
    ("Pad", [normal(4, 5)], {"pads": [0, 1, 1, 0], "value": 0.5, "opset": 9}),
    ("DepthToSpace", [normal(1, 8, 2, 3)], {"blocksize": 2}),
    ("DepthToSpace", [normal(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [normal(1, 2, 4, 6)], {"blocksize": 2}),
    ("Trilu", [normal(4, 4), scalar(1, np.int64)], {"upper": 0}),
    ("Trilu", [normal(2, 4, 4)], {}),
    ("CumSum", [normal(3, 4), scalar(1, np.int64)], {"exclusive": 1, "reverse": 1}),
    ("CumSum", [normal(3, 4), scalar(0, np.int64)], {}),
    ("Gather", [normal(5, 3), ints(0, -1, 2).reshape(3, 1)], {}),
    ("Gather", [normal(5, 3), scalar(1, np.int64)], {"axis": 1}),
    ("GatherElements", [normal(3, 3), ints(0, 2, -1).reshape(1, 3)], {"axis": 0}),
    ("GatherND", [normal(3, 4, 2), ints(0, 1, 2, 3).reshape(2, 2)], {}),
    ("ScatterND", [normal(4, 3), ints(1, 3).reshape(2, 1), normal(2, 3)], {}),
    ("ScatterElements", [normal(3, 3), ints(1, 0, 2).reshape(1, 3), normal(1, 3)], {}),
    ("ScatterElements", [normal(3, 3), ints(1, 1, 2).reshape(1, 3), normal(1, 3)], {"reduction": "add"}),
    ("OneHot", [ints(0, 2, -1, 7), scalar(3, np.int64), np.array([0.5, 2], np.float32)], {}),
    ("TopK", [normal(3, 6), ints(2)], {"outputs": 2}),
    ("TopK", [normal(3, 6), ints(2)], {"outputs": 2, "largest": 0, "axis": 0}),
    ("NonZero", [FLAGS], {}),
    ("RMSNormalization", [normal(2, 3, 4), normal(4)], {"opset": 23}),
    ("Swish", [normal(2, 3)], {"opset": 24, "alpha": 0.5}),
    ("Scatter", [normal(3, 3), ints(1, 0, 2).reshape(1, 3), normal(1, 3)], {"opset": 9}),
    ("Affine", [normal(2, 3)], {"opset": 7, "alpha": 2.0, "beta": 0.5}),
    ("ImageScaler", [normal(1, 3, 4, 4)], {"opset": 7, "scale": 2.0, "bias": [0.5, 1.0, 2.0]}),
    ("Crop", [normal(1, 3, 8, 9)], {"opset": 7, "border": [1, 2, 3, 1]}),
    ("Crop", [normal(1, 3, 8, 9)], {"opset": 7, "border": [1, 2, 3, 1], "scale": [4, 3]}),
    ("FusedMatMul", [normal(2, 4, 3), normal(4, 5)], {"domain": "com.microsoft", "transA": 1, "alpha": 2.0}),
    ("FusedConv", [IMAGE, normal(4, 3, 3, 3), normal(4)], {"domain": "com.microsoft", "activation": "Relu"}),
    (
        "FusedGemm",
        [normal(2, 3), normal(3, 4), normal(4)],
        {"domain": "com.microsoft", "activation": "LeakyRelu", "activation_alpha": 0.2},
    ),
]


@pytest.mark.parametrize(
    ("name", "inputs", "how"), CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)]
)
def test_an_operator_is_as_in_onnx_runtime(
    name: str, inputs: list[Array | None], how: dict[str, Any]
) -> None:
    check(name, inputs, **how)


def test_every_operator_is_tested() -> None:
    elsewhere = """AveragePool Conv ConvTranspose DequantizeLinear GRU If LSTM Loop MaxPool QuantizeLinear RNN
        Resize Upsample"""
    known = {name for _, name in operators()}
    assert known - {case[0] for case in CASES} == set(elsewhere.split())
