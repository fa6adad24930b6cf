"""BatchNormalization that was not folded away: its statistics, measured anew behind layers that changed."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activation_cache import Window
from onnxdecomp.calibration.statistics import Calibration, mask_feeds
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.graph.constants import discard, initializer
from onnxdecomp.graph.traversal import unique_name, value_names

_MEAN, _VARIANCE = 3, 4
"""Positions among the operator's inputs."""

_UNHARMED = 1e-4
"""Of the standard deviation: what moments may differ by without a change."""


def normalisations(model: ir.Model) -> list[ir.Node]:
    """The BatchNormalization nodes of the main graph with constant statistics, for inference."""
    found = []
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        if attribute(node, "training_mode", 0) or sum(1 for out in node.outputs if out.name) != 1:
            continue
        if all(value is not None and _constant(value) is not None for value in node.inputs[_MEAN:]):
            found.append(node)
    return found


def renormalise(
    model: ir.Model,
    node: ir.Node,
    now: Window,
    original: Window,
    pending: Collection[ir.Node],
    calibration: Calibration | None = None,
    left: Array | None = None,
) -> bool:
    """Put the statistics in that `new_statistics` finds; whether there were any."""
    found = new_statistics(node, now, original, pending, calibration, left)
    if found is not None:
        put_statistics(model, node, *found)
    return found is not None


def put_statistics(model: ir.Model, node: ir.Node, mean: Array, variance: Array) -> None:
    """Other constants for the mean and the variance of a BatchNormalization."""
    _store(model, node, _MEAN, mean)
    _store(model, node, _VARIANCE, variance)


def new_statistics(
    node: ir.Node,
    now: Window,
    original: Window,
    pending: Collection[ir.Node],
    calibration: Calibration | None = None,
    left: Array | None = None,
) -> tuple[Array, Array] | None:
    """The mean and variance [C] that give the output those of the original; None where the old ones do.

    With m and v the moments of the operator's input, now and in the original, the stored variance is scaled
    by v_now / v_original, and the stored mean moved so that (m - mean) / deviation is what it was.

    Args:
        node: As it stands in the model of `now`.
        now, original: Windows on both models, where the input has the same name.
        pending: As for `Window.advance`.
        calibration: The inputs, where some of their positions are padding.
        left: Which of the original's channels there still are; None: all.
    """
    name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
    here, there = _Channels(), _Channels()
    feeds = itertools.repeat({}) if calibration is None else mask_feeds(calibration)
    mask = None if calibration is None else calibration.mask
    later = original.counterparts(pending)
    windows = zip(now.advance([name], pending), original.advance([name], later), strict=True)
    for ((ours,), (theirs,)), feed in zip(windows, feeds, strict=False):
        for channels, x in ((here, ours), (there, theirs if left is None else theirs[:, left])):
            real = None if mask is None else mask.rows(feed, (len(x), *x.shape[2:]))
            channels.add(x if real is None else np.moveaxis(x, 1, -1)[real])
    if here.count == 0 or there.count == 0:
        return None
    (mean_now, var_now), (mean_then, var_then) = here.moments(), there.moments()
    deviation = np.sqrt(np.maximum(var_then, 1e-30))
    moved = np.abs(mean_now - mean_then) / deviation, np.abs(np.sqrt(var_now) / deviation - 1)
    if max(float(change.max()) for change in moved) <= _UNHARMED:
        return None
    scale = np.where(var_then > 0, var_now / np.maximum(var_then, 1e-30), 1.0)
    mean, variance = (_constant(node.inputs[index]) for index in (_MEAN, _VARIANCE))
    assert mean is not None
    assert variance is not None
    moved_mean = mean_now - (mean_then - mean) * np.sqrt(scale)
    return moved_mean.astype(mean.dtype), (variance * scale).astype(variance.dtype)


def _store(model: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    """Another constant in the place of an operand, which others may read as well."""
    old = node.inputs[index]
    assert old is not None
    name = unique_name(f"{old.name}/repaired", value_names(model))
    node.replace_input_with(index, initializer(model.graph, ir.Tensor(array, name=name), name))
    discard(old)


class _Channels:
    """Sums over everything but the channels [C], batch by batch, around the first batch's mean."""

    def __init__(self) -> None:
        self.count = 0
        self._origin = self._sum = self._square = np.zeros(())

    def add(self, x: Array) -> None:
        if x.size == 0:
            return
        axes = (0, *range(2, x.ndim))
        if self.count == 0:
            self._origin = x.mean(axes, dtype=np.float64)
        moved = x - self._origin.reshape(-1, *(1,) * (x.ndim - 2))
        self.count += x.size // x.shape[1]
        self._sum = self._sum + moved.sum(axes)
        self._square = self._square + np.square(moved).sum(axes)

    def moments(self) -> tuple[Array, Array]:
        """Mean and variance of each channel."""
        mean = self._sum / self.count
        return self._origin + mean, self._square / self.count - np.square(mean)


def _constant(value: ir.Value | None) -> Array | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
