"""The activation function behind a layer, and what it forgives.

Where the original's output is negative before a Relu, any other negative output is as good. A fit that knows
it spends nothing there (Zhang et al. 2015, arXiv:1505.06798, "nonlinear case"). With f the function, t the
wanted and p the fitted value before it,

    (f(p) - f(t))² = s² (p - t)²,   s = (f(p) - f(t)) / (p - t),

a least-squares problem with a weight per number. With 0 <= s <= 1 at the p of the fit before, it is bounded
from above by one without weights but with the wanted value p + s² (t - p) (majorisation, Hunter and Lange
2004): the second moment stays, and only the cross moment is gathered anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.residual import branch
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.adapter import LayerMatch


@dataclass(frozen=True)
class Activation:
    """A function of one number, linear in three parts: `slope` z below 0, z, and `high` above it."""

    slope: float = 0.0
    high: float = float("inf")

    def __call__(self, z: Array) -> Array:
        found = np.maximum(z, self.slope * z if self.slope else 0.0)
        return np.asarray(found if self.high == float("inf") else np.minimum(found, self.high))


def activation(match: LayerMatch) -> Activation | None:
    """The Relu, Clip from 0 or LeakyRelu that the layer's output goes into, and nowhere else.

    A sum with another branch may stand between.
    """
    value = match.output
    if branch(match) is not None:
        value = next(iter(value.uses())).node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or not match.adapter.is_plain:
        return None
    node = uses[0].node
    if node.domain not in ("", "ai.onnx") or node.graph is not match.nodes[-1].graph:
        return None
    if node.op_type == "Relu":
        return Activation()
    if node.op_type == "LeakyRelu":
        slope = float(attribute(node, "alpha", 0.01))
        return Activation(slope) if 0 <= slope <= 1 else None
    if node.op_type == "Clip":
        low, high = (_bound(node, index, name) for index, name in ((1, "min"), (2, "max")))
        if low == 0 and high is not None and high > 0:
            return Activation(high=high)
    return None


@dataclass(frozen=True, eq=False)
class Aim:
    """What to want where a weight [g, T/g, D] and a bias [T] give what they give.

    Attributes:
        activation: What stands behind the layer.
        weight, bias: Of the fit before.
    """

    activation: Activation
    weight: Array
    bias: Array | None

    def wanted(self, fitted: Array, meant: Array, added: Array | None) -> Array:
        """The outputs to be wanted.

        Args:
            fitted: What the weight makes of the rows, with the bias, [n, T].
            meant: The outputs that were wanted, [n, T].
            added: What is added before the activation, [n, T] or None.
        """
        act = self.activation
        p, t = (fitted, meant) if added is None else (fitted + added, meant + added)
        off = p - t
        far = np.abs(off) > 1e-6 * np.abs(t)
        forgiven = act(p)
        forgiven -= act(t)
        np.square(forgiven, out=forgiven)
        np.divide(forgiven, off, out=off, where=far)  # s² (p - t)
        return np.asarray(fitted - off)


def _bound(node: ir.Node, index: int, name: str) -> float | None:
    """A bound of a Clip, an attribute up to opset 6; None where it is not constant."""
    if name in node.attributes:
        return float(node.attributes[name].value)
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return float("inf") if name == "max" else float("-inf")
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else float(tensor.numpy().reshape(-1)[0])
