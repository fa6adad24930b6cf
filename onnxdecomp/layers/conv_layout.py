"""Layouts of the weights of transposed convolutions: ONNX's own and the canonical one."""

from __future__ import annotations

from onnxdecomp.core.layer import Array


def canonical_transposed(weight: Array, groups: int) -> Array:
    """ONNX's ConvTranspose weight [S, T/groups, *kernel] as the canonical [T, S/groups, *kernel]."""
    s, t, *kernel = weight.shape
    split = weight.reshape(groups, s // groups, t, *kernel)
    return split.swapaxes(1, 2).reshape(groups * t, s // groups, *kernel)


def onnx_transposed(weight: Array, groups: int) -> Array:
    """The canonical [T, S/groups, *kernel] as ONNX's ConvTranspose weight [S, T/groups, *kernel]."""
    t, s, *kernel = weight.shape
    split = weight.reshape(groups, t // groups, s, *kernel)
    return split.swapaxes(1, 2).reshape(groups * s, t // groups, *kernel)
