"""Layers, plain values and hypothesis strategies, and what a method makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec, Layer, Ranks, relative_error
from onnxdecomp.decompositions.base import Decomposition, Refusal


def conv_layer(
    outputs: int,
    inputs: int,
    kernel: tuple[int, ...],
    *,
    groups: int = 1,
    transposed: bool = False,
    stride: int = 1,
    weight: Array | None = None,
    seed: int = 0,
) -> Layer:
    rng = np.random.default_rng(seed)
    d = len(kernel)
    if weight is None:
        weight = rng.standard_normal((outputs, inputs // groups, *kernel)).astype(np.float32)
    spec = ConvSpec(
        strides=(stride,) * d,
        dilations=(1,) * d,
        pads=(1,) * d + (0,) * d,
        groups=groups,
        transposed=transposed,
        output_padding=(stride - 1,) * d if transposed else (),
    )
    bias = rng.standard_normal(outputs).astype(weight.dtype)
    op = "ConvTranspose" if transposed else "Conv"
    return Layer("layer", op, weight, bias, spec, input_shape=("N", inputs, *(9,) * d))


def linear_layer(outputs: int, inputs: int, stack: tuple[int, ...] = (), seed: int = 0) -> Layer:
    weight = np.random.default_rng(seed).standard_normal((*stack, outputs, inputs)).astype(np.float32)
    return Layer("layer", "MatMul", weight, None, input_shape=(*stack, 3, inputs))


def zeros(*shape: int) -> Array:
    """Zeros without memory."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


def hollow_conv(outputs: int, inputs: int, kernel: int = 3, **spec: Any) -> Layer:
    """A 2-D convolution without numbers, for what asks for its shapes alone."""
    known: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "pads": (kernel // 2,) * 4} | spec
    groups = known.get("groups", 1)
    op_type = "ConvTranspose" if known.get("transposed") else "Conv"
    weight = zeros(outputs, inputs // groups, kernel, kernel)
    return Layer("conv", op_type, weight, zeros(outputs), ConvSpec(**known))


def hollow_linear(outputs: int, inputs: int, op_type: str = "Gemm") -> Layer:
    """A fully connected layer without numbers."""
    return Layer("fc", op_type, zeros(outputs, inputs), zeros(outputs))


def specialised(method: Decomposition, layer: Layer) -> Decomposition:
    """The method that does this one's work on the layer, which has to be one that it takes."""
    found = method.specialise(layer)
    assert not isinstance(found, Refusal), found.reason
    return found


def fitted(method: Decomposition, layer: Layer, ranks: Ranks) -> Chain:
    return method.assemble(layer, method.fit(layer, ranks))


def error_of(method: Decomposition, layer: Layer, ranks: Ranks) -> float:
    return relative_error(fitted(method, layer, ranks).dense(), layer.weight)


@st.composite
def convolutions(draw: st.DrawFn) -> Layer:
    """Any spatial rank, kernel, number of groups (never depthwise), stride and direction."""
    kernel = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    groups = draw(st.integers(1, 3))
    per_in = draw(st.integers(2 if groups > 1 else 1, 7))
    per_out = draw(st.integers(1, 9))
    return conv_layer(
        groups * per_out,
        groups * per_in,
        kernel,
        groups=groups,
        transposed=draw(st.booleans()),
        stride=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def matrices(draw: st.DrawFn) -> Layer:
    return linear_layer(draw(st.integers(1, 40)), draw(st.integers(1, 40)), seed=draw(st.integers(0, 99)))


@st.composite
def stacks(draw: st.DrawFn) -> Layer:
    stack = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    return linear_layer(draw(st.integers(2, 9)), draw(st.integers(2, 9)), stack)
