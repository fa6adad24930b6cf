"""How far a quantized model's outputs are from the original's: by the worst of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import Observer, open_observer
from onnxdecomp.calibration.pinned_values import pinned, present
from onnxdecomp.core.layer import Array
from onnxdecomp.data.comparable_outputs import Compared, unsteady
from onnxdecomp.data.mask import Mask
from onnxdecomp.graph.attributes import dims
from onnxdecomp.quantization.int8 import Reader
from onnxdecomp.runtime.metrics import Comparison, ratio
from onnxdecomp.runtime.session import Feed

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds

_JUDGED = 32
"""Calibration inputs that are compared."""


def distance(model: ir.Model, other: ir.Model, feeds: Feeds, mask: Mask | None = None) -> float:
    """||other(x) - model(x)|| / ||model(x)|| of the worst floating-point output.

    Infinite where a number is not finite that is so in the original, be it padding or in an output that is
    left out. Of a model without such outputs it is the largest share of an output's values that differ.

    Both compute with what the original chooses and draws (see onnxdecomp.calibration.pinned_values). Outputs
    that cannot be compared are left out, and so are positions that are padding; 0 where nothing is left.

    Raises:
        ModelError: One of them fails on an input.
    """
    names = [str(value.name) for value in model.graph.outputs]
    declared = {str(value.name): dims(value) for value in model.graph.outputs}
    compared: Compared | None = None
    both = _runs(model, other, names)
    reader = Reader(feeds.first(_JUDGED))
    while (feed := reader.get_next()) is not None:
        original, news = both(feed)
        originals = original()
        if compared is None:
            left_out = unsteady(names, originals, original())
            compared = Compared(names, declared=declared, mask=mask, left_out=left_out)
        if any(_breaks(*pair) for pair in compared.add(feed, originals, news()).values()):
            return math.inf
    comparisons = [] if compared is None else compared.comparisons
    floats = [comparison for comparison in comparisons if not comparison.discrete]
    energy = sum(comparison.energy for comparison in floats)
    return max((_error(comparison, energy) for comparison in floats or comparisons), default=0.0)


def _breaks(original: Array, new: Array) -> bool:
    """Whether a number is not finite that is so in the original."""
    if original.dtype.kind not in "fV" or new.dtype.kind not in "fV":
        return False
    finite = [np.isfinite(np.asarray(array, np.float64)) for array in (original, new)]
    return bool(np.any(finite[0] & ~finite[1]))


def _error(comparison: Comparison, energy: float) -> float:
    """The relative error of an output; of one that is zero throughout, beside all outputs' energy."""
    if comparison.discrete or comparison.energy > 0:
        return comparison.rel_l2
    return ratio(comparison.error_energy, energy or 1.0)


_Run: TypeAlias = Callable[[], list[Array]]


def _runs(model: ir.Model, other: ir.Model, names: Sequence[str]) -> Callable[[Feed], tuple[_Run, _Run]]:
    """For an input what runs the two models on it, with the kernels that they will run on."""
    models = model, other
    choices = pinned(model)
    if choices:
        asked = open_observer(model, choices, threads=1)
        opened: list[Observer] = []

        def on_choices(feed: Feed) -> tuple[_Run, _Run]:
            chosen = dict(zip(asked.names, asked.run(feed), strict=True))
            given = [present(one, [chosen])[0] for one in models]
            if not opened:
                opened.extend(
                    open_observer(one, names, threads=1, known=known, integers=True)
                    for one, known in zip(models, given, strict=True)
                )
            first, second = (partial(t.run, feed | known) for t, known in zip(opened, given, strict=True))
            return first, second

        return on_choices
    old, new = (open_observer(one, names, integers=True) for one in models)
    return lambda feed: (partial(old.run, feed), partial(new.run, feed))
