"""LSTM, GRU and RNN as layers: the projection of their input.

A recurrent operator computes X WT for every direction and gate before it does anything else, and X stands
nowhere else: with W = W' V, it does the same on X VT with W', a factor V [r, I] that all directions and gates
share. Gates, biases, peepholes, initial states, sequence lengths, clipping and every direction are the
operator's own still, and so are the recurrence weights R, which are not decomposed. They become smaller
where units of the state are left out (see onnxdecomp.channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import MatMul
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.layers.adapter import LayerAdapter, LayerMatch, ParameterRoles
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.projection import before_last, emit_projected, ends_in_product
from onnxdecomp.layers.scope import Scope, Snapshot
from onnxdecomp.layers.states import BATCH, DIRECTION, STEP, UNIT, States

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
"""Rows of W per hidden unit."""

_SEQUENCE_LENS, _INITIAL_H, _INITIAL_C, _PEEPHOLES = 4, 5, 6, 7
_W, _R, _B = 1, 2, 3


@dataclass(frozen=True, eq=False)
class Recurrent(LayerAdapter):
    """The adapter of recurrent operators: a chain's last product becomes the operator's W [D, G H, r].

    Attributes:
        directions: D, 2 for a bidirectional operator.
        hidden: H.
        batch_first: X is [batch, sequence, I] and states are [batch, D, H] (layout = 1), else
            [sequence, batch, I] and [D, batch, H].
    """

    operators = (("", "LSTM"), ("", "GRU"), ("", "RNN"))
    has_rows = True
    rounding = 5  # the state carries it from step to step
    layout = "directions"

    directions: int
    hidden: int
    batch_first: bool = False
    follow: tuple[int, ...] = field(default=(_SEQUENCE_LENS, _INITIAL_H, _INITIAL_C), kw_only=True)

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        x = node.inputs[0]
        assert x is not None
        source = scope.weight(node.inputs[_W])
        if isinstance(source, str):
            return source
        if source.array.ndim != 3:
            return f"its W has {source.array.ndim} dimensions, not 3"
        directions, rows, features = source.array.shape
        batch_first = int(attribute(node, "layout", 0)) == 1
        return cls(directions, rows // GATES[node.op_type], batch_first).layer_match(
            node,
            scope,
            x,
            source,
            source.array.reshape(directions * rows, features),
            input_shape=dims(x) or (None, None, features),
        )

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        if ends_in_product(chain, layer):
            return None
        return "its chain does not end in a product of matrices, which would become W: use svd"

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        def weight(step: MatMul, label: str) -> ir.Value:
            if not emit.quantize:
                return emit.weight(self.stored(step.weight.T, match.layer), label, axis=1)
            # a scale for each row of each direction
            shape = emit.integers([self.directions, -1, step.weight.shape[0]], f"{label}.shape")
            stacked = emit.weight(step.weight.T, label, axis=0)
            return emit.add("Reshape", [stacked, shape], f"{label}.stacked")

        emit_projected(chain, match, emit, weight)

    @property
    def reads_as_stored(self) -> bool:
        return True

    def stored(self, weight: Array, layer: Layer) -> Array:
        return weight.reshape(self.directions, -1, weight.shape[-1])

    @classmethod
    def timed(cls, layer: Layer) -> Recurrent | None:
        if not layer.recurrence:
            return None
        hidden = layer.recurrence // layer.outputs
        return _Alone(layer.outputs // (hidden * GATES[layer.op_type]), hidden)

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        steps, batch = 5, 3
        state = (
            (batch, self.directions, self.hidden)
            if self.batch_first
            else (self.directions, batch, self.hidden)
        )
        x = (batch, steps, layer.inputs) if self.batch_first else (steps, batch, layer.inputs)
        return {
            0: rng.standard_normal(x),
            _R: rng.standard_normal((self.directions, layer.outputs // self.directions, self.hidden))
            / np.sqrt(self.hidden),
            _B: rng.standard_normal((self.directions, 2 * layer.outputs // self.directions)),
            _SEQUENCE_LENS: np.array([5, 1, 3], np.int32),
            _INITIAL_H: rng.standard_normal(state),
            _INITIAL_C: rng.standard_normal(state),
            _PEEPHOLES: rng.standard_normal((self.directions, 3 * self.hidden)),
        }

    def states(self, node: ir.Node) -> States:
        gates = GATES[node.op_type]
        state = (BATCH, DIRECTION, UNIT) if self.batch_first else (DIRECTION, BATCH, UNIT)
        steps = (BATCH, STEP, DIRECTION, UNIT) if self.batch_first else (STEP, DIRECTION, BATCH, UNIT)
        backward = str(attribute(node, "direction", "forward")) == "reverse"
        return States(
            self.directions,
            self.hidden,
            (backward, True)[: self.directions],
            outputs={0: steps, 1: state, 2: state},
            initial={_INITIAL_H: state, _INITIAL_C: state},
            runs={_W: gates, _R: gates, _B: 2 * gates, _PEEPHOLES: 3},
            recurrence=_R,
            bias=_B,
            attribute="hidden_size",
        )

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        return ParameterRoles(weights=(_W, _R), biases=(_B,))

    @classmethod
    def fan_in(cls, node: ir.Node, shape: Sequence[int]) -> int:
        return shape[-1]


@dataclass(frozen=True, eq=False)
class _Alone(Recurrent):
    """A recurrent layer that is timed alone, with a recurrence of its own."""

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        layer = match.layer

        def weight(step: MatMul, label: str) -> ir.Value:
            return emit.weight(self.stored(step.weight.T, layer), label, axis=1)

        shape = (self.directions, layer.outputs // self.directions, self.hidden)
        numbers = np.random.default_rng(0).standard_normal(shape) / np.sqrt(self.hidden)
        recurrence = emit.constant(numbers.astype(emit.dtype.numpy()), f"{layer.name}/recurrence", None)
        x, made, label = before_last(chain, match, emit, weight)
        given: dict[str, Any] = {"direction": "bidirectional" if self.directions > 1 else "forward"}
        if layer.op_type == "GRU":
            given["linear_before_reset"] = 1  # as PyTorch and Keras write it
        inputs = [x, made, recurrence]
        y = emit.add(layer.op_type, inputs, label, hidden_size=self.hidden, **given)
        emit.add("Reshape", [y, emit.integers([0, -1, self.hidden], "shape")], "flat")
