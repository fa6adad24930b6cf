"""normalise: fold BatchNormalization, scales and biases into the linear layer before them.

What follows a layer channel by channel is part of the layer: folded in, the decomposition sees the
weight that the network really applies, and the runtime has less to do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.core.options import help_of
from onnxdecomp.graph.batch_reshapes import keep_first_axes
from onnxdecomp.graph.constants import Constant, discard, initializer, resolve
from onnxdecomp.graph.inherit import inherit_value
from onnxdecomp.graph.traversal import Place, places, unique_name, value_names
from onnxdecomp.layers.adapter import LayerAdapter, OutputChannels
from onnxdecomp.layers.registry import adapter_of
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline.base import Pass, PassContext, PassResult, option
from onnxdecomp.quantization.unshare_biases import own_biases
from onnxdecomp.search.plan_options import PlanOptions

_STANDARD = ("", "ai.onnx")
_FOLLOWERS = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
_OLDEST_OPSET = 7
"""Before it, BatchNormalization and Gemm had other attributes; ONNX Runtime does not run such models."""
_PLAIN_INITIALIZERS = 4
"""The first IR version in which an initializer need not be a graph input."""
_DTYPES: dict[str, type] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}


@dataclass(frozen=True)
class Normalise(Pass):
    """Fold what scales and shifts a layer's output channel by channel into the layer.

    A BatchNormalization (inference mode), Mul, Div, Add or Sub with constants is folded into a Conv,
    ConvTranspose or Gemm, or a MatMul of two-dimensional activations, which becomes a Gemm: if nothing
    else reads the value between them, and nothing else uses the weight. Computed in float64 and stored
    in the weight's own type. The layer keeps its name and takes over the name of the folded output. Each
    layer of the main graph gets a bias of its own, as ONNX Runtime's quantizer needs it; and a Reshape that
    keeps the batch says so, as its optimizer needs it. Frozen initializers are no graph inputs any more: what
    may be overridden ONNX Runtime neither folds nor lays out anew.
    """

    name: ClassVar[str] = "normalise"
    summary: ClassVar[str] = "Fold BatchNormalization, scales and biases into the layer before them"

    freeze_initializers: bool = option(False, help_of(PlanOptions, "freeze_initializers"))

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        frozen = _freeze(model) if self.freeze_initializers else 0
        # A MatMul's rank says whether it can be a Gemm, a CastLike's type what it casts to.
        infer_shapes(model)
        folded: Counter[str] = Counter()
        for place in places(model):
            folded["CastLike"] += sum(_resolve_cast(node) for node in list(place.graph))
        taken = value_names(model)
        for place in list(places(model)):
            imports = (place.function or model).opset_imports
            opset = imports.get("", imports.get("ai.onnx", 0))
            if opset < _OLDEST_OPSET:
                continue
            folder = _Folder(model, place, opset, taken, self.freeze_initializers)
            for start in list(place.graph):
                node: ir.Node = start
                while node.domain in _STANDARD and adapter_of(node) is not None:
                    done = folder.fold_next(node)
                    if done is None:
                        break
                    kind, node = done
                    folded[kind] += 1
        folded["Reshape"] = keep_first_axes(model)
        counts = {kind: count for kind, count in sorted(folded.items()) if count}
        biases = own_biases(model)
        record: dict[str, object] = {"folded": counts, "own_biases": biases, "frozen": frozen}
        return PassResult(model, bool(counts or biases or frozen), record=record)


def _freeze(model: ir.Model) -> int:
    """Take initializers out of the graph's inputs; how many there were."""
    # Before, they have to be there, and are constants all the same.
    if (model.ir_version or 0) < _PLAIN_INITIALIZERS:
        return 0
    inputs = model.graph.inputs
    left = [value for value in inputs if value.name not in model.graph.initializers]
    count = len(inputs) - len(left)
    if count:
        inputs[:] = left
    return count


@dataclass(frozen=True, eq=False)
class _Layer:
    """A node whose weight is constant and may be scaled by output channel."""

    node: ir.Node
    value: ir.Value
    weight: Constant
    adapter: type[LayerAdapter]
    outputs: OutputChannels

    @property
    def channels(self) -> int:
        return self.outputs.count

    @property
    def rank(self) -> int:
        """Of the output; its channels are axis 1."""
        return self.outputs.rank

    def scaled(self, scale: Array) -> Array:
        """The weight with each output channel scaled: computed in float64, stored in its own type."""
        array = self.weight.array.reshape(self.outputs.split)
        result: Array = np.empty(array.shape, _DTYPES[self.weight.dtype])
        along = scale.reshape(self.outputs.along)
        np.multiply(array, along, out=result, dtype=np.float64, casting="unsafe")
        return result.reshape(self.weight.array.shape)


