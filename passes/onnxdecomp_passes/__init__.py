"""The passes that come with onnxdecomp, one module a pass.

Another package adds its own in the same way: a mapping like `PASSES`, named by an entry point of the
group `onnxdecomp.passes`. Importing this package imports nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

PASSES: Mapping[str, str] = {
    "simplify": "onnxdecomp_passes.simplify:Simplify",
    "normalise": "onnxdecomp_passes.normalise:Normalise",
    "decompose": "onnxdecomp_passes.decompose:Decompose",
    "refine": "onnxdecomp_passes.refine:Refine",
    "merge": "onnxdecomp_passes.merge:Merge",
    "quantize": "onnxdecomp_passes.quantize:Quantize",
    "annotate": "onnxdecomp_passes.annotate:Annotate",
    "check": "onnxdecomp_passes.check:Check",
}
"""Name of the pass -> "module:Class"."""
