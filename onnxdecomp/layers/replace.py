"""Putting chains in the place of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain, with_lookup
from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import LeftMatMul, MatMul, WeightedStep
from onnxdecomp.graph.constants import discard, initializer
from onnxdecomp.graph.inherit import inherit_value
from onnxdecomp.graph.traversal import Place, node_names, value_names
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.emitter import Emitter, Share
from onnxdecomp.layers.int8_weights import on_grid
from onnxdecomp.layers.lower import labels, lower
from onnxdecomp.layers.scope import Snapshot
from onnxdecomp.layers.siblings import source

LAYER = "pkg.onnxdecomp.layer"
"""The metadata of a rewritten layer's nodes that holds the layer's name."""


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A layer that was replaced: its match just before, the chain, and the nodes that stand there now.

    `before` is the match's first node as it was; `quantized` says that the factors are stored as int8;
    `rel_error` is ||What - W|| / ||W|| where it was measured, and `loss` E|y - What x|² / E|y|² on the
    calibration inputs, y centred, where the layer was fitted to them; `unfitted` says why it
    was not although there were such inputs. The match's weight may have been let
    go of (`without_weight`): its shape is still that of the weight, its numbers are then zeros.
    """

    match: LayerMatch
    chain: Chain
    nodes: tuple[ir.Node, ...]
    before: Snapshot
    quantized: bool = False
    rel_error: float | None = None
    loss: float | None = None
    unfitted: str = ""

    def without_weight(self) -> Rewritten:
        """The same without a hold on the dense weight, so that its memory can be used again."""
        layer = self.match.layer
        hollow = np.broadcast_to(np.zeros((), layer.weight.dtype), layer.weight.shape)
        root = self.match.root
        if root.producer() is None and not root.is_initializer() and not root.is_graph_input():
            root.const_value = None  # nothing uses it any more
        return replace(self, match=replace(self.match, layer=replace(layer, weight=hollow)))


@dataclass(frozen=True, eq=False)
class Trunk:
    """The first factor that siblings have in common, where it stands in the graph.

    Attributes:
        nodes: Those of the factor.
        output: What the siblings read in place of their activation.
    """

    nodes: tuple[ir.Node, ...]
    output: ir.Value


