"""Whether a model survives 8 bits: it is not enough that the quantizer wrote something that runs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxdecomp.graph.save import save
from onnxdecomp.quantization.int8 import Reader, int8, operators
from onnxdecomp.quantization.scheme import Scheme
from onnxdecomp.runtime.session import open_session, run

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


def guarded(model: ir.Model, feeds: Feeds, scheme: Scheme, *, samples: int = 256) -> Guarded:
    """`int8`, judged by the outputs on calibration inputs.

    One range for all numbers of a tensor fails where few of them are large, with masks and powers. Where that
    breaks a model, only convolutions and products of matrices are quantized.

    Raises:
        ModelError: As `int8`.
    """
    made = int8(model, feeds, scheme, samples=samples)
    error = distance(model, made, feeds)
    if error <= HARMED:
        return Guarded(made, error)
    narrow = replace(scheme, leave=operators() - _PRODUCTS)
    again = int8(model, feeds, narrow, samples=samples)
    better = distance(model, again, feeds)
    if better <= HARMED:
        note = (
            "int8 in convolutions and products of matrices only: with all operators in 8 bits the outputs "
            f"are off by {error:.0%}"
        )
        return Guarded(again, better, note)
    least = min(error, better)
    note = f"not quantized, for in 8 bits the outputs are off by {least:.0%} (relative L2, on --calib)"
    return Guarded(None, least, note)


def distance(model: ir.Model, other: ir.Model, feeds: Feeds) -> float:
    """||other(x) - model(x)|| / ||model(x)|| over all floating-point outputs; infinite where not finite."""
    with tempfile.TemporaryDirectory(prefix="onnxdecomp-") as folder:
        files = [Path(folder) / name for name in ("a.onnx", "b.onnx")]
        for file, content in zip(files, (model, other), strict=True):
            save(content.clone(), file)
        sessions = [open_session(file) for file in files]
        reader = Reader(feeds.first(_JUDGED))
        difference = norm = 0.0
        while (feed := reader.get_next()) is not None:
            for a, b in zip(*(run(session, feed) for session in sessions), strict=True):
                if a.dtype.kind == "f":
                    difference += float(np.square(b.astype(np.float64) - a).sum())
                    norm += float(np.square(a.astype(np.float64)).sum())
    if not np.isfinite(difference):
        return float("inf")
    return float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))
