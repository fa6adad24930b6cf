"""drop-dropout: in inference a Dropout is the identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxdecomp.pipeline.base import Pass, PassContext, PassResult, option


@dataclass(frozen=True)
class DropDropout(Pass):
    """Remove Dropout nodes whose mask nobody reads."""

    name: ClassVar[str] = "drop-dropout"
    summary: ClassVar[str] = "Remove Dropout nodes, which do nothing in inference"

    keep: tuple[str, ...] = option((), "names of nodes that stay")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        removed = 0
        for node in list(model.graph):
            operand = node.inputs[0] if node.op_type == "Dropout" else None
            if operand is None or node.name in self.keep or node.outputs[0].is_graph_output():
                continue
            node.outputs[0].replace_all_uses_with(operand)
            model.graph.remove(node, safe=True)
            removed += 1
        notes = (f"{removed} Dropout nodes removed",) if removed else ()
        return PassResult(model, removed > 0, notes=notes, record={"removed": removed})