@dataclass(eq=False)
class Rewriter:
    """Replaces matches of one model; keeps names unique and stores equal factors once."""

    model: ir.Model
    _names: set[str] = field(init=False)
    _stored: dict[object, ir.Value] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._names = value_names(self.model) | node_names(self.model)

    def replace(
        self,
        match: LayerMatch,
        chain: Chain,
        metadata: Mapping[str, str],
        share: Share | None = None,
        quantize: bool = False,
        trunk: Trunk | None = None,
        *,
        named: bool = False,
    ) -> Rewritten:
        """Replace the match's nodes by the chain's.

        The last new node takes the name, the output name and the output's uses of the match's last node;
        the dense weight goes when nothing uses it any more. Matches replaced with the same `share` have the
        same factors, which are stored once. With `quantize`, factors are stored as int8 or
        as the match says, and the chain that is returned has their values. With a `trunk` of the chain's
        first step the nodes are those of the other steps. With `named` the first new node has the layer's
        name, by which it is found again.
        """
        match = match.current()
        before = match.snapshot()
        if trunk is not None:  # an Identity before the layer goes with it
            x = source(match.x)
            before = replace(before, inputs=tuple(x if v is match.x else v for v in before.inputs))
            match = replace(match, x=x)
        operands = [operand for node in match.nodes for operand in node.inputs]
        last_old = match.nodes[-1]
        if match.layer.lookup:
            chain = with_lookup(chain)
        if quantize:
            chain = on_grid(chain, match.storage)
        emit = self._emitter(match, metadata, quantize)
        if share is not None:
            emit.share, emit.mirror = share, _mirror(chain) if share.flipped else {}
        if trunk is None:
            match.adapter.lower(chain, match, emit)
        else:
            match.adapter.lower(_after_first(chain), replace(match, x=trunk.output), emit)
        last = emit.nodes[-1]
        pairs = [(old, new) for old, new in zip(last_old.outputs, last.outputs, strict=True) if old.name]
        if not last_old.outputs[0].name:
            last.outputs[0].name = ""
        self._name(match, emit.nodes, first=named)
        for key, value in last_old.metadata_props.items():
            last.metadata_props.setdefault(key, value)
        last.doc_string = last_old.doc_string
        ir.convenience.replace_nodes_and_values(
            match.place.graph,
            insertion_point=last_old,
            old_nodes=list(match.nodes),
            new_nodes=emit.nodes,
            old_values=[old for old, _ in pairs],
            new_values=[new for _, new in pairs],
        )
        for old, new in pairs:
            inherit_value(new, old)
        discard(match.weight)
        if match.bias is not None:
            discard(match.bias)
        for operand in dict.fromkeys(operands):  # what belongs to the weight, such as its scales
            if operand is not None and operand not in (match.weight, match.bias):
                discard(operand)
        above = () if trunk is None else trunk.nodes
        return Rewritten(match, chain, (*above, *emit.nodes), before, quantize)

    def trunk(
        self,
        siblings: Sequence[LayerMatch],
        chain: Chain,
        metadata: Mapping[str, str],
        quantize: bool = False,
    ) -> Trunk:
        """Put the first step of the chains of siblings into the graph, once for all of them.

        It comes before the first of them and bears its name.

        Args:
            siblings: As `layers.siblings` finds them, in graph order; none of them is replaced yet.
            chain: Of one of them; the first step is that of all.
            metadata, quantize: As for `replace`.
        """
        match = siblings[0].current()
        if quantize:
            chain = on_grid(chain, match.storage)
        (step, *_), (label, *_) = chain.steps, labels(chain)
        if isinstance(step, MatMul) and match.adapter.left:
            step = LeftMatMul(step.weight.swapaxes(-1, -2))
        emit = self._emitter(match, metadata, quantize)
        output = lower(step, source(match.x), None, label, emit)
        match.place.graph.insert_before(match.nodes[0], emit.nodes)
        return Trunk(tuple(emit.nodes), output)

    def _emitter(self, match: LayerMatch, metadata: Mapping[str, str], quantize: bool) -> Emitter:
        return Emitter(
            constant=lambda array, name, key: self._constant(match.place, array, name, key),
            unique=self._unique,
            name=match.layer.name,
            dtype=data_type(match.layer.dtype),
            metadata={LAYER: match.layer.name, **metadata},
            quantize=quantize,
            storage=match.storage,
            graph=match.place.graph,
            opset=self._opset(match.place),
        )

    def _name(self, match: LayerMatch, nodes: Sequence[ir.Node], *, first: bool) -> None:
        """Give the last node the name of the match's last, or the first one that of the layer as well."""
        last_name = match.nodes[-1].name
        nodes[-1].name = last_name or match.layer.name
        if first and len(nodes) > 1:
            nodes[-1].name = last_name or self._unique(f"{match.layer.name}/last")
            nodes[0].name = match.layer.name

    def _opset(self, place: Place) -> int:
        own = {} if place.function is None else place.function.opset_imports
        return int(own.get("", self.model.opset_imports.get("", 17)))

    def _unique(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._names:
            name, count = f"{wanted}_{count}", count + 1
        self._names.add(name)
        return name

    def _constant(self, place: Place, array: Array, name: str, key: object) -> ir.Value:
        """An initializer of the main graph, which subgraphs may capture; in a function a Constant node."""
        owner = place.path if place.function is not None else ""
        identity = None if key is None else (owner, key, array.dtype.str)
        if identity is not None and identity in self._stored:
            return self._stored[identity]
        tensor = ir.Tensor(array, name=self._unique(name))
        if place.function is not None:
            value = self._constant_node(place, tensor)
        else:
            value = initializer(self.model.graph, tensor, str(tensor.name))
        if identity is not None:
            self._stored[identity] = value
        return value

    def _constant_node(self, place: Place, tensor: ir.TensorProtocol) -> ir.Value:
        assert place.function is not None
        node = ir.node(
            "Constant", [], attributes={"value": tensor}, name=self._unique(f"{tensor.name}/constant")
        )
        node.outputs[0].name = tensor.name
        first = place.function[0]
        place.function.insert_before(first, node)
        return node.outputs[0]


def _after_first(chain: Chain) -> Chain:
    """The chain of what the first step gives."""
    first, *rest = chain.steps
    assert isinstance(first, WeightedStep)
    return replace(chain, steps=tuple(rest), inputs=int(first.weight.shape[first.output_axis]))


def _mirror(chain: Chain) -> dict[str, str]:
    """The steps' labels, and for each that of the step whose transpose it is in the chain's mirror image."""
    own = labels(chain)
    return dict(zip(own, reversed(own), strict=True))


def data_type(name: str) -> ir.DataType:
    """The element type of a name as `Layer.dtype` has it."""
    return ir.DataType.BFLOAT16 if name == "bfloat16" else ir.DataType.from_numpy(np.dtype(name))
