"""Finding every layer of a model, in the main graph, in subgraphs and in model-local functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from onnxdecomp.graph.walk import Place, places
from onnxdecomp.sites.base import Scope, Site, Skip, node_name
from onnxdecomp.sites.conv import conv_site
from onnxdecomp.sites.linear import gemm_site, matmul_site

FINDERS: dict[str, Callable[[ir.Node, Scope], Site | str]] = {
    "Conv": conv_site,
    "ConvTranspose": conv_site,
    "Gemm": gemm_site,
    "MatMul": matmul_site,
}
"""Operator type (of the ONNX domain) to what makes a site of it."""

NOT_TAKEN = frozenset(
    ("LSTM", "GRU", "RNN", "Einsum", "DeformConv", "ConvInteger", "MatMulInteger", "QLinearConv")
    + ("QLinearMatMul", "QGemm", "FusedConv", "FusedMatMul", "FusedGemm", "MatMulNBits", "Attention")
)
"""Operators that carry weights and that no method takes: listed so that nobody wonders."""

OLDEST_OPSET = 7
"""Before it, Gemm and Add broadcast by an attribute and ONNX Runtime promises nothing."""


def find(model: ir.Model, *, freeze: bool = False) -> tuple[list[Site], list[Skip]]:
    """The sites of a model in graph order, and the operators that carry a weight but cannot be sites.

    Args:
        model: Read only; activation shapes are taken from its values (graph.shapes fills them in).
        freeze: Treat initializers that are also graph inputs as constants.
    """
    sites: list[Site] = []
    skips: list[Skip] = []
    for place in places(model):
        scope = Scope(place, model.ir_version, _opset(model, place), freeze)
        for node in place.graph:
            finder = FINDERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if finder is None:
                if node.op_type in NOT_TAKEN:
                    reason = f"{node.op_type} is not decomposed"
                    skips.append(Skip(node_name(node), node.op_type, place.path, reason))
                continue
            found = (
                f"opset {scope.opset} is older than {OLDEST_OPSET}"
                if scope.opset < OLDEST_OPSET
                else finder(node, scope)
            )
            if isinstance(found, Site):
                sites.append(found)
            else:
                skips.append(Skip(node_name(node), node.op_type, place.path, found))
    return _distinct(sites), skips


def _distinct(sites: list[Site]) -> list[Site]:
    """The sites, their names unique within a graph: a repeated name gets the output's name behind it."""
    count = Counter((site.layer.graph, site.layer.name) for site in sites)

    def renamed(site: Site) -> Site:
        if count[site.layer.graph, site.layer.name] == 1:
            return site
        return replace(site, layer=replace(site.layer, name=f"{site.layer.name}:{site.output.name}"))

    return [renamed(site) for site in sites]


def _opset(model: ir.Model, place: Place) -> int:
    imports = place.function.opset_imports if place.function is not None else model.opset_imports
    return int(imports.get("", model.opset_imports.get("", 1)) or 1)
