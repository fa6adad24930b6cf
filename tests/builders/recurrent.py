"""Recurrent networks as exporters write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxdecomp.core.layer import Array
from tests.builders import graphs

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, FEATURES, HIDDEN, WIDTH = 5, 2, 6, 8, 3


@dataclass
class Recurrent:
    """A network [steps, batch, FEATURES] -> [.., WIDTH] of recurrent layers of one kind.

    Attributes:
        op_type: Of the layers.
        directions: 1 or 2; with `direction` "reverse" 1.
        stacked: How many layers.
        reads: What the last layer is read by: "steps" (all of them), "last" (Y_h alone), "cell" (Y_c alone),
            "both" (Y and Y_h).
        first: Their first states: "" (none), "zeros" (computed), "constant", "given" (an input).
        bias, peepholes, lengths: Whether there are these operands.
        attributes: Further attributes.
        hidden: Units of a direction.
    """

    op_type: str = "LSTM"
    directions: int = 1
    direction: str = "forward"
    stacked: int = 1
    reads: str = "steps"
    first: str = ""
    bias: bool = True
    peepholes: bool = False
    lengths: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    hidden: int = HIDDEN
    seed: int = 0

    def model(self) -> onnx.ModelProto:
        """The network."""
        self._rng = np.random.default_rng(self.seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, Array] = {}
        value, features = "x", FEATURES
        inputs: dict[str, graphs.Dims] = {"x": [STEPS, BATCH, FEATURES]}
        for index in range(self.stacked):
            value = self._layer(index, value, features, last=index == self.stacked - 1)
            features = self.directions * self.hidden
        self._weights["dense.w"] = self._numbers(features, WIDTH)
        self._add("MatMul", [value, "dense.w"], ["dense"])
        lead = [BATCH] if self.reads in ("last", "cell") else [STEPS, BATCH]
        if self.first == "given":
            inputs["state"] = [self.directions, BATCH, self.hidden]
        return graphs.model(self._nodes, inputs, {"dense": [*lead, WIDTH]}, self._weights, opset=17)

    def feed(self) -> dict[str, Array]:
        """Inputs."""
        rng = np.random.default_rng(1)
        found = {"x": rng.standard_normal((STEPS, BATCH, FEATURES)).astype(np.float32)}
        if self.first == "given":
            found["state"] = np.zeros((self.directions, BATCH, self.hidden), np.float32)
        return found

    def _layer(self, index: int, x: str, features: int, *, last: bool) -> str:
        name, d, h, g = f"rnn{index}", self.directions, self.hidden, GATES[self.op_type]
        self._weights[f"{name}.w"] = self._numbers(d, g * h, features)
        self._weights[f"{name}.r"] = self._numbers(d, g * h, h)
        operands = [x, f"{name}.w", f"{name}.r", "", "", "", "", ""]
        if self.bias:
            self._weights[f"{name}.b"] = self._numbers(d, 2 * g * h)
            operands[3] = f"{name}.b"
        if self.lengths:
            self._weights["lengths"] = np.array([STEPS, STEPS - 2], np.int32)
            operands[4] = "lengths"
        if self.first:
            operands[5] = self._first(name)
            if self.op_type == "LSTM":
                operands[6] = operands[5]
        if self.peepholes:
            self._weights[f"{name}.p"] = self._numbers(d, 3 * h)
            operands[7] = f"{name}.p"
        while not operands[-1]:
            operands.pop()
        reads = self.reads if last else "steps"
        names = {
            "steps": [f"{name}.y"],
            "both": [f"{name}.y", f"{name}.h"],
            "last": ["", f"{name}.h"],
            "cell": ["", "", f"{name}.c"],
        }[reads]
        direction = "bidirectional" if d == 2 else self.direction
        given = self.attributes | {"hidden_size": h, "direction": direction}
        self._nodes.append(helper.make_node(self.op_type, operands, names, name=name, **given))
        return self._read(name, reads)

    def _read(self, name: str, reads: str) -> str:
        """[.., directions x hidden]."""
        d, h = self.directions, self.hidden
        if reads in ("last", "cell"):
            state = f"{name}.{reads[0] if reads == 'cell' else 'h'}"
            if d == 1:
                return self._add("Squeeze", [state, self._ints(0)], [f"{name}.flat"])
            turned = self._add("Transpose", [state], [f"{name}.turned"], perm=[1, 0, 2])
            return self._add("Reshape", [turned, self._ints(BATCH, d * h)], [f"{name}.flat"])
        if d == 1:
            flat = self._add("Squeeze", [f"{name}.y", self._ints(1)], [f"{name}.flat"])
        else:
            turned = self._add("Transpose", [f"{name}.y"], [f"{name}.turned"], perm=[0, 2, 1, 3])
            flat = self._add("Reshape", [turned, self._ints(0, 0, -1)], [f"{name}.flat"])
        if reads == "steps":
            return flat
        states = f"{name}.h"
        if d == 2:
            parts = [f"{name}.h0", f"{name}.h1"]
            self._add("Split", [states], parts, axis=0)
            states = self._add("Concat", parts, [f"{name}.hs"], axis=2)
        return self._add("Add", [flat, states], [f"{name}.sum"])

    def _first(self, name: str) -> str:
        d, h = self.directions, self.hidden
        if self.first == "given":
            return "state"
        if self.first == "constant":
            self._weights[f"{name}.first"] = self._numbers(d, BATCH, h)
            return f"{name}.first"
        self._add("Shape", ["x"], [f"{name}.shape"])
        self._add("Slice", [f"{name}.shape", self._ints(1), self._ints(2)], [f"{name}.batch"])
        self._add("Concat", [self._ints(d), f"{name}.batch", self._ints(h)], [f"{name}.size"], axis=0)
        zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
        return self._add("ConstantOfShape", [f"{name}.size"], [f"{name}.first"], value=zero)

    def _add(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def _ints(self, *numbers: int) -> str:
        name = f"i{len(self._weights)}"
        self._weights[name] = np.array(numbers, np.int64)
        return name

    def _numbers(self, *shape: int) -> Array:
        return np.asarray(self._rng.standard_normal(shape) * 0.6, np.float32)
