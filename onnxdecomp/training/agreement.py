"""Whether torch computes what ONNX Runtime does, on the user's data: asked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from onnxdecomp.data.mask import Mask
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.traversal import places, slots
from onnxdecomp.runtime.session import Feed, open_session, run
from onnxdecomp.training.autograd.network import Network

EXACT, ROUNDED = 1e-4, 5e-2
"""Largest relative L2 difference of an output: of models in single precision, and of those that round.

Half precision and quantization round after every operator, and where two ways of adding up differ in the
last bit, a number now and then falls on the other side of a step."""


def check_agreement(
    model: ir.Model, path: Path, network: Network, feeds: Sequence[Feed], mask: Mask | None = None
) -> float:
    """The largest relative L2 difference of an output on these feeds, padding left out.

    Raises:
        ModelError: It is too large.
    """
    session = open_session(path, integers=False)
    worst, where = 0.0, ""
    for feed in feeds:
        with torch.no_grad():
            found = network(feed)
        for (name, ours), theirs in zip(found.items(), run(session, feed), strict=True):
            expected, made = np.asarray(theirs, np.float64), ours.cpu().numpy().astype(np.float64)
            real = None if mask is None else mask.values(feed, expected.shape)
            if real is not None:
                expected, made = expected[real], made[real]
            difference = float(np.linalg.norm(made - expected))
            norm = float(np.linalg.norm(expected))
            error = difference / norm if norm else difference
            if not error <= worst:  # NaN is the worst
                worst, where = error, name
    limit = ROUNDED if _rounds(model) else EXACT
    if not worst <= limit:
        raise ModelError(
            f"torch and ONNX Runtime differ by {worst:.2g} in the output {where!r} (at most {limit:g}): this "
            "model cannot be trained; please report it"
        )
    return worst


def _rounds(model: ir.Model) -> bool:
    """Whether a model computes in less than single precision anywhere."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    if any(slot.tensor.dtype in halves for slot in slots(model)):
        return True
    return any(node.op_type == "QuantizeLinear" for place in places(model) for node in place.graph)
