"""Finding every layer of a model, in the main graph, in subgraphs and in model-local functions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxdecomp.errors import OnnxDecompError
from onnxdecomp.graph.attributes import node_name
from onnxdecomp.graph.constants import Memo
from onnxdecomp.graph.traversal import Place, places
from onnxdecomp.layers.adapter import LayerMatch, Skip
from onnxdecomp.layers.held_weights import held_weights
from onnxdecomp.layers.registry import adapter_of, adapters
from onnxdecomp.layers.scope import MICROSOFT, Scope

_log = logging.getLogger(__name__)

NOT_TAKEN = {
    "": frozenset("ConvInteger DeformConv QLinearConv QLinearMatMul".split()),  # noqa: SIM905
    MICROSOFT: frozenset(
        """
        AttnLSTM CausalConvWithState ConvTransposeWithDynamicPads DecoderAttention DecoderMaskedSelfAttention
        DynamicQuantizeLSTM EmbedLayerNormalization FusedMatMulActivation
        GatherBlockQuantized GemmFastGelu GemmFloat8 LongformerAttention MatMulBlockQuantizedFp4Weight
        MatMulBlockQuantizedFp8Weight MatMulBnb4 MatMulFpQ4 MatMulInteger16 MoE NhwcConv
        NhwcFusedConv PackedAttention QAttention QEmbedLayerNormalization QGemm QLinearConv QMoE
        QOrderedAttention QOrderedLongformerAttention QOrderedMatMul TorchEmbedding TransposeMatMul
        VarlenCausalConvWithState WordConvEmbedding
        """.split()  # noqa: SIM905 - a column of strings is no easier to read
    ),
}
"""Operators of each domain that carry weights and that no method takes: listed so that nobody wonders."""

BLOCKED = "com.microsoft.nchwc"
"""The domain of operators whose weights ONNX Runtime has laid out for one kind of processor."""

OLDEST_OPSET = 7
"""Before it, Gemm and Add broadcast by an attribute and ONNX Runtime promises nothing."""


def find(model: ir.Model, *, freeze: bool = False) -> tuple[list[LayerMatch], list[Skip]]:
    """The matches of a model in graph order, and the operators that carry a weight but cannot be matches.

    Args:
        model: Read only; activation shapes are taken from its values (graph.shapes fills them in).
        freeze: Treat initializers that are also graph inputs as constants.
    """
    matched: list[LayerMatch] = []
    left: list[tuple[ir.Node, Scope, str]] = []
    memo: Memo = {}
    for place in places(model):
        scope = Scope(place, model.ir_version, _opset(model, place), freeze, memo)
        for node in place.graph:
            found = _read(node, scope)
            if isinstance(found, LayerMatch):
                matched.append(found)
            elif found is not None:
                left.append((node, scope, found))
    return _distinct(matched), _skipped(left, {match.root for match in matched})


def _skipped(left: Sequence[tuple[ir.Node, Scope, str]], counted: set[ir.Value]) -> list[Skip]:
    """What is no layer, for its reason, with what it holds; `counted` are the roots of what others hold."""
    skips = []
    for node, scope, reason in left:
        skip = Skip(node_name(node), node.op_type, scope.place.path, reason)
        if held := held_weights(node, scope, counted):
            counted.update(held.roots)
            skip = replace(skip, weight=held.weight, params=held.params, macs=held.macs)
        skips.append(skip)
    return skips


def find_again(copy: ir.Model, match: LayerMatch) -> LayerMatch:
    """The same layer in a clone of its model, without a look at all the others.

    Args:
        copy: The clone; as it was made, and the model as it was then.
        match: The layer in the model.
    """
    place = next(place for place in places(copy) if place.path == match.place.path)
    position = next(at for at, node in enumerate(match.place.graph) if node is match.nodes[0])
    found = _match(place.graph[position], Scope(place, copy.ir_version, _opset(copy, place), freeze=True))
    assert isinstance(found, LayerMatch)
    return replace(found, layer=replace(found.layer, name=match.layer.name))


def _read(node: ir.Node, scope: Scope) -> LayerMatch | str | None:
    """What is found of a node; an error of ours is a reason to leave it alone."""
    try:
        return _match(node, scope)
    except Exception as error:
        if isinstance(error, OnnxDecompError):
            raise
        _log.info("the node %r cannot be read", node.name, exc_info=error)
        return f"{node.op_type} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}"


def _match(node: ir.Node, scope: Scope) -> LayerMatch | str | None:
    adapter = adapter_of(node)
    if adapter is None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain == BLOCKED and ("", node.op_type) in adapters().by_operator:
            return "ONNX Runtime has laid it out for one kind of processor; save its model at a lower level"
        return f"{node.op_type} is not decomposed" if node.op_type in NOT_TAKEN.get(domain, ()) else None
    reason = None
    if parameters := [name for name, attr in node.attributes.items() if attr.is_ref()]:
        reason = f"its {parameters[0]} is a parameter of the function"
    elif scope.opset < OLDEST_OPSET:
        reason = f"opset {scope.opset} is older than {OLDEST_OPSET}"
    if reason is not None:
        return None if adapter.optional_weight else reason
    return adapter.match(node, scope)


def _distinct(matched: list[LayerMatch]) -> list[LayerMatch]:
    """The matches, their names unique within a graph: a repeated name gets the output's name behind it."""
    count = Counter((match.layer.graph, match.layer.name) for match in matched)

    def renamed(match: LayerMatch) -> LayerMatch:
        if count[match.layer.graph, match.layer.name] == 1:
            return match
        return replace(match, layer=replace(match.layer, name=f"{match.layer.name}:{match.output.name}"))

    return [renamed(match) for match in matched]


def _opset(model: ir.Model, place: Place) -> int:
    imports = place.function.opset_imports if place.function is not None else model.opset_imports
    return int(imports.get("", model.opset_imports.get("", 1)) or 1)
