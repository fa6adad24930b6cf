"""What a layer is fed when it is run alone: seeded random numbers of shapes that its graph could give it."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.layers.lowering_check.submodel import constant
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.layers.site import Site

_MOST_ROWS = 8
_MOST_SPATIAL = 16

Fed: TypeAlias = tuple[tuple[ir.Value, Array], ...]
"""The values that a layer is given, each with numbers for it."""


def fed(rewritten: Rewritten, rng: np.random.Generator) -> Fed:
    """The values that the layer's nodes read and that are not constant, with numbers for each."""
    site = rewritten.site
    if site.form is not None:
        return _fed_by_form(rewritten, rng)
    shape = _small_shape(site)
    given = {id(site.x): (site.x, rng.standard_normal(shape))}
    residual = site.fused.residual if site.fused is not None else None
    if residual is not None and id(residual) not in given:
        given[id(residual)] = (residual, rng.standard_normal(rewritten.chain.output_shape(shape)))
    addend = site.linear.addend if site.linear is not None else None
    if addend is not None and id(addend) not in given:
        rows = features_last(np.empty(shape), site).shape[:-1]
        wide = np.empty((*rows, site.layer.outputs))
        assert site.linear is not None
        full = np.swapaxes(wide, -1, -2).shape if site.linear.left else wide.shape
        given[id(addend)] = (addend, np.asarray(rng.standard_normal(full)))
    return tuple((value, array.astype(stored_type(site.layer))) for value, array in given.values())


def _fed_by_form(rewritten: Rewritten, rng: np.random.Generator) -> Fed:
    """The activation, the inputs that follow its shape, and the others that are not constant."""
    site = rewritten.site
    assert site.form is not None
    numbers = site.form.feeds(site.layer, rewritten.before, rng)
    fed: dict[int, tuple[ir.Value, Array]] = {}
    for position, operand in enumerate(rewritten.before.inputs):
        if operand is None or position == site.form.weight_at or id(operand) in fed:
            continue
        if operand is site.x or position in site.form.follow or constant(operand) is None:
            array = numbers[position]
            kind = stored_type(site.layer) if array.dtype.kind == "f" else array.dtype
            fed[id(operand)] = (operand, array.astype(kind))
    return tuple(fed.values())


def stored_type(layer: Layer) -> np.dtype[Any]:
    """The element type of the layer's weight and activations in the model."""
    return np.dtype(ir.DataType.BFLOAT16.numpy() if layer.dtype == "bfloat16" else layer.dtype)


def _small_shape(site: Site) -> tuple[int, ...]:
    """A shape that the site's own activation could have, small enough to be quick."""
    layer = site.layer
    shape = list(layer.assumed_input_shape(batch=2))
    if layer.conv is not None:
        spec = layer.conv
        shape[0] = min(shape[0], 2)
        for axis, kernel in enumerate(layer.kernel):
            span = spec.dilations[axis] * (kernel - 1) + 1
            at_least = span + 2 * spec.strides[axis]
            if spec.transposed and not isinstance(spec.pads, str):
                # The padding is cut off the output, of which something must be left.
                at_least += spec.pads[axis] + spec.pads[axis + spec.spatial_rank]
            shape[2 + axis] = max(min(shape[2 + axis], _MOST_SPATIAL), at_least)
        return tuple(shape)
    stack = layer.weight.ndim - 2
    for axis in range(len(shape) - 1):
        if axis < len(shape) - 2 - stack or axis == len(shape) - 2:
            shape[axis] = min(shape[axis], _MOST_ROWS)
    for axis in range(stack):  # a stack of matrices fixes these
        position = len(shape) - 2 - stack + axis
        if position >= 0:
            shape[position] = int(layer.weight.shape[axis])
    form = site.linear
    assert form is not None
    if form.left != form.swapped:
        shape[-1], shape[-2] = shape[-2], shape[-1]
    if form.rotated:
        shape = [shape[-2], *shape[:-2], shape[-1]]
    return tuple(shape)


def features_last(x: Array, site: Site) -> Array:
    """The activation of a Gemm or MatMul as the canonical y = x WT + b sees it."""
    form = site.linear
    assert form is not None
    if form.rotated:
        x = np.moveaxis(x, 0, -2)
    return x.swapaxes(-1, -2) if form.left != form.swapped else x
