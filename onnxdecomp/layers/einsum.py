"""Einsum with one constant operand as a layer, where it is a product of matrices in disguise."""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Dim, Layer
from onnxdecomp.core.steps import BlockMatMul
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.constants import Constant
from onnxdecomp.layers.adapter import LayerAdapter, LayerMatch, ParameterRoles
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.lower import lower_linear
from onnxdecomp.layers.scope import Scope, Snapshot

NO_PRODUCT = "its equation is no product of matrices with the constant"


@dataclass(frozen=True, eq=False)
class Contraction(LayerAdapter):
    """The adapter of Einsums: the activation's axes are put into order, its features flattened.

    Attributes:
        perm: The activation's axes in the order lead, stack, row, contracted; None as they are.
        features: Sizes of the contracted axes.
        outputs: Sizes of the output's feature axes.
        lead: Axes before the features; 0 where the rank is unknown, and then nothing is moved.
        out_perm: Axes of lead, stack, row, outputs in the order of the equation's output; None as they are.
        weight_perm: The constant's axes in the order stack, outputs, contracted.
        stack: Sizes of the axes that constant, activation and output share.
    """

    operators = (("", "Einsum"),)

    perm: tuple[int, ...] | None
    features: tuple[int, ...]
    outputs: tuple[int, ...]
    lead: int
    out_perm: tuple[int, ...] | None
    weight_perm: tuple[int, ...]
    stack: tuple[int, ...] = ()

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        if len(node.inputs) != 2:
            return f"it has {len(node.inputs)} operands, not 2"
        found = [scope.constant(value) for value in node.inputs]
        constants = [position for position, entry in enumerate(found) if isinstance(entry, Constant)]
        if len(constants) != 1:
            return "both operands are constant" if constants else f"no operand is constant: {found[1]}"
        (at,) = constants
        source, x = scope.weight(node.inputs[at]), node.inputs[1 - at]
        assert x is not None
        if isinstance(source, str):
            return source
        read = _read(str(attribute(node, "equation", "")), at, source.array.shape, dims(x))
        if isinstance(read, str):
            return read
        form, order = read
        weight = form.canonical(source.array)
        return form.layer_match(
            node,
            scope,
            x,
            source,
            weight,
            input_shape=None if order is None else (*order, weight.shape[-1]),
            output_shape=dims(node.outputs[0]),
        )

    def canonical(self, weight: Array) -> Array:
        """The constant as [*stack, T, S]."""
        t, s = int(np.prod(self.outputs)), int(np.prod(self.features))
        return weight.transpose(self.weight_perm).reshape(*self.stack, t, s)

    def stored(self, weight: Array, layer: Layer) -> Array:
        split = weight.reshape(*self.stack, *self.outputs, *self.features)
        return split.transpose(np.argsort(self.weight_perm))

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        if layer.input_shape is None and not chain.any_rank:
            return "the rank of its activation is unknown"
        vector = layer.input_shape is not None and len(layer.input_shape) == 1
        if vector and any(isinstance(step, BlockMatMul) for step in chain.steps):
            return "its activation is a vector"
        return None

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        x = match.x
        if self.perm is not None:
            x = emit.add("Transpose", [x], "transposed", perm=self.perm)
        if len(self.features) > 1:
            flat = emit.integers([0] * self.lead + [match.layer.inputs], "flat.shape")
            x = emit.add("Reshape", [x, flat], "flat")
        x = lower_linear(chain, match.layer, x, emit)
        if len(self.outputs) > 1:
            split = emit.integers([0] * self.lead + list(self.outputs), "split.shape")
            x = emit.add("Reshape", [x, split], "split")
        if self.out_perm is not None:
            emit.add("Transpose", [x], "untransposed", perm=self.out_perm)

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        shape = list(layer.assumed_input_shape(batch=2))
        stack = len(self.stack)
        for axis in range(len(shape) - 1):
            if not len(shape) - 2 - stack <= axis < len(shape) - 2:
                shape[axis] = min(shape[axis], 4)
        x = rng.standard_normal((*shape[:-1], *self.features))
        if self.perm is not None:
            x = x.transpose(np.argsort(self.perm))
        return {1 - self.weight_at: x}

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        return ParameterRoles(weights=(0, 1, 2, 3))


