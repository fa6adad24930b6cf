"""What a model asks of the hardware: its kernels, and what each reads, writes and computes.

Operators that only say how numbers lie launch nothing, and an activation function, a bias or a scale behind a
layer is taken for a part of its kernel, as ONNX Runtime fuses them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from onnxdecomp.core.steps import Convolve, Reshape, Shape, WeightedStep

if TYPE_CHECKING:
    import onnx

    from onnxdecomp.core.chain import Chain

Kind: TypeAlias = Literal["product", "convolution", "depthwise", "other"]

_FREE = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Constant", "Shape", "Dropout"))
_FUSED = frozenset(("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Add", "Mul"))
_PRODUCTS = frozenset(("MatMul", "Gemm", "FusedMatMul", "FusedGemm"))
_CONVOLUTIONS = frozenset(("Conv", "FusedConv"))


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        kind: What roof it is under; a convolution of one position is a product.
        flops: Two for each multiplication and addition.
        bytes: Read and written, if nothing stays in a cache.
        inputs, outputs: The sizes that tiles are laid over: channels in and out, within a group.
    """

    kind: Kind
    flops: float
    bytes: float
    inputs: int = 1
    outputs: int = 1


@dataclass(frozen=True)
class Demand:
    """What one run of a model asks for.

    Attributes:
        launches: Kernels.
        bytes, flops: Of all of them.
    """

    launches: int
    bytes: float
    flops: float

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte: what is low is bound by memory."""
        return self.flops / self.bytes if self.bytes else 0.0


def demand(kernels: Sequence[Kernel]) -> Demand:
    """The sum of kernels."""
    return Demand(len(kernels), sum(k.bytes for k in kernels), sum(k.flops for k in kernels))


def kernels_of(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[Kernel, ...]:
    """The kernels of a model's main graph, in order; where sizes are not known they count as nothing.

    Args:
        model: Its weights need not be there.
        shapes: Of the inputs, where the model leaves them free.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        given = (shapes or {}).get(value.name, ())
        for dim, size in zip(value.type.tensor_type.shape.dim, given, strict=False):
            dim.dim_value = int(size)
    del copy.graph.value_info[:]  # sizes in it may be those of other inputs
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    sizes = _sizes(inferred.graph)
    constants = {tensor.name for tensor in inferred.graph.initializer}
    uses = Counter(name for node in inferred.graph.node for name in node.input)
    made: dict[str, int] = {}
    found: list[Kernel] = []
    for node in inferred.graph.node:
        if node.op_type in _FREE:
            if node.input and node.input[0] in made:
                made[node.output[0]] = made[node.input[0]]
            continue
        before = next((name for name in node.input if name in made and uses[name] == 1), None)
        others = [name for name in node.input if name != before]
        if node.op_type in _FUSED and before and all(name in constants for name in others):
            made[node.output[0]] = made[before]
            continue
        kernel = _kernel(node, sizes)
        if kernel.kind != "other":
            made[node.output[0]] = len(found)
        found.append(kernel)
    return tuple(found)


_Sizes: TypeAlias = Mapping[str, tuple[tuple[int, ...], int]]


def _sizes(graph: onnx.GraphProto) -> _Sizes:
    """By the value's name its shape and the bytes of a number; an unknown size is 0."""
    import onnx

    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type and kind.HasField("shape"):
            shape = tuple(dim.dim_value for dim in kind.shape.dim)
            found[value.name] = shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    for tensor in graph.initializer:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        found[tensor.name] = tuple(tensor.dims), width
    return found


def _kernel(node: onnx.NodeProto, sizes: _Sizes) -> Kernel:
    known = [sizes[name] for name in (*node.input, *node.output) if name in sizes]
    moved = float(sum(math.prod(shape) * width for shape, width in known))
    first, weight, result = (
        sizes.get(name, ((), 0))[0] for name in (*node.input[:2], "", "")[:2] + tuple(node.output[:1])
    )
    if node.op_type in _CONVOLUTIONS and len(weight) > 2 and len(result) > 2:
        groups = next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)
        macs = math.prod(result) * math.prod(weight[1:])
        kind: Kind = "convolution" if math.prod(weight[2:]) > 1 else "product"
        if groups > 1 and weight[1] == 1:
            kind = "depthwise"
        return Kernel(kind, 2.0 * macs, moved, weight[1], weight[0] // groups)
    if node.op_type in _PRODUCTS and first and result:
        inner = first[-1] if not _transposed(node) else first[0]
        return Kernel("product", 2.0 * math.prod(result) * inner, moved, inner, result[-1])
    return Kernel("other", float(math.prod(result)) if result else 0.0, moved)


def _transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transA" and attribute.i for attribute in node.attribute)


def chain_kernels(chain: Chain, shape: Shape, width: int = 4) -> tuple[Kernel, ...]:
    """The kernels of a chain alone; steps that only say how numbers lie launch nothing.

    Args:
        chain: It may be an outline.
        shape: Of the layer's activation, as `Chain.macs` takes it.
        width: Bytes of a number.
    """
    found = []
    for step in chain.steps:
        after = step.output_shape(shape)
        moved = float(width * (math.prod(shape) + math.prod(after) + step.params))
        if isinstance(step, Convolve):
            weight = step.weight.shape
            kind: Kind = "convolution" if math.prod(weight[2:]) > 1 else "product"
            if step.spec.groups > 1 and weight[1] == 1:
                kind = "depthwise"
            outputs = weight[0] // step.spec.groups
            found.append(Kernel(kind, 2.0 * step.macs(shape), moved, weight[1], outputs))
        elif isinstance(step, WeightedStep):
            outputs = step.weight.shape[step.output_axis]
            inner = step.macs(shape) // max(math.prod(after), 1)
            found.append(Kernel("product", 2.0 * step.macs(shape), moved, max(inner, 1), outputs))
        elif not isinstance(step, Reshape):
            found.append(Kernel("other", 0.0, moved))
        shape = after
    return tuple(found)