@dataclass(frozen=True, eq=False)
class _Affine:
    """y = scale x + shift by channel, float64 [C]; `scale` is None where it is 1 throughout."""

    scale: Array | None
    shift: Array


@dataclass(frozen=True)
class _Folder:
    """Folds what follows the layers of one graph."""

    model: ir.Model
    place: Place
    opset: int
    taken: set[str]
    freeze: bool

    def fold_next(self, node: ir.Node) -> tuple[str, ir.Node] | None:
        """Fold the operator that alone reads the node's output: its type, and the node that is left."""
        out = node.outputs[0]
        uses = list(out.uses())
        if len(node.outputs) != 1 or out.is_graph_output() or len(uses) != 1:
            return None
        follower, position = uses[0].node, uses[0].idx
        if follower.graph is not node.graph or follower.domain not in _STANDARD:
            return None
        if any(a.is_ref() for n in (node, follower) for a in n.attributes.values()):
            return None
        if follower.op_type not in _FOLLOWERS:
            return None
        layer = self._layer(node)
        affine = None if layer is None else self._affine(follower, position, layer)
        if layer is None or affine is None:
            return None
        with np.errstate(all="ignore"):
            parts = self._parts(layer, affine)
        if parts is None:
            return None
        weight, bias = parts
        node = layer.adapter.with_bias(node)
        if weight is not None:
            self._put(node, 1, weight, layer.value.name or "weight")
        self._put(node, 2, bias, _bias_name(layer, follower))
        node.attributes.pop("beta", None)
        _take_over(node, follower)
        return follower.op_type, node

    def _constant(self, value: ir.Value | None) -> Constant | None:
        """A constant of floating point numbers; None for anything else, quantized weights among it."""
        if value is None:
            return None
        version = self.model.ir_version or 0
        found = resolve(value, ir_version=version, freeze=self.freeze, opset=self.opset)
        if isinstance(found, str) or found.dtype not in _DTYPES or "DequantizeLinear" in found.via:
            return None
        return found

    def _layer(self, node: ir.Node) -> _Layer | None:
        if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
            return None
        weight = self._constant(node.inputs[1])
        if weight is None:
            return None
        adapter = adapter_of(node)
        if adapter is None or (outputs := adapter.output_channels(node, weight.array.shape)) is None:
            return None
        return _Layer(node, node.inputs[1], weight, adapter, outputs)

    def _bias(self, layer: _Layer) -> Array | None:
        """[C] in float64, with Gemm's beta; zeros where there is none; None if it is not constant."""
        inputs = layer.node.inputs
        value = inputs[2] if len(inputs) > 2 else None
        zeros = np.zeros(layer.channels)
        if value is None:
            return zeros
        constant = self._constant(value)
        if constant is None:
            return None
        vector = _per_channel(constant.array, layer.channels, 2 if layer.rank == 2 else 1, axis=-1)
        return None if vector is None else zeros + vector * _number(layer.node, "beta", 1.0)

    def _affine(self, node: ir.Node, position: int, layer: _Layer) -> _Affine | None:
        if node.op_type == "BatchNormalization":
            return self._batch_normalization(node, position, layer)
        if len(node.inputs) != 2 or (position == 1 and node.op_type in ("Div", "Sub")):
            return None
        constant = self._constant(node.inputs[1 - position])
        if constant is None:
            return None
        vector = _per_channel(constant.array, layer.channels, layer.rank, axis=1)
        if vector is None:
            return None
        zeros = np.zeros(layer.channels)
        match node.op_type:
            case "Mul":
                return _Affine(zeros + vector, zeros)
            case "Div":
                with np.errstate(divide="ignore"):
                    return _Affine(zeros + 1.0 / vector, zeros)
            case "Add":
                return _Affine(None, zeros + vector)
        return _Affine(None, zeros - vector)

    def _batch_normalization(self, node: ir.Node, position: int, layer: _Layer) -> _Affine | None:
        training = _number(node, "training_mode", 0) or any(value.name for value in node.outputs[1:])
        # Before version 9 of the operator, statistics could be kept per element.
        if training or not _number(node, "spatial", 1) or position != 0 or len(node.inputs) != 5:
            return None
        found = [self._constant(value) for value in node.inputs[1:]]
        arrays = [c.array.astype(np.float64) for c in found if c is not None]
        if len(arrays) != 4 or any(array.shape != (layer.channels,) for array in arrays):
            return None
        gamma, beta, mean, variance = arrays
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(variance + _number(node, "epsilon", 1e-5))
            return _Affine(scale, beta - mean * scale)

    def _parts(self, layer: _Layer, affine: _Affine) -> tuple[Array | None, Array] | None:
        """The new weight (None: the old one) and bias; None where folding is not right."""
        bias = self._bias(layer)
        if bias is None:
            return None
        scaled = bias if affine.scale is None else bias * affine.scale
        new_bias: Array = (scaled + affine.shift).astype(_DTYPES[layer.weight.dtype])
        if affine.scale is None:
            return (None, new_bias) if np.isfinite(new_bias).all() else None
        root = layer.weight.root
        if any(len(v.uses()) != 1 or v.is_graph_output() for v in (root, layer.value)):
            return None  # another node uses the weight as it is
        new_weight = layer.scaled(affine.scale)
        # float16 may overflow, and a damaged model may hold anything.
        if not (np.isfinite(new_bias).all() and np.isfinite(new_weight).all()):
            return None
        return new_weight, new_bias

    def _put(self, node: ir.Node, index: int, array: Array, name: str) -> None:
        """Make `array` the node's constant input; the old name stays if the input was its alone."""
        old = node.inputs[index] if index < len(node.inputs) else None
        alone = old is not None and len(old.uses()) == 1 and not old.is_graph_output()
        if old is not None and alone and old.is_initializer():
            old.const_value = ir.tensor(array, name=old.name)
            old.shape, old.dtype = ir.Shape(array.shape), old.const_value.dtype
            return
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, self._store(node, array, name))
        if old is not None:
            discard(old)

    def _store(self, node: ir.Node, array: Array, wanted: str) -> ir.Value:
        name = unique_name(wanted, self.taken)
        tensor = ir.tensor(array, name=name)
        graph = node.graph
        assert graph is not None
        if graph is not self.model.graph:
            # A function has no initializers; in subgraphs a Constant does as well.
            constant = ir.node("Constant", [], attributes={"value": tensor}, name=name)
            value = constant.outputs[0]
            value.name, value.dtype, value.shape = name, tensor.dtype, ir.Shape(array.shape)
            graph.insert_before(node, constant)
            return value
        value = initializer(graph, tensor, name)
        if (self.model.ir_version or 0) < _PLAIN_INITIALIZERS:
            graph.inputs.append(value)
        return value