def _read(
    equation: str, at: int, sizes: tuple[int, ...], shape: tuple[Dim, ...] | None
) -> tuple[Contraction, tuple[Dim, ...] | None] | str:
    """The form of an equation, and the activation's leading dimensions in their new order (None: unknown)."""
    terms = _terms(equation, at, shape)
    if isinstance(terms, str):
        return terms
    a, c, out = terms
    if len(c) != len(sizes) or (shape is not None and len(a) != len(shape)):
        return "its equation does not fit its operands"
    size = dict(zip(c, sizes, strict=True))
    contracted = [i for i in a if i in c and i not in out]
    stack = [i for i in a if i in c and i in out]
    lead = [i for i in a if i not in c]
    outputs = [i for i in out if i not in a]
    if not contracted or not outputs or any(i not in out for i in lead):
        return NO_PRODUCT
    if any(i not in a and i not in out for i in c) or any(i not in c for i in outputs):
        return NO_PRODUCT
    if any(size[i] == 1 for i in (*contracted, *stack)):
        return "its constant has an axis of size 1 that may be broadcast"
    if shape is not None and any(shape[a.index(i)] == 1 for i in contracted):
        return "its activation is broadcast along an axis that is summed"
    if stack and not lead:
        return "each matrix of its constant meets a single vector"
    # A stack of matrices stands before the rows that it multiplies.
    before = [*lead[:-1], *stack, lead[-1]] if stack else lead
    perm = _order([*before, *contracted], a)
    out_perm = _order(list(out), [*before, *outputs])
    if _ANY in a and (perm or out_perm or len(contracted) > 1 or len(outputs) > 1 or stack):
        return "the rank of its activation is unknown"
    form = Contraction(
        weight_at=at,
        perm=perm,
        features=tuple(size[i] for i in contracted),
        outputs=tuple(size[i] for i in outputs),
        lead=len(before),
        out_perm=out_perm,
        weight_perm=tuple(c.index(i) for i in (*stack, *outputs, *contracted)),
        stack=tuple(size[i] for i in stack),
    )
    if _ANY in a:
        return form, None
    known = dict(zip(a, shape if shape is not None else [None] * len(a), strict=True))
    return form, tuple(size.get(i, known[i]) for i in before)


_ANY = "*"
"""Stands for an ellipsis of unknown length."""


def _terms(equation: str, at: int, shape: tuple[Dim, ...] | None) -> tuple[str, str, str] | str:
    """The indices of activation, constant and output, an ellipsis written out in characters of its own."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != 2:
        return "its equation does not fit its operands"
    a, c = operands[1 - at], operands[at]
    if "..." in c:
        return "there is an ellipsis in its constant"
    if not arrow:
        letters = sorted(i for i in set(a + c) - {"."} if (a + c).count(i) == 1)
        out = ("..." if "..." in a else "") + "".join(letters)
    if "..." in a:
        count = None if shape is None else len(shape) - len(a.replace("...", ""))
        if count is not None and count < 0:
            return "its equation does not fit its operands"
        written = _ANY if count is None else string.digits[:count]
        a = a.replace("...", written)
        if written and "..." not in out:
            return NO_PRODUCT
        out = out.replace("...", written)
    if any(len(set(term)) != len(term) for term in (a, c, out)):
        return "an index is repeated within an operand of its equation"
    return a, c, out


def _order(wanted: list[str], given: str | list[str]) -> tuple[int, ...] | None:
    """Where the wanted indices are among the given ones; None if they are in order already."""
    perm = tuple(given.index(i) for i in wanted)
    return None if perm == tuple(range(len(perm))) else perm
