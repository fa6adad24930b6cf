"""What ONNX Runtime's optimizer fuses with a layer (domain com.microsoft): FusedConv and FusedGemm.

FusedMatMul is a MatMul with more attributes, see onnxdecomp.layers.linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from onnxdecomp.layers.conv import conv_site
from onnxdecomp.layers.linear import gemm_site
from onnxdecomp.layers.site import Fused, Scope, Site


def fused_conv_site(node: ir.Node, scope: Scope) -> Site | str:
    """The site of a FusedConv: a Conv, then a residual Z and an activation; or why there is none."""
    return _fused(node, scope, conv_site)


def fused_gemm_site(node: ir.Node, scope: Scope) -> Site | str:
    """The site of a FusedGemm: a Gemm, then an activation; or why there is none."""
    return _fused(node, scope, gemm_site)


def _fused(node: ir.Node, scope: Scope, plain: Callable[[ir.Node, Scope], Site | str]) -> Site | str:
    site = plain(node, scope)
    if isinstance(site, str):
        return site
    attributes = {
        name: attr.value
        for name, attr in node.attributes.items()
        # An empty list has no type, and says as much as no attribute.
        if name.startswith("activation") and attr.value not in ("", ())
    }
    residual = node.inputs[3] if len(node.inputs) > 3 else None
    if "activation" not in attributes and residual is None:
        return site
    return replace(site, fused=Fused(attributes, residual))
