"""Layer: one operator of a model whose weight can be decomposed, as a plain value.

A layer knows nothing of the graph that it stands in (that is a `LayerMatch`, see onnxdecomp.layers), so that
methods can be pure mathematics on it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]  # type: ignore[explicit-any]
"""Numbers of any element type, which only runs tell: float32, float64, int8, indices."""
Ranks: TypeAlias = tuple[int, ...]
Factors: TypeAlias = tuple[Array, ...]
Dim: TypeAlias = int | str | None
"""A dimension of an activation: its size, its symbolic name, or None where nothing is known."""

UNKNOWN_SPATIAL = 32
"""The size that costs assume for a spatial dimension or a sequence length that the model leaves free."""


@dataclass(frozen=True)
class ConvSpec:
    """The attributes of a convolution over d spatial axes.

    `pads` is ONNX's order (d begins, then d ends), or the name of an `auto_pad` mode: the mode depends on
    the input's size, and works axis by axis, so a chain can hand it on as it is.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | str
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def spatial_rank(self) -> int:
        return len(self.strides)

    def output_size(self, size: int, kernel: int, axis: int) -> int:
        """The output's size along one spatial axis, as ONNX defines it for Conv and ConvTranspose."""
        stride, dilation = self.strides[axis], self.dilations[axis]
        span = dilation * (kernel - 1) + 1
        extra = self.output_padding[axis] if self.output_padding else 0
        if isinstance(self.pads, str):
            if self.pads.startswith("SAME"):
                # A kernel shorter than its stride does not reach the size that ONNX gives SAME modes.
                reached = stride * (size - 1) + extra + span
                return min(size * stride, reached) if self.transposed else -(-size // stride)
            padding = 0
        else:
            padding = self.pads[axis] + self.pads[axis + self.spatial_rank]
        if self.transposed:
            return stride * (size - 1) + extra + span - padding
        return max(0, (size + padding - span) // stride + 1)

    def along(self, axes: Collection[int]) -> ConvSpec:
        """These attributes on some of the axes, neutral ones on the others: of one step of a split kernel.

        The others must have kernel size 1 in that step: an automatic padding then pads nothing there.
        """
        d = self.spatial_rank

        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(v if i % d in axes else neutral for i, v in enumerate(values))

        return replace(
            self,
            strides=pick(self.strides, 1),
            dilations=pick(self.dilations, 1),
            pads=self.pads if isinstance(self.pads, str) else pick(self.pads, 0),
            output_padding=pick(self.output_padding, 0),
        )


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and how it is applied.

    Attributes:
        name: The operator's name, unique within its graph.
        graph: Where it stands: "" for the main graph, else "If_3/then_branch" or "function:domain::name".
        op_type: The ONNX operator: "Conv", "Gemm", "LSTM", …
        weight: Canonical weight in float32 or float64, whatever the model stores.
            Convolution: [T, S/groups, *kernel] with T output and S input channels, also for a
            ConvTranspose (whose ONNX order is [S, T/groups, *kernel]).
            Linear: [T, S], y = x WT + b with the features on x's last axis; a MatMul with a stack of
            matrices has [*stack, T, S].
            A recurrent operator's is its input projection, the rows of all directions and gates below each
            other; a lookup's is the transposed table [E, V].
        bias: [T] in the weight's dtype, or None.
        conv: The convolution's attributes, or None for a linear layer.
        input_shape, output_shape: Shapes of the activations as far as they are known. For a linear layer
            with the features last (a weight on the left has its transposed activation here).
        dtype: NumPy name of the stored element type ("float16", "bfloat16", "float32", "float64"):
            what factors are cast to in the end.
        lookup: A linear layer whose input is given as the indices of one-hot vectors (Gather from a table):
            its input_shape is that of the one-hot vectors, [*indices, S], and its product costs nothing.
        seen_shape: What input_shape was in a run with a batch of 1, where inference does not know all of it.
        recurrence: Numbers that a recurrent operator multiplies its state by at every step, of as many rows
            as the weight and a column for each unit; 0 where they are not counted, as in plans of chains.
    """

    name: str
    op_type: str
    weight: Array
    bias: Array | None = None
    conv: ConvSpec | None = None
    graph: str = ""
    input_shape: tuple[Dim, ...] | None = None
    output_shape: tuple[Dim, ...] | None = None
    dtype: str = "float32"
    lookup: bool = False
    seen_shape: tuple[int, ...] | None = None
    recurrence: int = 0

    @property
    def groups(self) -> int:
        return self.conv.groups if self.conv else 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel sizes, () for a linear layer."""
        return tuple(self.weight.shape[2:]) if self.conv else ()

    @property
    def outputs(self) -> int:
        """T: output channels of all groups, or output features."""
        return int(self.weight.shape[0] if self.conv else self.weight.shape[-2])

    @property
    def inputs(self) -> int:
        """S: input channels of all groups, or input features."""
        return int(self.weight.shape[1]) * self.groups if self.conv else int(self.weight.shape[-1])

    @property
    def is_matrix(self) -> bool:
        """Whether the weight is one matrix (per group): a linear layer or a convolution with a 1x1 kernel."""
        return math.prod(self.kernel) == 1 and (self.conv is not None or self.weight.ndim == 2)

    @property
    def is_stack(self) -> bool:
        """Whether the weight is a stack of matrices, as a batched MatMul's."""
        return self.conv is None and self.weight.ndim > 2

    @property
    def params(self) -> int:
        """Numbers in the weight and the bias."""
        return int(self.weight.size) + (0 if self.bias is None else int(self.bias.size))

    @property
    def sized(self) -> bool:
        """Whether the input's size is known, but for what the model leaves free: else MACs are a guess."""
        if self.seen_shape is not None:
            return True
        if self.input_shape is None:
            return False
        rank = len(self.input_shape)
        batch = {0} if self.conv is not None or rank > 2 else set()
        known = batch | {1 if self.conv is not None else rank - 1}
        if self.is_stack:
            known |= {rank - 2 - axis for axis in range(1, self.weight.ndim - 1)}
        return all(dim is not None for axis, dim in enumerate(self.input_shape) if axis not in known)

    def assumed_input_shape(self, batch: int = 1) -> tuple[int, ...]:
        """The input's shape with every free dimension bound: the first to `batch`, others to a usual size."""
        free = dict(enumerate(self._free_spatial(), 2))
        seen = self.seen_shape
        if self.input_shape is None and seen is not None:
            return (batch * seen[0], *seen[1:]) if len(seen) > 1 else seen
        if self.input_shape is None:
            rest = tuple(free.values())
            stack = self.weight.shape[:-2] if self.is_stack else ()
            lead = (batch, self.inputs) if self.conv else (*stack, batch, self.inputs)
            return (*lead, *rest)
        rank = len(self.input_shape)
        known: dict[int, int] = {}
        if self.is_stack:
            # A free dimension that meets the stack has its size (or 1, which costs the same).
            sizes = self.weight.shape[:-2]
            known |= {rank - 2 - len(sizes) + k: size for k, size in enumerate(sizes)}
        if seen is not None and len(seen) == rank:
            known = {axis: size for axis, size in enumerate(seen) if axis} | {0: batch * seen[0]} | known
        bound = []
        for axis, dim in enumerate(self.input_shape):
            if axis == (1 if self.conv else rank - 1):
                bound.append(self.inputs)
            elif isinstance(dim, int) and dim > 0:
                bound.append(dim)
            else:
                bound.append(known.get(axis, batch if axis == 0 else free.get(axis, UNKNOWN_SPATIAL)))
        return tuple(bound)

    def _free_spatial(self) -> tuple[int, ...]:
        """Sizes for free spatial dimensions, at which the kernel fits in."""
        if self.conv is None:
            return ()
        spans = (d * (k - 1) + 1 for d, k in zip(self.conv.dilations, self.kernel, strict=True))
        return tuple(max(UNKNOWN_SPATIAL, span) for span in spans)

    def group_weights(self) -> Array:
        """The weight with its groups apart: [groups, T/groups, S/groups, *kernel] (a view)."""
        if self.conv is None:
            return self.weight[None]
        g = self.groups
        return self.weight.reshape(g, self.weight.shape[0] // g, *self.weight.shape[1:])


def narrowed(layer: Layer, outputs: int, inputs: int) -> Layer:
    """The layer with fewer outputs and inputs, and without its numbers: for what it would cost.

    Of a depthwise convolution (one input channel in each group) the groups go with the inputs; a recurrence
    is as much smaller in its rows as in its columns.
    """
    conv, kind = layer.conv, layer.weight.dtype
    shape: tuple[int, ...] = (*layer.weight.shape[:-2], outputs, inputs)
    if conv is not None:
        groups = inputs if conv.groups == layer.inputs else conv.groups
        conv = replace(conv, groups=groups)
        shape = (outputs, inputs // groups, *layer.kernel)
    axis = 1 if conv is not None else -1

    def resized(dims: tuple[Dim, ...] | None, size: int) -> tuple[Dim, ...] | None:
        if dims is None:
            return None
        found = list(dims)
        found[axis] = size
        return tuple(found)

    seen = None if layer.seen_shape is None else list(layer.seen_shape)
    if seen is not None:
        seen[axis] = inputs
    return replace(
        layer,
        weight=np.broadcast_to(np.zeros((), kind), shape),
        bias=None if layer.bias is None else np.broadcast_to(np.zeros((), kind), (outputs,)),
        conv=conv,
        input_shape=resized(layer.input_shape, inputs),
        output_shape=resized(layer.output_shape, outputs),
        seen_shape=None if seen is None else tuple(seen),
        recurrence=layer.recurrence * outputs**2 // layer.outputs**2,
    )


def relative_error(approximation: Array, exact: Array) -> float:
    """||approximation - exact|| / ||exact|| in the Frobenius norm; 0 where both are zero."""
    norm = float(np.linalg.norm(exact))
    error = float(np.linalg.norm(np.asarray(approximation, np.float64) - exact))
    return error / norm if norm else (0.0 if error == 0 else math.inf)


def channels(layer: Layer) -> tuple[int, int]:
    """(T, S) of one group, or of one matrix."""
    return layer.outputs // layer.groups, layer.inputs // layer.groups


def common_refusal(layer: Layer) -> str | None:
    """What no decomposition takes, a phrase for people; None where there is no obstacle."""
    if layer.weight.size == 0:
        return "an empty weight"
    if layer.groups > 1 and channels(layer)[1] == 1:
        return "depthwise: each output sees one input channel"
    return None
