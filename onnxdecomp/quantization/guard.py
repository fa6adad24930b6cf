"""Whether a model survives 8 bits: it is not enough that the quantizer wrote something that runs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxdecomp.data.mask import Mask
from onnxdecomp.graph.save import save
from onnxdecomp.quantization.int8 import Reader, int8, operators
from onnxdecomp.quantization.scheme import Scheme
from onnxdecomp.runtime.comparable import Compared, unsteady
from onnxdecomp.runtime.session import open_session, run
from onnxdecomp.sites.base import dims

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds

HARMED = 0.5
"""Relative L2 distance of the outputs from which on a quantized model is taken for broken."""

_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))

_JUDGED = 32
"""Calibration inputs that are compared."""


@dataclass(frozen=True, eq=False)
class Guarded:
    """A quantized model, or why there is none.

    Attributes:
        model: The quantized model, or None where its outputs are nothing like the original's.
        error: The relative L2 distance of its outputs on calibration inputs; of the best try.
        note: What a user should know, or "".
    """

    model: ir.Model | None
    error: float
    note: str = ""


def guarded(
    model: ir.Model, feeds: Feeds, scheme: Scheme, *, samples: int = 256, mask: Mask | None = None
) -> Guarded:
    """`int8`, judged by the outputs on calibration inputs.

    One range for all numbers of a tensor fails where few of them are large, with masks and powers. Where that
    breaks a model, only convolutions and products of matrices are quantized.

    Raises:
        ModelError: As `int8`.
    """
    made = int8(model, feeds, scheme, samples=samples)
    error = distance(model, made, feeds, mask)
    if error <= HARMED:
        return Guarded(made, error)
    narrow = replace(scheme, leave=operators() - _PRODUCTS)
    again = int8(model, feeds, narrow, samples=samples)
    better = distance(model, again, feeds, mask)
    if better <= HARMED:
        note = (
            "int8 in convolutions and products of matrices only: with all operators in 8 bits the outputs "
            f"are off by {error:.0%}"
        )
        return Guarded(again, better, note)
    least = min(error, better)
    note = f"not quantized, for in 8 bits the outputs are off by {least:.0%} (relative L2, on --calib)"
    return Guarded(None, least, note)


def distance(model: ir.Model, other: ir.Model, feeds: Feeds, mask: Mask | None = None) -> float:
    """||other(x) - model(x)|| / ||model(x)|| over all floating-point outputs; infinite where not finite.

    Outputs that cannot be compared are left out, and so are positions that are padding; 0 where nothing is
    left.
    """
    with tempfile.TemporaryDirectory(prefix="onnxdecomp-") as folder:
        files = [Path(folder) / name for name in ("a.onnx", "b.onnx")]
        for file, content in zip(files, (model, other), strict=True):
            save(content.clone(), file)
        sessions = [open_session(file) for file in files]
        reader = Reader(feeds.first(_JUDGED))
        first = True
        names = [str(value.name) for value in model.graph.outputs]
        declared = {str(value.name): dims(value) for value in model.graph.outputs}
        compared = Compared(names, declared=declared, mask=mask)
        while (feed := reader.get_next()) is not None:
            originals, news = (run(session, feed) for session in sessions)
            if first:
                compared.left_out |= unsteady(names, originals, run(sessions[0], feed))
                first = False
            compared.add(feed, originals, news)
    floats = [comparison for comparison in compared.comparisons if not comparison.discrete]
    if any(comparison.nonfinite for comparison in floats):
        return float("inf")
    difference, norm = (sum(getattr(c, what) for c in floats) for what in ("error_energy", "energy"))
    return float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))
