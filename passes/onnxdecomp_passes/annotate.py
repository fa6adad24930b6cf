"""annotate: write down what made the model; last, because simplifiers drop metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnxdecomp
from onnxdecomp.graph.traversal import places
from onnxdecomp.pipeline.base import Pass, PassContext, PassResult, option

if TYPE_CHECKING:
    import onnx_ir as ir

PREFIX = "pkg.onnxdecomp."


@dataclass(frozen=True)
class Annotate(Pass):
    """Add model metadata `pkg.onnxdecomp.*`; the producer stays, and so do times and paths unwritten.

    The nodes of replaced layers carry theirs (`layer`, `method`, `ranks`, `part`) from their making.
    """

    name: ClassVar[str] = "annotate"
    summary: ClassVar[str] = "Write the version, the methods and the plan's hash into the model's metadata"

    plan_sha256: str | None = option(None, "SHA-256 of the plan that was carried out")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        wanted = {PREFIX + "version": onnxdecomp.__version__}
        methods = {
            node.metadata_props[PREFIX + "method"]
            for place in places(model)
            for node in place.graph
            if PREFIX + "method" in node.metadata_props
        }
        if methods:
            wanted[PREFIX + "methods"] = ",".join(sorted(methods))
        if self.plan_sha256 is not None:
            wanted[PREFIX + "plan_sha256"] = self.plan_sha256
        modified = any(model.metadata_props.get(key) != value for key, value in wanted.items())
        model.metadata_props.update(wanted)
        return PassResult(model, modified)
