"""Repair: a layer that is kept, fitted to make up for what decomposed layers before it have lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.fit import Fit
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from onnxdecomp.fitting.strengths import SHRINKAGES, Trial, chosen, growth, tried
from onnxdecomp.tensor.blas_threads import one_thread

_UNHARMED = 1e-8
"""Of the outputs' energy: less is lost only where nothing before the layer has changed."""


@one_thread()
def repair(
    layer: Layer,
    train: Moments,
    held_out: Moments | None = None,
    *,
    shrinkages: Sequence[float] = SHRINKAGES,
    centred: bool = True,
) -> Fit | None:
    """The layer's own operator with numbers that are best for what it sees by now.

    Its bias alone is corrected where held-out rows say that other weights would be no better, or where none
    were held out. None where nothing was lost before it, or nothing can be done about it.

    Args:
        layer, train, held_out, shrinkages, centred: As for `fit`.
    """
    weight = as_rows(layer.weight, layer)

    def of_all(shrinkage: float = 0.0) -> Problem:
        # Made anew each time: it may be as large as a vocabulary, and little is needed of it at once.
        return problem(merged(train, held_out), weight, shrinkage, centred=centred)

    judged = of_all()
    lost = judged.relative(weight)
    if lost + (_moved(judged, weight, layer) if centred else 0.0) <= _UNHARMED:
        return None
    del judged
    strength, outside = None, None
    if held_out is not None:
        judge = problem(held_out, weight, centred=centred)
        outside = judge.about(weight)

        def trial(shrinkage: float) -> Trial:
            best = problem(train, weight, shrinkage, centred=centred).best
            return Trial(shrinkage, judge.about(best), growth(best, weight))

        if (taken := chosen(tried(shrinkages, trial), outside)) is not None:
            strength, outside = taken.strength, taken.loss
        del judge
    if strength is None and not centred:
        return None
    fitted = weight if strength is None else of_all(strength).best
    judged = of_all()
    bias = judged.bias(fitted) if centred else layer.bias
    chain = dense_chain(replace(layer, weight=_in_place(fitted, layer), bias=bias))
    return Fit(chain, judged.relative(fitted), lost, outside, 0.0 if strength is None else strength)


def _moved(judged: Problem, weight: Array, layer: Layer) -> float:
    """What the means of the outputs have moved by, squared, over the outputs' energy."""
    own = np.zeros(layer.outputs) if layer.bias is None else layer.bias
    moved = float(np.sum(np.square(judged.bias(weight) - own)))
    return moved / judged.energy if judged.energy else moved


def _in_place(rows: Array, layer: Layer) -> Array:
    return np.ascontiguousarray(rows.reshape(layer.weight.shape))