def _per_channel(array: Array, channels: int, rank: int, axis: int) -> Array | None:
    """`array` as [channels] or [] in float64, if it broadcasts over `rank` axes along `axis` only."""
    if array.ndim > rank:
        return None
    if array.size == 1:
        return array.reshape(()).astype(np.float64)
    expected = [1] * rank
    expected[axis] = channels
    if [1] * (rank - array.ndim) + list(array.shape) != expected:
        return None
    return array.reshape(channels).astype(np.float64)


def _resolve_cast(node: ir.Node) -> bool:
    """Make a CastLike a Cast: then what it casts may be constant though what it is like is not."""
    if node.op_type != "CastLike" or node.domain not in _STANDARD or len(node.inputs) != 2:
        return False
    like = node.inputs[1]
    if like is None or like.dtype is None or any(a.is_ref() for a in node.attributes.values()):
        return False
    node.op_type = "Cast"
    node.attributes["to"] = ir.AttrInt64("to", like.dtype.value)
    node.resize_inputs(1)
    return True


def _take_over(node: ir.Node, follower: ir.Node) -> None:
    """Let the node make the follower's output, under the name that it has there; the follower goes."""
    new, old, graph = node.outputs[0], follower.outputs[0], follower.graph
    assert graph is not None
    operands = [v for v in follower.inputs if v is not None and v is not new]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = old.name
    inherit_value(new, old)
    graph.remove(follower, safe=True)
    for operand in operands:
        discard(operand)


def _bias_name(layer: _Layer, follower: ir.Node) -> str:
    weight = layer.value.name or ""
    if weight.endswith("weight"):
        return weight.removesuffix("weight") + "bias"
    return f"{layer.node.name or follower.outputs[0].name}/bias"


def _number(node: ir.Node, name: str, default: float) -> Any:
    return node.attributes[name].value if name in node.attributes else default
