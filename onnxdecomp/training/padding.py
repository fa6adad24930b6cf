"""Padding in values that are trained on: left out of what is compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch

from onnxdecomp.data.mask import Mask

Tensor: TypeAlias = torch.Tensor


def real(
    mask: Mask | None, feed: Mapping[str, Tensor], values: Mapping[str, Tensor], whole: Collection[str] = ()
) -> Mapping[str, Tensor]:
    """The values at positions that are real, [n, ...] where there are others.

    Args:
        mask: Which inputs say so, or None.
        feed: The networks' inputs.
        values: What a network makes of them, by name.
        whole: Names of values that stay as they are: rows of scores, which labels belong to.
    """
    if mask is None:
        return values
    told = {spec.name: feed[spec.name].cpu().numpy() for spec in mask.inputs}
    found = dict(values)
    for name, value in values.items():
        which = None if name in whole else mask.values(told, tuple(value.shape))
        if which is not None:
            found[name] = value[torch.from_numpy(which.copy()).to(value.device)]
    return found
